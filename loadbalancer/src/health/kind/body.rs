//! What the body of an HTTP answer is to contain.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use crate::health::error::SpecError;

/// Bytes that a pattern may take when compiled; it then still matches in time linear to the body.
const PATTERN_LIMIT: usize = 256 * 1024;

/// A text or a pattern that is to be somewhere in a body.
#[derive(Clone, Debug)]
pub enum BodyMatch {
    Text(String),
    Pattern(Regex),
}

impl BodyMatch {
    /// # Errors
    /// An empty text, which every body contains.
    pub fn text(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() { Err(SpecError::EmptyBody) } else { Ok(Self::Text(text.to_owned())) }
    }

    /// A regular expression in the syntax of the crate `regex`, over bytes; Unicode is on.
    ///
    /// # Errors
    /// One that cannot be compiled, or is too large.
    pub fn pattern(pattern: &str) -> Result<Self, SpecError> {
        match RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT).dfa_size_limit(PATTERN_LIMIT).build() {
            Ok(regex) => Ok(Self::Pattern(regex)),
            Err(regex::Error::CompiledTooBig(_)) => Err(SpecError::PatternTooLarge),
            Err(error) => {
                let text = error.to_string();
                // Its text shows the pattern with a mark below; the last line says what is wrong.
                let reason = text.lines().last().unwrap_or_default();
                Err(SpecError::Pattern(reason.trim_start_matches("error: ").to_owned()))
            }
        }
    }

    pub(super) fn is_in(&self, body: &[u8]) -> bool {
        match self {
            Self::Text(text) => contains(body, text.as_bytes()),
            Self::Pattern(regex) => regex.is_match(body),
        }
    }
}

/// Whether some bytes contain others, which are not empty.
pub(super) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

impl PartialEq for BodyMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(one), Self::Text(two)) => one == two,
            (Self::Pattern(one), Self::Pattern(two)) => one.as_str() == two.as_str(),
            _ => false,
        }
    }
}

impl Eq for BodyMatch {}

impl fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Pattern(regex) => write!(f, "/{regex}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_matched_by_text_and_by_pattern() {
        for (wanted, body, matches) in [
            (BodyMatch::text("ok"), "all ok here", true),
            (BodyMatch::text("ok"), "all OK here", false),
            (BodyMatch::text("o.k"), "ook", false),
            (BodyMatch::text("longer than the body"), "short", false),
            (BodyMatch::pattern("(?i)o.k"), "all O-K here", true),
            (BodyMatch::pattern("^ok$"), "ok\n", false),
            (BodyMatch::pattern("(?m)^ok$"), "no\nok\n", true),
        ] {
            let wanted = wanted.unwrap();
            assert_eq!(wanted.is_in(body.as_bytes()), matches, "{wanted} in {body}");
        }
        assert!(BodyMatch::pattern("(?-u:\\xff)k").unwrap().is_in(b"\xfe\xffk"));
    }

    #[test]
    fn what_cannot_be_matched_is_refused() {
        assert_eq!(BodyMatch::text(""), Err(SpecError::EmptyBody));
        assert_eq!(BodyMatch::pattern("a("), Err(SpecError::Pattern("unclosed group".into())));
        assert_eq!(BodyMatch::pattern("(a{1000}){1000}"), Err(SpecError::PatternTooLarge));
    }
}
