//! Rust source as tokens: as much of the language as the checks of [`super`] need.
//!
//! xtask is compiled before everything else, so it does without a parser of the whole language.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    Ident(&'a str),
    /// A string's text as it is written, without quotes.
    Text(&'a str),
    /// `::`
    PathSeparator,
    Punct(char),
    Open(char),
    Close(char),
    /// Numbers, characters and lifetimes: nothing here looks at them.
    Other,
}

#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub token: Token<'a>,
    pub line: usize,
}

/// The tokens of a source text, without comments.
pub fn tokens(text: &str) -> Vec<Place<'_>> {
    let mut scanner = Scanner { text, at: 0, line: 1 };
    let mut tokens = Vec::new();
    loop {
        scanner.skip_blank();
        let line = scanner.line;
        let Some(token) = scanner.token() else { return tokens };
        tokens.push(Place { token, line });
    }
}

/// The index of the bracket that closes the one at `open`, or of the last token if none does.
pub fn closing(tokens: &[Place], open: usize) -> usize {
    let mut depth = 0;
    for (index, place) in tokens.iter().enumerate().skip(open) {
        match place.token {
            Token::Open(_) => depth += 1,
            Token::Close(_) => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len().saturating_sub(1)
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let passed = &self.rest()[..bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
        passed
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let length = if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                block_comment(rest)
            } else {
                rest.len() - rest.trim_start().len()
            };
            if length == 0 {
                return;
            }
            self.advance(length);
        }
    }

    fn token(&mut self) -> Option<Token<'a>> {
        let rest = self.rest();
        let first = rest.chars().next()?;
        if let Some((before, length)) = string(rest) {
            let whole = self.advance(length);
            let text = whole[before..].trim_end_matches('#');
            return Some(Token::Text(text.strip_suffix('"').unwrap_or(text)));
        }
        if rest.starts_with('\'') || rest.starts_with("b'") {
            self.advance(character_or_lifetime(rest));
            return Some(Token::Other);
        }
        if first.is_ascii_digit() {
            self.advance(word(rest));
            return Some(Token::Other);
        }
        let name = rest.strip_prefix("r#").unwrap_or(rest);
        let length = word(name);
        if length > 0 {
            self.advance(rest.len() - name.len() + length);
            return Some(Token::Ident(&name[..length]));
        }
        if rest.starts_with("::") {
            self.advance(2);
            return Some(Token::PathSeparator);
        }
        self.advance(first.len_utf8());
        Some(match first {
            '(' | '[' | '{' => Token::Open(first),
            ')' | ']' | '}' => Token::Close(first),
            _ => Token::Punct(first),
        })
    }
}

/// Length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Where a string's text begins, and the length of the whole literal, if one is at the beginning.
fn string(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let prefix = ["br", "cr", "b", "c", "r", ""].iter().find(|prefix| {
        let rest = text.strip_prefix(**prefix).unwrap_or("");
        rest.starts_with('"') || prefix.ends_with('r') && rest.trim_start_matches('#').starts_with('"')
    })?;
    if prefix.ends_with('r') {
        let hashes = bytes[prefix.len()..].iter().take_while(|byte| **byte == b'#').count();
        let begin = prefix.len() + hashes + 1;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = text[begin..].find(&end).map_or(text.len(), |found| begin + found + end.len());
        return Some((begin, length));
    }
    let begin = prefix.len() + 1;
    let mut at = begin;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some((begin, (at + 1).min(text.len())))
}

/// Length of `'x'`, `'\n'` or `b'x'`, or else of the quote alone, which leaves a lifetime's name to be skipped as well.
fn character_or_lifetime(text: &str) -> usize {
    let begin = text.find('\'').map_or(0, |quote| quote + 1);
    let mut characters = text[begin..].char_indices();
    let Some((_, first)) = characters.next() else { return text.len() };
    if first == '\\' {
        // The escaped character may itself be a quote.
        let end = text[begin + 2..].find('\'').map(|end| begin + 2 + end);
        let end = if text[begin..].starts_with("\\'") { Some(begin + 2) } else { end };
        return end.map_or(text.len(), |end| end + 1);
    }
    match characters.next() {
        Some((at, '\'')) => begin + at + 1,
        _ => begin + word(&text[begin..]),
    }
}

/// Length of the name or number at the beginning.
fn word(text: &str) -> usize {
    text.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spell(text: &str) -> String {
        let spelled: Vec<String> = tokens(text)
            .iter()
            .map(|place| match place.token {
                Token::Ident(name) => name.to_owned(),
                Token::Text(text) => format!("<{text}>"),
                Token::PathSeparator => "::".to_owned(),
                Token::Punct(it) | Token::Open(it) | Token::Close(it) => it.to_string(),
                Token::Other => "_".to_owned(),
            })
            .collect();
        spelled.join(" ")
    }

    #[test]
    fn comments_and_literals_hide_nothing_and_show_nothing() {
        for (text, expected) in [
            ("use a::b; // use c;", "use a :: b ;"),
            ("a /* b /* c */ d */ e", "a e"),
            ("f(\"use x; \\\" {\") }", "f ( <use x; \\\" {> ) }"),
            ("r\"\\\" r#\"a\"b\"# br##\"\"#\"## x", "<\\> <a\"b> <\"#> x"),
            ("b\"x\" c\"y\" r#type", "<x> <y> type"),
            ("'a' '\\'' '\\\\' b'{' '\\u{7d}' '\"' 'λ' x", "_ _ _ _ _ _ _ x"),
            ("fn f<'a>(x: &'a str, y: &'static T)", "fn f < _ > ( x : & _ str , y : & _ T )"),
            ("0x1f 1_000u64 1.5 0..n", "_ _ _ . _ _ . . n"),
            ("a:::b", "a :: : b"),
            ("\"never closed", "<never closed>"),
            ("/* never closed", ""),
            ("'", "_"),
        ] {
            assert_eq!(spell(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_are_counted_through_comments_and_strings() {
        let text = "a\n/*\n*/ b \"\n\n\" c\n// d\ne";
        let lines: Vec<usize> = tokens(text).iter().map(|place| place.line).collect();
        assert_eq!(lines, [1, 3, 3, 5, 7]);
    }

    #[test]
    fn brackets_close_in_pairs() {
        let tokens = tokens("{ a(b[c], '}') } d");
        assert_eq!(closing(&tokens, 0), 10);
        assert_eq!(closing(&tokens, 2), 9);
    }
}
