//! The modules of a crate, each with its file, and which of them import which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::item::{self, Name, Source};

/// The modules that one crate root declares, the root itself at index 0. Inline modules belong to their file.
#[derive(Debug)]
pub struct Crate {
    pub modules: Vec<Module>,
}

#[derive(Debug)]
pub struct Module {
    /// Segments below `crate`.
    pub path: Vec<String>,
    /// Relative to the workspace.
    pub file: PathBuf,
    pub parent: Option<usize>,
    /// Compiled for tests only.
    pub test: bool,
    pub source: Source,
    children: BTreeMap<String, usize>,
}

/// That one file names things of another.
#[derive(Debug, PartialEq, Eq)]
pub struct Import {
    pub from: usize,
    pub to: usize,
    /// What is named, with its lines.
    pub names: BTreeMap<String, BTreeSet<usize>>,
    /// It only passes on what the other file defines.
    pub reexport: bool,
}

impl Crate {
    /// Reads a crate root and every file that it leads to.
    pub fn read(workspace: &Path, root: &Path) -> Result<Self> {
        let mut modules = Self { modules: Vec::new() };
        modules.add(workspace, root.to_owned(), Vec::new(), None, false)?;
        Ok(modules)
    }

    fn add(
        &mut self,
        workspace: &Path,
        file: PathBuf,
        path: Vec<String>,
        parent: Option<usize>,
        test: bool,
    ) -> Result<usize> {
        let text =
            fs::read_to_string(workspace.join(&file)).with_context(|| format!("cannot read {}", file.display()))?;
        let source = item::read(&text, test);
        let declared: Vec<_> = source
            .modules
            .iter()
            .filter(|it| !it.inline)
            .map(|it| (it.within.clone(), it.name.clone(), it.path.clone(), it.test))
            .collect();
        let index = self.modules.len();
        self.modules.push(Module {
            path: path.clone(),
            file: file.clone(),
            parent,
            test,
            source,
            children: BTreeMap::new(),
        });
        let directory = file.parent().unwrap_or(Path::new("")).to_owned();
        // `a/mod.rs` and a crate root have their children beside them, `a.rs` has them in `a/`.
        let owns_directory = parent.is_none() || file.file_name().is_some_and(|name| name == "mod.rs");
        let below = if owns_directory { directory.clone() } else { file.with_extension("") };
        for (within, name, attribute, test_only) in declared {
            let place = within.iter().fold(below.clone(), |place, segment| place.join(segment));
            let candidates = match attribute {
                Some(attribute) => vec![directory.join(attribute)],
                None => vec![place.join(format!("{name}.rs")), place.join(&name).join("mod.rs")],
            };
            let Some(child_file) = candidates.iter().find(|file| workspace.join(file).is_file()) else {
                bail!("{}: there is no file of the module {name}", file.display());
            };
            let mut child_path = path.clone();
            child_path.extend(within);
            child_path.push(name.clone());
            let child = self.add(workspace, child_file.clone(), child_path, Some(index), test || test_only)?;
            self.modules[index].children.insert(name, child);
        }
        Ok(index)
    }

    /// Every import of code that is no test, by files.
    pub fn imports(&self) -> Vec<Import> {
        let mut imports: BTreeMap<(usize, usize), Import> = BTreeMap::new();
        for (from, module) in self.modules.iter().enumerate().filter(|(_, module)| !module.test) {
            for name in module.source.names.iter().filter(|name| !name.test) {
                let Some(path) = self.absolute(from, name) else { continue };
                let (to, rest) = self.find(&path);
                if to == from || self.modules[to].test {
                    continue;
                }
                let named = if rest.is_empty() { path.last() } else { rest.first() };
                let named = named.cloned().unwrap_or_else(|| "crate".to_owned());
                let import =
                    imports.entry((from, to)).or_insert(Import { from, to, names: BTreeMap::new(), reexport: true });
                import.reexport &= name.reexport;
                import.names.entry(named).or_default().insert(name.line);
            }
        }
        imports.into_values().collect()
    }

    /// A path's segments below `crate`, if it leads into this crate.
    fn absolute(&self, from: usize, name: &Name) -> Option<Vec<String>> {
        self.expand(from, &name.within, &name.path, 0)
    }

    fn expand(&self, from: usize, within: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
        let module = &self.modules[from];
        let mut base = module.path.clone();
        base.extend(within.iter().cloned());
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &path[1..];
            }
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            first => {
                let inline =
                    module.source.modules.iter().any(|it| it.inline && it.within == within && it.name == *first);
                let child = within.is_empty() && module.children.contains_key(first);
                if !inline && !child {
                    // A name that a `use` of this module has brought; a chain of them is short.
                    let import =
                        module.source.names.iter().find(|it| {
                            it.alias.as_deref() == Some(first) && it.within == within && it.path != [first]
                        })?;
                    if depth > 4 {
                        return None;
                    }
                    let mut whole = self.expand(from, within, &import.path, depth + 1)?;
                    whole.extend(path[1..].iter().cloned());
                    return Some(whole);
                }
            }
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    /// The innermost file's module on the way of a path, and what remains of the path.
    fn find<'a>(&self, path: &'a [String]) -> (usize, &'a [String]) {
        let mut module = 0;
        // Inline modules have no entry of their own, but files may lie below them.
        for length in 1..=path.len() {
            if let Some(found) = self.modules.iter().position(|it| it.path == path[..length]) {
                module = found;
            }
        }
        (module, &path[self.modules[module].path.len()..])
    }
}

impl Crate {
    /// `FILE -> FILE: names (lines ...)`, as complaints show an import.
    pub fn edge(&self, import: &Import) -> String {
        let file = |module: usize| self.modules[module].file.display();
        let names: Vec<&str> = import.names.keys().map(String::as_str).collect();
        let lines: BTreeSet<usize> = import.names.values().flatten().copied().collect();
        let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
        format!("{} -> {}: {} (line {})", file(import.from), file(import.to), names.join(", "), lines.join(", "))
    }

    /// A module's path as one writes it.
    pub fn name(&self, module: usize) -> String {
        let path = &self.modules[module].path;
        if path.is_empty() { "crate".to_owned() } else { path.join("::") }
    }
}
