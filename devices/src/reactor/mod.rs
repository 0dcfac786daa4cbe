//! The one thread on which chardevs and slow virtio queues wait: `dev-io`.
//!
//! A registration ties a file descriptor to a [`Ready`] handler; a timer is a registration without
//! one. Handlers run on the reactor's thread, one at a time, and never block. The reactor knows
//! neither chardevs nor queues.
//!
//! ```text
//!   any thread ── register(fd, handler) ─► table: token → handler        Registration
//!   any thread ── timer(handler).arm(t) ─► table: token → deadline       Timer
//!   any thread ── run(job) ──────────────► job queue ─┐
//!                                                     ▼
//!                     dev-io:  epoll_wait ─► handler.ready(..) ─► timers ─► jobs ─┐
//!                                 ▲──────────────────────────────────────────────┘
//! ```
//!
//! The thread starts with the first registration, timer or job: a VM without any has no such
//! thread. It ends when the last [`Reactor`] handle is dropped.
//!
//! Events are edge-triggered: a handler goes on until the descriptor would block, or asks for
//! another look with [`Registration::rearm`].
//!
//! Read next: `serve.rs` (the thread's table and loop).

mod serve;

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bitflags::bitflags;
use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};

use self::serve::Core;

bitflags! {
    /// Why a handler is called.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Readiness: u8 {
        /// There is something to read, or the end of it.
        const READ = 1;
        /// Writing would not block.
        const WRITE = 2;
        /// The other side is gone for good, in both directions.
        const CLOSED = 4;
        /// The timer has run out.
        const TIMER = 8;
    }
}

/// What is called on the reactor's thread.
pub trait Ready: Send + Sync {
    /// Something happened. Must not block, and must tolerate a call without cause.
    fn ready(&self, readiness: Readiness);
}

/// Any descriptor the reactor can watch. The registration shares its ownership, so that the
/// number cannot be reused while it is registered.
pub type Watched = Arc<dyn AsRawFd + Send + Sync>;

/// A handle on the reactor. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reactor(Arc<Owner>);

/// Starts the thread at first use and ends it with the last handle.
#[derive(Default)]
struct Owner {
    started: Mutex<Option<Started>>,
}

struct Started {
    core: Arc<Core>,
    /// The kernel's id of the thread.
    id: i32,
    thread: JoinHandle<()>,
}

impl Reactor {
    /// A reactor whose thread does not run yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `handler` whenever `fd` becomes ready for `interest`, until the result is dropped.
    /// A descriptor that is ready already is reported once.
    ///
    /// # Errors
    /// The descriptor cannot be watched (`EPERM` for regular files), or the thread cannot start.
    pub fn register(
        &self,
        fd: Watched,
        interest: Interest,
        handler: Arc<dyn Ready>,
    ) -> io::Result<Registration> {
        let core = self.core()?;
        let token = core.insert(handler);
        // The handler can be called from here on.
        let watched = core
            .registry
            .register(&mut SourceFd(&fd.as_raw_fd()), token, interest);
        let slot = Slot { core, token };
        watched?;
        Ok(Registration { slot, fd, interest })
    }

    /// A timer that calls `handler` each time it runs out.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn timer(&self, handler: Arc<dyn Ready>) -> io::Result<Timer> {
        let core = self.core()?;
        let token = core.insert(handler);
        Ok(Timer {
            slot: Slot { core, token },
        })
    }

    /// Runs `job` on the reactor's thread, after what is going on there now.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let core = self.core()?;
        core.run(Box::new(job))
    }

    /// Whether the thread runs.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Starts the thread unless it runs, and waits until what runs there now has come to its end:
    /// for who must know all threads before he goes on. Not to be called on the thread.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn settle(&self) -> io::Result<()> {
        let (tell, told) = mpsc::sync_channel(1);
        self.run(move || {
            // Who asked waits for it.
            let _ = tell.send(());
        })?;
        told.recv().map_err(io::Error::other)
    }

    /// The kernel's id of the thread, if it runs.
    #[must_use]
    pub fn thread_id(&self) -> Option<i32> {
        self.0.lock().as_ref().map(|started| started.id)
    }

    fn core(&self) -> io::Result<Arc<Core>> {
        let mut started = self.0.lock();
        if let Some(started) = &*started {
            return Ok(Arc::clone(&started.core));
        }
        let poll = Poll::new()?;
        let core = Arc::new(Core::new(&poll)?);
        let served = Arc::clone(&core);
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("dev-io".into())
            .spawn(move || {
                // Who asked waits for it.
                let _ = tell.send(nix::unistd::gettid().as_raw());
                served.serve(poll);
            })?;
        let id = told.recv().map_err(io::Error::other)?;
        *started = Some(Started {
            core: Arc::clone(&core),
            id,
            thread,
        });
        Ok(core)
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("started", &self.is_started())
            .finish()
    }
}

impl Owner {
    fn lock(&self) -> MutexGuard<'_, Option<Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(Started { core, thread, .. }) = self.lock().take() else {
            return;
        };
        if let Err(error) = core.stop() {
            tracing::error!(%error, "dev-io cannot be woken to end");
            return;
        }
        // The last handle may go down with a handler, on the thread itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("dev-io ended in a panic");
        }
    }
}

/// A handler's place in the table.
struct Slot {
    core: Arc<Core>,
    token: Token,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.core.remove(self.token);
    }
}

/// A watched descriptor. Dropping it ends the watch; when the drop returns, the handler is not
/// running and will not be called again, except when the drop happens on the reactor's thread.
///
/// Do not drop it while holding a lock that the handler takes.
pub struct Registration {
    slot: Slot,
    fd: Watched,
    interest: Interest,
}

impl Registration {
    /// Has the handler called again if the descriptor is ready now.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn rearm(&self) -> io::Result<()> {
        self.watch_for(self.interest)
    }

    /// Has the handler called for `interest` from now on, until a rearm; and at once for what is
    /// ready already.
    ///
    /// # Errors
    /// As [`rearm`](Self::rearm).
    pub fn watch_for(&self, interest: Interest) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let Slot { core, token } = &self.slot;
        core.registry
            .reregister(&mut SourceFd(&fd), *token, interest)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Before the slot: no new event can then be read for it.
        let fd = self.fd.as_raw_fd();
        if let Err(error) = self.slot.core.registry.deregister(&mut SourceFd(&fd)) {
            tracing::error!(%error, fd, "a descriptor cannot be taken out of epoll");
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("fd", &self.fd.as_raw_fd())
            .field("token", &self.slot.token)
            .finish_non_exhaustive()
    }
}

/// A timer. Dropping it gives the same guarantee as dropping a [`Registration`].
pub struct Timer {
    slot: Slot,
}

impl Timer {
    /// Has the handler called once, `after` from now; replaces an earlier deadline.
    pub fn arm(&self, after: Duration) {
        let Slot { core, token } = &self.slot;
        // A deadline beyond the clock's range is none.
        let Some(deadline) = Instant::now().checked_add(after) else {
            return;
        };
        if let Err(error) = core.arm(*token, deadline) {
            tracing::error!(%error, "dev-io cannot be woken for a timer");
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("token", &self.slot.token)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
