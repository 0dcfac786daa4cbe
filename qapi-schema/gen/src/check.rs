//! Expressions to definitions: each has the keys it may have, its names obey the rules, and its
//! conditions are decided. What names point at is not looked at here.

mod condition;
mod names;
mod pragma;
mod reader;

use crate::doc::Doc;
use crate::parse::{Expr, Object, Value};
use crate::source::{SchemaError, SchemaFile, Span};

use names::Place;
pub(crate) use pragma::Pragmas;
use reader::Reader;

/// A whole schema's definitions, file by file.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Module name and title of each file.
    pub modules: Vec<(String, String)>,
    /// In the order written.
    pub all: Vec<Definition>,
    /// Exceptions from the naming rules.
    pub(crate) pragmas: Pragmas,
}

/// One definition.
#[derive(Debug)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub span: Span,
    /// Which of [`Definitions::modules`] it is in.
    pub module: usize,
    /// Its documentation.
    pub doc: Option<Doc>,
    /// Its feature flags.
    pub features: Vec<String>,
    /// What it defines.
    pub body: Body,
}

/// A type as a definition names it.
#[derive(Clone, Debug)]
pub struct TypeName {
    /// The type's or the array element's name.
    pub name: String,
    /// Whether it is an array of that.
    pub array: bool,
    /// Where it stands.
    pub span: Span,
}

/// A member as written.
#[derive(Clone, Debug)]
pub struct RawMember {
    /// Without the `*`.
    pub name: String,
    /// Where it stands.
    pub span: Span,
    /// Its type.
    pub ty: TypeName,
    /// Whether a `*` stood before it.
    pub optional: bool,
    /// Its feature flags.
    pub features: Vec<String>,
}

/// An enum value as written.
#[derive(Clone, Debug)]
pub struct RawValue {
    /// Its name.
    pub name: String,
    /// Its feature flags.
    pub features: Vec<String>,
}

/// Members in place, or the name of a type that has them.
#[derive(Clone, Debug)]
pub enum Members {
    /// Written in place.
    Inline(Vec<RawMember>),
    /// Those of a named type.
    Named(TypeName),
}

/// What a definition defines.
#[derive(Debug)]
pub enum Body {
    /// `'enum'`
    Enum(Vec<RawValue>),
    /// `'struct'`
    Struct {
        /// The struct whose members come first.
        base: Option<TypeName>,
        /// Its own members.
        members: Vec<RawMember>,
    },
    /// `'union'`
    Union {
        /// The members that are always there.
        base: Members,
        /// The member that picks the branch.
        discriminator: (String, Span),
        /// The branches with members.
        branches: Vec<RawMember>,
    },
    /// `'alternate'`
    Alternate(Vec<RawMember>),
    /// `'command'`
    Command {
        /// Its arguments.
        args: Option<Members>,
        /// Whether `'boxed': true` stands there.
        boxed: bool,
        /// What it returns.
        returns: Option<TypeName>,
        /// `allow-oob`, `allow-preconfig`, `success-response`, `gen`.
        flags: CommandFlags,
    },
    /// `'event'`
    Event {
        /// Its data.
        args: Option<Members>,
        /// Whether `'boxed': true` stands there.
        boxed: bool,
    },
}

/// A command's switches.
#[derive(Clone, Copy, Debug)]
pub struct CommandFlags {
    /// May overtake other commands.
    pub allow_oob: bool,
    /// May run before the machine exists.
    pub allow_preconfig: bool,
    /// Answers when it succeeds.
    pub success_response: bool,
    /// Arguments and reply are handled by generated code.
    pub generated: bool,
}

/// Checks every expression of every file on its own.
pub(crate) fn definitions(
    files: Vec<SchemaFile>,
    symbols: &[&str],
) -> Result<Definitions, SchemaError> {
    let mut out = Definitions::default();
    for expr in files.iter().flat_map(|file| &file.exprs) {
        if let Some(entry) = expr.object.entries.first()
            && entry.key == "pragma"
        {
            out.pragmas.read(&entry.value)?;
        }
    }
    for (module, file) in files.into_iter().enumerate() {
        out.modules.push((file.module, file.title));
        for expr in file.exprs {
            if expr
                .object
                .entries
                .first()
                .is_some_and(|e| e.key == "pragma")
            {
                continue;
            }
            let reader = Reader {
                symbols,
                pragmas: &out.pragmas,
            };
            if let Some(definition) = one(&reader, expr, module)? {
                out.all.push(definition);
            }
        }
    }
    Ok(out)
}

const KINDS: [&str; 6] = ["enum", "struct", "union", "alternate", "command", "event"];

fn one(reader: &Reader<'_>, expr: Expr, module: usize) -> Result<Option<Definition>, SchemaError> {
    let Expr { doc, object } = expr;
    let Some((kind, name, span)) = kind_and_name(&object)? else {
        return Err(SchemaError::new(
            &object.span,
            format!(
                "wanted a definition: an object with one of '{}', 'include', 'pragma'",
                KINDS.join("', '")
            ),
        ));
    };
    check_doc(reader, doc.as_ref(), &name, &span)?;
    let body = match kind {
        "enum" => enumeration(reader, &object, &name)?,
        "struct" => structure(reader, &object, &name)?,
        "union" => union(reader, &object, &name)?,
        "alternate" => alternate(reader, &object, &name)?,
        "command" => command(reader, &object, &name, &span)?,
        _ => event(reader, &object, &name, &span)?,
    };
    if !reader.condition(&object)? {
        return Ok(None);
    }
    let features = reader.features(&object)?;
    if matches!(kind, "enum" | "struct" | "union" | "alternate")
        && let Some(feature) = features.iter().find(|f| is_special_feature(f))
    {
        return Err(SchemaError::new(
            &span,
            format!(
                "feature '{feature}' is for commands, events, members and enum values, not for {kind} '{name}'"
            ),
        ));
    }
    Ok(Some(Definition {
        name,
        span,
        module,
        doc,
        features,
        body,
    }))
}

