//! What is known of a table beside how it is read: what examples, reference and schema are made from.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A table.
#[derive(Clone, Debug)]
pub(in crate::config) struct About {
    /// As in messages: `[gateway]`, `[[service]]`.
    pub name: String,
    pub doc: &'static str,
    /// It does something by being there, so the example has it in a comment.
    pub optional: bool,
    /// Another table tells of its keys, but of these. None: this one tells of all.
    pub told: Option<&'static [&'static str]>,
    /// The key by whose value some of its keys mean something.
    pub by: Option<&'static str>,
    pub fields: Vec<Field>,
}

/// A key.
#[derive(Clone, Debug)]
pub(in crate::config) struct Field {
    pub key: &'static str,
    pub doc: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// In TOML. None: there is none.
    pub default: Option<String>,
    /// The default, else an example, in TOML.
    pub shown: String,
    pub only: Option<Only>,
    /// Of this key and that one there is one at most.
    pub instead_of: Option<&'static str>,
    /// Of its elements or tables.
    pub most: Option<usize>,
}

/// What a key needs to mean anything.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Only {
    /// Another key of the table ...
    pub key: &'static str,
    /// ... that has one of these values.
    pub values: &'static [&'static str],
}

/// What a key takes.
#[derive(Clone, Debug)]
pub(in crate::config) enum Kind {
    Text,
    /// A string or an array of strings.
    Texts,
    /// A string, a whole number, or an array of these.
    TextsOrNumbers,
    Choice(Vec<&'static str>),
    Number(RangeInclusive<i64>),
    /// A whole number or an array of them.
    Numbers(RangeInclusive<i64>),
    Decimal(RangeInclusive<f64>),
    Boolean,
    Time(RangeInclusive<Duration>),
    /// A whole number, or one with a unit as a string.
    Bytes(RangeInclusive<u64>),
    Table(About),
    Tables(About),
    /// Strings or tables.
    TextsOrTables(About),
}

impl Only {
    /// Whether a key with this value, in TOML, fulfils it.
    pub fn permits(&self, value: &str) -> bool {
        self.values.contains(&value.trim_matches('"'))
    }

    /// As a line of the file.
    pub fn example(&self) -> String {
        let value = self.values[0];
        if value == "true" { format!("{} = true", self.key) } else { format!("{} = \"{value}\"", self.key) }
    }
}

impl About {
    pub fn field(&self, key: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.key == key)
    }

    /// Those that are told of here.
    pub fn told(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| self.told.is_none_or(|told| told.contains(&field.key)))
    }

    /// Its name without brackets.
    pub fn path(&self) -> &str {
        self.name.trim_matches(['[', ']', '`'])
    }

    /// There may be several.
    pub fn is_list(&self) -> bool {
        self.name.starts_with("[[")
    }

    /// Whether a key means something as the others are shown.
    pub fn permits(&self, field: &Field) -> bool {
        let needed = |only: &Only| self.field(only.key).is_some_and(|other| only.permits(&other.shown));
        field.only.as_ref().is_none_or(needed)
    }

    /// The same to show keys that need another value of [`Self::by`]; of the others another table tells.
    pub fn with_word(&self, word: &str) -> Self {
        let mut about = self.clone();
        for field in &mut about.fields {
            if Some(field.key) == self.by {
                field.shown = format!("{word:?}");
            }
            if field.only.is_none() {
                field.doc = "";
            }
        }
        about
    }

    /// Values of [`Self::by`] with which other keys mean something than those that do as it is shown.
    pub fn other_words(&self) -> Vec<&'static str> {
        let mut words: Vec<&str> = Vec::new();
        for field in self.fields.iter().filter(|field| !self.permits(field)) {
            words.extend(field.only.filter(|only| Some(only.key) == self.by).map(|only| only.values[0]));
        }
        words.dedup();
        words
    }
}

impl Kind {
    /// The table below the key.
    pub fn table(&self) -> Option<&About> {
        match self {
            Self::Table(about) | Self::Tables(about) | Self::TextsOrTables(about) => Some(about),
            _ => None,
        }
    }
}
