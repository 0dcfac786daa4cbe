//! Jobs: work on nodes that goes on after its command has been answered.
//!
//! ```text
//!   main:       Jobs ── verbs ──► Control ──┐            graph changes at the end, under drain
//!                 ▲                         ▼
//!                 └── JobNews ◄── loop: stream, commit   (a task on an io-thread)
//!                                           │
//!                                           ▼
//!                              nodes: status, read, write, populate
//! ```
//!
//! The state machine ([`status`]) is pure. The loops know nodes and their [`JobCx`], never the
//! graph: what changes there when they end is done on the main loop. Killing the process at any
//! moment leaves images that read as before.
//!
//! Read next: [`status`] (the states), [`control`] (what both sides share), `flight` (pieces that
//! are copied at the same time), [`stream`] (the simplest loop).

pub mod chain;
pub mod commit;
pub mod control;
mod flight;
#[cfg(test)]
mod overlap_tests;
pub mod registry;
pub mod status;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod world;

pub use control::{Control, ErrorAction, JobCx, JobFailure, JobNews, JobSink, OnError};
pub use registry::Jobs;
pub use status::{JobStatus, JobVerb};
pub use world::{JobError, JobEvent, JobKind, JobSpec, JobView, Trouble, World};
