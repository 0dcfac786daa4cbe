//! Persistent memory (virtio 1.3, section 5.19): a region of guest memory with a file behind it, and
//! a queue by which the guest asks for what it wrote there to be durable.
//!
//! ```text
//!   guest ── loads and stores ──► the region: guest memory, no exit
//!   guest ── flush ──► VirtioPmem ── how many wait? ── Durable::sync ──► an io-thread's fsync
//!                          ▲                                                     │
//!      the answers to those that waited ◄── taken from the ring only now ◄───────┘
//! ```
//!
//! No request is taken before its answer is known: a queue that stops meanwhile has lost nothing, and
//! a saved device is its negotiation alone. One fsync answers all that had been asked before it
//! began, and never one that came later.
//!
//! The device knows no mapping: the region is guest memory before the device is there, and until
//! after it has gone. It runs on the reactor's thread, and answers on the io-thread's.
//!
//! Read next: [`device`]; `durable` (who makes it durable).

pub mod device;
mod durable;
#[cfg(test)]
mod tests;

pub use device::{PmemHost, PmemSpec, VirtioPmem};
pub use durable::{Durable, FileMemory, Synced};
