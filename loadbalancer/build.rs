//! Embeds the eBPF objects that `cargo xtask build` has made.

use std::path::{Path, PathBuf};
use std::{env, fs};

const OBJECTS: [&str; 2] = ["loadbalancer-ebpf", "decap-ebpf"];

fn main() {
    println!("cargo:rerun-if-env-changed=LOADBALANCER_EBPF_DIR");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let directory = env::var_os("LOADBALANCER_EBPF_DIR").map_or_else(default_directory, PathBuf::from);
    for name in OBJECTS {
        let object = directory.join(name);
        println!("cargo:rerun-if-changed={}", object.display());
        let bytes = fs::read(&object).unwrap_or_else(|_| {
            println!("cargo:warning=no eBPF object {name}: this build cannot run a gateway; use `cargo xtask build`");
            Vec::new()
        });
        fs::write(out.join(name), bytes).expect("write to OUT_DIR");
    }
}

fn default_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace");
    workspace.join("target/ebpf/bpfel-unknown-none/release")
}
