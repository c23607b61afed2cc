//! Walking through a TOML document with an eye on every key: nothing is passed over, everything has its place.

use std::cell::{OnceCell, RefCell};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::about::Only;
use super::error::Errors;
use super::files::Files;
use super::units::{bytes, size};
use super::value::{At, List, Rejection, Span};

/// None: it does not fit.
fn integer(number: &DeInteger<'_>) -> Option<i64> {
    let digits: String = number.as_str().chars().filter(|c| *c != '_').collect();
    i64::from_str_radix(&digits, number.radix()).ok()
}

/// What is read, and what turns out to be wrong with it.
#[derive(Debug)]
pub(in crate::config) struct Source<'d> {
    pub errors: RefCell<Errors<'d>>,
    pub files: Files<'d>,
}

/// A table of the document.
pub(in crate::config) struct Section<'d, 'e> {
    table: &'d DeTable<'d>,
    /// Where the table begins: what is missing in it is told there.
    pub span: Span,
    /// As in messages: `[gateway]`.
    pub name: String,
    source: &'e Source<'d>,
    /// Those that it may have, and what they need to mean anything.
    keys: OnceCell<Vec<(&'static str, Option<Only>)>>,
}

impl<'d, 'e> Section<'d, 'e> {
    pub fn new(table: &'d DeTable<'d>, span: Span, name: impl Into<String>, source: &'e Source<'d>) -> Self {
        Self { table, span, name: name.into(), source, keys: OnceCell::new() }
    }

    pub fn error(&self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.source.errors.borrow_mut().add(span, message, help);
    }

    pub fn files(&self) -> Files<'d> {
        self.source.files
    }

    /// Says what keys there may be. Others are rejected.
    pub fn expect(&self, keys: Vec<(&'static str, Option<Only>)>) {
        let known: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
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
        // A table is read once.
        self.keys.get_or_init(|| keys);
    }

    /// Rejects keys that would mean something only with another value of this one. `tell` is given each, and a value with
    /// which it does.
    pub fn reject_unused(&self, key: &str, value: &str, tell: impl Fn(&str, &str) -> Rejection) {
        for (name, only) in self.keys.get().into_iter().flatten() {
            if let Some(only) = only.filter(|only| only.key == key && !only.permits(value))
                && self.has(name)
            {
                let (message, help) = tell(name, only.values[0]);
                self.error(self.key_span(name), message, help);
            }
        }
    }

    fn get(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        debug_assert!(
            self.keys.get().is_some_and(|keys| keys.iter().any(|(known, _)| *known == key)),
            "`{key}` is not listed for {}",
            self.name
        );
        self.table.get(key)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether one of the tables below a key has this key.
    pub fn has_within(&self, key: &str, inner: &str) -> bool {
        let has_inner = |part: &Spanned<DeValue<'_>>| match part.get_ref() {
            DeValue::Table(table) => table.contains_key(inner),
            _ => false,
        };
        match self.get(key).map(Spanned::get_ref) {
            Some(DeValue::Array(parts)) => parts.iter().any(has_inner),
            _ => false,
        }
    }

    /// Whether a key has a list without elements, rather than one whose elements are all wrong.
    pub fn is_empty_list(&self, key: &str) -> bool {
        self.list_length(key) == Some(0)
    }

    /// How many elements a key has in the text, right or wrong; none: it has no list.
    pub fn list_length(&self, key: &str) -> Option<usize> {
        match self.get(key)?.get_ref() {
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
        self.get(key).map_or(self.span.clone(), Spanned::span)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, example: &str) {
        let found = value.get_ref().type_str();
        self.error(value.span(), format!("`{key}` is to be {wanted}, not {found}"), format!("write {example}"));
    }

    pub fn string(&self, key: &str, example: &str) -> Option<At<&'d str>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text.as_ref(), span: value.span() }),
            _ => {
                self.wrong_type(key, value, "a string", &format!("{key} = {example:?}"));
                None
            }
        }
    }

