//! Enums, structs, unions and alternates.

use std::fmt::Write as _;

use super::super::client::{Client, Variant, variants};
use super::{comment, documented, exported, is_type, sentences, structure, type_name, type_text};
use crate::ir::{Branch, Builtin, EnumValue, Kind, TypeDef, TypeRef};

pub(super) fn types(client: &Client<'_>) -> String {
    let mut out = String::new();
    for ty in client.types() {
        let name = type_name(&ty.name);
        match &ty.kind {
            Kind::Enum(values) => enumeration(&mut out, ty, values),
            Kind::Struct(members) => {
                documented(
                    &mut out,
                    &name,
                    &ty.doc,
                    &format!("is QAPI struct {}", ty.name),
                );
                structure(&mut out, &name, &members.iter().collect::<Vec<_>>());
            }
            Kind::Union { .. } => union(&mut out, ty, &variants(client.schema, ty)),
            Kind::Alternate(branches) => alternate(&mut out, client, ty, branches),
        }
    }
    out
}

fn enumeration(out: &mut String, ty: &TypeDef, values: &[EnumValue]) {
    let name = type_name(&ty.name);
    documented(out, &name, &ty.doc, &format!("is QAPI enum {}", ty.name));
    let _ = writeln!(
        out,
        "type {name} string\n\n// The values of {name}.\nconst ("
    );
    for value in values {
        comment(out, 1, &sentences(&value.doc));
        let _ = writeln!(
            out,
            "\t{name}{} {name} = \"{}\"",
            exported(&value.name),
            value.name
        );
    }
    out.push_str(")\n");
}

fn union(out: &mut String, ty: &TypeDef, all: &[Variant<'_>]) {
    let name = type_name(&ty.name);
    documented(out, &name, &ty.doc, &format!("is QAPI union {}", ty.name));
    let _ = write!(
        out,
        "type {name} struct {{\n\t// Variant is what it is.\n\tVariant {name}Variant\n}}\n\n\
         // {name}Variant is one of the branches of {name}, or UnknownVariant.\n\
         type {name}Variant interface{{ is{name}() }}\n\n\
         func (UnknownVariant) is{name}() {{}}\n\n\
         // MarshalJSON writes the branch.\n\
         func (u {name}) MarshalJSON() ([]byte, error) {{ return json.Marshal(u.Variant) }}\n"
    );
    let mut tags: Vec<&str> = Vec::new();
    for (tag, _) in all.iter().flat_map(|one| &one.tags) {
        if !tags.contains(tag) {
            tags.push(tag);
        }
    }
    let mut cases = String::new();
    for one in all {
        let values = tags
            .iter()
            .map(|tag| one.tags.iter().find(|(name, _)| name == tag));
        let values: Vec<&str> = values
            .map(|found| found.map_or("", |(_, value)| *value))
            .collect();
        let (suffix, key) = (exported_suffix(one), values.join("/"));
        let _ = writeln!(
            cases,
            "\tcase \"{key}\":\n\t\treturn variant[{name}{suffix}](data, &u.Variant)"
        );
    }
    let quoted: Vec<String> = tags.iter().map(|tag| format!("\"{tag}\"")).collect();
    let _ = write!(
        out,
        "\n// UnmarshalJSON finds the branch by its discriminator.\n\
         func (u *{name}) UnmarshalJSON(data []byte) error {{\n\
         \ttags, err := tagsOf(data, {})\n\tif err != nil {{\n\t\treturn err\n\t}}\n\
         \tswitch tags {{\n{cases}\tdefault:\n\
         \t\tu.Variant = UnknownVariant{{append([]byte(nil), data...)}}\n\t\treturn nil\n\t}}\n}}\n",
        quoted.join(", ")
    );
    for one in all {
        let variant = format!("{name}{}", exported_suffix(one));
        documented(out, &variant, one.doc, &format!("is a branch of {name}"));
        structure(out, &variant, &one.members);
        let tags: Vec<String> = one
            .tags
            .iter()
            .map(|(tag, value)| format!("\"{tag}\", \"{value}\""))
            .collect();
        let _ = write!(
            out,
            "\nfunc ({variant}) is{name}() {{}}\n\n// MarshalJSON adds the discriminator.\n\
             func (v {variant}) MarshalJSON() ([]byte, error) {{\n\ttype plain {variant}\n\
             \treturn tagged(plain(v), {})\n}}\n",
            tags.join(", ")
        );
    }
}

fn exported_suffix(variant: &Variant<'_>) -> String {
    let values = variant.tags.iter().map(|(_, value)| exported(value));
    values.collect()
}

fn alternate(out: &mut String, client: &Client<'_>, ty: &TypeDef, branches: &[Branch]) {
    let name = type_name(&ty.name);
    documented(out, &name, &ty.doc, "is one of several types");
    let _ = writeln!(out, "type {name} struct {{");
    let mut write = String::new();
    let mut read = String::new();
    for branch in branches {
        let Some(of) = &branch.ty else { continue };
        let field = exported(&branch.name);
        comment(out, 1, &sentences(&branch.doc));
        let _ = writeln!(out, "\t{field} *{}", type_text(of));
        let _ = writeln!(
            write,
            "\tcase a.{field} != nil:\n\t\treturn json.Marshal(a.{field})"
        );
        let kind = json_kind(client, of);
        let _ = writeln!(read, "\tcase {kind}:\n\t\treturn branch(data, &a.{field})");
    }
    let _ = write!(
        out,
        "}}\n\n// MarshalJSON writes what is there.\nfunc (a {name}) MarshalJSON() ([]byte, error) {{\n\
         \tswitch {{\n{write}\tdefault:\n\t\treturn []byte(\"null\"), nil\n\t}}\n}}\n\n\
         // UnmarshalJSON tells the types apart.\nfunc (a *{name}) UnmarshalJSON(data []byte) error {{\n\
         \tswitch jsonKind(data) {{\n{read}\tdefault:\n\t\treturn nil\n\t}}\n}}\n"
    );
}

/// What `jsonKind` says of such a value.
fn json_kind(client: &Client<'_>, ty: &TypeRef) -> &'static str {
    match ty {
        TypeRef::Array(_) => "'['",
        TypeRef::Named(name) if is_type(client, name, |kind| matches!(kind, Kind::Enum(_))) => {
            "'\"'"
        }
        TypeRef::Named(_) => "'{'",
        TypeRef::Builtin(Builtin::Str) => "'\"'",
        TypeRef::Builtin(Builtin::Bool) => "'b'",
        TypeRef::Builtin(Builtin::Null) => "'n'",
        TypeRef::Builtin(_) => "'0'",
    }
}
