//! Enums, dataclasses, unions, alternates; and events, which are dataclasses too.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::super::client::{Client, marked, prose, variants};
use super::text::{call, docstring, import, line, mentions, paragraphs};
use super::{annotation, class, is_regular, snake};
use crate::doc::DocText;
use crate::ir::{Branch, EnumValue, Kind, Member, Schema, TypeDef};
use crate::naming::camel;

/// `types.py`: enums first, then objects, then the names for several of them.
pub(super) fn module(client: &Client<'_>) -> String {
    let mut body = String::new();
    for ty in client.types() {
        if let Kind::Enum(values) = &ty.kind {
            enumeration(&mut body, ty, values);
        }
    }
    for ty in client.types() {
        match &ty.kind {
            Kind::Struct(members) => {
                let members: Vec<&Member> = members.iter().collect();
                let doc = paragraphs(&ty.doc, &format!("QAPI struct ``{}``.", ty.name));
                dataclass(&mut body, &class(&ty.name), "Struct", &doc, &[], &members);
            }
            Kind::Union { .. } => union_classes(&mut body, client.schema, ty),
            _ => {}
        }
    }
    for ty in client.types() {
        if let Kind::Union { .. } = ty.kind {
            let classes = variants(client.schema, ty).into_iter();
            let names = classes.map(|one| class(&ty.name) + &one.suffix).collect();
            alias(&mut body, ty, names);
        }
    }
    for ty in client.types() {
        if let Kind::Alternate(branches) = &ty.kind {
            alias(&mut body, ty, branches.iter().map(choice).collect());
        }
    }
    header(&body, &[]) + &body
}

/// `events.py`.
pub(super) fn events(client: &Client<'_>) -> String {
    let mut body = String::new();
    let mut used = BTreeSet::new();
    let mut names = Vec::new();
    for event in client.events() {
        let name = camel(&event.name);
        let doc = paragraphs(&event.doc, &format!("Event ``{}``.", event.name));
        let whole;
        let members: Vec<&Member> = match client.members(event.args.as_deref()) {
            Some(members) => members.iter().collect(),
            None => {
                whole = whole_data(event.args.as_deref().unwrap_or_default());
                vec![&whole]
            }
        };
        for member in &members {
            mentions(&member.ty, &mut used);
        }
        let mut constants = vec![format!("EVENT: ClassVar[str] = \"{}\"", event.name)];
        if client.members(event.args.as_deref()).is_none() {
            constants.push("WHOLE: ClassVar[bool] = True".to_owned());
        }
        dataclass_with(&mut body, &name, "Event", &doc, &constants, &[], &members);
        names.push(name);
    }
    body.push_str("\n\nEVENTS: Mapping[str, Type[Event]] = {\n");
    for name in &names {
        let _ = writeln!(body, "    {name}.EVENT: {name},");
    }
    body.push_str("}\n\"\"\"Every event by its name on the wire.\"\"\"\n");
    let used: Vec<&str> = used.iter().map(String::as_str).collect();
    header(&body, &used) + &body
}

/// A union that is all of an event's data stands in one member.
fn whole_data(ty: &str) -> Member {
    Member {
        name: "data".to_owned(),
        ty: crate::ir::TypeRef::Named(ty.to_owned()),
        optional: false,
        features: Vec::new(),
        doc: DocText::default(),
    }
}

fn header(body: &str, types: &[&str]) -> String {
    let mut out = "from __future__ import annotations\n\n".to_owned();
    import(&mut out, "dataclasses", &["dataclass", "field"], body);
    let names = [
        "Any", "ClassVar", "List", "Literal", "Mapping", "Optional", "Type", "Union",
    ];
    import(&mut out, "typing", &names, body);
    out.push('\n');
    import(&mut out, "._wire", &["Event", "Struct"], body);
    import(&mut out, ".types", types, body);
    out
}

fn enumeration(out: &mut String, ty: &TypeDef, values: &[EnumValue]) {
    let words: Vec<_> = values
        .iter()
        .map(|one| format!("\"{}\"", one.name))
        .collect();
    out.push_str("\n\n");
    call(
        out,
        0,
        &format!("{} = Literal[", class(&ty.name)),
        &words,
        "]",
    );
    let mut doc = paragraphs(&ty.doc, &format!("QAPI enum ``{}``.", ty.name));
    let items: Vec<String> = values
        .iter()
        .filter(|one| !one.doc.paragraphs.is_empty())
        .map(|one| format!("- ``{}``: {}", one.name, prose(&one.doc, "``").join(" ")))
        .collect();
    if !items.is_empty() {
        doc.push(items.join("\n"));
    }
    docstring(out, 0, &doc);
}

