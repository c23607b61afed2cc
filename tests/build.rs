//! Puts the object of the bench's generator, which `cargo xtask build` makes, where it is included.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const OBJECT_VARIABLE: &str = "LOADBALANCER_EBPF_OBJECT";
const NAME: &str = "generator-ebpf";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed={OBJECT_VARIABLE}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    let source = match (env::var_os(OBJECT_VARIABLE), target) {
        (Some(object), _) => PathBuf::from(object).parent().unwrap_or(Path::new("")).to_owned(),
        (None, Some(target)) => target.join("ebpf/bpfel-unknown-none/release"),
        (None, None) => {
            return Err(format!("{} is in no target directory: set {OBJECT_VARIABLE}", out.display()).into());
        }
    };
    let object = source.join(NAME);
    println!("cargo:rerun-if-changed={}", object.display());
    // Without it the packet bench says so.
    fs::write(out.join(NAME), fs::read(&object).unwrap_or_default())?;
    Ok(())
}
