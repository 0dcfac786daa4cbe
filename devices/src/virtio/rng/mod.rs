//! The entropy device (virtio 1.2, section 5.4): one queue of buffers to fill with random bytes.
//!
//! [`entropy`] is where bytes come from, [`quota`] how many may be given; the device itself only
//! moves them. It runs on the reactor's thread, whose other work a greedy guest cannot hold up.
//!
//! ```text
//!   guest ── empty buffer, kick ─► VirtioRng ── fill ─► Entropy: the kernel, a file, a pipe
//!                                     │  └── asks ───► Quota: max-bytes each period
//!         ◄── filled buffer ──────────┘
//! ```
//!
//! Read next: [`device`].

pub mod device;
pub mod entropy;
pub mod quota;
#[cfg(test)]
mod tests;

pub use device::VirtioRng;
pub use entropy::{Builtin, Entropy, EntropyFile};
pub use quota::Rate;
