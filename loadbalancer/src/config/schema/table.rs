//! Tables as lists of keys: what is read, and what is written about it, comes from one list.
//!
//! A list has a line for each key: its name, where its value goes, what it may be, and what it does. The default of a key
//! is what stands where its value goes.

#![expect(clippy::type_complexity, reason = "a key is its functions: a name for each type would hide what they take")]

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use super::about::{About, Field, Kind, Only};
use super::units::{grouped, size};
use super::value::{At, List, Rejection, Slot};
use super::walk::{Element, Section};

/// Where, in what is read of a table, the value of a key goes.
pub(in crate::config) type SlotOf<T, V> = fn(&mut T) -> &mut dyn Slot<V>;
type ListOf<T, V> = fn(&mut T) -> &mut List<V>;

/// How a table is read, and what is known of it.
pub(in crate::config) struct Table<O> {
    name: String,
    about: Box<dyn Fn() -> About>,
    read: Box<dyn Fn(&Section<'_, '_>) -> Option<O>>,
}

/// The keys of a table, in the order in which they are read and told.
pub(in crate::config) struct Keys<T> {
    name: String,
    doc: &'static str,
    optional: bool,
    told: Option<&'static [&'static str]>,
    by: Option<&'static str>,
    /// What is read of a table without keys.
    default: T,
    all: Vec<Key<T>>,
}

struct Key<T> {
    key: &'static str,
    doc: &'static str,
    /// What to add if it is missing.
    required: Option<&'static str>,
    most: Option<Most>,
    only: Option<Only>,
    instead_of: Option<&'static str>,
    shown: Option<&'static str>,
    read: Box<dyn Fn(&Section<'_, '_>, &mut T)>,
    /// Kind, default and example; it is given [`Self::shown`].
    describe: Box<dyn Fn(&mut T, Option<&'static str>) -> Described>,
}

struct Described {
    kind: Kind,
    default: Option<String>,
    example: String,
}

#[derive(Clone, Copy)]
struct Most {
    count: usize,
    /// Of what.
    what: &'static str,
    help: &'static str,
}

impl<O> Table<O> {
    pub fn about(&self) -> About {
        (self.about)()
    }

    /// None: it was told wrong.
    pub fn read(&self, section: &Section<'_, '_>) -> Option<O> {
        (self.read)(section)
    }
}

impl<T: Clone + 'static> Keys<T> {
    /// Of a table that is called so in messages. `default` is what is read of it if it has no keys.
    pub fn new(name: impl Into<String>, doc: &'static str, default: T) -> Self {
        Self { name: name.into(), doc, optional: false, told: None, by: None, default, all: Vec::new() }
    }

