//! `key=value,key.sub=value,list.0=value` text into a value whose leaves are all strings, for
//! [`Mode::Keyval`](super::Mode::Keyval).
//!
//! A doubled comma is a comma of the value. A first part without `=` is the value of the implied
//! key, if the option has one. Keys are dotted; a part that is a number is a list index, and a
//! list's indices run from 0 without gaps. `help` or `?` as a whole part asks for help.

use serde_json::{Map, Value};

use crate::describe::{self, MemberSpec};

/// How many parts a dotted key may have: far more than any type is deep.
const MOST_PARTS: usize = 64;

/// What an option's text says.
#[derive(Clone, Debug, PartialEq)]
pub struct Keyval {
    /// An object; its leaves are strings, objects and arrays of such.
    pub value: Value,
    /// Whether it asks for help instead of, or beside, giving values.
    pub help: bool,
}

/// What is wrong with an option's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyvalError {
    /// A part is no `key=value`.
    #[error("'{0}' wants '=' and a value")]
    NoValue(String),
    /// A key is empty, or has a part that is neither a name nor a number.
    #[error("'{0}' is not a key: wanted letters, digits, '-' and '_', with '.' between parts")]
    BadKey(String),
    /// A key has more parts than any option.
    #[error("key '{0}...' has more than {MOST_PARTS} parts")]
    TooDeep(String),
    /// A key occurs twice.
    #[error("key '{0}' is given twice")]
    Twice(String),
    /// A key is used as a value and as the beginning of longer keys.
    #[error("key '{0}' has a value and cannot have members too")]
    Mixed(String),
    /// A list lacks an element.
    #[error("list '{key}' lacks element {index}: the indices run from 0 without gaps")]
    Gap {
        /// The list.
        key: String,
        /// The first index that is not there.
        index: usize,
    },
}

/// Parses an option's text. `implied` is the key of a first part without `=`.
pub fn parse_keyval(text: &str, implied: Option<&str>) -> Result<Keyval, KeyvalError> {
    let mut root = Node::Branch(Vec::new());
    let mut help = false;
    for (at, part) in parts(text).into_iter().enumerate() {
        let (key, value) = match (part.split_once('='), implied) {
            _ if part == "help" || part == "?" => {
                help = true;
                continue;
            }
            (Some((key, value)), _) => (key, value),
            (None, Some(implied)) if at == 0 => (implied, part.as_str()),
            (None, _) => return Err(KeyvalError::NoValue(part)),
        };
        if key.split('.').count() > MOST_PARTS {
            return Err(KeyvalError::TooDeep(key.chars().take(40).collect()));
        }
        root.insert(key, key, value)?;
    }
    let value = match root {
        Node::Branch(members) if members.is_empty() => Value::Object(Map::new()),
        root => root.into_value("")?,
    };
    Ok(Keyval { value, help })
}

/// One line about the first key that an object of these members cannot have, with the known key
/// most like it.
pub fn unknown_key(value: &Value, known: &[&'static MemberSpec]) -> Option<String> {
    let names = || known.iter().map(|member| member.name);
    let key = value
        .as_object()?
        .keys()
        .find(|key| !names().any(|name| name == key.as_str()))?;
    Some(match describe::nearest(key, names()) {
        Some(near) => format!("unknown key '{key}'; did you mean '{near}'?"),
        None => {
            let names: Vec<&str> = names().collect();
            format!("unknown key '{key}'; known are {}", names.join(", "))
        }
    })
}

/// The text between single commas; a doubled one is a comma.
fn parts(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut part = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != ',' {
            part.push(c);
        } else if chars.next_if_eq(&',').is_some() {
            part.push(',');
        } else {
            out.push(std::mem::take(&mut part));
        }
    }
    if !part.is_empty() {
        out.push(part);
    }
    out
}

enum Node {
    Leaf(String),
    Branch(Vec<(String, Node)>),
}

impl Node {
    /// Puts a value at `key` below this node; `whole` is the key as written.
    fn insert(&mut self, whole: &str, key: &str, value: &str) -> Result<(), KeyvalError> {
        let (first, rest) = match key.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (key, None),
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if first.is_empty() || !first.chars().all(fits) {
            return Err(KeyvalError::BadKey(whole.to_owned()));
        }
        let Self::Branch(members) = self else {
            let prefix = whole.len() - key.len();
            let owner = whole[..prefix].trim_end_matches('.');
            return Err(KeyvalError::Mixed(owner.to_owned()));
        };
        let found = members.iter().position(|(name, _)| name == first);
        match (found, rest) {
            (None, None) => members.push((first.to_owned(), Self::Leaf(value.to_owned()))),
            (None, Some(rest)) => {
                let mut branch = Self::Branch(Vec::new());
                branch.insert(whole, rest, value)?;
                members.push((first.to_owned(), branch));
            }
            (Some(at), Some(rest)) => members[at].1.insert(whole, rest, value)?,
            (Some(at), None) => {
                return Err(match members[at].1 {
                    Self::Leaf(_) => KeyvalError::Twice(whole.to_owned()),
                    Self::Branch(_) => KeyvalError::Mixed(whole.to_owned()),
                });
            }
        }
        Ok(())
    }

    /// A branch of numbers only becomes an array.
    fn into_value(self, at: &str) -> Result<Value, KeyvalError> {
        let members = match self {
            Self::Leaf(text) => return Ok(Value::String(text)),
            Self::Branch(members) => members,
        };
        let list = !at.is_empty() && members.iter().all(|(name, _)| is_index(name));
        if list {
            return into_array(members, at);
        }
        let mut object = Map::new();
        for (name, node) in members {
            let below = join(at, &name);
            object.insert(name, node.into_value(&below)?);
        }
        Ok(Value::Object(object))
    }
}

fn into_array(members: Vec<(String, Node)>, at: &str) -> Result<Value, KeyvalError> {
    let mut slots: Vec<Option<Value>> = members.iter().map(|_| None).collect();
    for (name, node) in members {
        let value = node.into_value(&join(at, &name))?;
        let index = name.parse::<usize>().unwrap_or(usize::MAX);
        if let Some(slot) = slots.get_mut(index) {
            *slot = Some(value);
        }
    }
    let gap = slots.iter().position(Option::is_none);
    match gap {
        Some(index) => Err(KeyvalError::Gap {
            key: at.to_owned(),
            index,
        }),
        None => Ok(slots.into_iter().flatten().collect()),
    }
}

fn is_index(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_digit())
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}
