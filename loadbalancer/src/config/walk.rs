//! Walking through a TOML document with an eye on every key: nothing is passed over, everything has its place.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::error::Errors;

pub(super) type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub span: Span,
}

impl<T> At<T> {
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> At<U> {
        At { value: map(self.value), span: self.span }
    }
}

/// None: it does not fit.
fn integer(number: &DeInteger<'_>) -> Option<i64> {
    let digits: String = number.as_str().chars().filter(|c| *c != '_').collect();
    i64::from_str_radix(&digits, number.radix()).ok()
}

/// Units of bytes, those by which sizes are told first.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

/// Bytes in the largest unit of which they are a multiple.
pub(super) fn size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// None: it is no size. What no number holds is the largest that one does, which is beyond all ranges.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
    if number.is_empty() { None } else { Some(number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*unit)) }
}

/// A table of the document, whose keys are taken one after the other.
pub(super) struct Section<'d, 'e> {
    table: &'d DeTable<'d>,
    /// Where the table begins: what is missing in it is told there.
    pub span: Span,
    /// As in messages: `[gateway]`.
    pub name: String,
    errors: &'e RefCell<Errors<'d>>,
    known: RefCell<Vec<&'static str>>,
    complete: Cell<bool>,
}

impl<'d, 'e> Section<'d, 'e> {
    pub fn new(table: &'d DeTable<'d>, span: Span, name: impl Into<String>, errors: &'e RefCell<Errors<'d>>) -> Self {
        Self { table, span, name: name.into(), errors, known: RefCell::default(), complete: Cell::new(false) }
    }

    pub fn error(&self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.errors.borrow_mut().add(span, message, help);
    }

    /// The line of a place.
    pub fn line(&self, span: &Span) -> usize {
        self.errors.borrow().line(span.start)
    }

    /// Says what keys there could have been, after all have been asked for.
    pub fn finish(self) {
        let known = self.known.borrow();
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let near = known
                .iter()
                .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
                .filter(|(likeness, _)| *likeness > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let help = match near {
                Some((_, candidate)) => format!("did you mean `{candidate}`?"),
                None => format!("{} takes: {}", self.name, known.join(", ")),
            };
            self.error(key.span(), format!("unknown key `{name}` in {}", self.name), help);
        }
        self.complete.set(true);
    }

