//! virtio-net: a network card of the guest over a netdev (virtio 1.2, section 5.1).
//!
//! ```text
//!   queues: receive 0, transmit 0, receive 1, transmit 1, .., control
//!
//!   guest ── packet, kick ─► transmit ── gather ─► NetBackend::send           dev-io
//!         ◄─ used ────────── receive ◄── filter ◄─ NetBackend::receive ◄─ readable
//!         ── command ──────► control ──► filter, address, pairs, offloads, steering
//! ```
//!
//! A pair of queues belongs to the same queue of the netdev. All work on queues is on the reactor's
//! thread, a batch at a time, and allocates nothing for a packet. This room knows queues and
//! packets; it must never know what is behind a [`NetBackend`](crate::net::NetBackend), nor the
//! transport.
//!
//! Read next: [`card`](mod@card) (the device), `receive` and `transmit` (the ways of packets),
//! `outside` (queues that the kernel serves in our place), `control` and `commands` (what the guest
//! says, and what is done), [`filter`] (which packets it wants), [`steering`] and [`hash`] (to which
//! queue they go), [`features`].

pub mod card;
mod commands;
mod config;
pub mod control;
pub mod features;
pub mod filter;
pub mod hash;
mod header;
mod outside;
mod receive;
pub mod state;
pub mod steering;
#[cfg(test)]
mod tests;
mod transmit;

use std::ops::RangeInclusive;

use crate::memory::GuestMemView;
use crate::virtio::ring::{Broken, Ring};

pub use card::{NetSpecError, VirtioNet, VirtioNetSpec};
pub use filter::{FilterState, RxFilter, Which};

/// Gives the guest back what is `used` up: heads, and how much was written.
fn returns(
    ring: &mut Ring,
    memory: &GuestMemView,
    used: &mut Vec<(u16, u32)>,
) -> Result<(), Broken> {
    let given = ring.add_used_together(memory, used);
    used.clear();
    given
}

/// How many descriptors a queue can have, as powers of two.
pub const QUEUE_SIZES: RangeInclusive<u16> = 256..=1024;
/// The MTUs that a guest can be told.
pub const MTUS: RangeInclusive<u16> = 68..=u16::MAX;
/// An Ethernet address.
pub type Mac = [u8; 6];
