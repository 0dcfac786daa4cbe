//! What the line editor asks for while a line is typed.

use std::borrow::Cow;

use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hint, Hinter};
use rustyline::validate::Validator;
use rustyline::{Context, Helper, Result};

use super::complete::complete;
use super::hint::hint;
use super::live::Live;
use super::{Desk, Shared};

/// The operator's assistant.
#[derive(Debug)]
pub(super) struct Assistant(Shared);

/// What may come next, to be read and not taken over.
#[derive(Debug)]
pub(super) struct Note(String);

impl Assistant {
    pub(super) fn new(desk: Shared) -> Self {
        Self(desk)
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let mut desk = self.0.take();
        let Desk {
            session, schema, ..
        } = &mut *desk;
        let typed = line.get(..pos).unwrap_or(line);
        let (start, found) = complete(schema, typed, &mut Live::new(session.as_mut()));
        let pairs = found.into_iter().map(|candidate| Pair {
            display: candidate.shown,
            replacement: candidate.replacement,
        });
        Ok((start, pairs.collect()))
    }
}

impl Hinter for Assistant {
    type Hint = Note;

    fn hint(&self, line: &str, pos: usize, _: &Context<'_>) -> Option<Note> {
        if pos < line.len() {
            return None;
        }
        let schema = self.0.take().schema.clone();
        hint(&schema, line).map(Note)
    }
}

impl Hint for Note {
    fn display(&self) -> &str {
        &self.0
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Highlighter for Assistant {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        format!("\x1b[2m{hint}\x1b[0m").into()
    }
}

impl Validator for Assistant {}
impl Helper for Assistant {}
