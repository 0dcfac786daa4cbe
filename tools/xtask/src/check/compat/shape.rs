//! What a JSON Schema allows, in the few forms that the published document uses.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What a schema allows.
#[derive(Debug)]
pub(super) enum Shape<'d> {
    /// Any JSON.
    Any,
    /// Text, a boolean, null, or a number with fraction: the JSON type's name.
    Plain(&'d str),
    /// A whole number between these.
    Integer { least: i128, most: i128 },
    /// One of these words.
    Words(BTreeSet<&'d str>),
    /// Elements like this.
    List(&'d Value),
    /// Members.
    Object(Object<'d>),
    /// One of these, by the name of their JSON type.
    Choice(BTreeMap<&'static str, &'d Value>),
}

/// An object's members.
#[derive(Debug, Default)]
pub(super) struct Object<'d> {
    /// Those that are always possible, and whether they must be there.
    pub(super) members: BTreeMap<&'d str, (bool, &'d Value)>,
    /// Those that depend on the value of a member: the member, its values, what goes with each.
    pub(super) variants: Vec<(&'d str, BTreeMap<&'d str, Object<'d>>)>,
}

/// A document to look references up in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'d>(pub(super) &'d Value);

impl<'d> Document<'d> {
    /// The definition that a schema refers to.
    fn target(self, schema: &'d Value) -> Option<&'d Value> {
        let name = schema["$ref"].as_str()?.strip_prefix("#/$defs/")?;
        Some(&self.0["$defs"][name])
    }

    /// What the schema allows.
    pub(super) fn shape(self, schema: &'d Value) -> Shape<'d> {
        if schema["properties"].is_null()
            && let Some(target) = self.target(schema)
        {
            return self.shape(target);
        }
        if let Some(words) = words(schema) {
            return Shape::Words(words);
        }
        if let Some(choices) = schema["anyOf"].as_array() {
            let named = choices.iter().map(|one| (self.shape(one).kind(), one));
            return Shape::Choice(named.collect());
        }
        match schema["type"].as_str() {
            None if schema["oneOf"].is_null() => Shape::Any,
            Some("integer") => integer(schema),
            Some("array") => Shape::List(&schema["items"]),
            None | Some("object") => Shape::Object(self.object(schema)),
            Some(plain) => Shape::Plain(plain),
        }
    }

    fn object(self, schema: &'d Value) -> Object<'d> {
        let mut object = match self.target(schema) {
            Some(target) => self.object(target),
            None => Object::default(),
        };
        let required: Vec<_> = list(&schema["required"]).map(Value::as_str).collect();
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let must = required.contains(&Some(name.as_str()));
            object.members.insert(name, (must, member));
        }
        let mut by_tag: BTreeMap<&str, BTreeMap<&str, Object<'_>>> = BTreeMap::new();
        for variant in list(&schema["oneOf"]) {
            let mut own = self.object(variant);
            let constant = |(_, member): &(bool, &'d Value)| member["const"].as_str();
            let tag = own
                .members
                .iter()
                .find_map(|(name, member)| constant(member).map(|value| (*name, value)));
            if let Some((name, value)) = tag {
                own.members.remove(name);
                by_tag.entry(name).or_default().insert(value, own);
            }
        }
        object.variants.extend(by_tag);
        object
    }
}

impl Shape<'_> {
    /// The JSON type, in words for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Any => "anything",
            Self::Plain("boolean") => "a boolean",
            Self::Plain("null") => "null",
            Self::Plain("number") => "a number",
            Self::Plain(_) => "text",
            Self::Integer { .. } => "a whole number",
            Self::Words(_) => "one of several words",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
            Self::Choice(_) => "one of several types",
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The words of an enumeration: a list of constants, with or without documentation.
fn words(schema: &Value) -> Option<BTreeSet<&str>> {
    if let Some(word) = schema["const"].as_str() {
        return Some(BTreeSet::from([word]));
    }
    if let Some(plain) = schema["enum"].as_array() {
        return plain.iter().map(Value::as_str).collect();
    }
    let documented = schema["oneOf"].as_array()?;
    let nested = documented.iter().map(|one| match one["type"].as_str() {
        Some("string") => words(one),
        _ => None,
    });
    let sets: Option<Vec<_>> = nested.collect();
    Some(sets?.into_iter().flatten().collect())
}

/// The bounds that the schema names, or those of its format.
fn integer(schema: &Value) -> Shape<'_> {
    let format = schema["format"].as_str().unwrap_or("int64");
    let (signed, bits) = match format.strip_prefix('u') {
        Some(rest) => (false, rest),
        None => (true, format),
    };
    let bits: u32 = bits
        .strip_prefix("int")
        .and_then(|bits| bits.parse().ok())
        .unwrap_or(64);
    let (least, most) = if signed {
        (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)
    } else {
        (0, (1_i128 << bits) - 1)
    };
    let bound = |name: &str, usual: i128| schema[name].as_i64().map_or(usual, i128::from);
    Shape::Integer {
        least: bound("minimum", least).max(least),
        most: bound("maximum", most).min(most),
    }
}
