//! Puts the XDP objects that `cargo xtask build` makes where `include_bytes_aligned!` finds them.
//!
//! Another compiler builds them, so this script only copies. Without them the crate still builds, with empty objects,
//! so that `cargo build` and `cargo test` work where there is no eBPF compiler.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// Path of the gateway's object; the others lie beside it. `cargo xtask` sets it, and so may a packager.
const OBJECT_VARIABLE: &str = "LOADBALANCER_EBPF_OBJECT";
const OBJECTS: [&str; 2] = ["loadbalancer-ebpf", "decap-ebpf"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={OBJECT_VARIABLE}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let source = match env::var_os(OBJECT_VARIABLE) {
        Some(object) => PathBuf::from(object).parent().unwrap_or(Path::new("")).to_owned(),
        None => default_source(&out)?,
    };
    let mut absent = false;
    for name in OBJECTS {
        let object = source.join(name);
        let copy = out.join(name);
        if object.is_file() {
            println!("cargo:rerun-if-changed={}", object.display());
            fs::copy(&object, &copy).map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
        } else {
            absent = true;
            fs::write(&copy, []).map_err(|error| format!("cannot write {}: {error}", copy.display()))?;
        }
    }
    if absent {
        println!("cargo:warning=no eBPF object: run `cargo xtask build`");
        // cargo runs this again when the objects appear, but only if what it is told to watch exists.
        fs::create_dir_all(&source).map_err(|error| format!("cannot make {}: {error}", source.display()))?;
        println!("cargo:rerun-if-changed={}", source.display());
    }
    Ok(())
}

/// Where `cargo xtask build` puts the objects, below the target directory that this build uses as well.
fn default_source(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // cargo marks its target directory with this file.
    let target = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    let target = target.ok_or_else(|| format!("{} is in no target directory: set {OBJECT_VARIABLE}", out.display()))?;
    Ok(target.join("ebpf/bpfel-unknown-none/release"))
}
