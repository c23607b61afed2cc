//! What a source file declares and names: modules, imports, paths and functions.

use std::collections::BTreeSet;

use super::source::{Place, Token, closing, tokens};

/// One source file, or the part of it that one inline module takes.
#[derive(Debug, Default)]
pub struct Source {
    pub modules: Vec<Declaration>,
    pub names: Vec<Name>,
    pub functions: Vec<Function>,
    /// Lines of tables of cases: those within the brackets of an array of a test.
    pub table_lines: BTreeSet<usize>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Declaration {
    pub name: String,
    pub test: bool,
    /// The file that an attribute names instead of the usual one.
    pub path: Option<String>,
    /// The modules around it in the same file.
    pub within: Vec<String>,
    pub inline: bool,
}

/// A path that code names, by `use` or where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    /// `use a::b::{self, c as d}` gives `a::b` and `a::b::c`; a glob ends with `*`.
    pub path: Vec<String>,
    /// The name that a `use` gives it.
    pub alias: Option<String>,
    /// A `use` that only passes it on.
    pub reexport: bool,
    /// The modules around it in the same file.
    pub within: Vec<String>,
    pub test: bool,
    pub line: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub first_line: usize,
    pub last_line: usize,
}

/// Reads a file; all of it is test code if `test`.
pub fn read(text: &str, test: bool) -> Source {
    let tokens = tokens(text);
    let mut reader = Reader { tokens: &tokens, source: Source::default() };
    let end = tokens.len();
    reader.items(0, end, &mut Vec::new(), test);
    reader.source
}

struct Reader<'a> {
    tokens: &'a [Place<'a>],
    source: Source,
}

/// What the attributes before an item say.
#[derive(Default)]
struct Attributes {
    test: bool,
    path: Option<String>,
}

