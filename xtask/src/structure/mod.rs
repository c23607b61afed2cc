//! What the compiler does not hold of the plan: which module may import from which, what pure crates may touch, and how
//! long files and functions are.

mod cycle;
mod item;
mod layer;
mod module;
mod pure;
mod size;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use module::Crate;

/// Upward imports and cycles of modules, in every crate of the workspace.
pub fn imports(workspace: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for root in roots(workspace)? {
        let modules = Crate::read(workspace, &root)?;
        let imports = modules.imports();
        let order = layer::ORDERS.iter().find(|order| root.parent() == Some(Path::new(order.tree)));
        if let Some(order) = order {
            found.extend(layer::violations(order, &modules, &imports));
        }
        found.extend(cycle::cycles(&modules, imports).iter().map(|cycle| cycle.describe(&modules)));
    }
    Ok(found)
}

/// Files and functions that are too long.
pub fn sizes(workspace: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in packages(workspace)? {
        for file in sources(workspace, &package)? {
            let text = read(workspace, &file)?;
            let source = item::read(&text, is_test(&file));
            found.extend(size::violations(&file, text.lines().count(), &source));
        }
    }
    Ok(found)
}

/// Effects that pure crates name in their sources.
pub fn effects(workspace: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in pure::CRATES {
        for file in sources(workspace, Path::new(package))? {
            let source = item::read(&read(workspace, &file)?, is_test(&file));
            found.extend(pure::violations(&file, &source));
        }
    }
    Ok(found)
}

pub use pure::{CRATES as PURE_CRATES, forbidden_dependencies};

fn read(workspace: &Path, file: &Path) -> Result<String> {
    fs::read_to_string(workspace.join(file)).with_context(|| format!("cannot read {}", file.display()))
}

/// Whether all of a file is test code, by where it is.
fn is_test(file: &Path) -> bool {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    name.ends_with("_tests") || name == "tests" || file.iter().any(|directory| directory == "tests")
}

/// The directories of the workspace's packages.
fn packages(workspace: &Path) -> Result<Vec<PathBuf>> {
    let manifests = below(workspace, Path::new(""), &|name| name == "Cargo.toml")?;
    Ok(manifests
        .iter()
        .filter_map(|manifest| manifest.parent())
        .filter(|it| !it.as_os_str().is_empty())
        .map(Path::to_owned)
        .collect())
}

/// The roots of the crates of all packages: libraries, programs, tests and benches.
fn roots(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    for package in packages(workspace)? {
        let named = ["src/lib.rs", "src/main.rs"].map(|root| package.join(root));
        roots.extend(named.into_iter().filter(|root| workspace.join(root).is_file()));
        for directory in ["src/bin", "tests", "benches"].map(|name| package.join(name)) {
            let own = |file: &PathBuf| file.parent() == Some(&directory);
            let mut files: Vec<PathBuf> = rust_files(workspace, &directory)?.into_iter().filter(own).collect();
            // Where there is a `main.rs`, the files beside it are its modules.
            if files.contains(&directory.join("main.rs")) {
                files.retain(|file| file.ends_with("main.rs"));
            }
            roots.extend(files);
        }
    }
    Ok(roots)
}

/// The Rust files of a package, without those of packages below it.
fn sources(workspace: &Path, package: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for directory in ["src", "tests", "benches"].map(|name| package.join(name)) {
        files.extend(rust_files(workspace, &directory)?);
    }
    Ok(files)
}

/// The Rust files below a directory, if there is one.
fn rust_files(workspace: &Path, directory: &Path) -> Result<Vec<PathBuf>> {
    if !workspace.join(directory).is_dir() {
        return Ok(Vec::new());
    }
    below(workspace, directory, &|name| name.ends_with(".rs"))
}

