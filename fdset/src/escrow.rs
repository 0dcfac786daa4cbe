//! Names that are used up only once everything else has worked.
//!
//! ```text
//!   open "fd:NAME" through a door with an escrow ─► the opener gets a dup
//!                                                └► the handed fd waits here
//!   Escrow::use_up  ─► what waits is closed        dropped before ─► it gets its name back
//! ```
//!
//! For a transaction that opens several files of which the last may be refused: nothing of what
//! was handed over is lost then.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use crate::handover::Handover;
use crate::registry::{FdRegistry, Scope};

/// Named fds that were opened and may have to go back.
#[derive(Debug)]
pub struct Escrow {
    registry: Arc<FdRegistry>,
    kept: Mutex<Vec<(Scope, String, Handover)>>,
}

impl Escrow {
    /// An empty one, for names of `registry`.
    #[must_use]
    pub fn new(registry: Arc<FdRegistry>) -> Self {
        Self {
            registry,
            kept: Mutex::default(),
        }
    }

    /// Keeps a named fd, and gives its opener a second one.
    pub(crate) fn keep(
        &self,
        scope: Scope,
        name: &str,
        passed: Handover,
    ) -> std::io::Result<std::os::fd::OwnedFd> {
        let dup = passed.as_fd().try_clone_to_owned();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((scope, name.to_owned(), passed));
        dup
    }

    /// Everything has worked: the names are used up.
    pub fn use_up(&self) {
        drop(self.take());
    }

    fn take(&self) -> Vec<(Scope, String, Handover)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *kept)
    }
}

impl Drop for Escrow {
    fn drop(&mut self) {
        for (scope, name, passed) in self.take() {
            self.registry.restore_named(scope, &name, passed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::{Access, Door, Origin, Request, Role, open};

    fn handed() -> Handover {
        let file = tempfile::tempfile().expect("file");
        Handover::new(OwnedFd::from(file), Origin::CommandLine)
    }

    #[test]
    fn name_comes_back_unless_it_was_used_up_or_given_anew() {
        let registry = Arc::new(FdRegistry::new());
        let scope = Scope::Monitor(1);
        let request = Request::new("fd:a", Access::ReadWrite, Role::Image, "a test");
        for (uses_up, names) in [(false, 1), (true, 0)] {
            registry.add_named(scope, "a", handed()).expect("a name");
            let escrow = Arc::new(Escrow::new(Arc::clone(&registry)));
            let door = Door::new(Arc::clone(&registry), scope);
            let door = door.with_escrow(Arc::clone(&escrow));
            let file = open(&door, &request).expect("a name");
            open(&door, &request).expect_err("taken by the same transaction");
            assert!(registry.names(scope).is_empty(), "nobody else takes it");
            if uses_up {
                escrow.use_up();
            }
            drop((file, door, escrow));
            assert_eq!(registry.names(scope).len(), names);
        }
        registry.add_named(scope, "a", handed()).expect("a name");
        let escrow = Arc::new(Escrow::new(Arc::clone(&registry)));
        let door = Door::new(Arc::clone(&registry), scope);
        let door = door.with_escrow(Arc::clone(&escrow));
        let first = open(&door, &request).expect("a name");
        let newer = handed();
        let wanted = newer.nature().identity;
        registry.add_named(scope, "a", newer).expect("a name");
        drop((first, door, escrow));
        let door = Door::new(Arc::clone(&registry), scope);
        let file = open(&door, &request).expect("the newer");
        assert_eq!(file.identity().ok(), wanted);
    }
}
