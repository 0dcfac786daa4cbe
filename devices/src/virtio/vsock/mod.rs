//! virtio-vsock: sockets between a guest and this machine (virtio 1.2, section 5.10).
//!
//! ```text
//!   guest ── queue 0 in, queue 1 out ──► QueueServer: the kernel's vhost-vsock, or another
//!         ── queue 2, events ──────────► kept here: an event is only sent after a migration
//!         ── config: the guest's CID ──► here
//! ```
//!
//! This room knows the device; it must never know who serves the queues, nor the transport.
//!
//! Read next: [`device`], and [`crate::vhost`].

pub mod device;
#[cfg(test)]
mod tests;

pub use device::{VirtioVsock, VirtioVsockSpec};

use std::ops::RangeInclusive;

/// The names that a guest can have: those below are the hypervisor's and the host's, the one above
/// means any (virtio 1.2, 5.10.4).
pub const CIDS: RangeInclusive<u32> = 3..=u32::MAX - 1;
