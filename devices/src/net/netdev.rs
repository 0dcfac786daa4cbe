//! A backend with its id and its link, and a card's lease on it.
//!
//! ```text
//!   Netdevs ── Netdev ── backend: closed by `close`, whoever holds a lease; behind its filters
//!                ▲  └─── link: up or down, by set_link and by the backend
//!                │
//!   card ──── NetLease: the one place at its other end, given back on drop
//! ```

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::NetError;
use super::backend::{NetBackend, NetFrontend};
use super::filter::Chain;
use crate::reactor::Reactor;

/// A named network backend.
pub struct Netdev {
    id: String,
    kind: &'static str,
    reactor: Reactor,
    backend: Mutex<Option<Arc<dyn NetBackend>>>,
    /// Its filters, if it has any: then they are what cards take for the backend.
    chain: Mutex<Option<Arc<Chain>>>,
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
            chain: Mutex::new(None),
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
        let chain = self.lock_chain().take();
        drop((backend, chain));
        // A handler that has begun may hold it until it returns.
        if let Err(error) = self.reactor.settle() {
            tracing::error!(%error, netdev = %self.id, "dev-io cannot be waited for");
        }
    }

    /// Its filters, if it has any.
    pub(super) fn chain(&self) -> Option<Arc<Chain>> {
        self.lock_chain().clone()
    }

    /// The ids of its filters, in the order of packets that come from it.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        self.chain().map_or(Vec::new(), |chain| chain.ids())
    }

    /// Puts filters between the backend and the card.
    pub(super) fn put_between(&self, chain: &Arc<Chain>) -> io::Result<()> {
        *self.lock_chain() = Some(Arc::clone(chain));
        // First this: until the backend knows the chain, the card asks it for packets.
        *self.lock_backend() = Some(Arc::clone(chain) as _);
        self.connect(chain.as_ref())
            .inspect_err(|_| drop(self.take_out()))
    }

    /// Takes the filters out.
    pub(super) fn take_out(&self) -> io::Result<()> {
        let Some(chain) = self.lock_chain().take() else {
            return Ok(());
        };
        let backend = chain.backend();
        *self.lock_backend() = Some(Arc::clone(&backend));
        self.connect(backend.as_ref())
    }

    /// Lets `backend` know the card, if there is one, which looks at it anew: it may have waited for a
    /// word of who was there before.
    fn connect(&self, backend: &dyn NetBackend) -> io::Result<()> {
        let Some(frontend) = self.lock_frontend().clone() else {
            return Ok(());
        };
        backend.attach(Weak::clone(&frontend))?;
        self.reactor.run(move || {
            if let Some(card) = frontend.upgrade() {
                card.writable(0);
                card.readable(0);
            }
        })
    }

    pub(super) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    pub(super) fn backend(&self) -> Option<Arc<dyn NetBackend>> {
        self.lock_backend().clone()
    }

    /// Whether there is a link.
    pub(super) fn is_up(&self) -> bool {
        self.link.load(Ordering::Acquire)
            && !self.closing.load(Ordering::Acquire)
            && self.backend().is_some_and(|backend| backend.is_linked())
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

    fn lock_chain(&self) -> MutexGuard<'_, Option<Arc<Chain>>> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.netdev.is_up()
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
