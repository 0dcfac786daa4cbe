//! Reads the parts that definitions share: keys, members, types, features, conditions, switches.

use super::names::{self, Place};
use super::{Members, Pragmas, RawMember, RawValue, TypeName, condition};
use crate::parse::{Entry, Object, Value};
use crate::source::{SchemaError, Span};

pub(super) struct Reader<'a> {
    pub(super) symbols: &'a [&'a str],
    pub(super) pragmas: &'a Pragmas,
}

impl Reader<'_> {
    pub(super) fn find<'o>(&self, object: &'o Object, key: &str) -> Option<&'o Entry> {
        object.entries.iter().find(|entry| entry.key == key)
    }

    /// Every required key is there and no unknown one.
    pub(super) fn keys(
        &self,
        object: &Object,
        required: &[&str],
        optional: &[&str],
    ) -> Result<(), SchemaError> {
        for entry in &object.entries {
            let key = entry.key.as_str();
            if !required.contains(&key) && !optional.contains(&key) {
                return Err(SchemaError::new(
                    &entry.span,
                    format!(
                        "unknown key '{key}': wanted one of '{}'",
                        [required, optional].concat().join("', '")
                    ),
                ));
            }
        }
        for key in required {
            if self.find(object, key).is_none() {
                return Err(SchemaError::new(
                    &object.span,
                    format!("key '{key}' is missing"),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn type_name_rules(&self, object: &Object, name: &str) -> Result<(), SchemaError> {
        names::type_name(name, &object.span)
    }

    pub(super) fn condition(&self, object: &Object) -> Result<bool, SchemaError> {
        match self.find(object, "if") {
            Some(entry) => condition::holds(&entry.value, self.symbols),
            None => Ok(true),
        }
    }

    /// Whether a switch is there; it may only be written with its unusual value.
    pub(super) fn flag(
        &self,
        object: &Object,
        key: &str,
        unusual: bool,
    ) -> Result<bool, SchemaError> {
        match self
            .find(object, key)
            .map(|entry| (&entry.value, &entry.span))
        {
            None => Ok(false),
            Some((Value::Bool(value, _), _)) if *value == unusual => Ok(true),
            Some((other, span)) => Err(SchemaError::new(
                span,
                format!("'{key}' may only be {unusual}, not {}", other.describe()),
            )),
        }
    }

    pub(super) fn features(&self, object: &Object) -> Result<Vec<String>, SchemaError> {
        let Some(entry) = self.find(object, "features") else {
            return Ok(Vec::new());
        };
        let Value::List(items, _) = &entry.value else {
            return Err(SchemaError::new(
                &entry.span,
                format!("'features' wants a list, not {}", entry.value.describe()),
            ));
        };
        let mut features = Vec::new();
        for item in items {
            let (name, span, present) = self.named_item(item, "feature", &["if"])?;
            names::lower(&name, &span, Place::Feature, false)?;
            if present {
                features.push(name);
            }
        }
        Ok(features)
    }

    pub(super) fn enum_values(&self, object: &Object) -> Result<Vec<RawValue>, SchemaError> {
        let Some(Value::List(items, _)) = self.find(object, "data").map(|entry| &entry.value)
        else {
            return Err(SchemaError::new(
                &object.span,
                "'data' of an enum wants a list of values",
            ));
        };
        let owner = self.owner(object);
        let mut values: Vec<RawValue> = Vec::new();
        for item in items {
            let (name, span, present) = self.named_item(item, "enum value", &["if", "features"])?;
            let excepted = self.pragmas.member_names.contains(&owner);
            names::lower(&name, &span, Place::EnumValue, excepted)?;
            if values.iter().any(|value| value.name == name) {
                return Err(SchemaError::new(
                    &span,
                    format!("enum value '{name}' occurs twice"),
                ));
            }
            let features = match item {
                Value::Object(item) => self.features(item)?,
                _ => Vec::new(),
            };
            if present {
                values.push(RawValue { name, features });
            }
        }
        Ok(values)
    }

    /// A name, or `{ 'name': ..., 'if': ... }`.
    fn named_item(
        &self,
        item: &Value,
        noun: &str,
        keys: &[&str],
    ) -> Result<(String, Span, bool), SchemaError> {
        match item {
            Value::Str(name, span) => Ok((name.clone(), span.clone(), true)),
            Value::Object(object) => {
                self.keys(object, &["name"], keys)?;
                match self.find(object, "name").map(|entry| &entry.value) {
                    Some(Value::Str(name, span)) => {
                        Ok((name.clone(), span.clone(), self.condition(object)?))
                    }
                    _ => Err(SchemaError::new(
                        &object.span,
                        format!("'name' of {noun} wants a string"),
                    )),
                }
            }
            other => Err(SchemaError::new(
                other.span(),
                format!("{noun} wants a name or an object, not {}", other.describe()),
            )),
        }
    }

    fn owner(&self, object: &Object) -> String {
        match object.entries.first().map(|entry| &entry.value) {
            Some(Value::Str(name, _)) => name.clone(),
            _ => String::new(),
        }
    }

    pub(super) fn inline_or_named(
        &self,
        object: &Object,
        key: &str,
    ) -> Result<Option<Members>, SchemaError> {
        match self.find(object, key).map(|entry| &entry.value) {
            None => Ok(None),
            Some(Value::Object(_)) => {
                let members = self.members(object, key, Place::Member)?;
                Ok(Some(Members::Inline(members)))
            }
            Some(value) => {
                let name = self.plain_type(value, &format!("'{key}'"))?;
                Ok(Some(Members::Named(name)))
            }
        }
    }

    pub(super) fn members(
        &self,
        object: &Object,
        key: &str,
        place: Place,
    ) -> Result<Vec<RawMember>, SchemaError> {
        let owner = self.owner(object);
        let Some(entry) = self.find(object, key) else {
            return Ok(Vec::new());
        };
        let Value::Object(list) = &entry.value else {
            return Err(SchemaError::new(
                &entry.span,
                format!("'{key}' wants an object, not {}", entry.value.describe()),
            ));
        };
        let mut members = Vec::new();
        for entry in &list.entries {
            let (name, optional) = match entry.key.strip_prefix('*') {
                Some(name) if place == Place::Member => (name, true),
                _ => (entry.key.as_str(), false),
            };
            let excepted = self.pragmas.member_names.contains(&owner);
            names::lower(name, &entry.span, place, excepted)?;
            if let Some(member) = self.member(entry, name, optional)? {
                members.push(member);
            }
        }
        Ok(members)
    }

    fn member(
        &self,
        entry: &Entry,
        name: &str,
        optional: bool,
    ) -> Result<Option<RawMember>, SchemaError> {
        let what = format!("type of '{name}'");
        let (ty, features) = match &entry.value {
            Value::Object(long) => {
                self.keys(long, &["type"], &["if", "features"])?;
                if !self.condition(long)? {
                    return Ok(None);
                }
                let ty = self
                    .find(long, "type")
                    .map(|entry| self.type_name(&entry.value, &what));
                let Some(ty) = ty else { return Ok(None) };
                (ty?, self.features(long)?)
            }
            short => (self.type_name(short, &what)?, Vec::new()),
        };
        Ok(Some(RawMember {
            name: name.to_owned(),
            span: entry.span.clone(),
            ty,
            optional,
            features,
        }))
    }

    pub(super) fn plain_type(&self, value: &Value, what: &str) -> Result<TypeName, SchemaError> {
        match value {
            Value::Str(name, span) => Ok(TypeName {
                name: name.clone(),
                array: false,
                span: span.clone(),
            }),
            other => Err(SchemaError::new(
                other.span(),
                format!("{what} wants a type name, not {}", other.describe()),
            )),
        }
    }

    pub(super) fn type_name(&self, value: &Value, what: &str) -> Result<TypeName, SchemaError> {
        match value {
            Value::List(items, _) => match items.as_slice() {
                [Value::Str(name, span)] => Ok(TypeName {
                    name: name.clone(),
                    array: true,
                    span: span.clone(),
                }),
                _ => Err(SchemaError::new(
                    value.span(),
                    format!("{what} wants exactly one type name in an array"),
                )),
            },
            other => self.plain_type(other, what),
        }
    }
}
