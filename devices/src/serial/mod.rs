//! Serial lines: the 16550A at the PC's COM ports.
//!
//! [`registers`] is the chip alone: what a driver writes goes in, what it reads and the level of
//! the interrupt line come out. [`uart16550`] connects it to a port range, an interrupt line and a
//! chardev. Neither knows where the bytes end up.
//!
//! ```text
//!   guest ── out 0x3f8 ─► Bus ─► Uart16550 ─► Registers ─┬► transmitted byte ─► ChardevLease
//!                                    ▲                   └► level ─► IrqLine
//!   chardev ── receive(bytes) ───────┘
//! ```
//!
//! Read next: [`uart16550`], then [`registers`].

pub mod registers;
pub mod uart16550;

pub use registers::UartState;
pub use uart16550::Uart16550;
