//! The I/O engine: one thread, one io_uring and one small executor per io-thread.
//!
//! It moves bytes between guest memory and open files, and knows no node, no format and no device.
//!
//! ```text
//!   any thread ── IoThread::spawn ──► inbox ─┐            eventfd (wake)
//!                                            ▼                 │
//!   io-thread:   ┌── run inbox ── poll ready tasks ── enter the ring ──┐
//!                │                     ▲                               │
//!                │      Op / Watch     │ waker: one bit, no lock       │
//!                └──────────────── reap completions ◄──────────────────┘
//! ```
//!
//! Nothing on the way of a request allocates: a request is a slot of a [`TaskSet`], its operation a
//! slot of the ring's table, its wake-up one bit. What the kernel may still touch (buffers, files)
//! is owned by the operation's slot until the completion has come, whatever happens to the future.
//!
//! Read next: [`rings`] (what a ring can do at all), [`ring`] (operations), [`executor`] (tasks),
//! [`iothread`] (the handle), `life` (the loop), [`looks`] and [`polling`] (what it does before it
//! sleeps), [`buffers`] (what an operation reads into).

pub mod buffers;
pub mod executor;
pub mod iothread;
mod life;
pub mod looks;
pub mod polling;
mod prompt;
pub mod ring;
pub mod rings;
pub(crate) mod transfer;

pub use buffers::{AlignedBuf, GuestView, OutsideMemory, Segments, Window};
pub use executor::TaskSet;
pub use iothread::{Io, IoThread, IoThreadError, IoThreadSpec};
pub use looks::Look;
pub use polling::PollSpec;
pub use ring::{Op, Timer, Watch};
pub use rings::Rings;
