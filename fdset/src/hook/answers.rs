//! The answers to one command's wishes, from when they come in to when the command takes them.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::HookError;
use crate::handover::{Origin, Peer};
use crate::request::Access;

/// What the open hook answered, by name and access; each answer is taken once, the oldest first.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Vec<Answer>>);

#[derive(Debug)]
struct Answer {
    name: String,
    access: Access,
    outcome: Result<Given, HookError>,
}

/// An fd that the open hook gave.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) fd: OwnedFd,
    /// The manager behind the hook.
    pub(crate) origin: Origin,
}

impl Answers {
    /// No answers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer of the manager `peer`: an fd, or why there is none. Both are final for
    /// whoever opens this name.
    pub fn put(
        &self,
        name: &str,
        access: Access,
        outcome: Result<OwnedFd, HookError>,
        peer: Option<Peer>,
    ) {
        let origin = Origin::Hook { peer };
        let outcome = outcome.map(|fd| Given { fd, origin });
        self.list().push(Answer {
            name: name.to_owned(),
            access,
            outcome,
        });
    }

    /// Closes what nobody took.
    pub fn close(&self) {
        let closed_without_lock = std::mem::take(&mut *self.list());
        drop(closed_without_lock);
    }

    /// Takes the answer for an open of `name`; `None`: the hook was not asked for it.
    pub(crate) fn take(&self, name: &str, access: Access) -> Option<Result<Given, HookError>> {
        let mut list = self.list();
        let at = list
            .iter()
            .position(|answer| answer.name == name && answer.access == access)?;
        Some(list.remove(at).outcome)
    }

    /// A duplicate of the fd that the next open of `name` will take.
    pub(crate) fn peek(&self, name: &str, access: Access) -> Option<OwnedFd> {
        let list = self.list();
        let mut answers = list.iter();
        let answer = answers.find(|answer| answer.name == name && answer.access == access)?;
        answer.outcome.as_ref().ok()?.fd.try_clone().ok()
    }

    fn list(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
