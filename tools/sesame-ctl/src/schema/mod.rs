//! What may be said to this VM: commands, their arguments and the values that fit.
//!
//! The live VM's `query-qmp-schema` decides, so that a VM of another version is completed and typed
//! as it is. Without a VM, and where it may not be asked, the schema of this version answers.
//! Documentation is not part of introspection; it is compiled in ([`docs`]).
//!
//! ```text
//!   query-qmp-schema ─┐
//!   introspection.json┴─► Schema: command ─► members ─► Kind       arguments, completion, hints
//!   schema.json ────────► Docs: the same walk ─► a sentence        help
//! ```
//!
//! This room must never know a socket.

pub(crate) mod docs;

use std::collections::{BTreeMap, HashMap};

use sesame_qmp::control::{JSONType, SchemaInfo, SchemaInfoObject, SchemaInfoVariant};

/// The introspection of this version.
const COMPILED_IN: &str = include_str!("../../../../qapi-schema/export/introspection.json");

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Text.
    Text,
    /// A number without fraction; introspection does not tell sizes from other numbers.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// Null.
    Null,
    /// Anything.
    Any,
    /// One of these words.
    Word(Vec<String>),
    /// A list of a type.
    List(String),
    /// Members with names.
    Object(Object),
    /// One of these types.
    Either(Vec<String>),
}

/// An object type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object {
    members: Vec<Member>,
    /// The member that decides which others there are.
    tag: Option<String>,
    /// The types whose members join, by the tag's value.
    variants: BTreeMap<String, String>,
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) name: String,
    /// Its type's name.
    pub(crate) kind: String,
    /// Whether it may be left out.
    pub(crate) optional: bool,
}

/// Commands, events and types.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schema {
    /// The arguments' type of each command.
    commands: BTreeMap<String, String>,
    events: Vec<String>,
    types: HashMap<String, Kind>,
}

impl Schema {
    /// Reads a reply of `query-qmp-schema`.
    pub(crate) fn read(entries: Vec<SchemaInfo>) -> Self {
        let mut schema = Self::default();
        for SchemaInfo {
            name, meta_type, ..
        } in entries
        {
            let kind = match meta_type {
                SchemaInfoVariant::Command(command) => {
                    schema.commands.insert(name, command.arg_type);
                    continue;
                }
                SchemaInfoVariant::Event(_) => {
                    schema.events.push(name);
                    continue;
                }
                SchemaInfoVariant::Builtin(builtin) => Kind::of(builtin.json_type),
                SchemaInfoVariant::Enum(words) => Kind::Word(words.values),
                SchemaInfoVariant::Array(list) => Kind::List(list.element_type),
                SchemaInfoVariant::Object(object) => Kind::Object(object.into()),
                SchemaInfoVariant::Alternate(either) => {
                    Kind::Either(either.members.into_iter().map(|m| m.r#type).collect())
                }
                _ => Kind::Any,
            };
            schema.types.insert(name, kind);
        }
        schema.events.sort();
        schema
    }

    /// That of this version.
    pub(crate) fn compiled_in() -> Self {
        Self::read(serde_json::from_str(COMPILED_IN).unwrap_or_default())
    }

    /// The commands' names, sorted.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.keys().map(String::as_str)
    }

    /// The events' names, sorted.
    pub(crate) fn events(&self) -> &[String] {
        &self.events
    }

    /// Whether there is such a command.
    pub(crate) fn has(&self, command: &str) -> bool {
        self.commands.contains_key(command)
    }

    /// The type of a command's arguments.
    pub(crate) fn arguments(&self, command: &str) -> Option<&str> {
        self.commands.get(command).map(String::as_str)
    }

    /// What a type is. One that introspection does not describe may be anything.
    pub(crate) fn kind(&self, name: &str) -> &Kind {
        self.types.get(name).unwrap_or(&Kind::Any)
    }

    /// The object that a type is or may be.
    pub(crate) fn object(&self, name: &str) -> Option<&Object> {
        match self.kind(name) {
            Kind::Object(object) => Some(object),
            Kind::Either(kinds) => kinds.iter().find_map(|kind| match self.kind(kind) {
                Kind::Object(object) => Some(object),
                _ => None,
            }),
            _ => None,
        }
    }

    /// The members of an object whose tags have the values that `chosen` gives: fixed ones first,
    /// then those of the variants. A tag without a value has no variant.
    pub(crate) fn members<'s>(
        &'s self,
        object: &'s Object,
        chosen: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<&'s Member> {
        let mut members: Vec<_> = object.members.iter().collect();
        let value = object.tag.as_deref().and_then(chosen);
        let variant = value.and_then(|value| object.variants.get(&value));
        if let Some(Kind::Object(variant)) = variant.map(|name| self.kind(name)) {
            members.extend(self.members(variant, chosen));
        }
        members
    }

