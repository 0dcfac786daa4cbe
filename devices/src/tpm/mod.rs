//! TPM: the chip that a guest sees, and the program of the host that is one.
//!
//! This room must never know how the emulator came to be, nor what commands of a TPM mean.
//!
//! ```text
//!   guest ─► TpmCrb (crb.rs): registers, a buffer ── command ──► data socket ──► swtpm
//!                 ▲                                                  │
//!                 └────── response, on dev-io ◄──────────────────────┘
//!   reset, cancel ─► TpmEmulator (emulator.rs) ── control socket: a chardev's ──► swtpm
//! ```
//!
//! The data socket is one end of a pair; the other went to the emulator over the control socket,
//! so nothing is opened and nobody is called.
//!
//! Read next: [`emulator`] (swtpm's control protocol), [`crb`] (the chip).

pub mod crb;
pub mod emulator;
#[cfg(test)]
mod tests;

pub use crb::{TpmCrb, TpmCrbState};
pub use emulator::{TpmEmulator, TpmError};
