//! Which uses of a type must be boxed because the type contains itself.

use std::collections::HashSet;

use crate::ir::{Kind, Schema, TypeRef};

/// Uses `(type, member or branch)` that close a cycle.
pub(crate) struct Boxes(HashSet<(String, String)>);

impl Boxes {
    /// Boxes as few uses as possible: branches of alternates first, then members.
    pub(crate) fn new(schema: &Schema) -> Self {
        let mut boxes = Self(HashSet::new());
        for alternates in [true, false] {
            for (name, ty) in &schema.types {
                if matches!(ty.kind, Kind::Alternate(_)) != alternates {
                    continue;
                }
                for (member, target) in edges(&ty.kind) {
                    let mut seen = HashSet::new();
                    if boxes.reaches(schema, target, name, &mut seen) {
                        boxes.0.insert((name.clone(), member.to_owned()));
                    }
                }
            }
        }
        boxes
    }

    /// Whether that use is boxed.
    pub(crate) fn boxed(&self, owner: &str, member: &str) -> bool {
        self.0.contains(&(owner.to_owned(), member.to_owned()))
    }

    fn reaches(&self, schema: &Schema, from: &str, to: &str, seen: &mut HashSet<String>) -> bool {
        if from == to {
            return true;
        }
        if !seen.insert(from.to_owned()) {
            return false;
        }
        edges(&schema.types[from].kind)
            .into_iter()
            .filter(|(member, _)| !self.boxed(from, member))
            .any(|(_, next)| self.reaches(schema, next, to, seen))
    }
}

/// Every `(member or branch, type)` whose value lies inside a value of this kind.
fn edges(kind: &Kind) -> Vec<(&str, &str)> {
    let uses: Vec<(&str, Option<&TypeRef>)> = match kind {
        Kind::Enum(_) => Vec::new(),
        Kind::Struct(members) => members
            .iter()
            .map(|m| (m.name.as_str(), Some(&m.ty)))
            .collect(),
        Kind::Union { base, branches, .. } => {
            let base = base.iter().map(|m| (m.name.as_str(), Some(&m.ty)));
            base.chain(branches.iter().map(|b| (b.name.as_str(), b.ty.as_ref())))
                .collect()
        }
        Kind::Alternate(branches) => branches
            .iter()
            .map(|b| (b.name.as_str(), b.ty.as_ref()))
            .collect(),
    };
    uses.into_iter()
        .filter_map(|(name, ty)| match ty {
            Some(TypeRef::Named(target)) => Some((name, target.as_str())),
            _ => None,
        })
        .collect()
}