    /// The words that a value of this type may be.
    pub(crate) fn words(&self, name: &str) -> Vec<&str> {
        match self.kind(name) {
            Kind::Word(words) => words.iter().map(String::as_str).collect(),
            Kind::Boolean => vec!["on", "off"],
            Kind::Either(kinds) => kinds.iter().flat_map(|kind| self.words(kind)).collect(),
            _ => Vec::new(),
        }
    }

    /// What kind of value it is, for people.
    pub(crate) fn describe(&self, name: &str) -> String {
        match self.kind(name) {
            Kind::Text => "TEXT".to_owned(),
            Kind::Integer => "INTEGER".to_owned(),
            Kind::Number => "NUMBER".to_owned(),
            Kind::Boolean => "on|off".to_owned(),
            Kind::Null => "null".to_owned(),
            Kind::Any => "ANY".to_owned(),
            Kind::Word(words) => words.join("|"),
            Kind::List(element) => format!("list of {}", self.describe(element)),
            Kind::Object(_) => "OBJECT".to_owned(),
            Kind::Either(kinds) => {
                let kinds: Vec<_> = kinds.iter().map(|kind| self.describe(kind)).collect();
                kinds.join(" or ")
            }
        }
    }
}

impl Object {
    /// The member that decides which others there are.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

impl Kind {
    fn of(builtin: JSONType) -> Self {
        match builtin {
            JSONType::String => Self::Text,
            JSONType::Int => Self::Integer,
            JSONType::Number => Self::Number,
            JSONType::Boolean => Self::Boolean,
            JSONType::Null => Self::Null,
            _ => Self::Any,
        }
    }
}

impl From<SchemaInfoObject> for Object {
    fn from(object: SchemaInfoObject) -> Self {
        let members = object.members.into_iter().map(|member| Member {
            name: member.name,
            kind: member.r#type,
            optional: member.default.is_some(),
        });
        let variants = object.variants.into_iter().flatten();
        Self {
            members: members.collect(),
            tag: object.tag,
            variants: variants.map(|v| (v.case, v.r#type)).collect(),
        }
    }
}

/// The one of `known` that `name` is probably meant to be: one with few other letters, or the only
/// one that goes on where `name` ends.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let known: Vec<_> = known.collect();
    let near = known
        .iter()
        .map(|word| (distance(name, word), *word))
        .filter(|(far, word)| *far <= 1 + word.len() / 5)
        .min();
    let mut longer = known
        .iter()
        .filter(|word| name.len() > 2 && word.starts_with(name));
    match (near, longer.next(), longer.next()) {
        (Some((_, word)), _, _) => Some(word),
        (None, Some(word), None) => Some(word),
        _ => None,
    }
}

/// ` (did you mean 'x'?)`, if there is an x.
pub(crate) fn meant<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let word = nearest(name, known);
    word.map_or_else(String::new, |word| format!(" (did you mean '{word}'?)"))
}

/// How many letters to add, drop or change (Levenshtein). `-` and `_` are the same letter.
fn distance(one: &str, other: &str) -> usize {
    let same = |a: char, b: char| a == b || ("-_".contains(a) && "-_".contains(b));
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (b, above) in other.iter().zip(row.iter_mut().skip(1)) {
            let changed = diagonal + usize::from(!same(a, *b));
            diagonal = *above;
            left = changed.min(left + 1).min(*above + 1);
            *above = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_of_a_variant_are_there_once_its_tag_is_chosen() {
        let schema = Schema::compiled_in();
        let kind = schema.arguments("blockdev-add").expect("a command");
        let object = schema.object(kind).expect("an object");
        let names = |chosen: Option<&str>| -> Vec<String> {
            let chosen = chosen.map(str::to_owned);
            let members = schema.members(object, &|_| chosen.clone());
            members.iter().map(|member| member.name.clone()).collect()
        };
        assert!(names(None).contains(&"driver".to_owned()));
        assert!(!names(None).contains(&"filename".to_owned()));
        assert!(names(Some("file")).contains(&"filename".to_owned()));
    }

    #[test]
    fn a_slip_is_recognized_and_another_word_is_not() {
        let known = ["filename", "driver", "node-name", "device_add"];
        let nearest = |word| nearest(word, known.into_iter());
        assert_eq!(nearest("filname"), Some("filename"));
        assert_eq!(nearest("node_name"), Some("node-name"));
        assert_eq!(nearest("device-add"), Some("device_add"));
        assert_eq!(nearest("node"), Some("node-name"));
        assert_eq!(nearest("serial"), None);
    }
}
