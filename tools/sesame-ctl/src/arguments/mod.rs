//! From what an operator types to a command's arguments.
//!
//! ```text
//!   line ─► words.rs ─► "file.driver=file" "size:=1" "filename!<disk.raw" '{"id": "x"}' "d0"
//!                                │
//!                                ▼
//!                   tree.rs   a tree of texts, JSON and files
//!                                │  schema: which type is where
//!                                ▼
//!                   typed.rs  JSON arguments         files.rs  fds to hand over first
//! ```
//!
//! This room must never know a session: what it makes can be sent by anyone.

pub(crate) mod files;
mod inherited;
pub(crate) mod sketch;
mod tree;
mod typed;
pub(crate) mod words;

use serde_json::Value;

use crate::failure::Failure;
use crate::schema::{Schema, meant};
use files::FileArg;
use tree::Branch;

pub(crate) use tree::{KeyWord, key_word};

/// A command, ready to be sent once its files are handed over.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    /// Its name.
    pub(crate) command: String,
    /// Its arguments.
    pub(crate) arguments: Value,
    /// The files of its words with `!`.
    pub(crate) files: Vec<FileArg>,
}

/// Makes a request of words, the first of which is the command. `fresh` makes up names for files.
pub(crate) fn request(
    schema: &Schema,
    words: &[String],
    fresh: &mut dyn FnMut() -> String,
) -> Result<Request, Failure> {
    let (command, words) = words
        .split_first()
        .ok_or_else(|| Failure::Usage("a command is wanted".to_owned()))?;
    let kind = schema.arguments(command).ok_or_else(|| {
        let hint = meant(command, schema.commands());
        Failure::NoSuchCommand(format!("the VM has no command '{command}'{hint}"))
    })?;
    let usage = |why| Failure::Usage(format!("{command}: {why}"));
    let mut branch = Branch::default();
    let mut files = Vec::new();
    for word in words {
        branch.add(word, fresh, &mut files).map_err(usage)?;
    }
    let arguments = typed::arguments(schema, kind, branch).map_err(usage)?;
    Ok(Request {
        command: command.clone(),
        arguments,
        files,
    })
}

#[cfg(test)]
mod tests;