fn union_classes(out: &mut String, schema: &Schema, ty: &TypeDef) {
    for one in variants(schema, ty) {
        let tags = one.tags.iter();
        let tags: Vec<_> = tags
            .map(|(tag, value)| format!("``{tag}`` is ``{value}``"))
            .collect();
        let mut doc = paragraphs(&ty.doc, &format!("QAPI union ``{}``.", ty.name));
        doc.push(format!("Where {}{}", tags.join(", "), meaning(one.doc)));
        let name = class(&ty.name) + &one.suffix;
        dataclass(out, &name, "Struct", &doc, &one.tags, &one.members);
    }
}

/// What a branch is, as the end of a sentence.
fn meaning(doc: &DocText) -> String {
    match doc.one_line().as_str() {
        "" => ".".to_owned(),
        text => format!(": {}.", marked(text.trim_end_matches('.'), "``")),
    }
}

fn dataclass(
    out: &mut String,
    name: &str,
    base: &str,
    doc: &[String],
    tags: &[(&str, &str)],
    members: &[&Member],
) {
    dataclass_with(out, name, base, doc, &[], tags, members);
}

fn dataclass_with(
    out: &mut String,
    name: &str,
    base: &str,
    doc: &[String],
    constants: &[String],
    tags: &[(&str, &str)],
    members: &[&Member],
) {
    out.push_str("\n\n");
    line(out, 0, "@dataclass");
    line(out, 0, &format!("class {name}({base}):"));
    docstring(out, 1, doc);
    line(out, 0, "");
    let before = out.len();
    for one in constants {
        line(out, 1, one);
    }
    names_and_tags(out, tags, members);
    if out.len() > before {
        line(out, 0, "");
    }
    for (tag, value) in tags {
        let text = format!(
            "{}: Literal[\"{value}\"] = field(default=\"{value}\", init=False)",
            snake(tag)
        );
        line(out, 1, &text);
    }
    // Python wants fields without default first.
    let (optional, required): (Vec<_>, Vec<_>) = members.iter().partition(|one| one.optional);
    for member in required.into_iter().chain(optional) {
        member_field(out, member);
    }
    // A blank line after the docstring is for what follows it.
    let kept = out.trim_end().len();
    out.truncate(kept);
    out.push('\n');
}

/// What the core must know of the class beyond its fields.
fn names_and_tags(out: &mut String, tags: &[(&str, &str)], members: &[&Member]) {
    let irregular = members.iter().filter(|one| !is_regular(&one.name));
    let mut names: Vec<String> = irregular
        .map(|one| format!("\"{}\": \"{}\"", snake(&one.name), one.name))
        .collect();
    let tag_names = tags.iter().filter(|(tag, _)| !is_regular(tag));
    names.extend(tag_names.map(|(tag, _)| format!("\"{}\": \"{tag}\"", snake(tag))));
    if !names.is_empty() {
        call(
            out,
            1,
            "NAMES: ClassVar[Mapping[str, str]] = {",
            &names,
            "}",
        );
    }
    let pairs: Vec<String> = tags
        .iter()
        .map(|(tag, value)| format!("\"{tag}\": \"{value}\""))
        .collect();
    if !pairs.is_empty() {
        call(out, 1, "TAGS: ClassVar[Mapping[str, str]] = {", &pairs, "}");
    }
}

fn member_field(out: &mut String, member: &Member) {
    let name = snake(&member.name);
    let ty = annotation(&member.ty);
    if member.optional {
        line(out, 1, &format!("{name}: Optional[{ty}] = None"));
    } else {
        line(out, 1, &format!("{name}: {ty}"));
    }
    let doc = prose(&member.doc, "``");
    if !doc.is_empty() {
        docstring(out, 1, &doc);
    }
}

fn choice(branch: &Branch) -> String {
    branch.ty.as_ref().map(annotation).unwrap_or_default()
}

/// A name for one of several types.
fn alias(out: &mut String, ty: &TypeDef, names: Vec<String>) {
    out.push_str("\n\n");
    call(
        out,
        0,
        &format!("{} = Union[", class(&ty.name)),
        &names,
        "]",
    );
    let doc = paragraphs(
        &ty.doc,
        &format!("One of several types: QAPI ``{}``.", ty.name),
    );
    docstring(out, 0, &doc);
}
