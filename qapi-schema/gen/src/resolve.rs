//! Definitions to the resolved schema: names are looked up, bases folded in, unions and alternates
//! checked against the types they mention.

mod args;
mod branches;

use indexmap::IndexMap;

use crate::check::{Body, Definition, Definitions, RawMember, TypeName};
use crate::doc::{Doc, DocText};
use crate::ir::{Builtin, EnumValue, Kind, Member, Module, Schema, TypeDef, TypeRef};
use crate::naming::camel;
use crate::source::{SchemaError, Span};

pub(crate) fn schema(definitions: Definitions) -> Result<Schema, SchemaError> {
    let resolver = Resolver::new(&definitions)?;
    let mut schema = Schema {
        modules: resolver.modules(),
        types: IndexMap::new(),
    };
    for definition in &definitions.all {
        match &definition.body {
            Body::Command { .. } => args::command(&resolver, definition, &mut schema)?,
            Body::Event { .. } => args::event(&resolver, definition, &mut schema)?,
            _ => {
                let ty = resolver.type_def(definition)?;
                schema.types.insert(ty.name.clone(), ty);
            }
        }
    }
    unique_rust_names(&definitions, &schema)?;
    Ok(schema)
}

/// Finds definitions by name while the schema is being built.
pub(super) struct Resolver<'d> {
    definitions: &'d Definitions,
    by_name: IndexMap<&'d str, &'d Definition>,
}

impl<'d> Resolver<'d> {
    fn new(definitions: &'d Definitions) -> Result<Self, SchemaError> {
        let mut by_name: IndexMap<&str, &Definition> = IndexMap::new();
        for definition in &definitions.all {
            let name = definition.name.as_str();
            if Builtin::named(name).is_some() {
                return Err(SchemaError::new(
                    &definition.span,
                    format!("'{name}' is a built-in type"),
                ));
            }
            if let Some(first) = by_name.insert(name, definition) {
                return Err(SchemaError::new(
                    &definition.span,
                    format!("'{name}' is already defined at {}", first.span),
                ));
            }
        }
        Ok(Self {
            definitions,
            by_name,
        })
    }

    fn modules(&self) -> Vec<Module> {
        let modules = self.definitions.modules.iter();
        modules
            .map(|(name, title)| Module {
                name: name.clone(),
                title: title.clone(),
                commands: Vec::new(),
                events: Vec::new(),
            })
            .collect()
    }

    fn module_name(&self, definition: &Definition) -> String {
        self.definitions.modules[definition.module].0.clone()
    }

    /// The type definition of that name; commands and events are none.
    fn find_type(&self, name: &TypeName) -> Result<&'d Definition, SchemaError> {
        match self.by_name.get(name.name.as_str()) {
            Some(found) if !matches!(found.body, Body::Command { .. } | Body::Event { .. }) => {
                Ok(found)
            }
            _ => Err(SchemaError::new(
                &name.span,
                format!("type '{}' is not defined", name.name),
            )),
        }
    }

    fn type_ref(&self, name: &TypeName) -> Result<TypeRef, SchemaError> {
        let plain = match Builtin::named(&name.name) {
            Some(builtin) => TypeRef::Builtin(builtin),
            None => TypeRef::Named(self.find_type(name)?.name.clone()),
        };
        Ok(if name.array {
            TypeRef::Array(Box::new(plain))
        } else {
            plain
        })
    }

    fn members(&self, raw: &[RawMember], doc: Option<&Doc>) -> Result<Vec<Member>, SchemaError> {
        let mut members: Vec<Member> = Vec::new();
        for one in raw {
            if members.iter().any(|m| folded(&m.name) == folded(&one.name)) {
                return Err(SchemaError::new(
                    &one.span,
                    format!("member '{}' occurs twice", one.name),
                ));
            }
            members.push(Member {
                name: one.name.clone(),
                ty: self.type_ref(&one.ty)?,
                optional: one.optional,
                features: one.features.clone(),
                doc: doc.map(|doc| doc.member(&one.name)).unwrap_or_default(),
            });
        }
        Ok(members)
    }

    /// All members of a struct, its bases' first.
    fn struct_members(&self, of: &Definition) -> Result<Vec<Member>, SchemaError> {
        self.struct_members_below(of, &mut Vec::new())
    }

    fn struct_members_below(
        &self,
        of: &Definition,
        path: &mut Vec<String>,
    ) -> Result<Vec<Member>, SchemaError> {
        let Body::Struct { base, members } = &of.body else {
            return Err(SchemaError::new(
                &of.span,
                format!("'{}' wants to be a struct here", of.name),
            ));
        };
        if path.contains(&of.name) {
            return Err(SchemaError::new(
                &of.span,
                format!("struct '{}' is its own base", of.name),
            ));
        }
        path.push(of.name.clone());
        let mut all = match base {
            None => Vec::new(),
            Some(base) => {
                let found = self.find_type(base)?;
                if !matches!(found.body, Body::Struct { .. }) {
                    return Err(SchemaError::new(
                        &base.span,
                        format!("base '{}' of '{}' is not a struct", base.name, of.name),
                    ));
                }
                self.struct_members_below(found, path)?
            }
        };
        disjoint(&all, members, &format!("base of '{}'", of.name))?;
        all.extend(self.members(members, of.doc.as_ref())?);
        Ok(all)
    }

    fn type_def(&self, definition: &Definition) -> Result<TypeDef, SchemaError> {
        let doc = definition.doc.as_ref();
        let kind = match &definition.body {
            Body::Enum(values) => Kind::Enum(
                values
                    .iter()
                    .map(|value| EnumValue {
                        name: value.name.clone(),
                        features: value.features.clone(),
                        doc: doc.map(|doc| doc.member(&value.name)).unwrap_or_default(),
                    })
                    .collect(),
            ),
            Body::Struct { .. } => Kind::Struct(self.struct_members(definition)?),
            Body::Union { .. } => branches::union(self, definition)?,
            _ => branches::alternate(self, definition)?,
        };
        check_documented(definition, &kind)?;
        Ok(TypeDef {
            name: definition.name.clone(),
            rust_name: definition.name.replace('_', ""),
            module: self.module_name(definition),
            doc: body_text(doc),
            features: definition.features.clone(),
            feature_docs: feature_docs(doc),
            kind,
        })
    }
}

