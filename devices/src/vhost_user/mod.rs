//! vhost-user: a process beside this one serves a device's queues (QEMU's document "Vhost-user
//! Protocol", the front end's part).
//!
//! The back end maps guest memory by the fds it is sent, and works on the rings by itself, called
//! and calling by eventfds. This room speaks with it over a chardev's socket; what a device does
//! with its queues it must never know.
//!
//! ```text
//!   any thread                     dev-io                              another process
//!   device ─► QueueServer ─► Orders ◄── Session ◄── Talk ◄─ socket ─► back end
//!      ▲        (VhostUser)    │           ▲  one future for each connection
//!      └── Watcher: came, left, config     └── chardev: connects, reconnects, notices the end
//! ```
//!
//! A back end is not trusted with this process, only with guest memory: its answers are checked,
//! fds that nobody waits for are closed, and one that does not answer in time is hung up on. Nobody
//! else waits for it: a queue is started by an order, and only who takes a queue back waits, no
//! longer than an answer may take. When the back end is gone the device stays, and the next one is
//! told everything again; what was under way is in the guest's rings, or in memory that the back
//! ends hand on (`INFLIGHT_SHMFD`).
//!
//! Own protocol code and not the crate `vhost`: that one blocks in `recvmsg` without an end.
//!
//! Read next: [`front`] (what a device holds), `orders` (what it wants), `session` (the
//! conversation), [`message`] (its bytes), [`table`] (guest memory), [`device`] (devices that are
//! nothing else).

pub mod device;
pub mod front;
pub mod message;
mod orders;
mod session;
pub mod table;
mod talk;
mod task;
#[cfg(test)]
pub(crate) mod tests;

pub use device::{Kind, VhostUserDevice, VhostUserDeviceSpec};
pub use front::{VhostUser, VhostUserSpec, Watcher};
pub use message::Protocol;
pub use session::{Offer, Wants};
pub use table::TableError;

use crate::chardev::ChardevError;

/// Why there is no back end.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// The chardev is something else, or taken.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// No fds go over it.
    #[error(
        "chardev '{0}' is not a unix socket: vhost-user sends fds, so it wants \
         -chardev socket,path=... or a passed unix socket"
    )]
    NotUnix(String),
    /// Guest memory cannot be shared.
    #[error("{name}: {source}")]
    Memory {
        /// Whose back end it is.
        name: String,
        /// Why not.
        source: TableError,
    },
    /// Nobody came, or not the right one.
    #[error(
        "{name}: no vhost-user back end at chardev '{chardev}' within {seconds} s{}",
        why.as_ref().map_or(String::new(), |why| format!("; the last one was left because {why}"))
    )]
    NoBackend {
        /// Whose back end it is.
        name: String,
        /// Where it was waited for.
        chardev: String,
        /// How long.
        seconds: u64,
        /// What was wrong with the one that came.
        why: Option<String>,
    },
    /// It has less than what is asked for.
    #[error("{name}: the vhost-user back end has {has} queues, {wanted} were asked for")]
    Queues {
        /// Whose back end it is.
        name: String,
        /// How many there are.
        has: u64,
        /// How many are wanted.
        wanted: u64,
    },
}
