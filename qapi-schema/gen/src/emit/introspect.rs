//! The reply of `query-qmp-schema`, by QEMU's rules: commands and events by name, types by numbers
//! in the order of their first use, all integers one type, unreachable types absent.

use std::fmt::Write as _;

use indexmap::{IndexMap, IndexSet};
use serde_json::{Map, Value, json};

use crate::ir::{Branch, Builtin, Command, Event, Kind, Member, Schema, TypeRef};

/// The object type without members, which no definition names.
const EMPTY: &str = "q_empty";

struct Walk<'s> {
    schema: &'s Schema,
    numbers: IndexMap<String, usize>,
    used: IndexSet<TypeRef>,
    out: Vec<Value>,
}

/// Every entity in its order.
pub(super) fn entities(schema: &Schema) -> Vec<Value> {
    let mut walk = Walk {
        schema,
        numbers: IndexMap::new(),
        used: IndexSet::new(),
        out: Vec::new(),
    };
    for module in &schema.modules {
        // Commands and events as they stand in the file, among each other.
        let mut events = module.events.iter().peekable();
        for command in &module.commands {
            while let Some(event) = events.next_if(|event| event.place < command.place) {
                walk.event(event);
            }
            walk.command(command);
        }
        events.for_each(|event| walk.event(event));
    }
    let mut next = 0;
    while let Some(ty) = walk.used.get_index(next).cloned() {
        walk.define(&ty);
        next += 1;
    }
    walk.out
}

impl Walk<'_> {
    fn command(&mut self, command: &Command) {
        let args = self.use_object(command.args.as_deref());
        let returns = match &command.returns {
            Some(ty) => self.use_type(ty),
            None => self.use_object(None),
        };
        let mut entity = json!({ "name": command.name, "meta-type": "command" });
        add_features(&mut entity, &command.features);
        entity["arg-type"] = args.into();
        entity["ret-type"] = returns.into();
        if command.allow_oob {
            entity["allow-oob"] = true.into();
        }
        self.out.push(entity);
    }

    fn event(&mut self, event: &Event) {
        let args = self.use_object(event.args.as_deref());
        let mut entity = json!({ "name": event.name, "meta-type": "event" });
        add_features(&mut entity, &event.features);
        entity["arg-type"] = args.into();
        self.out.push(entity);
    }

    fn number(&mut self, name: &str) -> String {
        let next = self.numbers.len();
        self.numbers
            .entry(name.to_owned())
            .or_insert(next)
            .to_string()
    }

    fn use_object(&mut self, name: Option<&str>) -> String {
        self.use_type(&TypeRef::Named(name.unwrap_or(EMPTY).to_owned()))
    }

    /// Puts the type on the list of those to define, and names it.
    fn use_type(&mut self, ty: &TypeRef) -> String {
        let ty = same_integers(ty);
        self.used.insert(ty.clone());
        match &ty {
            TypeRef::Builtin(builtin) => builtin.introspected().to_owned(),
            TypeRef::Array(element) => format!("[{}]", self.use_type(element)),
            TypeRef::Named(name) => self.number(name),
        }
    }

    fn define(&mut self, ty: &TypeRef) {
        match ty {
            TypeRef::Builtin(builtin) => self.out.push(json!({
                "name": builtin.introspected(),
                "meta-type": "builtin",
                "json-type": builtin.json_type(),
            })),
            TypeRef::Array(element) => {
                let element = self.use_type(element);
                self.out.push(json!({
                    "name": format!("[{element}]"),
                    "meta-type": "array",
                    "element-type": element,
                }));
            }
            TypeRef::Named(name) => self.define_named(name),
        }
    }

    fn define_named(&mut self, name: &str) {
        let number = self.number(name);
        let schema = self.schema;
        let Some(ty) = schema.types.get(name) else {
            self.out
                .push(json!({ "name": number, "meta-type": "object", "members": [] }));
            return;
        };
        let meta = match ty.kind {
            Kind::Enum(_) => "enum",
            Kind::Alternate(_) => "alternate",
            Kind::Struct(_) | Kind::Union { .. } => "object",
        };
        let mut entity = json!({ "name": number, "meta-type": meta });
        add_features(&mut entity, &ty.features);
        match &ty.kind {
            Kind::Enum(values) => {
                let members = values.iter().map(|value| {
                    let mut member = json!({ "name": value.name });
                    add_features(&mut member, &value.features);
                    member
                });
                entity["members"] = members.collect();
                entity["values"] = values.iter().map(|value| value.name.clone()).collect();
            }
            Kind::Struct(members) => entity["members"] = self.members(members),
            Kind::Union {
                base,
                tag,
                branches,
                ..
            } => {
                entity["members"] = self.members(base);
                entity["tag"] = tag.clone().into();
                entity["variants"] = self.variants(branches);
            }
            Kind::Alternate(branches) => {
                let types = branches.iter().filter_map(|branch| branch.ty.as_ref());
                entity["members"] = types
                    .map(|ty| json!({ "type": self.use_type(ty) }))
                    .collect();
            }
        }
        self.out.push(entity);
    }

    fn members(&mut self, members: &[Member]) -> Value {
        let list = members.iter().map(|member| {
            let mut entry = json!({ "name": member.name, "type": self.use_type(&member.ty) });
            if member.optional {
                entry["default"] = Value::Null;
            }
            add_features(&mut entry, &member.features);
            entry
        });
        list.collect()
    }

    fn variants(&mut self, branches: &[Branch]) -> Value {
        let list = branches.iter().map(|branch| {
            let ty = match &branch.ty {
                Some(ty) => self.use_type(ty),
                None => self.use_object(None),
            };
            json!({ "case": branch.name, "type": ty })
        });
        list.collect()
    }
}

