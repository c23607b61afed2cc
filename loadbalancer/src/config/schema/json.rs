//! The JSON schema of a configuration.

use serde_json::{Map, Value, json};

use super::about::{About, Field, Kind};
use super::units::UNITS;

pub(in crate::config) fn write(root: &About) -> String {
    let mut schema = table(root);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Configuration of loadbalancer".into();
    format!("{schema:#}\n")
}

fn table(about: &About) -> Value {
    let properties: Map<String, Value> =
        about.fields.iter().map(|field| (field.key.to_owned(), property(field))).collect();
    let required: Vec<&str> = about.fields.iter().filter(|field| field.required).map(|field| field.key).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    if !about.doc.is_empty() {
        schema["description"] = about.doc.into();
    }
    schema
}

fn property(field: &Field) -> Value {
    let mut schema = takes(&field.kind);
    if !field.doc.is_empty() {
        schema["description"] = field.doc.into();
    }
    if let Some(default) = field.default.as_deref().and_then(value) {
        schema["default"] = default;
    } else if let Some(example) = value(&field.shown) {
        schema["examples"] = json!([example]);
    }
    if let Some(most) = field.most {
        schema["maxItems"] = most.into();
    }
    schema
}

fn takes(kind: &Kind) -> Value {
    match kind {
        Kind::Text | Kind::Time(_) => json!({ "type": "string" }),
        Kind::Texts => one_or_more(json!({ "type": ["string"] })),
        Kind::TextsOrNumbers => one_or_more(json!({ "type": ["string", "integer"] })),
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::Number(range) => json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
        Kind::Numbers(range) => {
            one_or_more(json!({ "type": ["integer"], "minimum": range.start(), "maximum": range.end() }))
        }
        Kind::Decimal(range) => json!({ "type": "number", "minimum": range.start(), "maximum": range.end() }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Bytes(range) => {
            let units: Vec<&str> = UNITS.iter().map(|(unit, _)| *unit).collect();
            let pattern = format!("^[0-9]+ *({})$", units.join("|"));
            let (first, last) = (range.start(), range.end());
            json!({ "type": ["integer", "string"], "minimum": first, "maximum": last, "pattern": pattern })
        }
        Kind::Table(about) => table(about),
        Kind::Tables(about) => json!({ "type": "array", "items": table(about) }),
        Kind::TextsOrTables(about) => {
            let mut element = table(about);
            element["type"] = json!(["string", "object"]);
            one_or_more(element)
        }
    }
}

/// An element, or an array of such.
fn one_or_more(element: Value) -> Value {
    let mut schema = element.clone();
    if let Some(types) = schema["type"].as_array_mut() {
        types.push("array".into());
    }
    schema["items"] = element;
    schema
}

/// What a text in TOML says; none: there is nothing.
fn value(literal: &str) -> Option<Value> {
    let document: toml::Table = toml::from_str(&format!("it = {literal}")).ok()?;
    serde_json::to_value(document).ok().map(|mut document| document["it"].take())
}
