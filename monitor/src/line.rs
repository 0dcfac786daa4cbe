//! What the threads share of a session: where its messages go, and the bell that calls `qmp-io`.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fdset::{Peer, ScopeLease};
use mio::Waker;
use qapi_schema::{MonitorId, SessionId};

use crate::io::NewMonitor;
use crate::policy::Rights;
use crate::print::{Message, Style};
use crate::server::FdScope;
use crate::tls::TlsServer;
use crate::transport::{Outlet, Sent};

/// One session or one monitor, within the thread `qmp-io`. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) usize);

impl Key {
    /// The session's id, for those to whom it means more than a place in this thread.
    pub(crate) fn session(self) -> SessionId {
        SessionId(u64::try_from(self.0).unwrap_or(u64::MAX))
    }
}

/// What all sessions of one monitor have alike.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// The monitor.
    pub(crate) id: MonitorId,
    /// How it lays out its messages.
    pub(crate) style: Style,
    /// How long what its clients hand over stays.
    pub(crate) fd_scope: FdScope,
    /// How what is said over it is encrypted, if it is.
    pub(crate) tls: Option<TlsServer>,
    /// What it is called, whom it serves, and what they may ask.
    pub(crate) rights: Arc<Rights>,
}

/// What another thread asks of `qmp-io`.
#[derive(Debug)]
pub(crate) enum Note {
    /// Take over this monitor.
    Add(Box<NewMonitor>),
    /// Look after this session: it can go on, or is to be dropped.
    Attend(Key),
    /// Look at the clock: an event waits for its time.
    Clock,
    /// Send what waits, then end.
    Stop,
}

/// Notes for `qmp-io`, and the means to wake it. Silent until that thread exists.
#[derive(Debug)]
pub(crate) struct Bell {
    notes: Mutex<Vec<Note>>,
    waker: OnceLock<Waker>,
}

impl Bell {
    /// A bell without a thread.
    pub(crate) fn new() -> Self {
        Self {
            notes: Mutex::new(Vec::new()),
            waker: OnceLock::new(),
        }
    }

    /// Connects the thread.
    pub(crate) fn connect(&self, waker: Waker) {
        // There is one thread in a server's life, so there is one waker.
        let _ = self.waker.set(waker);
    }

    /// Leaves a note and wakes the thread.
    pub(crate) fn ring(&self, note: Note) {
        self.notes().push(note);
        if let Some(Err(error)) = self.waker.get().map(Waker::wake) {
            let error: io::Error = error;
            tracing::error!(%error, "could not wake the thread qmp-io");
        }
    }

    /// Takes all the notes.
    pub(crate) fn take(&self) -> Vec<Note> {
        mem::take(&mut *self.notes())
    }

    fn notes(&self) -> MutexGuard<'_, Vec<Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way back to one client: any thread may send.
#[derive(Debug)]
pub(crate) struct Line {
    /// The session's key.
    pub(crate) key: Key,
    /// The monitor it came over.
    pub(crate) monitor: MonitorId,
    /// What the client may ask.
    pub(crate) rights: Arc<Rights>,
    /// Who the client is, where its connection tells.
    pub(crate) peer: Option<Peer>,
    /// How its messages are laid out.
    pub(crate) style: Style,
    /// Where they go.
    pub(crate) outlet: Outlet,
    pub(crate) bell: Arc<Bell>,
    /// Set once nobody is at the other end any more.
    pub(crate) deserted: AtomicBool,
    /// Ends what the client has handed over, where that belongs to the session: not before the last
    /// request that may still hand over more.
    pub(crate) scope: Option<ScopeLease>,
}

impl Line {
    /// Notes that nobody is at the other end any more; true the first time.
    pub(crate) fn desert(&self) -> bool {
        !self.deserted.swap(true, Ordering::Relaxed)
    }

    /// Sends one message. A client that is slow, or gone, is for `qmp-io` to look after.
    pub(crate) fn send(&self, message: &Message<'_>) {
        match self.outlet.send(message) {
            Sent::Through | Sent::Waiting => {}
            Sent::BeganToWait | Sent::Gone | Sent::Overrun => {
                self.bell.ring(Note::Attend(self.key));
            }
        }
    }
}
