//! The published JSON Schema: every command's arguments and reply and every event's data in one
//! document (draft 2020-12).
//!
//! A document that it describes is a record of what was said:
//! `{"commands": {"query-status": {"return": {..}}}, "events": {"RESET": {"data": {..}}}}`. That is
//! what programs that make types of a schema begin with. Whoever looks something up by name finds it
//! under `commands` and `events`.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::generated::catalogue;

/// One command or event.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) input: Option<Schema>,
    pub(crate) output: Option<Schema>,
}

/// The whole document.
pub fn json_schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let commands: Map<String, Value> = catalogue::commands(&mut generator)
        .into_iter()
        .map(|entry| {
            let value = json!({
                "description": entry.description,
                "arguments": entry.input.map_or_else(empty, Value::from),
                "return": entry.output.map_or_else(empty, Value::from),
            });
            (entry.name.to_owned(), value)
        })
        .collect();
    let events: Map<String, Value> = catalogue::events(&mut generator)
        .into_iter()
        .map(|entry| {
            let mut value = json!({ "description": entry.description });
            if let Some(data) = entry.output {
                value["data"] = data.into();
            }
            (entry.name.to_owned(), value)
        })
        .collect();
    let properties = json!({ "commands": record(&commands), "events": record(&events) });
    let mut document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sesame QMP",
        "type": "object",
        "properties": properties,
        "commands": commands,
        "events": events,
        "$defs": generator.take_definitions(true),
    });
    absent_is_not_null(&mut document);
    document
}

/// An object with any of these, each with any of its parts.
fn record(entries: &Map<String, Value>) -> Value {
    let properties: Map<String, Value> = entries
        .iter()
        .map(|(name, entry)| {
            let mut parts = entry.clone();
            if let Value::Object(parts) = &mut parts {
                parts.remove("description");
            }
            let one = json!({ "type": "object", "properties": parts });
            (name.clone(), one)
        })
        .collect();
    json!({ "type": "object", "properties": properties })
}

/// An optional member may be absent, but `null` is refused where it is there: schemars, which goes
/// by `Option`, says otherwise.
fn absent_is_not_null(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Object(properties)) = members.get_mut("properties") {
                properties.values_mut().for_each(without_null);
            }
            members.values_mut().for_each(absent_is_not_null);
        }
        Value::Array(items) => items.iter_mut().for_each(absent_is_not_null),
        _ => {}
    }
}

fn without_null(property: &mut Value) {
    let Value::Object(members) = property else {
        return;
    };
    let null = Value::from("null");
    if let Some(Value::Array(types)) = members.get_mut("type") {
        types.retain(|one| *one != null);
        if let [one] = types.as_slice() {
            let one = one.clone();
            members.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(choices)) = members.get_mut("anyOf") {
        choices.retain(|one| one["type"] != null);
        if let [Value::Object(one)] = choices.as_slice() {
            let one = one.clone();
            members.remove("anyOf");
            members.extend(one);
        }
    }
}

fn empty() -> Value {
    json!({ "type": "object", "properties": {} })
}
