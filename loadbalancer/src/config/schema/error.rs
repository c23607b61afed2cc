//! Errors in a configuration, each with its place and its fix.
//!
//! They are rendered here. Programs get line and column as well, so a library that renders (annotate-snippets) would take
//! the place of eight lines, bring crates of its own, and add two empty lines to each error.

use std::fmt;
use std::ops::Range;

/// So many errors of a file are shown; with more, the file is rarely what it is taken for.
const SHOWN: usize = 20;
/// Characters of a line that are shown, and how many of them before the mark.
const LINE: usize = 120;
const BEFORE_MARK: usize = 40;
/// Characters of a message that repeats what the file says.
const MESSAGE: usize = 300;

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
    /// The line in question, or the part of a long one.
    text: String,
    /// Characters of it before those that are underlined.
    before: usize,
    /// Characters that are underlined.
    length: usize,
}

/// All that is wrong, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().take(SHOWN).enumerate() {
            if position > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{error}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more errors: mend these first"),
        }
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
        writeln!(f, "{margin} | {}{}", " ".repeat(self.before), "^".repeat(self.length))?;
        write!(f, "{margin} = help: {}", self.help)
    }
}

/// A tab would shift the mark under the line, and other control characters are for terminals.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        _ if c.is_control() => char::REPLACEMENT_CHARACTER,
        _ => c,
    }
}

/// The part of a line around a mark, and how many characters of it are before the mark.
fn excerpt(line: &str, mark: usize) -> (String, usize) {
    let length = line.chars().count();
    let skipped = if length > LINE { mark.saturating_sub(BEFORE_MARK) } else { 0 };
    let mut shown = if skipped > 0 { "...".to_owned() } else { String::new() };
    let before = mark - skipped + shown.len();
    shown.extend(line.chars().skip(skipped).take(LINE).map(printable));
    if length - skipped > LINE {
        shown.push_str("...");
    }
    (shown, before)
}

fn shortened(message: &str) -> String {
    let mut short: String = message.chars().take(MESSAGE).map(printable).collect();
    if message.chars().nth(MESSAGE).is_some() {
        short.push_str("...");
    }
    short
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
        let before = self.text[line_start..start].chars().count();
        let (shown, before_mark) = excerpt(line_text, before);
        let error = ConfigError {
            file: self.name.to_owned(),
            line: self.line(start),
            column: before + 1,
            message: shortened(&message.into()),
            help: help.into(),
            before: before_mark,
            length: underlined.min(LINE.saturating_sub(before_mark)).max(1),
            text: shown,
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
            std::io::ErrorKind::FileTooLarge => "name the configuration; this is another file",
            _ => "check the path",
        };
        Self(vec![ConfigError {
            file: file.to_owned(),
            line: 0,
            column: 0,
            message: format!("cannot read the configuration: {error}"),
            help: help.to_owned(),
            text: String::new(),
            before: 0,
            length: 0,
        }])
    }
}
