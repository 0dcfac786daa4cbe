//! virtio-scsi: a controller with a bus of SCSI units (virtio 1.2, section 5.6).
//!
//! ```text
//!   queue 0    control ──► worker ── task management ──► waits until a unit is quiet
//!   queue 1    events  ◄── EventQueue ◄── plug, unplug, a new length
//!   queue 2..  requests ─► worker ── chain ─► Request ─► Units ─► ScsiUnit::execute
//! ```
//!
//! This room knows queues, addresses of units and how commands are carried; what they mean is
//! [`crate::scsi`]'s.
//!
//! Read next: [`device`]; `units` (who is on the bus), `request` (a chain taken apart), `control`,
//! `worker` (a queue at work), `events`.

mod control;
pub mod device;
mod events;
mod request;
pub mod state;
#[cfg(test)]
mod tests;
mod units;
mod worker;

pub use device::{VirtioScsi, VirtioScsiSpec};
pub use units::{Address, MAX_LUN, MAX_TARGET, PlugError};
