//! Named fds (`getfd`, `closefd`): pure bookkeeping, by scope.
//!
//! A name belongs to the monitor that got it, not to the connection: a client that reconnects
//! finds it again. With `fd-scope=session` it belongs to the session and ends with it. Names of
//! the command line belong to the process and are seen by all.

use std::collections::BTreeMap;

use crate::error::RegistryError;
use crate::handover::Handover;
use crate::limits::{MAX_NAME, MAX_NAMES};
use crate::registry::Scope;

/// All named fds of the process.
#[derive(Debug, Default)]
pub(crate) struct NamedFds(BTreeMap<Scope, BTreeMap<String, Handover>>);

impl NamedFds {
    /// Whether `name` may name an fd: one that starts with a digit would read as a number.
    pub(crate) fn check(name: &str) -> Result<(), RegistryError> {
        if name.len() > MAX_NAME {
            return Err(RegistryError::TooLong {
                parameter: "fdname",
                came: name.len(),
                limit: MAX_NAME,
            });
        }
        match name.bytes().next() {
            None => Err(RegistryError::BadName),
            Some(first) if first.is_ascii_digit() => Err(RegistryError::BadName),
            Some(_) => Ok(()),
        }
    }

    /// Whether `scope` may have `name` too: it has it already, or there is room.
    pub(crate) fn admit(&self, scope: Scope, name: &str) -> Result<(), RegistryError> {
        let has_room = self
            .0
            .get(&scope)
            .is_none_or(|names| names.len() < MAX_NAMES || names.contains_key(name));
        if has_room || scope == Scope::Process {
            return Ok(());
        }
        Err(RegistryError::Full {
            what: "named file descriptors of this monitor or session",
            limit: MAX_NAMES,
            fix: "use some, or take them back with closefd,",
        })
    }

    /// Gives `fd` a name; hands back the fd that had it before, for the caller to close.
    pub(crate) fn add(&mut self, scope: Scope, name: &str, fd: Handover) -> Option<Handover> {
        self.0.entry(scope).or_default().insert(name.to_owned(), fd)
    }

    /// Takes a name out of exactly this scope.
    pub(crate) fn remove(&mut self, scope: Scope, name: &str) -> Option<Handover> {
        let names = self.0.get_mut(&scope)?;
        let fd = names.remove(name);
        if names.is_empty() {
            self.0.remove(&scope);
        }
        fd
    }

    /// Takes all names of a scope that has ended, for the caller to close.
    pub(crate) fn end(&mut self, scope: Scope) -> BTreeMap<String, Handover> {
        self.0.remove(&scope).unwrap_or_default()
    }

    /// What `name` means in `scope`: its own names first, then the process's.
    pub(crate) fn find(&self, scope: Scope, name: &str) -> Option<(Scope, &Handover)> {
        [scope, Scope::Process]
            .into_iter()
            .find_map(|scope| Some((scope, self.0.get(&scope)?.get(name)?)))
    }

    /// All named fds, each with its scope and name.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = (Scope, &str, &mut Handover)> {
        self.0.iter_mut().flat_map(|(scope, names)| {
            let names = names.iter_mut();
            names.map(|(name, passed)| (*scope, name.as_str(), passed))
        })
    }

    /// The names of one scope, sorted.
    pub(crate) fn list(&self, scope: Scope) -> Vec<String> {
        self.0
            .get(&scope)
            .map(|names| names.keys().cloned().collect())
            .unwrap_or_default()
    }
}
