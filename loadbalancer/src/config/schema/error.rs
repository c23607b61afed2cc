//! Errors in a configuration, each with its place and its fix.
//!
//! They are rendered here. Programs get line and column as well, so a library that renders (annotate-snippets) would take
//! the place of eight lines, bring crates of its own, and add two empty lines to each error.

use std::fmt;
use std::ops::Range;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: String,
    /// From 1; zero: the file as a whole.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: String,
    pub help: String,
    /// The line in question.
    text: String,
    /// Characters that are underlined.
    length: usize,
}

/// All that is wrong, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    /// In the form in which compilers tell of errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.message)?;
        if self.line == 0 {
            return write!(f, "  --> {}\nhelp: {}", self.file, self.help);
        }
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{number} | {}", self.text)?;
        writeln!(f, "{margin} | {}{}", " ".repeat(self.column - 1), "^".repeat(self.length))?;
        write!(f, "{margin} = help: {}", self.help)
    }
}

/// Collects errors while a file is read.
#[derive(Debug)]
pub(in crate::config) struct Errors<'a> {
    name: &'a str,
    text: &'a str,
    found: Vec<(usize, ConfigError)>,
}

impl<'a> Errors<'a> {
    pub fn new(name: &'a str, text: &'a str) -> Self {
        Self { name, text, found: Vec::new() }
    }

    pub fn add(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_text = self.text[line_start..].lines().next().unwrap_or_default();
        let line_end = line_start + line_text.len();
        let underlined = self.text[start..span.end.clamp(start, line_end.max(start))].chars().count();
        let error = ConfigError {
            file: self.name.to_owned(),
            line: self.line(start),
            column: self.text[line_start..start].chars().count() + 1,
            message: message.into(),
            help: help.into(),
            // A tab would shift the mark under the line.
            text: line_text.replace('\t', " "),
            length: underlined.max(1),
        };
        self.found.push((start, error));
    }

    /// Number of the line at a position.
    pub fn line(&self, position: usize) -> usize {
        self.text[..position.min(self.text.len())].matches('\n').count() + 1
    }

    pub fn finish(mut self) -> Option<ConfigErrors> {
        self.found.sort_by_key(|(start, _)| *start);
        (!self.found.is_empty()).then(|| ConfigErrors(self.found.into_iter().map(|(_, error)| error).collect()))
    }
}

impl ConfigErrors {
    /// The file cannot be read.
    pub(in crate::config) fn unreadable(file: &str, error: &std::io::Error) -> Self {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path; `loadbalancer/examples` has files to start from",
            std::io::ErrorKind::PermissionDenied => "make it readable for the user that runs this",
            std::io::ErrorKind::InvalidData => "write it as UTF-8 text",
            _ => "check the path",
        };
        Self(vec![ConfigError {
            file: file.to_owned(),
            line: 0,
            column: 0,
            message: format!("cannot read the configuration: {error}"),
            help: help.to_owned(),
            text: String::new(),
            length: 0,
        }])
    }
}
