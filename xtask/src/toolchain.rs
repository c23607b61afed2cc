//! Which compiler and which linker can build the XDP program.
//!
//! The program is compiled for `bpfel-unknown-none`. A compiler can do that if it has a core library for this target, or
//! the sources of one. The linker reads the compiler's LLVM bitcode, so its LLVM must not be older than the compiler's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::version::Version;
use crate::workspace::{Workspace, is_executable, programs};

pub const TARGET: &str = "bpfel-unknown-none";
/// Names the compiler to use, instead of the first that will do.
const COMPILER_VARIABLE: &str = "LOADBALANCER_BPF_RUSTC";
/// The oldest compiler that the XDP program's crates accept.
const OLDEST_RUSTC: &str = env!("CARGO_PKG_RUST_VERSION");

const LINKER: &str = "bpf-linker";
pub const LINKER_VERSION: &str = "0.13.0";
/// The LLVM that the linker is built with here, from Debian's package of the same number.
pub const LINKER_LLVM: Version = Version { major: 22, minor: 0 };

/// A compiler that can build the XDP program.
#[derive(Debug)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub release: String,
    pub core: Core,
    pub llvm: Version,
}

/// Where the core library for the target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    Prebuilt,
    /// Compiled along with the program (`-Z build-std`).
    Source,
}

/// Why something found will not do, and the command that mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub why: String,
    pub mend: String,
}

pub struct Candidate {
    rustc: PathBuf,
    origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// Named by [`COMPILER_VARIABLE`].
    Named,
    /// On PATH: a package of the distribution, or installed by hand.
    Path,
    /// Of rustup, under this name.
    Rustup(String),
}

/// What a candidate says of itself.
struct Facts {
    version: Option<Version>,
    core_library: bool,
    core_source: bool,
}

