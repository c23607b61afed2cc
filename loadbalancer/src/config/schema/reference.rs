//! The keys in Markdown.

use super::about::{About, Field, Kind};
use super::units::{grouped, size};

const HEAD: &str = "# Configuration

Every key of the configuration, a TOML file. `loadbalancer check FILE` tells everything that is wrong with one, with its line
and a fix; [full.toml](../loadbalancer/examples/full.toml) has every key with its default, and
[schema.json](../loadbalancer/examples/schema.json) is for editors. `loadbalancer config` prints all three: `reference`, `example`,
`schema`.

- A time is a string with units: `\"500ms\"`, `\"30s\"`, `\"2h 4m\"`. A size is a number of bytes, or a string with a unit:
  `\"64MiB\"`, `\"10MB\"`.
- What takes a list takes one element without brackets as well.
- `[[...]]` may be there several times.

Made from the lists of keys in `loadbalancer/src/config`: `GENERATE=1 cargo test -p loadbalancer generated_files_are_up_to_date`.
";

pub(in crate::config) fn write(root: &About) -> String {
    let mut tables = Vec::new();
    for table in root.fields.iter().filter_map(|field| field.kind.table()) {
        collect(table, &mut tables);
    }
    let links = tables.iter().map(|table| format!("[`{}`](#{})", table.name, table.path().replace('.', "")));
    let mut out = format!("{HEAD}\n{}\n", links.collect::<Vec<_>>().join(" ·\n"));
    for table in tables {
        write_table(&mut out, table);
    }
    out
}

/// A table and all below it.
fn collect<'a>(about: &'a About, into: &mut Vec<&'a About>) {
    into.push(about);
    for field in about.told() {
        if let Kind::Table(below) | Kind::Tables(below) = &field.kind {
            collect(below, into);
        }
    }
}

fn write_table(out: &mut String, about: &About) {
    out.push_str(&format!(
        "\n## `{}`\n\n{}\n\n| key | takes | default | what it does |\n|---|---|---|---|\n",
        about.name, about.doc
    ));
    for field in about.told() {
        write_field(out, field, "");
        if let Kind::TextsOrTables(below) = &field.kind {
            for inner in &below.fields {
                write_field(out, inner, &format!("{}.", field.key));
            }
        }
    }
}

fn write_field(out: &mut String, field: &Field, within: &str) {
    let default = match &field.default {
        _ if field.required => "required".to_owned(),
        Some(default) => format!("`{default}`"),
        None if field.shown.is_empty() => String::new(),
        None => "none".to_owned(),
    };
    let mut doc = String::new();
    if let Some(only) = field.only {
        let values: Vec<String> = only.values.iter().map(|value| format!("`{value}`")).collect();
        doc.push_str(&format!("With `{}` {}: ", only.key, values.join(" or ")));
    }
    doc.push_str(match field.kind.table() {
        Some(below) if field.doc.is_empty() => below.doc,
        _ => field.doc,
    });
    if let Some(other) = field.instead_of {
        doc.push_str(&format!(" In place of `{other}`."));
    }
    if let Some(most) = field.most {
        doc.push_str(&format!(" At most {most}."));
    }
    if field.default.is_none() && !field.shown.is_empty() {
        doc.push_str(&format!(" Such as `{}`.", field.shown));
    }
    let doc = doc.replace('|', "\\|").replace('*', "\\*");
    out.push_str(&format!("| `{within}{}` | {} | {default} | {doc} |\n", field.key, takes(&field.kind)));
}

fn takes(kind: &Kind) -> String {
    match kind {
        Kind::Text => "string".to_owned(),
        Kind::Texts => "strings".to_owned(),
        Kind::TextsOrNumbers => "strings, numbers".to_owned(),
        Kind::Choice(words) => words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", "),
        Kind::Number(range) => format!("{} to {}", grouped(range.start()), grouped(range.end())),
        Kind::Numbers(range) => format!("numbers, {} to {}", grouped(range.start()), grouped(range.end())),
        Kind::Decimal(range) => format!("{:?} to {:?}", range.start(), range.end()),
        Kind::Boolean => "`true`, `false`".to_owned(),
        Kind::Time(range) => {
            let [first, last] = [range.start(), range.end()].map(|time| humantime::format_duration(*time).to_string());
            format!("time, {first} to {last}")
        }
        Kind::Bytes(range) => format!("size, {} to {}", size(*range.start()), size(*range.end())),
        Kind::Table(about) | Kind::Tables(about) => format!("[`{}`](#{})", about.name, about.path().replace('.', "")),
        Kind::TextsOrTables(_) => "strings, tables".to_owned(),
    }
}
