//! All chardevs of a VM, by id.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fdset::Door;
use indexmap::IndexMap;

use super::ChardevError;
use super::handle::Chardev;
use super::spec::ChardevSpec;
use crate::reactor::Reactor;

/// The chardevs, in the order they were added.
#[derive(Debug)]
pub struct ChardevRegistry {
    reactor: Reactor,
    chardevs: Mutex<IndexMap<String, Arc<Chardev>>>,
}

impl ChardevRegistry {
    /// An empty registry whose chardevs will wait on `reactor`.
    #[must_use]
    pub fn new(reactor: Reactor) -> Self {
        Self {
            reactor,
            chardevs: Mutex::default(),
        }
    }

    /// Opens a chardev and adds it.
    ///
    /// # Errors
    /// The id is taken, or the chardev cannot be opened; then nothing has changed.
    pub fn add(
        &self,
        id: &str,
        spec: &ChardevSpec,
        door: &Door,
    ) -> Result<Arc<Chardev>, ChardevError> {
        if self.chardevs().contains_key(id) {
            return Err(ChardevError::Duplicate(id.to_owned()));
        }
        // Outside the lock: a server may wait for its peer here.
        let chardev = Chardev::open(id, spec, door, &self.reactor)?;
        let mut chardevs = self.chardevs();
        if chardevs.contains_key(id) {
            drop(chardevs);
            return Err(ChardevError::Duplicate(id.to_owned()));
        }
        chardevs.insert(id.to_owned(), Arc::clone(&chardev));
        Ok(chardev)
    }

    /// Takes a chardev away and closes what it has open.
    ///
    /// # Errors
    /// There is none with this id, or a device holds it.
    pub fn remove(&self, id: &str) -> Result<(), ChardevError> {
        let mut chardevs = self.chardevs();
        let Some(chardev) = chardevs.get(id) else {
            return Err(ChardevError::NotFound(id.to_owned()));
        };
        if chardev.is_busy() {
            return Err(ChardevError::Busy(id.to_owned()));
        }
        let removed = chardevs.shift_remove(id);
        drop(chardevs);
        drop(removed);
        Ok(())
    }

    /// The chardev with this id.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, id: &str) -> Result<Arc<Chardev>, ChardevError> {
        let chardev = self.chardevs().get(id).cloned();
        chardev.ok_or_else(|| ChardevError::NotFound(id.to_owned()))
    }

    /// All of them, in the order they were added.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Chardev>> {
        self.chardevs().values().cloned().collect()
    }

    fn chardevs(&self) -> MutexGuard<'_, IndexMap<String, Arc<Chardev>>> {
        self.chardevs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
