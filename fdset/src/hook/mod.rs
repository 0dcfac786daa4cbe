//! The open hook: the manager, asked for what nothing else provides.
//!
//! An open must be answered where it is asked, and the manager may take its time. So whoever runs
//! a command finds out first what it will open, asks for all of it here, does other things until
//! the answers are in, and only then runs the command, with a door that carries the [`Answers`].
//!
//! ```text
//!   Wish ──► HookClient::ask ── one line ──► manager
//!               │  id 7: Sent                   │ one line, one fd
//!               ▼                               ▼
//!            HookClient::attend ◄─── Lines: bytes and fds ─► (line, its fds)
//!               │  id 7: Answered, Failed, TimedOut or Cancelled
//!               ▼
//!            Answers ─── Door::with_answers ──► open(): taken by name and access, each once
//!               └─ close: what the command did not take is closed
//! ```
//!
//! What is opened again later, by itself, has no command that could wait: its owner goes through
//! [`Door::ask_again`](crate::Door::ask_again), and opens when it is told the answers.
//!
//! Nothing here blocks and nothing here is a thread: the client is driven by whoever owns it, on
//! readiness of its socket and at its deadline. What a line says is the business of a
//! [`HookWire`], which is given; this room knows the order of things, whose fd is whose, and when
//! to stop waiting.
//!
//! Read next: `request` (the states of a request), `lines` (whose fd is whose), [`HookClient`].

mod answers;
mod client;
mod lines;
mod request;
#[cfg(test)]
mod tests;
mod wish;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use answers::Answers;
pub(crate) use answers::Given;
pub use client::{Departure, Finished, HookClient, HookWire, Ticket, WireAnswer};
pub use wish::{Expected, Wish};

/// What is done with the answers to a question that no command asks, on the asked one's thread.
pub type Told = Box<dyn FnOnce(Arc<Answers>) + Send>;

/// Who asks the open hook for something that is opened again, long after its command: a connection
/// that was lost.
pub trait Asker: Send + Sync + fmt::Debug {
    /// Asks for `wish` and calls `told` once, later, on any thread. Where no hook is set there are
    /// no answers, and the name is opened as without one.
    fn ask(&self, wish: Wish, told: Told);
}

/// Why the open hook did not give an fd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// The manager said no.
    #[error("the open hook refuses: {0}")]
    Refused(String),
    /// The manager said nothing.
    #[error("the open hook did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// Nobody wants the answer any more.
    #[error("cancelled before the open hook answered")]
    Cancelled,
    /// There is nobody to ask.
    #[error("the open hook is gone ({0}); set it again with open-hook-set")]
    Gone(String),
    /// The manager answered, but not with what was asked for.
    #[error("the open hook answered with {came}, wanted {wanted}")]
    Unfit {
        /// What was wanted.
        wanted: String,
        /// What came.
        came: String,
    },
}

impl HookError {
    /// The error number that `open(2)` would have given.
    #[must_use]
    pub fn errno(&self) -> i32 {
        use nix::errno::Errno;
        match self {
            Self::Refused(_) => Errno::EACCES as i32,
            Self::TimedOut(_) => Errno::ETIMEDOUT as i32,
            Self::Cancelled => Errno::ECANCELED as i32,
            Self::Gone(_) => Errno::ENOTCONN as i32,
            Self::Unfit { .. } => Errno::EINVAL as i32,
        }
    }
}
