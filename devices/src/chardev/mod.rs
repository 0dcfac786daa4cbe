//! Chardevs: the host ends of the guest's serial lines, consoles and channels.
//!
//! A chardev is built from a resolved [`ChardevSpec`], opens what it needs through a
//! [`fdset::Door`], and serves one [`Frontend`] at a time. This room must never know what kind of
//! device a frontend is, nor QMP: monitors take the same endpoints with [`open_endpoint`] and do
//! their own talking.
//!
//! ```text
//!   vCPU ─► frontend ── ChardevLease::write ──► Chardev ──► socket, file, pty, ring …
//!              ▲                                  │  └────► log file
//!              │ receive(bytes) → taken           ▼
//!              │ writable()             dev-io: reads what the frontend
//!              └ peer_changed() ◄────── has room for, sends what waits
//! ```
//!
//! Output never blocks: what the peer does not take is kept up to [`OUTGOING_LIMIT`] bytes, then
//! `write` takes less and [`Frontend::writable`] follows when there is room again. Without a peer
//! output is dropped. Input is read only when the frontend has room, so a slow guest slows its
//! peer, not the VMM.
//!
//! Read next: [`spec`] (what can be asked for), [`line`](mod@line) (the life of a connection),
//! [`endpoint`] (how descriptors come in), [`registry`].

pub mod endpoint;
mod handle;
pub mod line;
mod logfile;
mod peer;
pub mod registry;
mod ring;
pub mod spec;
mod terminal;
#[cfg(test)]
mod tests;

use fdset::OpenError;

pub use endpoint::{Endpoint, open_endpoint};
pub use handle::{Chardev, ChardevLease};
pub use line::OUTGOING_LIMIT;
pub use registry::ChardevRegistry;
pub use spec::{BackendSpec, ChardevSpec, LogSpec, SocketRole, SocketSpec};
pub use terminal::Terminal;

/// The device side of a chardev. Every method is called on the reactor's thread, must not block,
/// and may still be under way once when the lease has just been dropped.
pub trait Frontend: Send + Sync {
    /// How many bytes it can take now. When it was 0 and is not any more, the frontend says so
    /// with [`ChardevLease::resume_input`].
    fn room(&self) -> usize;

    /// Takes input; returns how many bytes were taken. The rest is offered again after
    /// [`ChardevLease::resume_input`].
    fn receive(&self, bytes: &[u8]) -> usize;

    /// A write came up short before, and there is room now.
    fn writable(&self) {}

    /// A peer came or left: [`ChardevLease::is_connected`] tells which.
    fn peer_changed(&self) {}
}

/// What can go wrong with a chardev. The texts that clients match on are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum ChardevError {
    /// The id is taken.
    #[error("Chardev with id '{0}' already exists")]
    Duplicate(String),
    /// There is no chardev with this id.
    #[error("Chardev '{0}' not found")]
    NotFound(String),
    /// A device holds the chardev that is to be removed.
    #[error("Chardev '{0}' is busy")]
    Busy(String),
    /// A second device wants the chardev.
    #[error("Device '{0}' is in use")]
    InUse(String),
    /// A ring buffer's size is not a power of two, or too large.
    #[error(
        "Chardev '{id}': the size of a ring buffer must be a power of two up to 64 MiB, \
         not {size} bytes"
    )]
    RingSize {
        /// The chardev.
        id: String,
        /// The size asked for, in bytes.
        size: usize,
    },
    /// Two wishes that cannot both be met.
    #[error("Chardev '{id}': {problem}")]
    Conflict {
        /// The chardev.
        id: String,
        /// What contradicts what, and the fix.
        problem: &'static str,
    },
    /// Something could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The host refused something else.
    #[error("Chardev '{id}': {what} failed")]
    Host {
        /// The chardev.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl ChardevError {
    /// Wraps a refusal of the host.
    pub(crate) fn host(id: &str, what: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Host {
            id: id.to_owned(),
            what,
            source: source.into(),
        }
    }
}
