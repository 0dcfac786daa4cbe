//! The memory balloon (virtio 1.2, section 5.5): pages that the guest does without, whose memory
//! the host has back until the guest touches them again.
//!
//! ```text
//!   guest ── inflate: page numbers ────► VirtioBalloon ── Reclaim ──► the host's memory
//!         ── reporting: free ranges ───►    │   ▲
//!         ── deflate: page numbers ────►  (a touch brings them back)
//!         ── statistics ◄── asked again ────┘   └── target, polling ── the VM's owner
//! ```
//!
//! The balloon knows no mapping: what a page costs to give back is [`Reclaim`]'s. It runs on the
//! reactor's thread.
//!
//! Read next: [`device`]; `pages` (page numbers into ranges), [`stats`] (what a guest tells).
//!
//! [`Reclaim`]: crate::memory::Reclaim

pub mod device;
mod pages;
pub mod stats;
#[cfg(test)]
mod tests;

pub use device::{BalloonHost, BalloonSpec, BalloonState, PAGE, VirtioBalloon};
pub use stats::{GuestStats, STATS, UNKNOWN};
