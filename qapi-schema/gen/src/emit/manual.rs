//! The reference manual: one chapter for each schema file, one entry for each command, event and
//! type, from the documentation comments. What an entry says is decided here; how it looks, in the
//! two files below.
//!
//! ```text
//!   Schema ─► Manual ─┬─► markdown ─► export/manual.md
//!                     └─► html ─────► export/manual.html   one page that needs nothing else
//! ```

mod html;
mod markdown;

use crate::GeneratedFile;
use crate::doc::DocText;
use crate::ir::{Branch, Command, EnumValue, Event, Kind, Member, Schema, TypeDef, TypeRef};

/// The version that the manual speaks of: generator and product share it.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// All of it.
pub(super) struct Manual<'s> {
    chapters: Vec<Chapter<'s>>,
}

/// One schema file.
struct Chapter<'s> {
    title: &'s str,
    anchor: String,
    entries: Vec<Entry<'s>>,
}

/// What an entry is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Command,
    Event,
    Type,
}

impl Subject {
    fn word(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Event => "event",
            Self::Type => "type",
        }
    }

    /// Where a link to that name leads.
    fn anchor(self, name: &str) -> String {
        format!("{}-{name}", self.word())
    }
}

/// One command, event or type.
struct Entry<'s> {
    subject: Subject,
    name: &'s str,
    doc: &'s DocText,
    lists: Vec<List<'s>>,
    remarks: Vec<Remark<'s>>,
}

/// Arguments, members, values.
struct List<'s> {
    title: String,
    rows: Vec<Row<'s>>,
}

/// One of them.
struct Row<'s> {
    name: &'s str,
    ty: Option<&'s TypeRef>,
    optional: bool,
    features: &'s [String],
    doc: &'s DocText,
}

/// What else there is to say.
struct Remark<'s> {
    title: String,
    ty: Option<&'s TypeRef>,
    doc: Option<&'s DocText>,
    /// Said where the schema has no words of its own.
    text: &'static str,
}

pub(super) fn files(schema: &Schema) -> [GeneratedFile; 2] {
    let manual = Manual::new(schema);
    [
        GeneratedFile {
            path: "qapi-schema/export/manual.md".into(),
            text: markdown::page(&manual),
        },
        GeneratedFile {
            path: "qapi-schema/export/manual.html".into(),
            text: html::page(&manual),
        },
    ]
}

impl<'s> Manual<'s> {
    fn new(schema: &'s Schema) -> Self {
        let chapters = schema.modules.iter().map(|module| {
            let commands = module.commands.iter().map(|one| command(schema, one));
            let events = module.events.iter().map(|one| event(schema, one));
            let types = schema
                .types
                .values()
                .filter(|ty| ty.module == module.name && !ty.name.starts_with("q_obj_"))
                .map(|ty| Entry {
                    subject: Subject::Type,
                    name: &ty.name,
                    doc: &ty.doc,
                    lists: lists(ty, "Members"),
                    remarks: features(&ty.feature_docs),
                });
            Chapter {
                title: &module.title,
                anchor: format!("chapter-{}", module.name.replace('_', "-")),
                entries: commands.chain(events).chain(types).collect(),
            }
        });
        Self {
            chapters: chapters.filter(|one| !one.entries.is_empty()).collect(),
        }
    }
}

fn command<'s>(schema: &'s Schema, command: &'s Command) -> Entry<'s> {
    let mut remarks = Vec::new();
    if command.returns.is_some() || command.returns_doc.is_some() {
        remarks.push(Remark {
            title: "Returns".to_owned(),
            ty: command.returns.as_ref(),
            doc: command.returns_doc.as_ref(),
            text: "",
        });
    }
    if let Some(errors) = &command.errors_doc {
        remarks.push(Remark {
            title: "Errors".to_owned(),
            ty: None,
            doc: Some(errors),
            text: "",
        });
    }
    if !command.success_response {
        remarks.push(note("Does not answer when it succeeds."));
    }
    if command.fds > 0 {
        remarks.push(note("A file descriptor comes with the request."));
    }
    if command.allow_oob {
        remarks.push(note("May overtake other commands (exec-oob)."));
    }
    if command.allow_preconfig {
        remarks.push(note(
            "May be sent before the machine is built (--preconfig).",
        ));
    }
    remarks.extend(features(&command.feature_docs));
    Entry {
        subject: Subject::Command,
        name: &command.name,
        doc: &command.doc,
        lists: argument_lists(schema, command.args.as_deref(), "Arguments"),
        remarks,
    }
}

fn event<'s>(schema: &'s Schema, event: &'s Event) -> Entry<'s> {
    Entry {
        subject: Subject::Event,
        name: &event.name,
        doc: &event.doc,
        lists: argument_lists(schema, event.args.as_deref(), "Data"),
        remarks: features(&event.feature_docs),
    }
}