fn is_special_feature(feature: &str) -> bool {
    matches!(feature, "deprecated" | "unstable")
}

fn kind_and_name(object: &Object) -> Result<Option<(&'static str, String, Span)>, SchemaError> {
    let mut found: Option<(&'static str, String, Span)> = None;
    for kind in KINDS {
        let Some(entry) = object.entries.iter().find(|entry| entry.key == kind) else {
            continue;
        };
        match (&entry.value, &found) {
            (Value::Str(name, span), None) => found = Some((kind, name.clone(), span.clone())),
            (Value::Str(..), Some((first, ..))) => {
                return Err(SchemaError::new(
                    &entry.span,
                    format!("a definition is either '{first}' or '{kind}', not both"),
                ));
            }
            (other, _) => {
                return Err(SchemaError::new(
                    &entry.span,
                    format!("'{kind}' wants a name, not {}", other.describe()),
                ));
            }
        }
    }
    Ok(found)
}

fn check_doc(
    reader: &Reader<'_>,
    doc: Option<&Doc>,
    name: &str,
    span: &Span,
) -> Result<(), SchemaError> {
    match doc {
        Some(doc) if doc.symbol != name => Err(SchemaError::new(
            &doc.span,
            format!(
                "documentation of '{}' stands before the definition of '{name}'",
                doc.symbol
            ),
        )),
        None if reader.pragmas.doc_required => Err(SchemaError::new(
            span,
            format!("'{name}' wants a documentation comment before it"),
        )),
        _ => Ok(()),
    }
}

fn enumeration(reader: &Reader<'_>, object: &Object, name: &str) -> Result<Body, SchemaError> {
    reader.keys(object, &["enum", "data"], &["if", "features", "prefix"])?;
    reader.type_name_rules(object, name)?;
    Ok(Body::Enum(reader.enum_values(object)?))
}

fn structure(reader: &Reader<'_>, object: &Object, name: &str) -> Result<Body, SchemaError> {
    reader.keys(object, &["struct", "data"], &["base", "if", "features"])?;
    reader.type_name_rules(object, name)?;
    let base = match reader.find(object, "base") {
        Some(entry) => Some(reader.plain_type(&entry.value, "'base'")?),
        None => None,
    };
    let members = reader.members(object, "data", Place::Member)?;
    Ok(Body::Struct { base, members })
}

fn union(reader: &Reader<'_>, object: &Object, name: &str) -> Result<Body, SchemaError> {
    let required = ["union", "base", "discriminator", "data"];
    reader.keys(object, &required, &["if", "features"])?;
    reader.type_name_rules(object, name)?;
    let discriminator = match reader
        .find(object, "discriminator")
        .map(|entry| &entry.value)
    {
        Some(Value::Str(tag, span)) => (tag.clone(), span.clone()),
        _ => {
            return Err(SchemaError::new(
                &object.span,
                "'discriminator' wants the name of a member of the base",
            ));
        }
    };
    let base = reader.inline_or_named(object, "base")?;
    let branches = reader.members(object, "data", Place::Branch)?;
    Ok(Body::Union {
        base: base.unwrap_or(Members::Inline(Vec::new())),
        discriminator,
        branches,
    })
}

fn alternate(reader: &Reader<'_>, object: &Object, name: &str) -> Result<Body, SchemaError> {
    reader.keys(object, &["alternate", "data"], &["if", "features"])?;
    reader.type_name_rules(object, name)?;
    let branches = reader.members(object, "data", Place::Branch)?;
    if branches.is_empty() {
        return Err(SchemaError::new(
            &object.span,
            format!("alternate '{name}' wants at least one branch"),
        ));
    }
    Ok(Body::Alternate(branches))
}

fn command(
    reader: &Reader<'_>,
    object: &Object,
    name: &str,
    span: &Span,
) -> Result<Body, SchemaError> {
    let optional = [
        "data",
        "returns",
        "boxed",
        "gen",
        "success-response",
        "allow-oob",
        "allow-preconfig",
        "coroutine",
        "if",
        "features",
    ];
    reader.keys(object, &["command"], &optional)?;
    names::command(name, span, reader.pragmas)?;
    let flags = CommandFlags {
        allow_oob: reader.flag(object, "allow-oob", true)?,
        allow_preconfig: reader.flag(object, "allow-preconfig", true)?,
        success_response: !reader.flag(object, "success-response", false)?,
        generated: !reader.flag(object, "gen", false)?,
    };
    let coroutine = reader.flag(object, "coroutine", true)?;
    if coroutine && flags.allow_oob {
        return Err(SchemaError::new(
            span,
            format!("command '{name}' cannot be both 'coroutine' and 'allow-oob'"),
        ));
    }
    let returns = match reader.find(object, "returns") {
        Some(entry) => Some(reader.type_name(&entry.value, "'returns'")?),
        None => None,
    };
    Ok(Body::Command {
        args: reader.inline_or_named(object, "data")?,
        boxed: reader.flag(object, "boxed", true)?,
        returns,
        flags,
    })
}

fn event(
    reader: &Reader<'_>,
    object: &Object,
    name: &str,
    span: &Span,
) -> Result<Body, SchemaError> {
    reader.keys(object, &["event"], &["data", "boxed", "if", "features"])?;
    names::event(name, span)?;
    Ok(Body::Event {
        args: reader.inline_or_named(object, "data")?,
        boxed: reader.flag(object, "boxed", true)?,
    })
}
