//! What a type's members are, as constants: for `help`, for naming the nearest known key, for
//! `device-list-properties`.

use serde_json::Value;

use crate::input::Size;

/// A type that is an object on the wire.
pub trait Described {
    /// The members that are always possible.
    const MEMBERS: &'static [MemberSpec];
    /// The member that decides which others there are.
    const TAG: Option<&'static str>;
    /// The members that go with each of its values.
    const VARIANTS: &'static [VariantSpec];

    /// The members that an object with this value of the tag may have.
    fn known_members(tag: Option<&str>) -> Vec<&'static MemberSpec> {
        let variant = Self::VARIANTS.iter().filter(|one| Some(one.name) == tag);
        Self::MEMBERS
            .iter()
            .chain(variant.flat_map(|one| one.members))
            .collect()
    }
}

/// One member of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberSpec {
    /// On the wire.
    pub name: &'static str,
    /// The QAPI type, such as `str`, `uint16`, `OnOffAuto`, `[int]`.
    pub type_name: &'static str,
    /// The values, if the type is an enum.
    pub values: &'static [&'static str],
    /// Whether it may be absent.
    pub optional: bool,
    /// What it means.
    pub description: &'static str,
    /// What its absence means, where the schema says so.
    pub default: Option<&'static str>,
}

impl MemberSpec {
    /// A member that must be there.
    pub const fn required(
        name: &'static str,
        type_name: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            name,
            type_name,
            values: &[],
            optional: false,
            description,
            default: None,
        }
    }

    /// A member that may be absent.
    pub const fn optional(
        name: &'static str,
        type_name: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            optional: true,
            ..Self::required(name, type_name, description)
        }
    }

    /// The same with the values of its enum type.
    pub const fn one_of(self, values: &'static [&'static str]) -> Self {
        Self { values, ..self }
    }

    /// The same with what its absence means.
    pub const fn default_is(self, default: &'static str) -> Self {
        Self {
            default: Some(default),
            ..self
        }
    }

    /// What its absence means as JSON, where that is one value of its type.
    pub fn default_value(&self) -> Option<Value> {
        let text = self.default?;
        match self.type_name {
            "bool" => text.parse::<bool>().ok().map(Value::from),
            "str" => None,
            _ if !self.values.is_empty() => self.values.contains(&text).then(|| text.into()),
            _ => Size::parse(text).map(|Size(number)| number.into()),
        }
    }
}

/// The members that go with one value of a union's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VariantSpec {
    /// The value of the tag.
    pub name: &'static str,
    /// What it means.
    pub description: &'static str,
    /// The members.
    pub members: &'static [MemberSpec],
}

/// The candidate most like `name`, if one is like it at all: at most a third of it would have to
/// change.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= name.len().max(candidate.len()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_neighbour() {
        let known = ["node-name", "filename", "read-only"];
        assert_eq!(nearest("file-name", known), Some("filename"));
        assert_eq!(nearest("readonly", known), Some("read-only"));
        assert_eq!(nearest("zzz", known), None);
    }
}
