//! Unions and alternates: a discriminator that picks exactly one branch, or JSON types that do.

use super::{Resolver, disjoint, folded};
use crate::check::{Body, Definition, Members, RawMember};
use crate::doc::DocText;
use crate::ir::{Branch, Builtin, Kind, Member, TypeRef};
use crate::source::{SchemaError, Span};

pub(super) fn union(resolver: &Resolver<'_>, of: &Definition) -> Result<Kind, SchemaError> {
    let Body::Union {
        base,
        discriminator: (tag, tag_span),
        branches: raw,
    } = &of.body
    else {
        return Err(SchemaError::new(&of.span, "wanted a union"));
    };
    let base = match base {
        Members::Inline(members) => resolver.members(members, of.doc.as_ref())?,
        Members::Named(name) => resolver.struct_members(resolver.find_type(name)?)?,
    };
    let (tag_type, values) = tag_values(resolver, of, &base, tag, tag_span)?;
    let value_doc = |value: &str| -> DocText {
        let tag_type = resolver.by_name.get(tag_type.as_str());
        let doc = tag_type.and_then(|tag_type| tag_type.doc.as_ref());
        doc.map(|doc| doc.member(value)).unwrap_or_default()
    };
    let mut branches = Vec::new();
    for one in raw {
        if !values.contains(&one.name) {
            return Err(SchemaError::new(
                &one.span,
                format!("branch '{}' is not a value of enum '{tag_type}'", one.name),
            ));
        }
        let ty = branch(resolver, of, &base, one)?;
        branches.push(Branch {
            name: one.name.clone(),
            ty: Some(ty),
            doc: value_doc(&one.name),
        });
    }
    for value in values {
        if !raw.iter().any(|one| one.name == value) {
            branches.push(Branch {
                doc: value_doc(&value),
                name: value,
                ty: None,
            });
        }
    }
    Ok(Kind::Union {
        base,
        tag: tag.clone(),
        tag_type,
        branches,
    })
}

fn tag_values(
    resolver: &Resolver<'_>,
    of: &Definition,
    base: &[Member],
    tag: &str,
    tag_span: &Span,
) -> Result<(String, Vec<String>), SchemaError> {
    let fail = |why: String| Err(SchemaError::new(tag_span, why));
    let Some(member) = base.iter().find(|member| member.name == tag) else {
        return fail(format!(
            "discriminator '{tag}' is not a member of the base of '{}'",
            of.name
        ));
    };
    if member.optional {
        return fail(format!("discriminator '{tag}' must not be optional"));
    }
    let TypeRef::Named(name) = &member.ty else {
        return fail(format!(
            "discriminator '{tag}' wants an enum type, not '{}'",
            member.ty.name()
        ));
    };
    match resolver.by_name.get(name.as_str()).map(|found| &found.body) {
        Some(Body::Enum(values)) => Ok((
            name.clone(),
            values.iter().map(|value| value.name.clone()).collect(),
        )),
        _ => fail(format!(
            "discriminator '{tag}' wants an enum type, not '{name}'"
        )),
    }
}

fn branch(
    resolver: &Resolver<'_>,
    of: &Definition,
    base: &[Member],
    raw: &RawMember,
) -> Result<TypeRef, SchemaError> {
    if raw.ty.array || Builtin::named(&raw.ty.name).is_some() {
        return Err(SchemaError::new(
            &raw.ty.span,
            format!("branch '{}' wants a struct or union type", raw.name),
        ));
    }
    let found = resolver.find_type(&raw.ty)?;
    match &found.body {
        Body::Struct { .. } => {
            for member in resolver.struct_members(found)? {
                if base
                    .iter()
                    .any(|one| folded(&one.name) == folded(&member.name))
                {
                    return Err(SchemaError::new(
                        &raw.span,
                        format!(
                            "branch '{}' repeats member '{}' of the base of '{}'",
                            raw.name, member.name, of.name
                        ),
                    ));
                }
            }
        }
        Body::Union {
            base: Members::Inline(members),
            ..
        } => {
            disjoint(base, members, &format!("base of '{}'", of.name))?;
        }
        Body::Union { .. } => {}
        _ => {
            return Err(SchemaError::new(
                &raw.ty.span,
                format!(
                    "branch '{}' wants a struct or union type, not '{}'",
                    raw.name, raw.ty.name
                ),
            ));
        }
    }
    Ok(TypeRef::Named(found.name.clone()))
}

pub(super) fn alternate(resolver: &Resolver<'_>, of: &Definition) -> Result<Kind, SchemaError> {
    let Body::Alternate(raw) = &of.body else {
        return Err(SchemaError::new(&of.span, "wanted an alternate"));
    };
    let mut taken: Vec<(&'static str, &str)> = Vec::new();
    let mut branches = Vec::new();
    for one in raw {
        let ty = resolver.type_ref(&one.ty)?;
        let json = json_type(resolver, &ty);
        if json == "value" {
            return Err(SchemaError::new(
                &one.span,
                format!("branch '{}' could be any JSON value", one.name),
            ));
        }
        if let Some((_, other)) = taken.iter().find(|(used, _)| *used == json) {
            return Err(SchemaError::new(
                &one.span,
                format!(
                    "branches '{other}' and '{}' are both a JSON {json}",
                    one.name
                ),
            ));
        }
        taken.push((json, &one.name));
        branches.push(Branch {
            name: one.name.clone(),
            ty: Some(ty),
            doc: of
                .doc
                .as_ref()
                .map(|doc| doc.member(&one.name))
                .unwrap_or_default(),
        });
    }
    Ok(Kind::Alternate(branches))
}

fn json_type(resolver: &Resolver<'_>, ty: &TypeRef) -> &'static str {
    match ty {
        TypeRef::Array(_) => "array",
        TypeRef::Builtin(builtin) if builtin.json_type() == "int" => "number",
        TypeRef::Builtin(builtin) => builtin.json_type(),
        TypeRef::Named(name) => match resolver.by_name.get(name.as_str()).map(|d| &d.body) {
            Some(Body::Enum(_)) => "string",
            Some(Body::Alternate(_)) => "value",
            _ => "object",
        },
    }
}