fn same_integers(ty: &TypeRef) -> TypeRef {
    match ty {
        TypeRef::Builtin(builtin) if builtin.json_type() == "int" => TypeRef::Builtin(Builtin::Int),
        TypeRef::Array(element) => TypeRef::Array(Box::new(same_integers(element))),
        other => other.clone(),
    }
}

fn add_features(entity: &mut Value, features: &[String]) {
    if !features.is_empty() {
        entity["features"] = features.to_vec().into();
    }
}

/// The constant, one entity per line of source.
pub(super) fn rust(entities: &[Value]) -> String {
    let mut out = String::from(
        "//! The reply of `query-qmp-schema`.\n//!\n//! Generated by `cargo xtask codegen` from `schema/*.json`; do not edit.\n\n\
         /// All commands, events and the types that they reach, as one JSON array in wire form.\n\
         pub const INTROSPECTION: &str = concat!(\n    \"[\",\n",
    );
    for (at, entity) in entities.iter().enumerate() {
        let separator = if at + 1 == entities.len() { "" } else { ", " };
        let _ = writeln!(out, "    r#\"{}{separator}\"#,", wire(entity));
    }
    out.push_str("    \"]\",\n);\n");
    out
}

/// The published document, one entity per line.
pub(super) fn pretty(entities: &[Value]) -> String {
    let lines: Vec<String> = entities
        .iter()
        .map(|entity| format!("  {}", wire(entity)))
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// JSON with QMP's separators.
fn wire(value: &Value) -> String {
    match value {
        Value::Object(object) => format!("{{{}}}", wire_members(object)),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(wire).collect();
            format!("[{}]", items.join(", "))
        }
        scalar => scalar.to_string(),
    }
}

/// The members of entities in the order in which QEMU sends them (`qapi-schema/src/order.rs`).
const ORDER: [&str; 15] = [
    "name",
    "element-type",
    "tag",
    "variants",
    "ret-type",
    "default",
    "members",
    "allow-oob",
    "case",
    "type",
    "json-type",
    "meta-type",
    "arg-type",
    "values",
    "features",
];

fn wire_members(object: &Map<String, Value>) -> String {
    let members = ORDER
        .iter()
        .filter_map(|name| object.get_key_value(*name))
        .map(|(name, value)| format!("{}: {}", Value::from(name.as_str()), wire(value)));
    members.collect::<Vec<_>>().join(", ")
}
