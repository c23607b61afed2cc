//! Cycles of modules.
//!
//! They are looked for among the children of each module, where a child stands for all that is below it and the module's
//! own file is one of them: so neither files nor directories hang in a circle. A re-export counts as an import. A module
//! that re-exports its children therefore holds nothing that they use, and they name each other, not it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::module::{Crate, Import};

/// Modules that import each other in a circle, by the shortest one.
#[derive(Debug)]
pub struct Cycle {
    /// Each imports from the next, the last from the first.
    pub ring: Vec<usize>,
    /// The imports by which the ring goes on, in its order.
    pub imports: Vec<Import>,
    /// Everything that hangs in this circle or in one that shares a module with it.
    pub knot: BTreeSet<usize>,
}

type Graph = BTreeMap<usize, BTreeMap<usize, Vec<Import>>>;

pub fn cycles(modules: &Crate, imports: Vec<Import>) -> Vec<Cycle> {
    let mut levels: BTreeMap<usize, Graph> = BTreeMap::new();
    for import in imports {
        let (level, from, to) = siblings(modules, import.from, import.to);
        levels.entry(level).or_default().entry(from).or_default().entry(to).or_default().push(import);
    }
    levels.into_values().flat_map(cycles_of).collect()
}

/// The innermost module that holds both, and which of its children (or it itself) they are or belong to.
fn siblings(modules: &Crate, from: usize, to: usize) -> (usize, usize, usize) {
    let (from, to) = (ancestors(modules, from), ancestors(modules, to));
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let level = from[common - 1];
    let child = |line: &[usize]| line.get(common).copied().unwrap_or(level);
    (level, child(&from), child(&to))
}

/// From the crate's root down to a module.
fn ancestors(modules: &Crate, module: usize) -> Vec<usize> {
    let mut line = vec![module];
    while let Some(parent) = modules.modules[line[line.len() - 1]].parent {
        line.push(parent);
    }
    line.reverse();
    line
}

fn cycles_of(mut graph: Graph) -> Vec<Cycle> {
    let nodes: Vec<usize> = graph.keys().copied().collect();
    let mut knots: BTreeSet<BTreeSet<usize>> = BTreeSet::new();
    for &node in &nodes {
        let back = |other: &usize| path(&graph, *other, node).is_some();
        let knot: BTreeSet<usize> =
            nodes.iter().copied().filter(|it| path(&graph, node, *it).is_some()).filter(back).collect();
        if !knot.is_empty() {
            knots.insert(knot);
        }
    }
    let mut found = Vec::new();
    for knot in knots {
        let rings = knot.iter().filter_map(|node| path(&graph, *node, *node));
        let Some(mut ring) = rings.min_by_key(Vec::len) else { continue };
        let mut imports = Vec::new();
        for pair in ring.windows(2) {
            imports.extend(graph.get_mut(&pair[0]).and_then(|targets| targets.remove(&pair[1])).unwrap_or_default());
        }
        ring.pop();
        found.push(Cycle { ring, imports, knot });
    }
    found
}

/// The shortest way of at least one import, both ends included.
fn path(graph: &Graph, from: usize, to: usize) -> Option<Vec<usize>> {
    let mut before: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        for &next in graph.get(&node).into_iter().flat_map(BTreeMap::keys) {
            if next == to {
                let mut way = vec![to, node];
                while way[way.len() - 1] != from {
                    way.push(before[&way[way.len() - 1]]);
                }
                way.reverse();
                return Some(way);
            }
            if next != from && !before.contains_key(&next) {
                before.insert(next, node);
                queue.push_back(next);
            }
        }
    }
    None
}

impl Cycle {
    pub fn describe(&self, modules: &Crate) -> String {
        let mut names: Vec<String> = self.ring.iter().map(|module| modules.name(*module)).collect();
        names.push(names[0].clone());
        let mut text = format!("cycle of modules: {}\n", names.join(" -> "));
        for import in &self.imports {
            text += &format!("    {}\n", modules.edge(import));
        }
        text += if self.imports.iter().any(|import| import.reexport) {
            "    name things where they are defined, not where they are passed on"
        } else {
            "    break it at one of these: move what both need into a module below both"
        };
        let others: Vec<String> =
            self.knot.iter().filter(|it| !self.ring.contains(it)).map(|module| modules.name(*module)).collect();
        if !others.is_empty() {
            text += &format!("; {} hang in circles with these", others.join(", "));
        }
        text
    }
}
