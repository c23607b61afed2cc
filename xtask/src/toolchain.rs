//! Finds the compiler and the linker of the XDP program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::version::Version;
use crate::workspace::{Workspace, find_program, is_executable, programs};

pub const LINKER_VERSION: &str = "0.13.0";
pub const TARGET: &str = "bpfel-unknown-none";
/// A variable that names the compiler to use, before all others.
const CHOICE: &str = "LOADBALANCER_BPF_RUSTC";

/// A usable compiler.
#[derive(Debug)]
pub struct Compiler {
    pub rustc: PathBuf,
    /// Its core library for BPF must be built with the program: there are only the sources.
    pub build_core: bool,
}

/// A compiler that was looked at.
struct Candidate {
    rustc: PathBuf,
    /// How it can build, or why it cannot and what mends that.
    verdict: Result<Compiler, String>,
}

/// The first usable compiler, or all that is wrong with those that there are.
pub fn compiler(workspace: &Workspace) -> Result<Compiler, String> {
    let mut problems = Vec::new();
    for candidate in candidates(workspace) {
        match candidate.verdict {
            Ok(compiler) => return Ok(compiler),
            Err(problem) => problems.push(format!("{}: {problem}", candidate.rustc.display())),
        }
    }
    problems.push("`cargo xtask setup` installs one".to_owned());
    Err(format!("no compiler for the XDP program:\n  {}", problems.join("\n  ")))
}

/// Prints all candidates.
pub fn show(workspace: &Workspace) -> Result<()> {
    for Candidate { rustc, verdict } in candidates(workspace) {
        match verdict {
            Ok(Compiler { build_core: false, .. }) => println!("usable    {} (brings core for BPF)", rustc.display()),
            Ok(_) => println!("usable    {} (builds core for BPF from its sources)", rustc.display()),
            Err(problem) => println!("rejected  {}: {problem}", rustc.display()),
        }
    }
    match linker(workspace) {
        Ok(path) => println!("linker    {}", path.display()),
        Err(problem) => println!("linker    {problem}"),
    }
    Ok(())
}

fn candidates(workspace: &Workspace) -> Vec<Candidate> {
    let mut paths: Vec<PathBuf> = std::env::var_os(CHOICE).map(PathBuf::from).into_iter().collect();
    paths.push("/usr/bin/rustc".into());
    paths.extend(programs("rustc"));
    let toolchains = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".rustup")))
        .and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    for toolchain in toolchains.into_iter().flatten().flatten() {
        paths.push(toolchain.path().join("bin/rustc"));
    }
    let mut seen = Vec::new();
    paths.retain(|path| {
        let new = is_executable(path) && !seen.contains(path);
        seen.push(path.clone());
        new
    });
    paths.into_iter().map(|rustc| Candidate { verdict: judge(workspace, &rustc), rustc }).collect()
}

fn judge(workspace: &Workspace, rustc: &Path) -> Result<Compiler, String> {
    let ask = |arguments: &[&str]| {
        let output = workspace.foreign(rustc).args(arguments).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("it fails").to_owned())
        }
    };
    let libraries = ask(&["--print", "target-libdir", "--target", TARGET])?;
    if holds_core(&libraries) {
        return Ok(Compiler { rustc: rustc.to_owned(), build_core: false });
    }
    let sysroot = ask(&["--print", "sysroot"])?;
    if sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return Ok(Compiler { rustc: rustc.to_owned(), build_core: true });
    }
    let mend = match sysroot.file_name().and_then(|name| name.to_str()) {
        Some(name) if sysroot.to_string_lossy().contains("toolchains") => {
            format!("rustup component add rust-src --toolchain {name}")
        }
        _ => "apt-get install libstd-rust-web-dev-bpf".to_owned(),
    };
    Err(format!("has neither core for BPF nor Rust's sources; `{mend}` mends that"))
}

fn holds_core(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}

/// The linker, if it is one that works with the compiler.
pub fn linker(workspace: &Workspace) -> Result<PathBuf, String> {
    let Some(path) = find_program("bpf-linker").or_else(in_cargo_home) else {
        return Err("there is no bpf-linker; `cargo xtask setup` installs it".to_owned());
    };
    let output = workspace.foreign(&path).arg("--version").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wanted = Version::find(LINKER_VERSION);
    if Version::find(&text) < wanted {
        return Err(format!("{} is {}, {LINKER_VERSION} is needed", path.display(), text.trim()));
    }
    Ok(path)
}

fn in_cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))?;
    Some(home.join("bin/bpf-linker")).filter(|path| is_executable(path))
}

/// Clippy of Debian's compiler, which lints what that compiler builds.
pub fn lint_driver() -> Option<PathBuf> {
    let driver = PathBuf::from("/usr/bin/clippy-driver");
    is_executable(&driver).then_some(driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_is_found_by_its_library() {
        let directory = std::env::temp_dir().join(format!("xtask-core-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("libcompiler_builtins-1.rlib"), "").unwrap();
        assert!(!holds_core(&directory));
        fs::write(directory.join("libcore-123.rlib"), "").unwrap();
        assert!(holds_core(&directory));
        fs::remove_dir_all(&directory).unwrap();
    }
}
