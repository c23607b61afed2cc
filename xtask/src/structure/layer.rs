//! The order of modules: each imports from its own layer and from those before it.

use super::module::{Crate, Import};

/// Which modules are in which layer of one source tree, the lowest layer first. A crate root is above all of them.
pub struct Order {
    /// The directory of the crate's root.
    pub tree: &'static str,
    pub layers: &'static [Layer],
}

pub struct Layer {
    pub name: &'static str,
    pub modules: &'static [&'static str],
}

const fn layer(name: &'static str, modules: &'static [&'static str]) -> Layer {
    Layer { name, modules }
}

/// The rule. What is below `edges`, the compiler holds: `model` and `decide` are crates of their own.
pub const ORDERS: &[Order] = &[
    Order {
        tree: "loadbalancer/src",
        layers: &[
            layer("edges", &["config", "dataplane", "network", "health", "slowpath"]),
            layer("controller", &["controller"]),
            layer("faces", &["api", "metrics", "doctor", "cli"]),
        ],
    },
    Order {
        tree: "loadbalancer-ebpf/src",
        layers: &[
            layer("ground", &["clock", "packed", "maps", "verdict"]),
            layer("packet", &["packet"]),
            layer("observe", &["observe"]),
            layer("flow", &["flow"]),
            layer("select", &["select"]),
            layer("egress", &["egress"]),
            layer("mode", &["mode"]),
            layer("special", &["special"]),
            layer("pipeline", &["pipeline"]),
        ],
    },
];

impl Order {
    fn rank(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.modules.contains(&module))
    }

    fn name(&self, rank: usize) -> &'static str {
        self.layers.get(rank).map_or("the crate's root", |layer| layer.name)
    }
}

/// What of a crate is not in the order, and what imports against it.
pub fn violations(order: &Order, modules: &Crate, imports: &[Import]) -> Vec<String> {
    let top: Vec<&str> =
        modules.modules.iter().filter(|it| it.path.len() == 1 && !it.test).map(|it| it.path[0].as_str()).collect();
    let unknown = top.iter().filter(|module| order.rank(module).is_none()).map(|module| {
        format!(
            "{}: the module {module} is in no layer: enter it in ORDERS of xtask/src/structure/layer.rs",
            modules.modules[0].file.display()
        )
    });
    let rank = |index: usize| match modules.modules[index].path.first() {
        Some(module) => order.rank(module),
        None => Some(order.layers.len()),
    };
    let upward = imports.iter().filter_map(|import| {
        let (from, to) = (rank(import.from)?, rank(import.to)?);
        (to > from).then(|| {
            format!(
                "upward import: {}\n    {} must not know {}: move what both need down, or hand it in as a value",
                modules.edge(import),
                order.name(from),
                order.name(to)
            )
        })
    });
    unknown.chain(upward).collect()
}
