//! Values that know where they stand.

use std::ops::Range;

/// Bytes of the text.
pub(in crate::config) type Span = Range<usize>;

/// What is wrong with a text, and how to fix it.
pub(in crate::config) type Rejection = (String, String);

/// A value and where it stands. An empty place is that of a default, which stands nowhere.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct At<T> {
    pub value: T,
    pub span: Span,
}

/// What a key says, else its default.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct Given<T> {
    pub value: T,
    /// Where the value stands; none: it is the default.
    pub span: Option<Span>,
    /// The key is there, but what it says was told wrong already.
    pub rejected: bool,
}

/// The elements of a list, or the tables of a kind.
#[derive(Clone, Debug)]
pub(in crate::config) struct List<T> {
    pub all: Vec<T>,
    /// Where the list stands; none: it is the default.
    pub span: Option<Span>,
    /// Some elements were told wrong already, and are missing.
    pub rejected: bool,
}

/// Where what a key says goes.
pub(in crate::config) trait Slot<V> {
    fn put(&mut self, at: At<V>);
    /// What the key says was told wrong.
    fn reject(&mut self) {}
    /// None: the key has no default.
    fn shown(&self) -> Option<&V>;
}

impl<T> At<T> {
    /// A default.
    pub fn nowhere(value: T) -> Self {
        Self { value, span: Span::default() }
    }

    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> At<U> {
        At { value: map(self.value), span: self.span }
    }

    /// With another place if it has none.
    pub fn or_at(self, span: &Span) -> Self {
        if self.span.is_empty() { Self { span: span.clone(), ..self } } else { self }
    }
}

impl<T> Given<T> {
    pub fn default_of(value: T) -> Self {
        Self { value, span: None, rejected: false }
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { all: Vec::new(), span: None, rejected: false }
    }
}

impl<T> List<At<T>> {
    pub fn default_of(values: impl IntoIterator<Item = T>) -> Self {
        Self { all: values.into_iter().map(At::nowhere).collect(), span: None, rejected: false }
    }

    /// The elements, without their places.
    pub fn into_values(self) -> Vec<T> {
        self.all.into_iter().map(|at| at.value).collect()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.all.iter().map(|at| &at.value)
    }
}

impl<V> Slot<V> for V {
    fn put(&mut self, at: At<V>) {
        *self = at.value;
    }

    fn shown(&self) -> Option<&V> {
        Some(self)
    }
}

impl<V> Slot<V> for Option<V> {
    fn put(&mut self, at: At<V>) {
        *self = Some(at.value);
    }

    fn shown(&self) -> Option<&V> {
        self.as_ref()
    }
}

impl<V> Slot<V> for At<V> {
    fn put(&mut self, at: At<V>) {
        *self = at;
    }

    fn shown(&self) -> Option<&V> {
        None
    }
}

impl<V> Slot<V> for Option<At<V>> {
    fn put(&mut self, at: At<V>) {
        *self = Some(at);
    }

    fn shown(&self) -> Option<&V> {
        None
    }
}

impl<V> Slot<V> for Given<V> {
    fn put(&mut self, at: At<V>) {
        *self = Self { value: at.value, span: Some(at.span), rejected: false };
    }

    fn reject(&mut self) {
        self.rejected = true;
    }

    fn shown(&self) -> Option<&V> {
        Some(&self.value)
    }
}
