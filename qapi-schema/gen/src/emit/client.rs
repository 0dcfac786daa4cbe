//! What the emitters of clients share: which types a client needs by name, unions taken apart into
//! one flat object per branch, and prose.
//!
//! ```text
//!   union U = base + (tag = a ? members of A : members of B)
//!        ▼ variants
//!   U_a { tag: "a", base, members of A }   U_b { tag: "b", base, members of B }
//! ```

use std::collections::HashSet;

use crate::doc::DocText;
use crate::ir::{Branch, Command, Event, Kind, Member, Schema, TypeDef, TypeRef};
use crate::naming::camel;

/// The version of every client: generator, product and clients share it.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Answered by the client itself when it connects.
const NEGOTIATION: &str = "qmp_capabilities";

/// How a client shows unions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unions {
    /// One flat object for each branch: [`variants`].
    Flat,
    /// An object that holds an object; arguments and branches are types with names, too.
    Nested,
}

/// What clients see of a schema.
pub(super) struct Client<'s> {
    pub(super) schema: &'s Schema,
    unions: Unions,
    named: HashSet<&'s str>,
    sent: HashSet<&'s str>,
}

/// One flat object of a union.
pub(super) struct Variant<'s> {
    /// What the branch adds to the union's name.
    pub(super) suffix: String,
    /// The discriminators and their values.
    pub(super) tags: Vec<(&'s str, &'s str)>,
    /// All other members, those of the base first.
    pub(super) members: Vec<&'s Member>,
    /// What the branch is.
    pub(super) doc: &'s DocText,
}

impl<'s> Client<'s> {
    /// Finds what commands and events use.
    pub(super) fn new(schema: &'s Schema, unions: Unions) -> Self {
        let mut client = Self {
            schema,
            unions,
            named: HashSet::new(),
            sent: HashSet::new(),
        };
        for command in client.commands() {
            client.arguments(command.args.as_deref());
        }
        client.sent.clone_from(&client.named);
        for command in client.commands() {
            if let Some(returns) = &command.returns {
                client.use_type(returns);
            }
        }
        for event in client.events() {
            client.arguments(event.args.as_deref());
        }
        client
    }

    /// Every command that a caller may want.
    pub(super) fn commands(&self) -> Vec<&'s Command> {
        let all = self.schema.modules.iter().flat_map(|one| &one.commands);
        all.filter(|one| one.name != NEGOTIATION).collect()
    }

    /// Every event.
    pub(super) fn events(&self) -> Vec<&'s Event> {
        let modules = self.schema.modules.iter();
        modules.flat_map(|one| &one.events).collect()
    }

    /// The types that have a name in a client, in the schema's order. Objects that only stand for
    /// the members of something else are not among them.
    pub(super) fn types(&self) -> impl Iterator<Item = &'s TypeDef> {
        let types = self.schema.types.values();
        types.filter(|ty| self.named.contains(ty.name.as_str()))
    }

    /// Whether a client sends values of the type.
    pub(super) fn is_sent(&self, ty: &TypeDef) -> bool {
        self.sent.contains(ty.name.as_str())
    }

    /// The members that stand in place of arguments; none where they are a union.
    pub(super) fn members(&self, args: Option<&str>) -> Option<&'s [Member]> {
        let Some(name) = args else {
            return Some(&[]);
        };
        match &self.schema.types[name].kind {
            Kind::Struct(members) => Some(members),
            _ => None,
        }
    }

    fn arguments(&mut self, args: Option<&'s str>) {
        let Some(name) = args else { return };
        let schema = self.schema;
        match &schema.types[name].kind {
            Kind::Struct(members) if self.unions == Unions::Flat => self.use_members(members),
            _ => self.use_named(&schema.types[name].name),
        }
    }

    fn use_members(&mut self, members: impl IntoIterator<Item = &'s Member>) {
        for member in members {
            self.use_type(&member.ty);
        }
    }

    fn use_type(&mut self, ty: &'s TypeRef) {
        match ty {
            TypeRef::Builtin(_) => {}
            TypeRef::Named(name) => self.use_named(name),
            TypeRef::Array(element) => self.use_type(element),
        }
    }

    fn use_named(&mut self, name: &'s str) {
        if !self.named.insert(name) {
            return;
        }
        let ty = &self.schema.types[name];
        match &ty.kind {
            Kind::Enum(_) => {}
            Kind::Struct(members) => self.use_members(members),
            Kind::Union { base, branches, .. } if self.unions == Unions::Nested => {
                self.use_members(base);
                self.use_branches(branches);
            }
            Kind::Union { .. } => {
                for variant in variants(self.schema, ty) {
                    self.use_members(variant.members);
                }
            }
            Kind::Alternate(branches) => self.use_branches(branches),
        }
    }

    fn use_branches(&mut self, branches: &'s [Branch]) {
        for ty in branches.iter().filter_map(|branch| branch.ty.as_ref()) {
            self.use_type(ty);
        }
    }
}

/// The flat objects of a union, in the order of its branches.
pub(super) fn variants<'s>(schema: &'s Schema, ty: &'s TypeDef) -> Vec<Variant<'s>> {
    let (base, tag, branches) = match &ty.kind {
        Kind::Union {
            base,
            tag,
            branches,
            ..
        } => (base, tag, branches),
        Kind::Struct(members) => {
            return vec![Variant {
                suffix: String::new(),
                tags: Vec::new(),
                members: members.iter().collect(),
                doc: &ty.doc,
            }];
        }
        _ => return Vec::new(),
    };
    let mut all = Vec::new();
    for branch in branches {
        let inner = match &branch.ty {
            Some(TypeRef::Named(name)) => variants(schema, &schema.types[name.as_str()]),
            _ => vec![Variant {
                suffix: String::new(),
                tags: Vec::new(),
                members: Vec::new(),
                doc: &branch.doc,
            }],
        };
        for one in inner {
            let plain = base.iter().filter(|member| member.name != *tag);
            let mut tags = vec![(tag.as_str(), branch.name.as_str())];
            tags.extend(one.tags);
            all.push(Variant {
                suffix: camel(&branch.name) + &one.suffix,
                tags,
                members: plain.chain(one.members).collect(),
                doc: &branch.doc,
            });
        }
    }
    all
}

/// Paragraphs as sentences, with names as `code` marks them.
pub(super) fn prose(doc: &DocText, code: &str) -> Vec<String> {
    let sentences = doc.paragraphs.iter().map(|text| super::sentence(text));
    sentences.map(|text| marked(&text, code)).collect()
}

/// The text with `@name` between marks.
pub(super) fn marked(text: &str, code: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('@') {
        let end = after
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
            .unwrap_or(after.len());
        out.push_str(before);
        out.push_str(code);
        out.push_str(&after[..end]);
        out.push_str(code);
        rest = &after[end..];
    }
    out + rest
}

/// Lines of at most that many letters.
pub(super) fn lines(text: &str, width: usize) -> Vec<String> {
    let lines = super::wrap(text, width);
    lines.iter().map(|line| line.trim().to_owned()).collect()
}