impl<'a> Reader<'a> {
    fn at(&self, index: usize) -> Option<Token<'a>> {
        self.tokens.get(index).map(|place| place.token)
    }

    /// Reads the tokens from `at` to `end`, which lie in the modules `within`.
    fn items(&mut self, mut at: usize, end: usize, within: &mut Vec<String>, mut test: bool) {
        let mut attributes = Attributes::default();
        while at < end {
            let tagged = test || attributes.test;
            match self.at(at) {
                Some(Token::Punct('#')) => {
                    let inner = self.at(at + 1) == Some(Token::Punct('!'));
                    let open = at + 1 + usize::from(inner);
                    if self.at(open) == Some(Token::Open('[')) {
                        let close = closing(self.tokens, open);
                        self.attribute(open + 1, close, within, tagged, &mut attributes);
                        if inner {
                            test |= std::mem::take(&mut attributes.test);
                        }
                        at = close + 1;
                        continue;
                    }
                }
                Some(Token::Ident("pub")) => {
                    // `pub(in crate::x)` says who may see it, and imports nothing.
                    at += 1;
                    if self.at(at) == Some(Token::Open('(')) {
                        at = closing(self.tokens, at) + 1;
                    }
                    continue;
                }
                Some(Token::Ident("use")) => at = self.import(at, within, tagged),
                Some(Token::Ident("mod")) if matches!(self.at(at + 1), Some(Token::Ident(_))) => {
                    at = self.module(at, within, tagged, std::mem::take(&mut attributes));
                }
                _ if tagged && !test => {
                    let close = self.end_of_item(at, end);
                    self.items(at, close, within, true);
                    at = close;
                }
                Some(Token::Ident(_)) if self.at(at + 1) == Some(Token::PathSeparator) => {
                    at = self.path(at, within, test);
                }
                Some(Token::Ident("fn")) => at = self.function(at),
                Some(Token::Open('[')) if test => at = self.table(at),
                _ => at += 1,
            }
            attributes = Attributes::default();
        }
    }

    fn attribute(&mut self, from: usize, to: usize, within: &[String], test: bool, found: &mut Attributes) {
        let words: Vec<&str> = (from..to)
            .filter_map(|index| if let Some(Token::Ident(name)) = self.at(index) { Some(name) } else { None })
            .collect();
        match (&words[..], self.at(to - 1)) {
            (["test"] | ["tokio", "test", ..] | ["cfg", "test"] | ["cfg", "all", "test", ..], _) => found.test = true,
            (["path"], Some(Token::Text(path))) => found.path = Some(path.to_owned()),
            _ => {}
        }
        for index in from..to {
            // serde and others take paths as text: `with = "crate::seconds"`.
            if let Some(Token::Text(text)) = self.at(index)
                && (text.starts_with("crate::") || text.starts_with("super::"))
            {
                let path = text.split("::").map(str::to_owned).collect();
                self.name(path, None, index, within, test);
            }
        }
    }

    fn name(&mut self, path: Vec<String>, alias: Option<String>, at: usize, within: &[String], test: bool) {
        let line = self.tokens[at].line;
        self.source.names.push(Name { path, alias, reexport: false, within: within.to_vec(), test, line });
    }

    /// A path that begins at `at`; returns where it ends.
    fn path(&mut self, at: usize, within: &[String], test: bool) -> usize {
        let mut path = Vec::new();
        let mut next = at;
        while let Some(Token::Ident(segment)) = self.at(next) {
            path.push(segment.to_owned());
            if self.at(next + 1) != Some(Token::PathSeparator) {
                next += 1;
                break;
            }
            next += 2;
        }
        // What follows `::` or a dot is part of something else: `<T as Trait>::Item`, `text.parse::<u16>()`.
        let before = |distance: usize| at.checked_sub(distance).and_then(|index| self.at(index));
        let dot = Some(Token::Punct('.'));
        let goes_on = before(1) == Some(Token::PathSeparator) || before(1) == dot && before(2) != dot;
        if path.len() > 1 && !goes_on {
            self.name(path, None, at, within, test);
        }
        next
    }

    /// `use TREE;` at `at`; returns where it ends.
    fn import(&mut self, at: usize, within: &[String], test: bool) -> usize {
        let first = self.source.names.len();
        let mut end = self.tree(at + 1, &mut Vec::new(), within, test);
        // Behind `pub`, or behind what restricts it.
        if at > 0 && matches!(self.at(at - 1), Some(Token::Ident("pub") | Token::Close(')'))) {
            self.source.names[first..].iter_mut().for_each(|name| name.reexport = true);
        }
        while end < self.tokens.len() && self.at(end) != Some(Token::Punct(';')) {
            end += 1;
        }
        end + 1
    }

    fn tree(&mut self, mut at: usize, prefix: &mut Vec<String>, within: &[String], test: bool) -> usize {
        let depth = prefix.len();
        let begin = at;
        loop {
            match self.at(at) {
                Some(Token::PathSeparator) => at += 1,
                Some(Token::Ident(segment)) => {
                    prefix.push(segment.to_owned());
                    at += 1;
                }
                Some(Token::Punct('*')) => {
                    prefix.push("*".to_owned());
                    at += 1;
                }
                _ => break,
            }
            if self.at(at) == Some(Token::Ident("as")) {
                break;
            }
        }
        if self.at(at) == Some(Token::Open('{')) {
            let close = closing(self.tokens, at);
            at += 1;
            while at < close {
                at = self.tree(at, prefix, within, test).min(close);
                at += usize::from(self.at(at) == Some(Token::Punct(',')));
            }
            at = close + 1;
        } else {
            let mut path = prefix.clone();
            if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
                path.pop();
            }
            let mut alias = path.last().cloned();
            if self.at(at) == Some(Token::Ident("as")) {
                alias = if let Some(Token::Ident(name)) = self.at(at + 1) { Some(name.to_owned()) } else { None };
                at += 2;
            }
            self.name(path, alias, begin, within, test);
            // Whatever stands here is no part of a `use`: go on rather than stay.
            at = at.max(begin + 1);
        }
        prefix.truncate(depth);
        at
    }

    /// `mod NAME` at `at`; returns where it ends.
    fn module(&mut self, at: usize, within: &mut Vec<String>, test: bool, attributes: Attributes) -> usize {
        let Some(Token::Ident(name)) = self.at(at + 1) else { return at + 1 };
        let inline = self.at(at + 2) == Some(Token::Open('{'));
        self.source.modules.push(Declaration {
            name: name.to_owned(),
            test,
            path: attributes.path,
            within: within.clone(),
            inline,
        });
        if !inline {
            return at + 3;
        }
        let close = closing(self.tokens, at + 2);
        within.push(name.to_owned());
        self.items(at + 3, close, within, test);
        within.pop();
        close + 1
    }

    /// Where the item that begins at `at` ends: behind its body or its semicolon.
    fn end_of_item(&self, at: usize, end: usize) -> usize {
        // A field, a variant or an argument ends with a comma; generics of an item hold some.
        let is_item = matches!(
            self.at(at),
            Some(Token::Ident(
                "fn" | "mod"
                    | "use"
                    | "impl"
                    | "struct"
                    | "enum"
                    | "const"
                    | "static"
                    | "type"
                    | "trait"
                    | "unsafe"
                    | "async"
                    | "extern"
                    | "macro_rules"
                    | "union"
            ))
        );
        let mut index = at;
        while index < end {
            match self.at(index) {
                Some(Token::Open('{')) => return closing(self.tokens, index) + 1,
                Some(Token::Open(_)) => index = closing(self.tokens, index),
                Some(Token::Punct(';')) => return index + 1,
                Some(Token::Punct(',')) if !is_item => return index + 1,
                _ => {}
            }
            index += 1;
        }
        end
    }

    /// Notes the function at `at`; returns where to read on.
    fn function(&mut self, at: usize) -> usize {
        let Some(Token::Ident(name)) = self.at(at + 1) else { return at + 1 };
        let close = self.end_of_item(at, self.tokens.len()) - 1;
        let (first_line, last_line) = (self.tokens[at].line, self.tokens[close].line);
        self.source.functions.push(Function { name: name.to_owned(), first_line, last_line });
        at + 2
    }

    /// Notes the array at `at`; returns where to read on.
    fn table(&mut self, at: usize) -> usize {
        let close = closing(self.tokens, at);
        self.source.table_lines.extend(self.tokens[at].line + 1..self.tokens[close].line);
        at + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let show = |name: &Name| {
            let kind = if name.test {
                " (test)"
            } else if name.reexport {
                " (reexport)"
            } else {
                ""
            };
            format!("{}{kind}", name.path.join("::"))
        };
        read(text, false).names.iter().map(show).collect()
    }

    #[test]
    fn every_name_of_a_use_and_of_a_path_is_read() {
        for (text, expected) in [
            ("use crate::a::B;", &["crate::a::B"][..]),
            ("use a::{self, b::{C, D as E}, f::*};", &["a", "a::b::C", "a::b::D", "a::f::*"]),
            ("pub use a::b; use c::d;", &["a::b (reexport)", "c::d"]),
            ("use {a::b, c};", &["a::b", "c"]),
            ("use ::std::fs;", &["std::fs"]),
            ("use super::{super::a};", &["super::super::a"]),
            ("fn f(x: crate::a::B<crate::c::D>) {}", &["crate::a::B", "crate::c::D"]),
            ("fn f() { use crate::a; a::b::<u8>(); }", &["crate::a", "a::b"]),
            ("impl<T> From<T> for crate::A {}", &["crate::A"]),
            ("macro_rules! m { () => { $crate::a::f() } }", &["crate::a::f"]),
            ("type A = <B as crate::c::D>::E::F;", &["crate::c::D"]),
            ("#[serde(with = \"crate::a::b\", rename = \"c\")] x: u8", &["crate::a::b"]),
            ("pub(in crate::a) fn f() {} pub(crate) use b::c;", &["b::c (reexport)"]),
            ("text.parse::<u16>(); parse::<u16>(x); 0..a::b", &["a::b"]),
            ("// use crate::a;\nlet x = \"crate::b::c\";", &[]),
            ("use broken", &["broken"]),
        ] {
            assert_eq!(names(text), expected, "{text}");
        }
    }

    #[test]
    fn test_code_is_known() {
        for (text, expected) in [
            ("#[cfg(test)] use a::b; use c::d;", &["a::b (test)", "c::d"][..]),
            ("#[cfg(test)] mod tests { use super::*; } use c::d;", &["super::* (test)", "c::d"]),
            ("#[test] fn f<A, B>() { a::b(); } fn g() { c::d(); }", &["a::b (test)", "c::d"]),
            ("#[tokio::test(start_paused = true)] async fn f() { a::b() } c::d", &["a::b (test)", "c::d"]),
            ("#[cfg(all(test, x))] pub fn f() { a::b() } c::d", &["a::b (test)", "c::d"]),
            ("struct S { #[cfg(test)] x: a::B, y: c::D }", &["a::B (test)", "c::D"]),
            ("#[cfg(not(test))] fn f() { a::b() }", &["a::b"]),
            ("#[inline] #[cfg(test)] /// Doc\n pub(super) const X: [u8; 2] = a::B; c::d", &["a::B (test)", "c::d"]),
            ("#![cfg(test)] use a::b;", &["a::b (test)"]),
        ] {
            assert_eq!(names(text), expected, "{text}");
        }
    }

    #[test]
    fn modules_are_declared_in_files_of_their_own_or_inline() {
        let source = read("mod a; pub mod b { mod c; } #[cfg(test)] #[path = \"x/y.rs\"] pub(super) mod tests;", false);
        let shown: Vec<String> = source
            .modules
            .iter()
            .map(|it| format!("{}/{} {} {} {:?}", it.within.join("/"), it.name, it.inline, it.test, it.path))
            .collect();
        assert_eq!(
            shown,
            ["/a false false None", "/b true false None", "b/c false false None", "/tests false true Some(\"x/y.rs\")"]
        );
    }

    #[test]
    fn functions_and_tables_of_cases_are_measured() {
        let text = "fn a()\n{\n}\n#[test]\nfn b() {\nfor x in [\n1,\n2,\n] {}\n}\nfn c() { [\n1,\n]; }\n";
        let source = read(text, false);
        let shown: Vec<String> =
            source.functions.iter().map(|it| format!("{} {}-{}", it.name, it.first_line, it.last_line)).collect();
        assert_eq!(shown, ["a 1-3", "b 5-10", "c 11-13"]);
        assert_eq!(source.table_lines, BTreeSet::from([7, 8]));
    }
}
