//! Commands and events: what they take, what they give back.

use super::{Resolver, body_text, check_documented, feature_docs};
use crate::check::{Body, Definition, Members, RawMember};
use crate::doc::DocText;
use crate::ir::{Command, Event, Kind, Schema, TypeDef, TypeRef};
use crate::naming::camel;
use crate::source::SchemaError;

/// The commands that take fds, and how many each takes: QAPI has no word for it.
const FD_TAKERS: [(&str, usize); 2] = [("add-fd", 1), ("getfd", 1)];

fn fds_of(command: &str) -> usize {
    let found = FD_TAKERS.iter().find(|(name, _)| *name == command);
    found.map_or(0, |(_, fds)| *fds)
}

pub(super) fn command(
    resolver: &Resolver<'_>,
    of: &Definition,
    schema: &mut Schema,
) -> Result<(), SchemaError> {
    let Body::Command {
        args,
        boxed,
        returns,
        flags,
    } = &of.body
    else {
        return Err(SchemaError::new(&of.span, "wanted a command"));
    };
    let args = arguments(resolver, of, args.as_ref(), *boxed, schema)?;
    let returns = match returns {
        None => None,
        Some(name) => Some(check_returns(resolver, of, resolver.type_ref(name)?)?),
    };
    let doc = of.doc.as_ref();
    let module = &mut schema.modules[of.module];
    module.commands.push(Command {
        name: of.name.clone(),
        place: module.entities(),
        args,
        returns,
        features: of.features.clone(),
        feature_docs: feature_docs(doc),
        allow_oob: flags.allow_oob,
        allow_preconfig: flags.allow_preconfig,
        success_response: flags.success_response,
        fds: fds_of(&of.name),
        generated: flags.generated,
        doc: body_text(doc),
        returns_doc: doc.and_then(|doc| doc.returns.clone()),
        errors_doc: doc.and_then(|doc| doc.errors.clone()),
    });
    Ok(())
}

pub(super) fn event(
    resolver: &Resolver<'_>,
    of: &Definition,
    schema: &mut Schema,
) -> Result<(), SchemaError> {
    let Body::Event { args, boxed } = &of.body else {
        return Err(SchemaError::new(&of.span, "wanted an event"));
    };
    let args = arguments(resolver, of, args.as_ref(), *boxed, schema)?;
    let module = &mut schema.modules[of.module];
    module.events.push(Event {
        name: of.name.clone(),
        place: module.entities(),
        args,
        features: of.features.clone(),
        feature_docs: feature_docs(of.doc.as_ref()),
        doc: body_text(of.doc.as_ref()),
    });
    Ok(())
}

fn arguments(
    resolver: &Resolver<'_>,
    of: &Definition,
    args: Option<&Members>,
    boxed: bool,
    schema: &mut Schema,
) -> Result<Option<String>, SchemaError> {
    match args {
        None => Ok(None),
        Some(Members::Inline(members)) => {
            if boxed {
                return Err(SchemaError::new(
                    &of.span,
                    format!("'boxed' of '{}' wants a named type as 'data'", of.name),
                ));
            }
            inline(resolver, of, members, schema).map(Some)
        }
        Some(Members::Named(name)) => {
            let found = resolver.find_type(name)?;
            match (&found.body, boxed) {
                (Body::Struct { .. }, _) | (Body::Union { .. }, true) => {
                    Ok(Some(found.name.clone()))
                }
                (Body::Union { .. }, false) => Err(SchemaError::new(
                    &name.span,
                    format!(
                        "'{}' takes union '{}': add 'boxed': true",
                        of.name, name.name
                    ),
                )),
                _ => Err(SchemaError::new(
                    &name.span,
                    format!(
                        "'data' of '{}' wants a struct or union, not '{}'",
                        of.name, name.name
                    ),
                )),
            }
        }
    }
}

/// Makes a type of members written in place; in Rust it has the command's or event's name.
fn inline(
    resolver: &Resolver<'_>,
    of: &Definition,
    members: &[RawMember],
    schema: &mut Schema,
) -> Result<String, SchemaError> {
    let kind = Kind::Struct(resolver.members(members, of.doc.as_ref())?);
    check_documented(of, &kind)?;
    let noun = match of.body {
        Body::Event { .. } => "Data of event",
        _ => "Arguments of command",
    };
    let name = format!("q_obj_{}-arg", of.name);
    let ty = TypeDef {
        name: name.clone(),
        rust_name: camel(&of.name),
        module: resolver.module_name(of),
        doc: DocText {
            paragraphs: vec![format!("{noun} `{}`.", of.name)],
        },
        features: Vec::new(),
        feature_docs: Vec::new(),
        kind,
    };
    schema.types.insert(name.clone(), ty);
    Ok(name)
}

fn check_returns(
    resolver: &Resolver<'_>,
    of: &Definition,
    returns: TypeRef,
) -> Result<TypeRef, SchemaError> {
    let element = match &returns {
        TypeRef::Array(element) => element,
        plain => plain,
    };
    let object = match element {
        TypeRef::Named(name) => resolver
            .by_name
            .get(name.as_str())
            .is_some_and(|found| matches!(found.body, Body::Struct { .. } | Body::Union { .. })),
        _ => false,
    };
    let excepted = resolver
        .definitions
        .pragmas
        .command_returns
        .contains(&of.name);
    if object || excepted {
        return Ok(returns);
    }
    Err(SchemaError::new(
        &of.span,
        format!(
            "command '{}' returns '{}': wanted an object or an array of objects (or an entry in pragma 'command-returns-exceptions')",
            of.name,
            returns.name()
        ),
    ))
}