    /// A string or an array of strings, each in a form of its own.
    pub fn strings<V>(
        &self,
        key: &str,
        example: &str,
        parse: impl Fn(&str) -> Result<V, Rejection>,
    ) -> Option<List<At<V>>> {
        let value = self.get(key)?;
        let wrong = |value: &Spanned<DeValue<'_>>| {
            self.wrong_type(key, value, "a string or an array of strings", &format!("{key} = [{example:?}]"));
        };
        let parts: Vec<&Spanned<DeValue<'_>>> = match value.get_ref() {
            DeValue::String(_) | DeValue::Array(_) => parts(value),
            _ => {
                wrong(value);
                return Some(List { rejected: true, ..List::default() });
            }
        };
        let mut list = List { span: Some(value.span()), ..List::default() };
        for part in parts {
            match part.get_ref() {
                DeValue::String(text) => match parse(text) {
                    Ok(value) => list.all.push(At { value, span: part.span() }),
                    Err((message, help)) => {
                        list.rejected = true;
                        self.error(part.span(), message, help);
                    }
                },
                _ => {
                    list.rejected = true;
                    wrong(part);
                }
            }
        }
        Some(list)
    }

    /// A whole number within a range.
    pub fn number<T>(&self, key: &str, range: RangeInclusive<i64>) -> Option<At<T>>
    where
        T: TryFrom<i64>,
    {
        let value = self.get(key)?;
        let (first, last) = (range.start(), range.end());
        let DeValue::Integer(number) = value.get_ref() else {
            // What is proposed means what stands there, or it would be an outage to write it.
            let meant = match value.get_ref() {
                DeValue::String(text) => text.trim().parse().ok(),
                DeValue::Float(float) => float.as_str().parse().ok(),
                _ => None,
            };
            let meant = meant.filter(|number: &f64| number.is_finite()).map(|number| number as i64);
            let proposal = match meant.filter(|number| range.contains(number)) {
                Some(number) => format!("{key} = {number}"),
                None => format!("a number from {first} to {last}, without quotes"),
            };
            self.wrong_type(key, value, "a whole number", &proposal);
            return None;
        };
        self.within(key, value.span(), number, &range)
    }

    /// A whole number, or an array of them, each within a range.
    pub fn numbers<T>(&self, key: &str, range: RangeInclusive<i64>, example: &str) -> Option<List<At<T>>>
    where
        T: TryFrom<i64>,
    {
        let value = self.get(key)?;
        let mut list = List { span: Some(value.span()), ..List::default() };
        for part in parts(value) {
            let number = match part.get_ref() {
                DeValue::Integer(number) => self.within(key, part.span(), number, &range),
                _ => {
                    let wanted = "a whole number or an array of whole numbers";
                    self.wrong_type(key, part, wanted, &format!("{key} = {example}"));
                    None
                }
            };
            list.rejected |= number.is_none();
            list.all.extend(number);
        }
        Some(list)
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
    pub fn bytes(&self, key: &str, range: RangeInclusive<u64>) -> Option<At<u64>> {
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
    pub fn decimal(&self, key: &str, range: RangeInclusive<f64>) -> Option<At<f64>> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => integer(number).map(|number| number as f64),
            DeValue::Float(number) => number.as_str().replace('_', "").parse().ok(),
            _ => {
                let proposal = format!("a number from {} to {}, without quotes", range.start(), range.end());
                self.wrong_type(key, value, "a number", &proposal);
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

    pub fn boolean(&self, key: &str) -> Option<At<bool>> {
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
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&'static str, T)]) -> Option<At<T>> {
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
    pub fn duration(&self, key: &str, range: RangeInclusive<Duration>, why: &str) -> Option<At<Duration>> {
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
    pub fn parsed<T>(
        &self,
        key: &str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, Rejection>,
    ) -> Option<At<T>> {
        let text = self.string(key, example)?;
        match parse(text.value) {
            Ok(value) => Some(At { value, span: text.span }),
            Err((message, help)) => {
                self.error(text.span, message, help);
                None
            }
        }
    }

    /// A table inside this one.
    pub fn section(&self, key: &str, name: &str) -> Option<Section<'d, 'e>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(table, self.header(key, value), name, self.source)),
            _ => {
                self.wrong_type(key, value, "a table", name);
                None
            }
        }
    }

    /// Tables of the same kind, written as `[[name]]`.
    pub fn sections(&self, key: &str, name: &str) -> Vec<Section<'d, 'e>> {
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
                DeValue::Table(table) => sections.push(Section::new(table, part.span(), name, self.source)),
                _ => self.wrong_type(key, part, "a list of tables", name),
            }
        }
        sections
    }

    /// Elements that may be strings or tables.
    pub fn elements(&self, key: &str, example: &str) -> Option<At<Vec<Element<'d, 'e>>>> {
        let value = self.get(key)?;
        if !matches!(value.get_ref(), DeValue::Array(_) | DeValue::String(_) | DeValue::Table(_)) {
            self.wrong_type(key, value, "an array", example);
            return None;
        }
        let mut elements = Vec::new();
        for part in parts(value) {
            match part.get_ref() {
                DeValue::String(text) => elements.push(Element::Text(At { value: text.as_ref(), span: part.span() })),
                DeValue::Table(table) => {
                    elements.push(Element::Table(Section::new(table, part.span(), format!("`{key}`"), self.source)));
                }
                _ => self.wrong_type(key, part, "a string or a table", example),
            }
        }
        Some(At { value: elements, span: value.span() })
    }

    /// A string, or an array of strings and whole numbers; these as decimal text.
    pub fn texts(&self, key: &str, example: &str) -> Option<List<At<String>>> {
        let value = self.get(key)?;
        let mut list = List { span: Some(value.span()), ..List::default() };
        for part in parts(value) {
            let text = match part.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => integer(number).map_or_else(|| number.to_string(), |n| n.to_string()),
                _ => {
                    list.rejected = true;
                    self.wrong_type(key, part, "a string or a whole number, or an array of these", example);
                    continue;
                }
            };
            list.all.push(At { value: text, span: part.span() });
        }
        Some(list)
    }

    /// Tells what must be there and is not.
    pub fn require(&self, key: &str, example: &str) {
        if !self.has(key) {
            self.error(self.span.clone(), format!("{} has no `{key}`", self.name), format!("add {example}"));
        }
    }

    /// Tells of the first table for which there is no room.
    pub fn limit(&self, key: &str, most: usize, what: &str, help: &str) {
        if let Some(DeValue::Array(parts)) = self.get(key).map(Spanned::get_ref)
            && let Some(first_too_many) = parts.get(most)
        {
            let message = format!("there are {} {what}, but room for {most}", parts.len());
            self.error(first_too_many.span(), message, help);
        }
    }

    /// The place of a table's header; implicit tables have none, then its value stands for it.
    fn header(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Span {
        let header = self.key_span(key);
        if header.is_empty() { value.span() } else { header }
    }
}

pub(in crate::config) enum Element<'d, 'e> {
    Text(At<&'d str>),
    Table(Section<'d, 'e>),
}

/// The elements of an array, or the one that is written without.
fn parts<'d>(value: &'d Spanned<DeValue<'d>>) -> Vec<&'d Spanned<DeValue<'d>>> {
    match value.get_ref() {
        DeValue::Array(parts) => parts.iter().collect(),
        _ => vec![value],
    }
}
