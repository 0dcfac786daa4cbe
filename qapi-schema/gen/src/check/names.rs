//! What a name may look like, by what it names.

use super::Pragmas;
use crate::source::{SchemaError, Span};

/// What a lower-case name names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Member,
    Branch,
    EnumValue,
    Feature,
}

impl Place {
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Branch => "branch",
            Self::EnumValue => "enum value",
            Self::Feature => "feature",
        }
    }
}

fn stem(name: &str) -> &str {
    // A vendor's prefix: __com.example_name
    name.strip_prefix("__")
        .and_then(|rest| rest.split_once('_'))
        .map_or(name, |(_, stem)| stem)
}

fn spelled(name: &str, digit_first: bool, letters: impl Fn(char) -> bool) -> bool {
    let mut chars = name.chars();
    let first_fits = chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || (digit_first && c.is_ascii_digit()));
    first_fits
        && name
            .chars()
            .all(|c| letters(c) || c.is_ascii_digit() || c == '-' || c == '_')
}

/// Commands: lower case with `-`.
pub(super) fn command(name: &str, span: &Span, pragmas: &Pragmas) -> Result<(), SchemaError> {
    let stem = stem(name);
    let excepted = pragmas.command_names.iter().any(|one| one == name);
    if spelled(stem, false, |c| c.is_ascii_lowercase()) && (excepted || !stem.contains('_')) {
        return Ok(());
    }
    Err(SchemaError::new(
        span,
        format!(
            "command name '{name}' wants lower-case letters, digits and '-' (or an entry in pragma 'command-name-exceptions')"
        ),
    ))
}

/// Events: upper case with `_`.
pub(super) fn event(name: &str, span: &Span) -> Result<(), SchemaError> {
    let stem = stem(name);
    if spelled(stem, false, |c| c.is_ascii_uppercase()) && !stem.contains('-') {
        return Ok(());
    }
    Err(SchemaError::new(
        span,
        format!("event name '{name}' wants upper-case letters, digits and '_'"),
    ))
}

/// Types: `CamelCase`, not ending in `List`.
pub(super) fn type_name(name: &str, span: &Span) -> Result<(), SchemaError> {
    let stem = stem(name);
    let camel = stem.starts_with(|c: char| c.is_ascii_uppercase())
        && stem.chars().all(|c| c.is_ascii_alphanumeric())
        && stem.contains(|c: char| c.is_ascii_lowercase());
    if !camel {
        return Err(SchemaError::new(
            span,
            format!("type name '{name}' wants CamelCase letters and digits"),
        ));
    }
    if name.ends_with("List") {
        return Err(SchemaError::new(
            span,
            format!("type name '{name}' must not end in 'List': arrays are written ['T']"),
        ));
    }
    Ok(())
}

/// Members, branches, enum values and features. Branches repeat enum values, so their spelling
/// was judged there.
pub(super) fn lower(
    name: &str,
    span: &Span,
    place: Place,
    excepted: bool,
) -> Result<(), SchemaError> {
    let noun = place.noun();
    let stem = stem(name);
    let digit_first = place == Place::EnumValue || place == Place::Branch;
    let any_case = excepted || place == Place::Branch;
    let letters = |c: char| c.is_ascii_lowercase() || (any_case && c.is_ascii_uppercase());
    if !spelled(stem, digit_first, letters) {
        return Err(SchemaError::new(
            span,
            format!("{noun} name '{name}' wants lower-case letters, digits and '-'"),
        ));
    }
    if stem.contains('_') && !any_case && place != Place::Feature {
        return Err(SchemaError::new(
            span,
            format!(
                "{noun} name '{name}' wants '-' for '_' (or its type in pragma 'member-name-exceptions')"
            ),
        ));
    }
    let folded = name.replace('-', "_");
    if place == Place::Member
        && (folded == "u" || folded.starts_with("has_") || folded.starts_with("q_"))
    {
        return Err(SchemaError::new(
            span,
            format!("{noun} name '{name}' is reserved"),
        ));
    }
    Ok(())
}
