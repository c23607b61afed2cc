//! The configuration: what the operator wants.
//!
//! It is read as a whole and checked as a whole, so that a wrong one changes nothing; everything that is wrong is told
//! at once, with place and fix. What a table can say is one list of keys in the file of that table, from which it is read,
//! and from which the example with all keys, the reference and the JSON schema are made.
//!
//! Invariant: imports lead from `rules` to tables, from these to `document` and `schema`, and never back.

mod rules;
mod root;
mod service;
mod server;
mod queue;
mod class;
mod tiers;
mod standby;
mod quality;
mod agent;
mod check;
mod channel;
mod gateway;
mod limits;
mod timeouts;
mod admin;
mod metrics;
mod forms;
mod document;
mod schema;
#[cfg(test)]
mod generated;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::path::Path;

use toml::de::DeTable;

pub use document::*;
pub use schema::error::{ConfigError, ConfigErrors};

use schema::error::Errors;
use schema::files::{Files, read_text};
use schema::walk::{Section, Source};

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let text = read_text(path).map_err(|error| ConfigErrors::unreadable(&name, &error))?;
        Self::parse_with(&name, &text, Files { directory: path.parent() })
    }

    /// Reads a text; `name` stands for it in messages. Names of files are taken as they are.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        Self::parse_with(name, text, Files::default())
    }

    fn parse_with(name: &str, text: &str, files: Files<'_>) -> Result<Self, ConfigErrors> {
        let (table, syntax) = DeTable::parse_recoverable(text);
        let mut errors = Errors::new(name, text);
        if !syntax.is_empty() {
            for error in syntax {
                let span = error.span().unwrap_or(text.len()..text.len());
                errors.add(span, error.message().trim(), "see https://toml.io for the syntax");
            }
            // What the rest means is not known.
            return Err(errors.finish().unwrap_or(ConfigErrors(Vec::new())));
        }
        let source = Source { errors: RefCell::new(errors), files };
        let table_of_root = root::table();
        let read = table_of_root.read(&Section::new(table.get_ref(), 0..0, "the configuration", &source));
        let mut errors = source.errors.into_inner();
        if let Some(root) = &read {
            rules::check(root, &mut errors);
        }
        match (read, errors.finish()) {
            (Some(root), None) => Ok(root.document()),
            (_, errors) => Err(errors.unwrap_or(ConfigErrors(Vec::new()))),
        }
    }
}

/// A configuration with every key: its default, else an example in a comment.
pub fn example() -> String {
    schema::example::write(&root::table().about())
}

/// Every key with what it takes, its default and what it does, in Markdown.
pub fn reference() -> String {
    schema::reference::write(&root::table().about())
}

/// The JSON schema of configurations (draft 2020-12), for editors.
pub fn json_schema() -> String {
    schema::json::write(&root::table().about())
}
