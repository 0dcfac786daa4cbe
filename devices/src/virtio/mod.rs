//! Virtio 1.2 devices and the PCI transport that carries them.
//!
//! ```text
//!   guest driver ── config, BAR ──► transport (PCI) ── start_queue ──► VirtioDevice (blk, rng, …)
//!        └────── doorbell (ioeventfd) ─────────────────► queue worker ──┘
//!        ◄────── MSI-X (irqfd) ◄── Interrupt::trigger ◄── queue worker
//! ```
//!
//! The transport knows registers, negotiation and interrupts; a device knows its queues and its
//! configuration space. Neither knows the other's type: the seam is [`device::VirtioDevice`].
//! Slow queues (rng, console, balloon, both kinds of memory, input) and network cards are served on the reactor's thread through
//! `ring`; disks have
//! io-threads of their own.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod device;
pub mod input;
pub mod mem;
#[cfg(test)]
pub(crate) mod mock_driver;
pub mod names;
pub mod net;
pub mod pmem;
mod ring;
pub mod rng;
pub mod scsi;
pub mod transport;
pub mod vsock;
pub mod waiting;
