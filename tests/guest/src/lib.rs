//! What runs as process 1 in a guest, and in the lab machine that holds the guests.
//!
//! Both programs are static, are the only program of their initramfs, and are driven over a
//! virtio-serial port, so that no test reads a screen:
//!
//! ```text
//!   host ── QEMU (TCG) ── lab machine                      guest
//!    │                     lab-init ◄─ frames ─ host        guest-init
//!    └ cargo xtask test     └ test program ── sesame ──KVM── └ agent ◄─ JSON lines ─ test program
//! ```
//!
//! This room knows Linux as a guest sees it. It must never know which VMM is below it: what it
//! reports is what a stock kernel shows.
//!
//! Read next: `main.rs` (the guest's init), `agent/` (what it answers), `bin/lab-init/`.
#![expect(
    clippy::disallowed_methods,
    reason = "a guest opens its own files: the rule of the one open is about the host"
)]

pub mod boot;
pub mod frame;
pub mod pattern;
pub mod port;
