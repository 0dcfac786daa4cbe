//! Network cards against QEMU's.
//!
//! ```text
//!   guests.rs   a guest's bytes and questions, through taps, the kernel's server and passt
//!   rings.rs    packets through rings in shared memory, without a guest: CPU time for each
//!   sizes.rs    what each card and each disk more weighs
//! ```
pub(super) mod guests;
pub(super) mod rings;
pub(super) mod sizes;
