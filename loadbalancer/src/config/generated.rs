//! What is written about the configuration is what its lists of keys say.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Config, example, json_schema, reference};

type Make = fn() -> String;

/// From the root of the repository.
const FILES: [(&str, Make); 3] = [
    ("loadbalancer/examples/full.toml", example),
    ("docs/configuration.md", reference),
    ("loadbalancer/examples/schema.json", json_schema),
];

#[test]
fn generated_files_are_up_to_date() {
    for (name, make) in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        let made = make();
        if std::env::var_os("GENERATE").is_some() {
            std::fs::write(&path, &made).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = found.lines().zip(made.lines()).position(|(found, made)| found != made);
        assert!(
            found == made,
            "{name} is out of date from line {}: run GENERATE=1 cargo test -p loadbalancer generated_files_are_up_to_date",
            differs.map_or(found.lines().count().min(made.lines().count()), |position| position) + 1
        );
    }
}

/// As `toml` reads it.
fn document(text: &str) -> Value {
    let table: toml::Table = toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    serde_json::to_value(table).expect("TOML without dates is JSON")
}

/// Where a value is not as a schema has it, of the keywords that ours uses.
fn violations(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut wrong = |what: &str| found.push(format!("{path}: {what}"));
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_kind = |wanted: &Value| wanted == kind || (wanted == "number" && kind == "integer");
    match &schema["type"] {
        Value::Array(kinds) if !kinds.iter().any(is_kind) => wrong(kind),
        Value::String(_) if !is_kind(&schema["type"]) => wrong(kind),
        _ => {}
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        wrong("none of the words");
    }
    if let Some(number) = value.as_f64() {
        let below = schema["minimum"].as_f64().is_some_and(|least| number < least);
        let above = schema["maximum"].as_f64().is_some_and(|most| number > most);
        if below || above {
            wrong("out of range");
        }
    }
    if let (Some(text), Some(pattern)) = (value.as_str(), schema["pattern"].as_str())
        && !regex::Regex::new(pattern).expect("a pattern").is_match(text)
    {
        wrong("not as the pattern");
    }
    if let Some(object) = value.as_object() {
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(key) {
                wrong(&format!("no {key}"));
            }
        }
        for (key, value) in object {
            match schema["properties"].get(key) {
                Some(schema) => violations(schema, value, &format!("{path}.{key}"), found),
                None => found.push(format!("{path}: unknown {key}")),
            }
        }
    }
    if let Some(array) = value.as_array() {
        if schema["maxItems"].as_u64().is_some_and(|most| array.len() as u64 > most) {
            found.push(format!("{path}: too many"));
        }
        for (position, value) in array.iter().enumerate() {
            violations(&schema["items"], value, &format!("{path}[{position}]"), found);
        }
    }
}

fn violations_of(text: &str) -> Vec<String> {
    let schema: Value = serde_json::from_str(&json_schema()).expect("it is JSON");
    let mut found = Vec::new();
    violations(&schema, &document(text), "", &mut found);
    found
}

#[test]
fn the_schema_permits_every_example() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut examples = 0;
    for entry in std::fs::read_dir(directory).expect("there are examples") {
        let path = entry.expect("listed").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).expect("readable");
            assert_eq!(violations_of(&text), Vec::<String>::new(), "{}", path.display());
            examples += 1;
        }
    }
    assert!(examples > 5, "only {examples} examples were found");
}

/// Whatever the schema forbids, the controller refuses, so that editors complain of nothing that is right.
#[test]
fn the_schema_forbids_what_is_refused() {
    let plain = "[gateway]\ninterfaces = \"eth0\"\n[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n\
                 [[service.server]]\naddress = \"10.0.0.1\"\n";
    assert!(Config::parse("plain", plain).is_ok() && violations_of(plain).is_empty());
    for (old, new, violation) in [
        ("[gateway]", "[gatewy]\n[gateway]", ": unknown gatewy"),
        ("interfaces = \"eth0\"", "", ".gateway: no interfaces"),
        ("\"eth0\"", "7", ".gateway.interfaces: integer"),
        ("\"eth0\"", "{ nam = \"eth0\", name = \"eth0\" }", ".gateway.interfaces: unknown nam"),
        ("\"eth0\"", "\"eth0\"\non_stop = \"stay\"", ".gateway.on_stop: none of the words"),
        ("name = \"web\"", "name = \"web\"\ngue_port = 0\nmode = \"dsr-gue\"", ".service[0].gue_port: out of range"),
        ("[[service]]", "[queue]\nmemory = \"1.5MiB\"\n[[service]]", ".queue.memory: not as the pattern"),
        ("[[service]]", "[quality.law]\nfloor = 2\n[[service]]", ".quality.law.floor: out of range"),
        ("[[service]]", "[timeouts]\nudp = 5\n[[service]]", ".timeouts.udp: integer"),
    ] {
        let text = plain.replacen(old, new, 1);
        assert!(Config::parse("wrong", &text).is_err(), "{text}");
        assert_eq!(violations_of(&text), [violation], "{text}");
    }
}
