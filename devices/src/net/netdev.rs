//! A backend with its id and its link, and a card's lease on it.
//!
//! ```text
//!   Netdevs ── Netdev ── backend: closed by `close`, whoever holds a lease
//!                ▲  └─── link: up or down, by set_link and by the backend
//!                │
//!   card ──── NetLease: the one place at its other end, given back on drop
//! ```

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::NetError;
use super::backend::{NetBackend, NetFrontend};
use crate::reactor::Reactor;

/// A named network backend.
pub struct Netdev {
    id: String,
    kind: &'static str,
    reactor: Reactor,
    backend: Mutex<Option<Arc<dyn NetBackend>>>,
    frontend: Mutex<Option<Weak<dyn NetFrontend>>>,
    taken: AtomicBool,
    link: AtomicBool,
    /// It is being removed: who still has the backend lets go of it.
    closing: AtomicBool,
}

impl Netdev {
    pub(super) fn new(
        id: &str,
        kind: &'static str,
        backend: Arc<dyn NetBackend>,
        reactor: Reactor,
    ) -> Arc<Self> {
        let netdev = Arc::new(Self {
            id: id.to_owned(),
            kind,
            reactor,
            backend: Mutex::new(Some(Arc::clone(&backend))),
            frontend: Mutex::new(None),
            taken: AtomicBool::new(false),
            link: AtomicBool::new(true),
            closing: AtomicBool::new(false),
        });
        backend.watch_link(Arc::downgrade(&netdev));
        netdev
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What kind it is: `tap`, `stream`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Where it leads, for `info network`.
    #[must_use]
    pub fn describe(&self) -> String {
        self.backend().map_or(String::new(), |one| one.describe())
    }

    /// Whether a card holds it.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// Plugs the cable in or out.
    pub fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::Release);
        self.tell();
    }

    /// Whoever is at the backend's other end came or left.
    pub(super) fn link_moved(&self) {
        self.tell();
    }

    /// Gives the place at its other end to a card.
    ///
    /// # Errors
    /// Another card has it.
    pub fn lease(self: &Arc<Self>) -> Result<NetLease, NetError> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return Err(NetError::InUse(self.id.clone()));
        }
        Ok(NetLease {
            netdev: Arc::clone(self),
        })
    }

    /// Closes the backend and all that it holds. When this returns, it is closed.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // The card takes its queues back from whoever serves them by the backend.
        self.tell();
        let backend = self.lock_backend().take();
        let Some(backend) = backend else {
            return;
        };
        backend.detach();
        drop(backend);
        // A handler that has begun may hold it until it returns.
        if let Err(error) = self.reactor.settle() {
            tracing::error!(%error, netdev = %self.id, "dev-io cannot be waited for");
        }
    }

    fn backend(&self) -> Option<Arc<dyn NetBackend>> {
        self.lock_backend().clone()
    }

    fn tell(&self) {
        let frontend = self.lock_frontend().as_ref().and_then(Weak::upgrade);
        if let Some(frontend) = frontend {
            frontend.link_changed();
        }
    }

    fn lock_backend(&self) -> MutexGuard<'_, Option<Arc<dyn NetBackend>>> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_frontend(&self) -> MutexGuard<'_, Option<Weak<dyn NetFrontend>>> {
        self.frontend.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Netdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netdev")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A card's place at a netdev.
#[derive(Debug)]
pub struct NetLease {
    netdev: Arc<Netdev>,
}

impl NetLease {
    /// The netdev's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.netdev.id()
    }

    /// The backend, unless the netdev was removed. To be held for the length of some work only.
    #[must_use]
    pub fn backend(&self) -> Option<Arc<dyn NetBackend>> {
        self.netdev.backend()
    }

    /// Whether there is a link.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let netdev = &self.netdev;
        netdev.link.load(Ordering::Acquire)
            && !netdev.closing.load(Ordering::Acquire)
            && netdev.backend().is_some_and(|backend| backend.is_linked())
    }

    /// Lets the backend know its card.
    ///
    /// # Errors
    /// A descriptor cannot be watched.
    pub fn connect(&self, frontend: Weak<dyn NetFrontend>) -> Result<(), NetError> {
        *self.netdev.lock_frontend() = Some(Weak::clone(&frontend));
        match self.backend() {
            Some(backend) => backend
                .attach(frontend)
                .map_err(|source| NetError::host(self.id(), "watching its descriptors", source)),
            None => Ok(()),
        }
    }
}

impl Drop for NetLease {
    fn drop(&mut self) {
        let gone = self.netdev.lock_frontend().take();
        drop(gone);
        if let Some(backend) = self.backend() {
            backend.detach();
        }
        self.netdev.taken.store(false, Ordering::Release);
    }
}
