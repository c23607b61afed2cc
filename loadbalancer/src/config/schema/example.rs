//! A file with every key.

use super::about::{About, Field, Kind};

const HEAD: &str = "#:schema ./schema.json
#
# Every key of the configuration. Those with a default have it here; those in a comment have none, and show an example. A
# table in a comment does something by being there. Times have units (\"500ms\", \"2h 4m\"), sizes may have (\"64MiB\"); what
# takes an array takes one element as well.
#
# Made from the lists of keys in loadbalancer/src/config: `GENERATE=1 cargo test -p loadbalancer generated_files_are_up_to_date`.
";
const WIDTH: usize = 120;

pub(in crate::config) fn write(root: &About) -> String {
    let mut out = HEAD.to_owned();
    for table in root.fields.iter().filter_map(|field| field.kind.table()) {
        write_table(&mut out, table, "", false);
    }
    out
}

/// A table and those below it. `when` says what it needs to mean anything.
fn write_table(out: &mut String, about: &About, when: &str, commented: bool) {
    let commented = commented || about.optional;
    let is_table = |field: &&Field| matches!(field.kind, Kind::Table(_) | Kind::Tables(_));
    if about.by.is_some() && about.is_list() {
        // Another table shows the keys of the first word.
        for (position, word) in about.other_words().into_iter().enumerate() {
            let mut about = about.with_word(word);
            if position > 0 {
                about.doc = "";
            }
            let own = about.fields.iter().filter(|field| field.only.is_some_and(|only| only.values[0] == word));
            write_block(out, &about, when, commented, about.told().chain(own));
        }
    } else {
        // And this one those of the others.
        let keys = about.told().filter(|field| !is_table(field) && (about.by.is_none() || about.permits(field)));
        write_block(out, about, when, commented, keys);
    }
    for field in about.told().filter(is_table) {
        if let Some(below) = field.kind.table() {
            let when = field.only.map(|only| format!("With {}: ", only.example())).unwrap_or_default();
            write_table(out, below, &when, commented);
        }
    }
}

fn write_block<'a>(
    out: &mut String,
    about: &About,
    when: &str,
    commented: bool,
    fields: impl Iterator<Item = &'a Field>,
) {
    out.push('\n');
    comment(out, &format!("{when}{}", about.doc));
    out.extend([if commented { "# " } else { "" }, &about.name, "\n"]);
    for field in fields {
        write_field(out, about, field, commented);
    }
}

fn write_field(out: &mut String, about: &About, field: &Field, commented: bool) {
    if field.instead_of.is_some() {
        comment(out, &format!("Or {} = {}: {}", field.key, field.shown, field.doc));
        return;
    }
    let means_something = about.permits(field);
    let when = field.only.filter(|_| !means_something).map(|only| format!("With {}: ", only.example()));
    let mut doc = format!("{}{}", when.unwrap_or_default(), field.doc);
    if let Kind::TextsOrTables(below) = &field.kind {
        doc.extend(below.fields.iter().map(|inner| format!(" `{}`: {}", inner.key, inner.doc)));
    }
    comment(out, &doc);
    let there = field.required || (field.default.is_some() && means_something);
    let kind = match (commented, field.required, &field.default) {
        (true, true, _) => " # required",
        (true, false, None) => " # no default",
        _ => "",
    };
    let sign = if commented || !there { "# " } else { "" };
    out.push_str(&format!("{sign}{} = {}{kind}\n", field.key, field.shown));
}

/// A text as a comment of several lines.
fn comment(out: &mut String, text: &str) {
    let mut length = 0;
    for word in text.split_whitespace() {
        if length == 0 || length + 1 + word.len() > WIDTH {
            out.push_str(if length == 0 { "#" } else { "\n#" });
            length = 1;
        }
        out.extend([" ", word]);
        length += 1 + word.len();
    }
    if length > 0 {
        out.push('\n');
    }
}
