//! The resolved schema: every name points at something, every base is folded in, every condition
//! is decided. The only input of the emitters.
//!
//! ```text
//!   Schema ─┬─ modules: one per file, in the order of first include
//!           │     ├─ commands: args, returns by TypeRef
//!           │     └─ events:   args by name
//!           └─ types: by QAPI name ─► TypeDef ─► Enum | Struct | Union | Alternate
//! ```

use indexmap::IndexMap;

use crate::doc::DocText;

/// All of it.
#[derive(Debug)]
pub struct Schema {
    /// One per file, in the order in which they were first named.
    pub modules: Vec<Module>,
    /// Every type by its QAPI name; the argument objects of commands and events are among them
    /// under names that begin with `q_obj_`.
    pub types: IndexMap<String, TypeDef>,
}

/// One schema file.
#[derive(Debug)]
pub struct Module {
    /// The Rust module's name.
    pub name: String,
    /// What the file is about, one line.
    pub title: String,
    /// In the order written.
    pub commands: Vec<Command>,
    /// In the order written.
    pub events: Vec<Event>,
}

impl Module {
    /// How many commands and events there are.
    pub(crate) fn entities(&self) -> usize {
        self.commands.len() + self.events.len()
    }
}

/// The types that QAPI brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Builtin {
    /// Text.
    Str,
    /// A signed 64-bit integer.
    Int,
    /// A double.
    Number,
    /// True or false.
    Bool,
    /// A signed integer of that many bits.
    Signed(u8),
    /// An unsigned integer of that many bits.
    Unsigned(u8),
    /// A number of bytes; text forms take the suffixes k, M, G, T, P, E.
    Size,
    /// JSON null.
    Null,
    /// Any JSON value.
    Any,
}

impl Builtin {
    /// The built-in type of that name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "str" => Self::Str,
            "int" => Self::Int,
            "number" => Self::Number,
            "bool" => Self::Bool,
            "int8" => Self::Signed(8),
            "int16" => Self::Signed(16),
            "int32" => Self::Signed(32),
            "int64" => Self::Signed(64),
            "uint8" => Self::Unsigned(8),
            "uint16" => Self::Unsigned(16),
            "uint32" => Self::Unsigned(32),
            "uint64" => Self::Unsigned(64),
            "size" => Self::Size,
            "null" => Self::Null,
            "any" => Self::Any,
            _ => return None,
        })
    }

    /// The name in introspection, where all integers are one type.
    pub fn introspected(self) -> &'static str {
        match self {
            Self::Str => "str",
            Self::Int | Self::Signed(_) | Self::Unsigned(_) | Self::Size => "int",
            Self::Number => "number",
            Self::Bool => "bool",
            Self::Null => "null",
            Self::Any => "any",
        }
    }

    /// The JSON type in introspection.
    pub fn json_type(self) -> &'static str {
        match self.introspected() {
            "str" => "string",
            "bool" => "boolean",
            "any" => "value",
            other => other,
        }
    }

    /// The name in the schema.
    pub fn name(self) -> String {
        match self {
            Self::Signed(bits) => format!("int{bits}"),
            Self::Unsigned(bits) => format!("uint{bits}"),
            Self::Size => "size".to_owned(),
            other => other.introspected().to_owned(),
        }
    }
}

/// A use of a type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TypeRef {
    /// A built-in type.
    Builtin(Builtin),
    /// A key of [`Schema::types`].
    Named(String),
    /// An array of the one or the other.
    Array(Box<TypeRef>),
}

impl TypeRef {
    /// How the schema spells it.
    pub fn name(&self) -> String {
        match self {
            Self::Builtin(builtin) => builtin.name(),
            Self::Named(name) => name.clone(),
            Self::Array(element) => format!("[{}]", element.name()),
        }
    }
}

/// One type.
#[derive(Debug)]
pub struct TypeDef {
    /// Its name on the schema's side.
    pub name: String,
    /// Its name on Rust's side.
    pub rust_name: String,
    /// The module that defines it.
    pub module: String,
    /// What it is.
    pub doc: DocText,
    /// Its feature flags.
    pub features: Vec<String>,
    /// What those of its feature flags mean that have a text.
    pub feature_docs: Vec<(String, DocText)>,
    /// What it is made of.
    pub kind: Kind,
}

/// What a type is made of.
#[derive(Debug)]
pub enum Kind {
    /// One of several names.
    Enum(Vec<EnumValue>),
    /// An object with fixed members, those of its base first.
    Struct(Vec<Member>),
    /// An object whose further members depend on one of its members.
    Union {
        /// The members that are always there, the discriminator among them.
        base: Vec<Member>,
        /// The discriminator's name.
        tag: String,
        /// The enum type of the discriminator.
        tag_type: String,
        /// One for each value of the enum: those written first, then the empty ones.
        branches: Vec<Branch>,
    },
    /// One of several types that JSON can tell apart.
    Alternate(Vec<Branch>),
}

/// How `deprecated` and `unstable` among feature flags are written in `qapi-schema/src/compat`.
pub fn marks(features: &[String]) -> u8 {
    let mark = |feature: &str, mark| {
        if features.iter().any(|one| one == feature) {
            mark
        } else {
            0
        }
    };
    mark("deprecated", 1) | mark("unstable", 2)
}

/// One value of an enum.
#[derive(Debug)]
pub struct EnumValue {
    /// Its name on the wire.
    pub name: String,
    /// Its feature flags.
    pub features: Vec<String>,
    /// What it means.
    pub doc: DocText,
}

/// One member of an object.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name on the wire.
    pub name: String,
    /// Its type.
    pub ty: TypeRef,
    /// Whether it may be absent.
    pub optional: bool,
    /// Its feature flags.
    pub features: Vec<String>,
    /// What it means.
    pub doc: DocText,
}

/// One branch of a union or alternate.
#[derive(Debug)]
pub struct Branch {
    /// The value of the discriminator, or the branch's name.
    pub name: String,
    /// The type; none for a union's branch without members.
    pub ty: Option<TypeRef>,
    /// What it means.
    pub doc: DocText,
}

/// One command.
#[derive(Debug)]
pub struct Command {
    /// Its name on the wire.
    pub name: String,
    /// How many commands and events stand before it in its file.
    pub place: usize,
    /// Its arguments, a key of [`Schema::types`].
    pub args: Option<String>,
    /// What it returns.
    pub returns: Option<TypeRef>,
    /// Its feature flags.
    pub features: Vec<String>,
    /// What those of its feature flags mean that have a text.
    pub feature_docs: Vec<(String, DocText)>,
    /// Whether it may overtake others.
    pub allow_oob: bool,
    /// Whether it may run before the machine exists.
    pub allow_preconfig: bool,
    /// Whether it answers when it succeeds.
    pub success_response: bool,
    /// How many file descriptors come with it.
    pub fds: usize,
    /// Whether arguments are parsed and replies written by generated code.
    pub generated: bool,
    /// What it does.
    pub doc: DocText,
    /// What it returns, in words.
    pub returns_doc: Option<DocText>,
    /// How it fails, in words.
    pub errors_doc: Option<DocText>,
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// Its name on the wire.
    pub name: String,
    /// How many commands and events stand before it in its file.
    pub place: usize,
    /// Its data, a key of [`Schema::types`].
    pub args: Option<String>,
    /// Its feature flags.
    pub features: Vec<String>,
    /// What those of its feature flags mean that have a text.
    pub feature_docs: Vec<(String, DocText)>,
    /// When it is sent.
    pub doc: DocText,
}
