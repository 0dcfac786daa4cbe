//! Network backends: where the packets of a guest's network cards go to and come from.
//!
//! A backend moves whole packets, each behind the 12 bytes of a virtio header, between a card and a
//! tap interface, a socket or other cards. This room must never know queues, descriptors or QMP;
//! what it opens goes through a [`fdset::Door`].
//!
//! ```text
//!   card ── send(queue, packet), flush ► NetBackend ──► tap, stream, datagrams, hub, vhost-user
//!    ▲  ─── receive(queue, buffer) ──►     │
//!    └── readable(queue), writable(queue) ◄┘ dev-io: its fds are ready
//! ```
//!
//! Nobody pushes: a card that has buffers asks for packets until there are none, and hears
//! `readable` when there may be more. So a slow guest fills queues in the kernel, not here. All of it
//! is on the reactor's thread; nothing is allocated for a packet.
//!
//! A [`Netdev`] is a backend with its id and its link; a card holds a [`NetLease`] on it. Removing
//! the netdev closes the backend at once, whoever holds a lease. While it has filters they stand
//! between the two.
//!
//! Read next: [`backend`] (the seam), [`spec`] (what can be asked for), [`registry`], and the
//! backends: [`tap`], [`stream`], [`datagram`], [`hub`], [`vhost_user`]; then [`filter`].

pub mod announce;
pub mod backend;
mod burst;
pub mod datagram;
pub mod filter;
pub mod framing;
pub mod hub;
pub mod netdev;
pub mod packet;
pub mod registry;
pub mod spec;
pub mod stream;
pub mod tap;
mod tap_ioctl;
pub mod vhost_user;

pub use announce::Announcement;
pub use backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
pub use filter::{FilterError, FilterKind, FilterSpec, NetFilter};
pub use netdev::{NetLease, Netdev};
pub use packet::{Packet, Pieces};
pub use registry::Netdevs;
pub use spec::{NetdevKind, NetdevSpec, StreamRole, StreamSpec, TapQueues, TapSpec, TapVhost};

use fdset::OpenError;

use crate::chardev::ChardevError;
use crate::vhost_user::VhostUserError;

/// Bytes of the virtio header before each packet (virtio 1.2, 5.1.6): the long form, with the number
/// of buffers.
pub const HEADER: usize = 12;

/// The longest packet, with its header: a long TCP packet of 64 KiB and what is around it. What is
/// longer is dropped.
pub const LONGEST: usize = HEADER + (64 << 10) + 4096;

/// What can go wrong with a netdev. The texts that clients match on are QEMU's.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The id is taken.
    #[error("Duplicate ID '{0}'")]
    Duplicate(String),
    /// A card has the netdev already.
    #[error("Property 'virtio-net-device.netdev' can't take value '{0}', it's in use")]
    InUse(String),
    /// Something could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no such chardev.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// Nobody serves it by vhost-user.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// A tap's queues do not fit each other.
    #[error("netdev '{id}': {problem}")]
    Unfit {
        /// The netdev.
        id: String,
        /// What was found, what is needed, and the fix.
        problem: String,
    },
    /// The host refused something else.
    #[error("netdev '{id}': {what} failed")]
    Host {
        /// The netdev.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl NetError {
    fn host(id: &str, what: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Host {
            id: id.to_owned(),
            what,
            source: source.into(),
        }
    }
}