fn body_text(doc: Option<&Doc>) -> DocText {
    doc.map(|doc| doc.body.clone()).unwrap_or_default()
}

fn feature_docs(doc: Option<&Doc>) -> Vec<(String, DocText)> {
    doc.map(|doc| doc.features.clone()).unwrap_or_default()
}

/// `-` and `_` are one letter to a compiler.
pub(super) fn folded(name: &str) -> String {
    name.replace('-', "_")
}

/// None of `own` is among `inherited`.
pub(super) fn disjoint(
    inherited: &[Member],
    own: &[RawMember],
    whose: &str,
) -> Result<(), SchemaError> {
    for member in own {
        if inherited
            .iter()
            .any(|one| folded(&one.name) == folded(&member.name))
        {
            return Err(SchemaError::new(
                &member.span,
                format!(
                    "member '{}' is already a member of the {whose}",
                    member.name
                ),
            ));
        }
    }
    Ok(())
}

/// Every member that the documentation names exists.
pub(super) fn check_documented(definition: &Definition, kind: &Kind) -> Result<(), SchemaError> {
    let Some(doc) = &definition.doc else {
        return Ok(());
    };
    let known: Vec<&str> = match kind {
        Kind::Enum(values) => values.iter().map(|value| value.name.as_str()).collect(),
        Kind::Struct(members) => members.iter().map(|member| member.name.as_str()).collect(),
        // Branches are documented where the discriminator's values are.
        Kind::Union { base, .. } => base.iter().map(|member| member.name.as_str()).collect(),
        Kind::Alternate(branches) => branches.iter().map(|branch| branch.name.as_str()).collect(),
    };
    for (name, _) in &doc.members {
        if !known.contains(&name.as_str()) {
            return Err(SchemaError::new(
                &doc.span,
                format!("'{}' has no '{name}' to document", definition.name),
            ));
        }
    }
    for (name, _) in &doc.features {
        let on_members = match kind {
            Kind::Struct(members) => members.iter().any(|m| m.features.contains(name)),
            Kind::Enum(values) => values.iter().any(|v| v.features.contains(name)),
            _ => false,
        };
        if !definition.features.contains(name) && !on_members {
            return Err(SchemaError::new(
                &doc.span,
                format!("'{}' has no feature '{name}' to document", definition.name),
            ));
        }
    }
    Ok(())
}

fn unique_rust_names(definitions: &Definitions, schema: &Schema) -> Result<(), SchemaError> {
    let mut seen: IndexMap<(&str, &str), &str> = IndexMap::new();
    for ty in schema.types.values() {
        let key = (ty.module.as_str(), ty.rust_name.as_str());
        if let Some(first) = seen.insert(key, &ty.name) {
            let span = definitions
                .all
                .iter()
                .find(|one| one.name == ty.name || camel(&one.name) == ty.rust_name)
                .map_or_else(
                    || Span {
                        file: ty.module.as_str().into(),
                        line: 1,
                    },
                    |d| d.span.clone(),
                );
            return Err(SchemaError::new(
                &span,
                format!(
                    "'{first}' and '{}' both become '{}' in Rust",
                    ty.name, ty.rust_name
                ),
            ));
        }
    }
    Ok(())
}
