//! `pragma`: which names may break the naming rules.

use crate::parse::Value;
use crate::source::SchemaError;

/// Everything that pragmas said, over all files.
#[derive(Debug, Default)]
pub(crate) struct Pragmas {
    pub(crate) doc_required: bool,
    pub(crate) command_names: Vec<String>,
    pub(crate) command_returns: Vec<String>,
    pub(crate) member_names: Vec<String>,
}

impl Pragmas {
    pub(super) fn read(&mut self, value: &Value) -> Result<(), SchemaError> {
        let Value::Object(object) = value else {
            return Err(SchemaError::new(
                value.span(),
                format!("'pragma' wants an object, not {}", value.describe()),
            ));
        };
        for entry in &object.entries {
            match (entry.key.as_str(), &entry.value) {
                ("doc-required", Value::Bool(on, _)) => self.doc_required = *on,
                ("command-name-exceptions", list) => names(list, &mut self.command_names)?,
                ("command-returns-exceptions", list) => names(list, &mut self.command_returns)?,
                ("member-name-exceptions", list) => names(list, &mut self.member_names)?,
                ("documentation-exceptions", list) => names(list, &mut Vec::new())?,
                (other, value) => {
                    return Err(SchemaError::new(
                        &entry.span,
                        format!(
                            "pragma '{other}' is unknown or does not take {}",
                            value.describe()
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

fn names(value: &Value, into: &mut Vec<String>) -> Result<(), SchemaError> {
    let Value::List(items, _) = value else {
        return Err(SchemaError::new(
            value.span(),
            format!("wanted a list of names, found {}", value.describe()),
        ));
    };
    for item in items {
        match item {
            Value::Str(name, _) => into.push(name.clone()),
            other => {
                return Err(SchemaError::new(
                    other.span(),
                    format!("wanted a name, found {}", other.describe()),
                ));
            }
        }
    }
    Ok(())
}
