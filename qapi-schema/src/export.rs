//! The published JSON Schema: every command's arguments and reply and every event's data in one
//! document (draft 2020-12).

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
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sesame QMP",
        "commands": commands,
        "events": events,
        "$defs": generator.take_definitions(true),
    })
}

fn empty() -> Value {
    json!({ "type": "object", "properties": {} })
}