/// Members in place; of a type with a name, that type's.
fn argument_lists<'s>(schema: &'s Schema, args: Option<&str>, title: &str) -> Vec<List<'s>> {
    args.map(|name| lists(&schema.types[name], title))
        .unwrap_or_default()
}

fn lists<'s>(ty: &'s TypeDef, title: &str) -> Vec<List<'s>> {
    let mut lists = match &ty.kind {
        Kind::Enum(values) => vec![List::new("Values", values.iter().map(value_row))],
        Kind::Struct(members) => vec![List::new(title, members.iter().map(member_row))],
        Kind::Alternate(branches) => vec![List::new("One of", branches.iter().map(branch_row))],
        Kind::Union {
            base,
            tag,
            branches,
            ..
        } => {
            let more = branches.iter().filter(|branch| branch.ty.is_some());
            vec![
                List::new(title, base.iter().map(member_row)),
                List::new(
                    &format!("More, by the value of {tag}"),
                    more.map(branch_row),
                ),
            ]
        }
    };
    lists.retain(|list| !list.rows.is_empty());
    lists
}

impl<'s> List<'s> {
    fn new(title: &str, rows: impl Iterator<Item = Row<'s>>) -> Self {
        Self {
            title: title.to_owned(),
            rows: rows.collect(),
        }
    }
}

fn value_row(value: &EnumValue) -> Row<'_> {
    Row {
        name: &value.name,
        ty: None,
        optional: false,
        features: &value.features,
        doc: &value.doc,
    }
}

fn member_row(member: &Member) -> Row<'_> {
    Row {
        name: &member.name,
        ty: Some(&member.ty),
        optional: member.optional,
        features: &member.features,
        doc: &member.doc,
    }
}

fn branch_row(branch: &Branch) -> Row<'_> {
    Row {
        name: &branch.name,
        ty: branch.ty.as_ref(),
        optional: false,
        features: &[],
        doc: &branch.doc,
    }
}

fn note(text: &'static str) -> Remark<'static> {
    Remark {
        title: "Note".to_owned(),
        ty: None,
        doc: None,
        text,
    }
}

fn features(docs: &[(String, DocText)]) -> Vec<Remark<'_>> {
    let remarks = docs.iter().map(|(name, doc)| Remark {
        title: match name.as_str() {
            "deprecated" => "Deprecated".to_owned(),
            "unstable" => "Unstable".to_owned(),
            other => format!("Feature {other}"),
        },
        ty: None,
        doc: Some(doc),
        text: "",
    });
    remarks.collect()
}

/// A part of a text.
enum Piece<'t> {
    Words(&'t str),
    /// The name of a member, argument or value.
    Name(&'t str),
}

/// Takes a text apart at its `@name` references.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        let name = &rest[at + 1..];
        let end = name
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
            .unwrap_or(name.len());
        if end == 0 {
            pieces.push(Piece::Words(&rest[..=at]));
        } else {
            pieces.push(Piece::Words(&rest[..at]));
            pieces.push(Piece::Name(&name[..end]));
        }
        rest = &name[end..];
    }
    pieces.push(Piece::Words(rest));
    pieces
}

/// The first letter of a phrase made large.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn manual_of(name: &str) -> [GeneratedFile; 2] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        files(&crate::load(&folder, "main.json", &[]).expect("a good schema"))
    }

    fn between<'t>(text: &'t str, before: &str, after: char) -> Vec<&'t str> {
        let parts = text.split(before).skip(1);
        parts.filter_map(|part| part.split(after).next()).collect()
    }

    #[test]
    fn every_link_leads_somewhere() {
        for (file, link, target, ends) in [
            (0, "](#", "<a id=\"", (')', '"')),
            (1, "href=\"#", " id=\"", ('"', '"')),
        ] {
            let text = &manual_of("../schema")[file].text;
            let text = text.split("<script>").next().unwrap_or_default();
            let targets = between(text, target, ends.1);
            let links = between(text, link, ends.0);
            assert!(links.len() > 100);
            for one in links {
                assert!(targets.contains(&one), "nothing is called {one}");
            }
        }
    }

    #[test]
    fn references_are_taken_out_of_texts() {
        let text = pieces("one of @fdset-id, or a@ b");
        let names: Vec<_> = text
            .iter()
            .filter_map(|piece| match piece {
                Piece::Name(name) => Some(*name),
                Piece::Words(_) => None,
            })
            .collect();
        assert_eq!(names, ["fdset-id"]);
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let text = &manual_of("../schema")[1].text;
        for word in ["http:", "https:", " src=", "@import", "url("] {
            assert!(!text.contains(word), "{word}");
        }
    }
}