/// Files below a directory whose names fit, in order, leaving out what is built and what is hidden.
fn below(workspace: &Path, directory: &Path, fits: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let full = workspace.join(directory);
    let entries = fs::read_dir(&full).with_context(|| format!("cannot list {}", full.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", full.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = directory.join(&name);
        if entry.path().is_dir() {
            if !name.starts_with('.') && !entry.path().join("CACHEDIR.TAG").is_file() {
                files.extend(below(workspace, &path, fits)?);
            }
        } else if fits(&name) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace of files, below the directory for temporary ones.
    struct Planted(PathBuf);

    impl Planted {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("xtask-structure-{name}-{}", std::process::id()));
            for (path, text) in files {
                let file = root.join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// A tree that keeps the rule: the controller knows an edge, the root knows all, tests look where they like.
    const GOOD: &[(&str, &str)] = &[
        ("loadbalancer/Cargo.toml", ""),
        ("loadbalancer/src/lib.rs", "pub mod config; pub mod network; pub mod controller; pub mod api;"),
        (
            "loadbalancer/src/config.rs",
            "pub struct Config; #[cfg(test)] mod tests { use crate::controller::Controller; }",
        ),
        ("loadbalancer/src/network/mod.rs", "mod table; mod link; pub use table::Table; pub use link::Link;"),
        ("loadbalancer/src/network/link.rs", "use crate::config::Config; pub struct Link;"),
        ("loadbalancer/src/network/table.rs", "use super::link::Link; pub struct Table;"),
        ("loadbalancer/src/controller.rs", "mod part; use crate::{config::Config, network}; fn f() { network::f() }"),
        ("loadbalancer/src/controller/part.rs", "use super::Controller; impl Controller {}"),
        ("loadbalancer/src/api.rs", "use crate::controller::Controller;"),
    ];

    fn imports_with(name: &str, changed: &[(&str, &str)]) -> Vec<String> {
        let mut files = GOOD.to_vec();
        files.extend(changed);
        imports(&Planted::new(name, &files).0).unwrap()
    }

    #[test]
    fn a_tree_in_order_passes() {
        assert_eq!(imports_with("good", &[]), [""; 0]);
    }

    #[test]
    fn an_upward_import_is_named() {
        for (name, text, what) in [
            (
                "use",
                "use crate::config::Config;\nuse crate::controller::{Controller, f as g};",
                "Controller, f (line 2)",
            ),
            ("path", "fn f(it: &crate::controller::Controller) {}", "Controller (line 1)"),
            ("climb", "use super::super::controller::Controller;", "Controller (line 1)"),
            ("alias", "use crate::{self as root};\nfn f() { root::controller::f() }", "f (line 2)"),
        ] {
            let found = imports_with(name, &[("loadbalancer/src/network/link.rs", text)]);
            let upward: Vec<&String> =
                found.iter().filter(|it| it.starts_with("upward import: ") && !it.contains("lib.rs")).collect();
            let expected = format!(
                "upward import: loadbalancer/src/network/link.rs -> loadbalancer/src/controller.rs: {what}\n    \
                 edges must not know controller: move what both need down, or hand it in as a value"
            );
            assert_eq!(upward, [&expected], "{text}");
        }
    }

    #[test]
    fn a_module_without_a_layer_is_named() {
        let found = imports_with(
            "unknown",
            &[("loadbalancer/src/lib.rs", "pub mod config; mod stray;"), ("loadbalancer/src/stray.rs", "")],
        );
        assert_eq!(
            found,
            ["loadbalancer/src/lib.rs: the module stray is in no layer: enter it in ORDERS of \
              xtask/src/structure/layer.rs"]
        );
    }

    #[test]
    fn a_cycle_of_files_is_named() {
        let found = imports_with("files", &[("loadbalancer/src/network/link.rs", "\nuse super::table::Table;")]);
        assert_eq!(
            found,
            ["cycle of modules: network::table -> network::link -> network::table\n    \
              loadbalancer/src/network/table.rs -> loadbalancer/src/network/link.rs: Link (line 1)\n    \
              loadbalancer/src/network/link.rs -> loadbalancer/src/network/table.rs: Table (line 2)\n    \
              break it at one of these: move what both need into a module below both"]
        );
    }

    #[test]
    fn a_cycle_of_directories_is_one_although_no_files_import_each_other() {
        let found = imports_with(
            "directories",
            &[
                ("loadbalancer/src/config.rs", "mod a; mod b;"),
                ("loadbalancer/src/config/a.rs", "use crate::network::Table;"),
                ("loadbalancer/src/config/b.rs", ""),
            ],
        );
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("cycle of modules: config -> network -> config\n"), "{found:?}");
    }

    #[test]
    fn a_child_that_uses_what_its_parent_reexports_closes_a_cycle() {
        let found =
            imports_with("facade", &[("loadbalancer/src/network/table.rs", "use super::Link; pub struct Table;")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("cycle of modules: network -> network::table -> network\n"), "{found:?}");
    }

    #[test]
    fn long_files_and_functions_are_named_and_tables_of_cases_are_not() {
        let lines = |count: usize| "1,\n".repeat(count);
        let function = format!("fn long() {{\nlet x = [\n{}];\n}}\n", lines(77));
        let just = format!("fn just() {{\nlet x = [\n{}];\n}}\n", lines(76));
        let planted = Planted::new(
            "sizes",
            &[
                ("a/Cargo.toml", ""),
                ("a/src/lib.rs", &format!("{just}\n\n{function}")),
                ("a/src/long.rs", &"//\n".repeat(601)),
                ("a/src/just.rs", &"//\n".repeat(600)),
                ("a/src/x_tests.rs", &format!("fn cases() {{\nfor x in [\n{}] {{}}\n}}", lines(700))),
                ("target/CACHEDIR.TAG", ""),
                ("target/b/Cargo.toml", ""),
            ],
        );
        assert_eq!(
            sizes(&planted.0).unwrap(),
            [
                "a/src/lib.rs:83: fn long has 81 lines, more than 80: split it by steps",
                "a/src/long.rs: 601 lines, more than 600: split it by subject",
            ]
        );
    }

    #[test]
    fn effects_in_pure_crates_are_named() {
        let planted = Planted::new(
            "effects",
            &[
                ("loadbalancer/model/Cargo.toml", ""),
                ("loadbalancer/model/src/lib.rs", "use std::net::{IpAddr, TcpStream};\nfn f() { std::fs::read(x) }"),
                ("loadbalancer/decide/Cargo.toml", ""),
                (
                    "loadbalancer/decide/src/lib.rs",
                    "use std::time::{Duration, Instant};\nfn f() -> Instant { Instant::now() }\n\
                     #[cfg(test)] mod tests { fn f() { std::fs::read(x) } }",
                ),
            ],
        );
        let advice = "in a pure crate: take a value instead, and leave the effect to an edge";
        assert_eq!(
            effects(&planted.0).unwrap(),
            [
                format!("loadbalancer/model/src/lib.rs:1: std::net::TcpStream {advice}"),
                format!("loadbalancer/model/src/lib.rs:2: std::fs {advice}"),
                format!("loadbalancer/decide/src/lib.rs:2: std::time::Instant::now {advice}"),
            ]
        );
    }

    #[test]
    fn dependencies_that_pure_crates_must_not_have_are_named() {
        let tree = "loadbalancer-model v0.1.0 (/x)\nserde v1.0.229\nlibc v0.2.1\nlibc v0.2.1 (*)\nloadbalancer-decide v0.1.0 (/x)\n";
        let names = |package| -> Vec<String> {
            let complaints = forbidden_dependencies(package, tree);
            complaints.iter().filter_map(|it| Some(it.split(':').next()?.split(' ').next_back()?.to_owned())).collect()
        };
        assert_eq!(names("loadbalancer/model"), ["libc", "loadbalancer-decide"]);
        assert_eq!(names("loadbalancer/decide"), ["libc"]);
    }
}
