//! `if`: a symbol, or `all`, `any`, `not` of such.

use crate::parse::Value;
use crate::source::SchemaError;

/// Decides a condition with the given symbols true and all others false.
pub(super) fn holds(value: &Value, symbols: &[&str]) -> Result<bool, SchemaError> {
    match value {
        Value::Str(symbol, span) => {
            let fine = symbol.starts_with(|c: char| c.is_ascii_uppercase())
                && symbol
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            if fine {
                Ok(symbols.contains(&symbol.as_str()))
            } else {
                Err(SchemaError::new(
                    span,
                    format!(
                        "condition '{symbol}' wants to be a symbol in capitals, like 'CONFIG_X'"
                    ),
                ))
            }
        }
        Value::Object(object) if object.entries.len() == 1 => {
            let entry = &object.entries[0];
            match (entry.key.as_str(), &entry.value) {
                ("not", inner) => Ok(!holds(inner, symbols)?),
                ("all", Value::List(items, _)) if !items.is_empty() => {
                    every(items, symbols).map(|all| all.into_iter().all(|one| one))
                }
                ("any", Value::List(items, _)) if !items.is_empty() => {
                    every(items, symbols).map(|all| all.into_iter().any(|one| one))
                }
                ("all" | "any", _) => Err(SchemaError::new(
                    &entry.span,
                    format!("'{}' wants a list of one or more conditions", entry.key),
                )),
                (other, _) => Err(SchemaError::new(
                    &entry.span,
                    format!("condition wants 'all', 'any' or 'not', not '{other}'"),
                )),
            }
        }
        other => Err(SchemaError::new(
            other.span(),
            format!(
                "'if' wants a symbol or an object with one of 'all', 'any', 'not', not {}",
                other.describe()
            ),
        )),
    }
}

fn every(items: &[Value], symbols: &[&str]) -> Result<Vec<bool>, SchemaError> {
    items.iter().map(|item| holds(item, symbols)).collect()
}