/// The compiler to use: the one named in the environment, or else the first candidate that will do.
pub fn compiler(workspace: &Workspace) -> Result<Option<Compiler>> {
    for candidate in candidates() {
        match probe(workspace, &candidate) {
            Ok(compiler) => return Ok(Some(compiler)),
            Err(Rejection { why, mend }) if candidate.origin == Origin::Named => {
                bail!("{COMPILER_VARIABLE}={}: {why}; mend: {mend}", candidate.rustc.display())
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// The first linker found that reads bitcode of an LLVM version, or what is wrong with the last one.
pub fn linker(workspace: &Workspace, bitcode: Version) -> Result<PathBuf, Rejection> {
    let in_cargo_home = home("CARGO_HOME", ".cargo").map(|home| home.join("bin").join(LINKER));
    let mut verdict = Err(Rejection { why: format!("there is no {LINKER} on PATH"), mend: linker_install_command() });
    for linker in programs(LINKER).into_iter().chain(in_cargo_home.filter(|linker| is_executable(linker))) {
        let says = |argument: &str| {
            // It insists on an input and an output, but looks at neither when asked for a version.
            let text = stdout(workspace, &linker, &[argument, "--output", "/dev/null", "/dev/null"]);
            text.as_deref().and_then(Version::find)
        };
        let judged = match (says("--version"), says("--llvm-args=--version")) {
            (Some(version), Some(llvm)) => judge_linker(version, llvm, bitcode),
            _ => Err("does not run: its LLVM library may be missing".to_owned()),
        };
        match judged {
            Ok(()) => return Ok(linker),
            Err(why) => {
                let why = format!("{} {why}", linker.display());
                verdict = Err(Rejection { why, mend: linker_install_command() });
            }
        }
    }
    verdict
}

fn judge_linker(linker: Version, linker_llvm: Version, compiler_llvm: Version) -> Result<(), String> {
    let oldest = Version::find(LINKER_VERSION).expect("the constant is a version");
    if linker < oldest {
        return Err(format!("is version {linker}, older than {oldest}"));
    }
    if linker_llvm.major < compiler_llvm.major {
        return Err(format!("has LLVM {linker_llvm}, older than the compiler's {compiler_llvm}"));
    }
    Ok(())
}

/// Compiles and installs the linker.
pub fn linker_install(workspace: &Workspace) -> Command {
    let mut install = workspace.cargo();
    install.env_remove("CARGO_TARGET_DIR").env("LLVM_PREFIX", llvm_prefix()).args(linker_install_arguments());
    install
}

/// The same, as one would type it.
pub fn linker_install_command() -> String {
    format!("LLVM_PREFIX={} cargo {}", llvm_prefix(), linker_install_arguments().join(" "))
}

fn linker_install_arguments() -> Vec<String> {
    let feature = format!("llvm-{}", LINKER_LLVM.major);
    ["install", LINKER, "--version", LINKER_VERSION, "--locked", "--force", "--no-default-features", "--features"]
        .map(str::to_owned)
        .into_iter()
        .chain([feature])
        .collect()
}

/// Where Debian's package keeps the LLVM that the linker is built with.
fn llvm_prefix() -> String {
    format!("/usr/lib/llvm-{}", LINKER_LLVM.major)
}

/// Prints every candidate with its verdict.
pub fn show(workspace: &Workspace) -> Result<()> {
    let mut chosen = None;
    println!("compilers for {TARGET}, in the order in which they are tried:");
    for candidate in candidates() {
        match probe(workspace, &candidate) {
            Ok(compiler) => {
                let core = match compiler.core {
                    Core::Prebuilt => "has a core library",
                    Core::Source => "builds the core library from rust-src",
                };
                let used = if chosen.is_none() { "used" } else { "fits" };
                println!("  {used:8}  {}  {}, {core}", compiler.rustc.display(), compiler.release);
                chosen.get_or_insert(compiler);
            }
            Err(Rejection { why, mend }) => {
                println!("  rejected  {}  {why}\n            mend: {mend}", candidate.rustc.display());
            }
        }
    }
    let Some(compiler) = chosen else {
        bail!("no compiler can build the XDP program; `cargo xtask setup` installs one on Debian");
    };
    println!("linker:");
    match linker(workspace, compiler.llvm) {
        Ok(linker) => println!("  used      {}", linker.display()),
        Err(Rejection { why, mend }) => {
            println!("  rejected  {why}\n            mend: {mend}");
            bail!("no linker can build the XDP program; `cargo xtask setup` installs one on Debian");
        }
    }
    Ok(())
}

fn candidates() -> Vec<Candidate> {
    let named = env::var_os(COMPILER_VARIABLE).map(|rustc| Candidate { rustc: rustc.into(), origin: Origin::Named });
    // rustup's own `rustc` only stands for one of its toolchains, which are looked at themselves.
    let is_rustup = |path: &Path| path.canonicalize().is_ok_and(|path| path.ends_with("rustup"));
    let on_path = [PathBuf::from("/usr/bin/rustc")]
        .into_iter()
        .filter(|rustc| is_executable(rustc))
        .chain(programs("rustc").into_iter().filter(|rustc| rustc != Path::new("/usr/bin/rustc")))
        .filter(|rustc| !is_rustup(rustc))
        .map(|rustc| Candidate { rustc, origin: Origin::Path });
    let of_rustup = rustup_toolchains()
        .into_iter()
        .map(|(name, directory)| Candidate { rustc: directory.join("bin/rustc"), origin: Origin::Rustup(name) });
    named.into_iter().chain(on_path).chain(of_rustup).collect()
}

/// Name and directory of rustup's toolchains, nightly ones first: they need the fewest tricks.
fn rustup_toolchains() -> Vec<(String, PathBuf)> {
    let Some(entries) = home("RUSTUP_HOME", ".rustup").and_then(|home| fs::read_dir(home.join("toolchains")).ok())
    else {
        return Vec::new();
    };
    let mut toolchains: Vec<_> =
        entries.flatten().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    toolchains.sort_by_key(|(name, _)| (!name.starts_with("nightly"), name.clone()));
    toolchains
}

/// The directory that a variable names, or a default below the user's home.
fn home(variable: &str, default: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(default)))
}

fn probe(workspace: &Workspace, candidate: &Candidate) -> Result<Compiler, Rejection> {
    let about = stdout(workspace, &candidate.rustc, &["--version", "--verbose"]).unwrap_or_default();
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
    let directories =
        stdout(workspace, &candidate.rustc, &["--print", "sysroot", "--print", "target-libdir", "--target", TARGET]);
    let mut directories = directories.as_deref().unwrap_or_default().lines().map(Path::new);
    let facts = Facts {
        version: field("release:").and_then(Version::find),
        core_source: directories
            .next()
            .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()),
        core_library: directories.next().is_some_and(holds_core),
    };
    let core = judge(&facts, &candidate.origin)?;
    Ok(Compiler {
        rustc: candidate.rustc.clone(),
        release: about.lines().next().unwrap_or_default().to_owned(),
        core,
        // Without the line nothing is known of its LLVM, and the linker will complain itself.
        llvm: field("LLVM version:").and_then(Version::find).unwrap_or(Version { major: 0, minor: 0 }),
    })
}

fn holds_core(library_directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(library_directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn judge(facts: &Facts, origin: &Origin) -> Result<Core, Rejection> {
    let reject = |why: String, mend: String| Err(Rejection { why, mend });
    let oldest = Version::find(OLDEST_RUSTC).expect("the package states a version");
    let debian = "apt-get install rustc-web libstd-rust-web-dev-bpf";
    let Some(version) = facts.version else {
        return reject(
            "it does not run, or is no rustc".to_owned(),
            match origin {
                Origin::Named => format!("unset {COMPILER_VARIABLE}"),
                Origin::Path => debian.to_owned(),
                Origin::Rustup(name) => format!("rustup toolchain install {name}"),
            },
        );
    };
    if version < oldest {
        return reject(
            format!("it is version {version}, older than {oldest}"),
            match origin {
                Origin::Named => format!("unset {COMPILER_VARIABLE}"),
                Origin::Path => debian.to_owned(),
                Origin::Rustup(_) => "rustup update".to_owned(),
            },
        );
    }
    if facts.core_library {
        return Ok(Core::Prebuilt);
    }
    if facts.core_source {
        return Ok(Core::Source);
    }
    reject(
        format!("it has neither a core library for {TARGET} nor rust-src"),
        match origin {
            Origin::Named | Origin::Path => debian.to_owned(),
            Origin::Rustup(name) => format!("rustup component add rust-src --toolchain {name}"),
        },
    )
}

/// What a program prints, if it runs and succeeds.
fn stdout(workspace: &Workspace, program: &Path, arguments: &[&str]) -> Option<String> {
    let output = workspace.foreign(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_needs_a_core_library_or_its_source() {
        let rustup = || Origin::Rustup("nightly-x86_64-unknown-linux-gnu".to_owned());
        let debian = "apt-get install rustc-web libstd-rust-web-dev-bpf";
        for (version, core_library, core_source, origin, expected) in [
            (Some((1, 96)), true, false, Origin::Path, Ok(Core::Prebuilt)),
            (Some((1, 96)), true, true, Origin::Path, Ok(Core::Prebuilt)),
            (Some((1, 97)), false, true, rustup(), Ok(Core::Source)),
            (Some((1, 95)), false, true, rustup(), Ok(Core::Source)),
            (
                Some((1, 97)),
                false,
                false,
                rustup(),
                Err(("neither", "rustup component add rust-src --toolchain nightly-x86_64-unknown-linux-gnu")),
            ),
            (Some((1, 96)), false, false, Origin::Path, Err(("neither", debian))),
            (Some((1, 85)), true, false, Origin::Path, Err(("older than 1.95", debian))),
            (Some((1, 94)), true, true, rustup(), Err(("older than 1.95", "rustup update"))),
            (None, false, false, Origin::Named, Err(("does not run", "unset LOADBALANCER_BPF_RUSTC"))),
        ] {
            let version = version.map(|(major, minor)| Version { major, minor });
            match (judge(&Facts { version, core_library, core_source }, &origin), expected) {
                (Ok(core), Ok(expected)) => assert_eq!(core, expected),
                (Err(Rejection { why, mend }), Err((expected_why, expected_mend))) => {
                    assert!(why.contains(expected_why), "{why}");
                    assert_eq!(mend, expected_mend);
                }
                (verdict, expected) => panic!("{version:?} of {origin:?}: {verdict:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn the_linker_must_not_be_older_than_the_compiler() {
        let version = |major, minor| Version { major, minor };
        for (linker, linker_llvm, compiler_llvm, complaint) in [
            (version(0, 13), version(22, 1), version(22, 1), None),
            (version(0, 14), version(23, 1), version(22, 1), None),
            (version(0, 13), version(22, 0), version(22, 1), None),
            (version(0, 13), version(21, 1), version(22, 1), Some("has LLVM 21.1, older than the compiler's 22.1")),
            (version(0, 9), version(22, 1), version(22, 1), Some("is version 0.9, older than 0.13")),
        ] {
            assert_eq!(judge_linker(linker, linker_llvm, compiler_llvm).err().as_deref(), complaint);
        }
    }

    #[test]
    fn a_directory_holds_core_only_as_a_library() {
        let directory = env::temp_dir().join(format!("xtask-core-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("libcompiler_builtins-0.rlib"), []).unwrap();
        fs::write(directory.join("libcore-0.rmeta"), []).unwrap();
        assert!(!holds_core(&directory));
        fs::write(directory.join("libcore-0.rlib"), []).unwrap();
        assert!(holds_core(&directory));
        fs::remove_dir_all(&directory).unwrap();
        assert!(!holds_core(&directory));
    }
}