    /// It does something by being there.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// Another table tells of its keys, but of these.
    pub fn tells(self, keys: &'static [&'static str]) -> Self {
        Self { told: Some(keys), ..self }
    }

    /// By the value of a key others mean something.
    pub fn by(self, key: &'static str) -> Self {
        Self { by: Some(key), ..self }
    }

    fn add(
        mut self,
        (key, doc): (&'static str, &'static str),
        read: impl Fn(&Section<'_, '_>, &mut T) + 'static,
        describe: impl Fn(&mut T, Option<&'static str>) -> Described + 'static,
    ) -> Self {
        self.all.push(Key {
            key,
            doc,
            required: None,
            most: None,
            only: None,
            instead_of: None,
            shown: None,
            read: Box::new(read),
            describe: Box::new(describe),
        });
        self
    }

    /// A key with one value. `literal` writes a value in TOML; what it cannot write is no default.
    fn one<V: 'static>(
        self,
        (key, slot, doc): (&'static str, SlotOf<T, V>, &'static str),
        read: impl Fn(&Section<'_, '_>) -> Option<At<V>> + 'static,
        kind: Kind,
        (literal, example): (impl Fn(&V) -> Option<String> + 'static, String),
    ) -> Self {
        self.add(
            (key, doc),
            move |section, it| match read(section) {
                Some(at) => slot(it).put(at),
                None if section.has(key) => slot(it).reject(),
                None => {}
            },
            move |it, shown| {
                let slot: &dyn Slot<V> = slot(it);
                let default = slot.shown().and_then(&literal);
                let example = default.clone().unwrap_or_else(|| shown.map_or(example.clone(), str::to_owned));
                Described { kind: kind.clone(), default, example }
            },
        )
    }

    pub fn string(self, key: &'static str, slot: SlotOf<T, String>, example: &'static str, doc: &'static str) -> Self {
        let read = move |section: &Section<'_, '_>| section.string(key, example).map(|at| at.map(str::to_owned));
        self.one(
            (key, slot, doc),
            read,
            Kind::Text,
            (|text: &String| Some(format!("{text:?}")), format!("{example:?}")),
        )
    }

    /// A string in a form of its own. If there is a default, it is the example, or what is shown for it.
    pub fn text<V: PartialEq + 'static>(
        self,
        key: &'static str,
        slot: SlotOf<T, V>,
        parse: fn(&str) -> Result<V, Rejection>,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        self.add(
            (key, doc),
            move |section, it| match section.parsed(key, example, parse) {
                Some(at) => slot(it).put(at),
                None if section.has(key) => slot(it).reject(),
                None => {}
            },
            move |it, shown| {
                let literal = shown.map_or_else(|| format!("{example:?}"), str::to_owned);
                let slot: &dyn Slot<V> = slot(it);
                let default = slot.shown().map(|default| {
                    let told = parse(literal.trim_matches('"')).is_ok_and(|told| told == *default);
                    assert!(told, "the default of `{key}` is not {literal}");
                    literal.clone()
                });
                Described { kind: Kind::Text, default, example: literal }
            },
        )
    }

    /// A string or an array of strings, each in a form of its own.
    pub fn texts<V: 'static>(
        self,
        key: &'static str,
        list: ListOf<T, At<V>>,
        parse: fn(&str) -> Result<V, Rejection>,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        let read = move |section: &Section<'_, '_>| section.strings(key, example, parse);
        self.many((key, list, doc), read, Kind::Texts, |_| None, format!("[{example:?}]"))
    }

    /// A string, a whole number, or an array of these, as text.
    pub fn texts_or_numbers(
        self,
        key: &'static str,
        list: ListOf<T, At<String>>,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        let read = move |section: &Section<'_, '_>| section.texts(key, &format!("{key} = {example}"));
        let literal = |texts: &[&String]| Some(format!("{texts:?}"));
        self.many((key, list, doc), read, Kind::TextsOrNumbers, literal, example.to_owned())
    }

    /// A whole number, or an array of them.
    pub fn numbers<V: TryFrom<i64> + Display + 'static>(
        self,
        key: &'static str,
        list: ListOf<T, At<V>>,
        range: RangeInclusive<i64>,
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        let kind = Kind::Numbers(range.clone());
        let read = move |section: &Section<'_, '_>| section.numbers(key, range.clone(), example);
        let literal = |numbers: &[&V]| {
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            Some(format!("[{}]", numbers.join(", ")))
        };
        self.many((key, list, doc), read, kind, literal, example.to_owned())
    }

    /// A key with several values.
    fn many<V: 'static>(
        self,
        (key, list, doc): (&'static str, ListOf<T, At<V>>, &'static str),
        read: impl Fn(&Section<'_, '_>) -> Option<List<At<V>>> + 'static,
        kind: Kind,
        literal: impl Fn(&[&V]) -> Option<String> + 'static,
        example: String,
    ) -> Self {
        self.add(
            (key, doc),
            move |section, it| {
                if let Some(read) = read(section) {
                    *list(it) = read;
                }
            },
            move |it, shown| {
                let values: Vec<&V> = list(it).values().collect();
                let default = if values.is_empty() { None } else { literal(&values) };
                let example = default.clone().unwrap_or_else(|| shown.map_or(example.clone(), str::to_owned));
                Described { kind: kind.clone(), default, example }
            },
        )
    }

    /// One of some words.
    pub fn choice<V: Copy + PartialEq + 'static>(
        self,
        key: &'static str,
        slot: SlotOf<T, V>,
        words: &[(&'static str, V)],
        doc: &'static str,
    ) -> Self {
        let words = words.to_vec();
        let kind = Kind::Choice(words.iter().map(|(word, _)| *word).collect());
        let example = format!("{:?}", words[0].0);
        let known = words.clone();
        let literal = move |value: &V| {
            known.iter().find(|(_, candidate)| candidate == value).map(|(word, _)| format!("{word:?}"))
        };
        self.one((key, slot, doc), move |section| section.choice(key, &words), kind, (literal, example))
    }

    pub fn number<V: TryFrom<i64> + Display + 'static>(
        self,
        key: &'static str,
        slot: SlotOf<T, V>,
        range: RangeInclusive<i64>,
        doc: &'static str,
    ) -> Self {
        let (kind, example, bounds) = (Kind::Number(range.clone()), range.start().to_string(), range.clone());
        // A default beyond the range stands for something that no number says.
        let literal = move |value: &V| {
            let number = value.to_string().parse().ok().filter(|number| bounds.contains(number));
            number.map(grouped)
        };
        self.one((key, slot, doc), move |section| section.number(key, range.clone()), kind, (literal, example))
    }

    /// A number with or without decimals.
    pub fn decimal(
        self,
        key: &'static str,
        slot: SlotOf<T, f64>,
        range: RangeInclusive<f64>,
        doc: &'static str,
    ) -> Self {
        let (kind, example) = (Kind::Decimal(range.clone()), format!("{:?}", range.start()));
        let literal = |value: &f64| Some(format!("{value:?}"));
        self.one((key, slot, doc), move |section| section.decimal(key, range.clone()), kind, (literal, example))
    }

    pub fn boolean(self, key: &'static str, slot: SlotOf<T, bool>, doc: &'static str) -> Self {
        let literal = |value: &bool| Some(value.to_string());
        self.one((key, slot, doc), move |section| section.boolean(key), Kind::Boolean, (literal, "true".to_owned()))
    }

    /// A time such as `2m 30s`.
    pub fn time(
        self,
        key: &'static str,
        slot: SlotOf<T, Duration>,
        range: RangeInclusive<Duration>,
        doc: &'static str,
    ) -> Self {
        self.time_because(key, slot, (range, ""), doc)
    }

    /// The same, with the reason of the range.
    pub fn time_because(
        self,
        key: &'static str,
        slot: SlotOf<T, Duration>,
        (range, why): (RangeInclusive<Duration>, &'static str),
        doc: &'static str,
    ) -> Self {
        let literal = |time: &Duration| Some(format!("\"{}\"", humantime::format_duration(*time)));
        let (kind, example) = (Kind::Time(range.clone()), literal(range.start()).unwrap_or_default());
        let read = move |section: &Section<'_, '_>| section.duration(key, range.clone(), why);
        self.one((key, slot, doc), read, kind, (literal, example))
    }

    /// A size such as `64MiB`.
    pub fn bytes(self, key: &'static str, slot: SlotOf<T, u64>, range: RangeInclusive<u64>, doc: &'static str) -> Self {
        let literal = |bytes: &u64| Some(format!("\"{}\"", size(*bytes)));
        let (kind, example) = (Kind::Bytes(range.clone()), literal(range.start()).unwrap_or_default());
        self.one((key, slot, doc), move |section| section.bytes(key, range.clone()), kind, (literal, example))
    }

    /// A table, which may go by what was read before it.
    pub fn table<O: 'static>(
        self,
        key: &'static str,
        slot: SlotOf<T, O>,
        table: impl Fn(&T) -> Table<O> + Clone + 'static,
    ) -> Self {
        let described = table.clone();
        self.add(
            (key, ""),
            move |section, it| {
                if section.has(key) {
                    let table = table(&*it);
                    let read = section.section(key, &table.name).and_then(|section| {
                        let span = section.span.clone();
                        table.read(&section).map(|value| At { value, span })
                    });
                    match read {
                        Some(at) => slot(it).put(at),
                        None => slot(it).reject(),
                    }
                }
            },
            move |it, _| Described {
                kind: Kind::Table(described(&*it).about()),
                default: None,
                example: String::new(),
            },
        )
    }

    /// Tables of a kind, which may go by what was read before them.
    pub fn tables<O: 'static>(
        self,
        key: &'static str,
        list: ListOf<T, O>,
        table: impl Fn(&T) -> Table<O> + Clone + 'static,
    ) -> Self {
        let described = table.clone();
        self.add(
            (key, ""),
            move |section, it| {
                if section.has(key) {
                    let table = table(&*it);
                    let sections = section.sections(key, &table.name);
                    let read: Vec<Option<O>> = sections.iter().map(|section| table.read(section)).collect();
                    let list = list(it);
                    list.rejected = read.iter().any(Option::is_none);
                    list.all = read.into_iter().flatten().collect();
                }
            },
            move |it, _| Described {
                kind: Kind::Tables(described(&*it).about()),
                default: None,
                example: String::new(),
            },
        )
    }

    /// Strings, or tables in their place.
    pub fn texts_or_tables<O: 'static>(
        self,
        key: &'static str,
        list: ListOf<T, O>,
        (text, table): (fn(&Section<'_, '_>, At<&str>) -> Option<O>, fn() -> Table<O>),
        example: &'static str,
        doc: &'static str,
    ) -> Self {
        self.add(
            (key, doc),
            move |section, it| {
                if let Some(elements) = section.elements(key, &format!("{key} = {example}")) {
                    let table = table();
                    let read = elements.value.into_iter().filter_map(|element| match element {
                        Element::Text(at) => text(section, at),
                        Element::Table(section) => table.read(&section),
                    });
                    *list(it) = List { all: read.collect(), span: Some(elements.span), rejected: false };
                }
            },
            move |_, shown| Described {
                kind: Kind::TextsOrTables(table().about()),
                default: None,
                example: shown.unwrap_or(example).to_owned(),
            },
        )
    }

    fn last(mut self, change: impl FnOnce(&mut Key<T>)) -> Self {
        if let Some(key) = self.all.last_mut() {
            change(key);
        }
        self
    }

    /// The last key must be there. `add` says what to add otherwise.
    pub fn required(self, add: &'static str) -> Self {
        self.last(|key| key.required = Some(add))
    }

    /// Of the last key's tables there are so many at most.
    pub fn most(self, count: usize, what: &'static str, help: &'static str) -> Self {
        self.last(|key| key.most = Some(Most { count, what, help }))
    }

    /// The last key means something only if another has one of some values.
    pub fn only(self, other: &'static str, values: &'static [&'static str]) -> Self {
        self.last(|key| key.only = Some(Only { key: other, values }))
    }

    /// The last key stands in place of another.
    pub fn instead_of(self, other: &'static str) -> Self {
        self.last(|key| key.instead_of = Some(other))
    }

    /// What the last key has in examples, in TOML.
    pub fn shown(self, literal: &'static str) -> Self {
        self.last(|key| key.shown = Some(literal))
    }

    /// A table of which nothing but its keys is to be checked.
    pub fn plain(self) -> Table<T> {
        self.build(|_, it| Some(it))
    }

    /// `build` checks what was read, and puts it together. None: it was told wrong.
    pub fn build<O>(self, build: impl Fn(&Section<'_, '_>, T) -> Option<O> + 'static) -> Table<O> {
        let keys = Rc::new(self);
        let described = Rc::clone(&keys);
        Table {
            name: keys.name.clone(),
            about: Box::new(move || described.about()),
            read: Box::new(move |section| build(section, keys.read(section))),
        }
    }

    fn about(&self) -> About {
        let mut default = self.default.clone();
        let mut field = |key: &Key<T>| {
            let Described { kind, default, example } = (key.describe)(&mut default, key.shown);
            Field {
                key: key.key,
                doc: key.doc,
                kind,
                required: key.required.is_some(),
                default,
                shown: example,
                only: key.only,
                instead_of: key.instead_of,
                most: key.most.map(|most| most.count),
            }
        };
        let fields = self.all.iter().map(&mut field).collect();
        let (doc, optional, told, by) = (self.doc, self.optional, self.told, self.by);
        About { name: self.name.clone(), doc, optional, told, by, fields }
    }

    fn read(&self, section: &Section<'_, '_>) -> T {
        section.expect(self.all.iter().map(|key| (key.key, key.only)).collect());
        let mut it = self.default.clone();
        for key in &self.all {
            if let Some(example) = key.required {
                section.require(key.key, example);
            }
            if let Some(most) = key.most {
                section.limit(key.key, most.count, most.what, most.help);
            }
            (key.read)(section, &mut it);
        }
        it
    }
}
