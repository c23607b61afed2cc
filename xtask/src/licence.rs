//! Licence expressions (SPDX, annex D), and which of them fit a program under MIT or Apache-2.0.

/// Where the allowed licences stand, in a form that cargo-deny reads as well.
const POLICY: &str = include_str!("../../deny.toml");

/// The quoted words of the policy's list of allowed licences.
fn allowed() -> impl Iterator<Item = &'static str> {
    let list = POLICY.split_once("\nallow = [").and_then(|(_, rest)| rest.split_once(']'));
    list.map_or("", |(list, _)| list).split('"').skip(1).step_by(2)
}

/// Whether an expression can be met with allowed licences alone. One that cannot be read is not allowed.
pub fn is_allowed(expression: &str) -> bool {
    // Before SPDX a slash meant a choice.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    either(&mut words) == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words) -> Option<bool> {
    let mut allowed = both(words)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= both(words)?;
    }
    Some(allowed)
}

fn both(words: &mut Words) -> Option<bool> {
    let mut allowed = one(words)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut Words) -> Option<bool> {
    match words.next()? {
        "(" => {
            let allowed = either(words)?;
            words.next_if_eq(&")")?;
            Some(allowed)
        }
        ")" | "OR" | "AND" | "WITH" => None,
        name if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next()?;
            Some(allowed().any(|it| it == format!("{name} WITH {exception}")))
        }
        name => Some(allowed().any(|it| it == name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_if_some_choice_of_it_is() {
        for (expression, allowed) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 OR GPL-3.0-only", true),
            ("Unlicense OR MIT", true),
            ("((MIT))", true),
            ("GPL-2.0-only", false),
            ("MIT AND GPL-2.0-only", false),
            ("MPL-2.0", false),
            ("GPL-2.0-only WITH Classpath-exception-2.0", false),
            ("MIT WITH GCC-exception-3.1", false),
            ("(MIT OR GPL-2.0-only) AND (LGPL-2.1-only OR AGPL-3.0-only)", false),
            ("MIT AND GPL-2.0-only OR ISC", true),
            ("", false),
            ("MIT OR", false),
            ("MIT Apache-2.0", false),
            ("(MIT", false),
            ("MIT)", false),
            ("OR MIT", false),
        ] {
            assert_eq!(is_allowed(expression), allowed, "{expression}");
        }
    }
}
