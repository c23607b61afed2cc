//! What pure crates may not know: they take values and the time, and give values.

use std::path::Path;

use super::item::Source;

/// The pure crates, each below those that it may depend on.
pub const CRATES: &[&str] = &["loadbalancer/model", "loadbalancer/decide"];

/// What brings in an operating system, a network or an event loop, directly or through something else.
const DEPENDENCIES: &[&str] = &["aya", "hyper", "libc", "mio", "nix", "rustix", "socket2", "tokio"];

/// What of the standard library has effects, or gives another answer each time.
const EFFECTS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime",
];

/// The effects that a file of a pure crate names, outside of tests.
pub fn violations(file: &Path, source: &Source) -> Vec<String> {
    let named = |name: &super::item::Name| {
        // `use std::time::Instant` may stand before `Instant::now()`.
        let first = name.path.first()?;
        let import = source.names.iter().find(|it| it.alias.as_ref() == Some(first) && it.path.len() > 1);
        let mut path = import.map_or_else(|| vec![first.clone()], |import| import.path.clone());
        path.extend_from_slice(&name.path[1..]);
        let path = path.join("::");
        EFFECTS
            .iter()
            .find(|effect| path.strip_prefix(**effect).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
    };
    let outside_tests = source.names.iter().filter(|name| !name.test);
    outside_tests
        .filter_map(|name| {
            let effect = named(name)?;
            Some(format!(
                "{}:{}: {effect} in a pure crate: take a value instead, and leave the effect to an edge",
                file.display(),
                name.line
            ))
        })
        .collect()
}

/// What `cargo tree --prefix none` tells of a pure crate that it must not depend on.
pub fn forbidden_dependencies(package: &str, tree: &str) -> Vec<String> {
    let allowed = CRATES.iter().position(|it| *it == package).unwrap_or(0);
    let forbidden =
        |name: &str| DEPENDENCIES.contains(&name) || CRATES[allowed + 1..].iter().any(|it| is_named(it, name));
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    let mut found: Vec<String> = names
        .filter(|name| forbidden(name))
        .map(|name| format!("{package} depends on {name}: `cargo tree --package NAME --invert {name}` tells by what"))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Whether a package has the name that its directory gives it: `loadbalancer/model` is `loadbalancer-model`.
fn is_named(directory: &str, package: &str) -> bool {
    package == directory.replace('/', "-")
}