    fn get(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether a key has a list without elements, rather than one whose elements are all wrong.
    pub fn is_empty_list(&self, key: &str) -> bool {
        self.list_length(key) == Some(0)
    }

    /// How many elements a key has in the text, right or wrong; none: it has no list.
    pub fn list_length(&self, key: &str) -> Option<usize> {
        match self.table.get(key)?.get_ref() {
            DeValue::Array(parts) => Some(parts.len()),
            _ => None,
        }
    }

    /// Where a key stands.
    pub fn key_span(&self, key: &str) -> Span {
        let found = self.table.keys().find(|candidate| candidate.get_ref().as_ref() == key);
        found.map_or(self.span.clone(), Spanned::span)
    }

    /// Where the value of a key stands.
    pub fn value_span(&self, key: &str) -> Span {
        self.table.get(key).map_or(self.span.clone(), Spanned::span)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, example: &str) {
        let found = value.get_ref().type_str();
        self.error(value.span(), format!("`{key}` is to be {wanted}, not {found}"), format!("write {example}"));
    }

    pub fn string(&self, key: &'static str, example: &str) -> Option<At<&'d str>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text.as_ref(), span: value.span() }),
            _ => {
                self.wrong_type(key, value, "a string", &format!("{key} = {example:?}"));
                None
            }
        }
    }

    /// A string or an array of strings.
    pub fn strings(&self, key: &'static str, example: &str) -> Option<At<Vec<At<&'d str>>>> {
        let value = self.get(key)?;
        let wrong = |value: &Spanned<DeValue<'_>>| {
            self.wrong_type(key, value, "a string or an array of strings", &format!("{key} = [{example:?}]"));
        };
        match value.get_ref() {
            DeValue::String(text) => {
                let one = At { value: text.as_ref(), span: value.span() };
                Some(At { value: vec![one], span: value.span() })
            }
            DeValue::Array(parts) => {
                let mut all = Vec::new();
                for part in parts.iter() {
                    match part.get_ref() {
                        DeValue::String(text) => all.push(At { value: text.as_ref(), span: part.span() }),
                        _ => wrong(part),
                    }
                }
                Some(At { value: all, span: value.span() })
            }
            _ => {
                wrong(value);
                None
            }
        }
    }

    /// A whole number within a range.
    pub fn number<T>(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<At<T>>
    where
        T: TryFrom<i64>,
    {
        let value = self.get(key)?;
        let (first, last) = (range.start(), range.end());
        let DeValue::Integer(number) = value.get_ref() else {
            let float =
                if let DeValue::Float(float) = value.get_ref() { float.as_str().parse::<f64>().ok() } else { None };
            let near = float.map_or(*first, |float| (float as i64).clamp(*first, *last));
            self.wrong_type(key, value, "a whole number", &format!("{key} = {near}"));
            return None;
        };
        self.within(key, value.span(), number, &range)
    }

    /// A whole number, or an array of them, each within a range. Those that are not are told and left out.
    pub fn numbers<T>(&self, key: &'static str, range: RangeInclusive<i64>, example: &str) -> Option<At<Vec<At<T>>>>
    where
        T: TryFrom<i64>,
    {
        let value = self.get(key)?;
        let parts: Vec<&'d Spanned<DeValue<'d>>> = match value.get_ref() {
            DeValue::Array(parts) => parts.iter().collect(),
            _ => vec![value],
        };
        let mut numbers = Vec::new();
        for part in parts {
            match part.get_ref() {
                DeValue::Integer(number) => numbers.extend(self.within(key, part.span(), number, &range)),
                _ => {
                    let wanted = "a whole number or an array of whole numbers";
                    self.wrong_type(key, part, wanted, &format!("{key} = {example}"));
                }
            }
        }
        Some(At { value: numbers, span: value.span() })
    }

    fn within<T>(&self, key: &str, span: Span, number: &DeInteger<'_>, range: &RangeInclusive<i64>) -> Option<At<T>>
    where
        T: TryFrom<i64>,
    {
        let parsed = integer(number).filter(|number| range.contains(number));
        match parsed.and_then(|number| T::try_from(number).ok()) {
            Some(number) => Some(At { value: number, span }),
            None => {
                let help = format!("choose a number from {} to {}", range.start(), range.end());
                self.error(span, format!("`{key}` is out of range"), help);
                None
            }
        }
    }

    /// A size such as `64MiB`, or a whole number of bytes.
    pub fn bytes(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<At<u64>> {
        let value = self.get(key)?;
        let (first, last) = (size(*range.start()), size(*range.end()));
        let bytes = match value.get_ref() {
            DeValue::Integer(number) => integer(number).and_then(|number| u64::try_from(number).ok()),
            DeValue::String(text) => {
                let Some(bytes) = bytes(text) else {
                    let help = "write a whole number and a unit, such as \"512KiB\", \"64MiB\", \"10MB\"";
                    self.error(value.span(), format!("`{text}` is no size"), help);
                    return None;
                };
                Some(bytes)
            }
            _ => {
                self.wrong_type(key, value, "a size", &format!("{key} = \"{first}\""));
                return None;
            }
        };
        match bytes.filter(|bytes| range.contains(bytes)) {
            Some(bytes) => Some(At { value: bytes, span: value.span() }),
            None => {
                let help = format!("choose a size from {first} to {last}");
                self.error(value.span(), format!("`{key}` is out of range"), help);
                None
            }
        }
    }

    /// A number within a range, with or without decimals.
    pub fn decimal(&self, key: &'static str, range: RangeInclusive<f64>) -> Option<At<f64>> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => integer(number).map(|number| number as f64),
            DeValue::Float(number) => number.as_str().replace('_', "").parse().ok(),
            _ => {
                self.wrong_type(key, value, "a number", &format!("{key} = {}", range.end()));
                return None;
            }
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(At { value: number, span: value.span() }),
            None => {
                let help = format!("choose a number from {} to {}", range.start(), range.end());
                self.error(value.span(), format!("`{key}` is out of range"), help);
                None
            }
        }
    }

    pub fn boolean(&self, key: &'static str) -> Option<At<bool>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(truth) => Some(At { value: *truth, span: value.span() }),
            _ => {
                self.wrong_type(key, value, "true or false", &format!("{key} = true"));
                None
            }
        }
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, key: &'static str, words: &[(&'static str, T)]) -> Option<At<T>> {
        let list = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = self.string(key, words[0].0)?;
        match words.iter().find(|(word, _)| *word == text.value) {
            Some((_, chosen)) => Some(At { value: *chosen, span: text.span }),
            None => {
                self.error(
                    text.span,
                    format!("`{}` is no value for `{key}`", text.value),
                    format!("choose one of {}", list()),
                );
                None
            }
        }
    }

    /// A time such as `2m 30s`.
    pub fn duration(&self, key: &'static str, range: RangeInclusive<Duration>, why: &str) -> Option<At<Duration>> {
        let value = self.get(key)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(number) => {
                let message = format!("`{key}` is to be a time with its unit, not a number alone");
                let digits = number.as_str();
                let number = if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits } else { "30" };
                self.error(value.span(), message, format!("write {key} = \"{number}s\" or \"{number}ms\""));
                return None;
            }
            _ => {
                self.wrong_type(key, value, "a string", &format!("{key} = \"30s\""));
                return None;
            }
        };
        let (first, last) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        match humantime::parse_duration(text) {
            Ok(duration) if range.contains(&duration) => Some(At { value: duration, span: value.span() }),
            Ok(_) => {
                let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                self.error(
                    value.span(),
                    format!("`{key}` is out of range"),
                    format!("choose a time from {first} to {last}{why}"),
                );
                None
            }
            Err(error) => {
                let help = "write a number and a unit, such as \"500ms\", \"30s\", \"2h 4m\"";
                self.error(value.span(), format!("`{text}` is no time: {error}"), help);
                None
            }
        }
    }

    /// A string in a form of its own.
    pub fn parsed<T, E: Display>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<At<T>> {
        let text = self.string(key, example)?;
        match parse(text.value) {
            Ok(value) => Some(At { value, span: text.span }),
            Err(error) => {
                self.error(text.span, format!("`{key}`: {error}"), format!("write it as in {key} = {example:?}"));
                None
            }
        }
    }

    /// A table inside this one.
    pub fn section(&self, key: &'static str, name: &str) -> Option<Section<'d, 'e>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(table, self.header(key, value), name, self.errors)),
            _ => {
                self.wrong_type(key, value, "a table", name);
                None
            }
        }
    }

    /// Tables of the same kind, written as `[[name]]`.
    pub fn sections(&self, key: &'static str, name: &str) -> Vec<Section<'d, 'e>> {
        let Some(value) = self.get(key) else {
            return Vec::new();
        };
        let DeValue::Array(parts) = value.get_ref() else {
            self.wrong_type(key, value, "a list of tables", name);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for part in parts.iter() {
            match part.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(table, part.span(), name, self.errors)),
                _ => self.wrong_type(key, part, "a list of tables", name),
            }
        }
        sections
    }

    /// Elements that may be strings or tables.
    pub fn elements(&self, key: &'static str, example: &str) -> Option<At<Vec<Element<'d, 'e>>>> {
        let value = self.get(key)?;
        let parts: Vec<&'d Spanned<DeValue<'d>>> = match value.get_ref() {
            DeValue::Array(parts) => parts.iter().collect(),
            DeValue::String(_) | DeValue::Table(_) => vec![value],
            _ => {
                self.wrong_type(key, value, "an array", example);
                return None;
            }
        };
        let mut elements = Vec::new();
        for part in parts {
            match part.get_ref() {
                DeValue::String(text) => elements.push(Element::Text(At { value: text.as_ref(), span: part.span() })),
                DeValue::Table(table) => {
                    elements.push(Element::Table(Section::new(table, part.span(), format!("`{key}`"), self.errors)));
                }
                _ => self.wrong_type(key, part, "a string or a table", example),
            }
        }
        Some(At { value: elements, span: value.span() })
    }

    /// A string, or an array of strings and whole numbers; these as decimal text.
    pub fn texts(&self, key: &'static str, example: &str) -> Option<At<Vec<At<String>>>> {
        let value = self.get(key)?;
        let parts: Vec<&'d Spanned<DeValue<'d>>> = match value.get_ref() {
            DeValue::Array(parts) => parts.iter().collect(),
            _ => vec![value],
        };
        let mut texts = Vec::new();
        for part in parts {
            let text = match part.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => integer(number).map_or_else(|| number.to_string(), |n| n.to_string()),
                _ => {
                    self.wrong_type(key, part, "a string or a whole number, or an array of these", example);
                    continue;
                }
            };
            texts.push(At { value: text, span: part.span() });
        }
        Some(At { value: texts, span: value.span() })
    }

    /// What must be there.
    pub fn required<T>(&self, key: &'static str, example: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(key) {
            self.error(self.span.clone(), format!("{} has no `{key}`", self.name), format!("add {example}"));
        }
        value
    }

    /// The place of a table's header; implicit tables have none, then its value stands for it.
    fn header(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Span {
        let header = self.key_span(key);
        if header.is_empty() { value.span() } else { header }
    }
}

pub(super) enum Element<'d, 'e> {
    Text(At<&'d str>),
    Table(Section<'d, 'e>),
}
