//! The block graph and its io_uring engine: everything between a guest's block request and a file
//! descriptor.
//!
//! The words, each with one meaning:
//!
//! | word | meaning |
//! |---|---|
//! | *node* | a member of the graph with a name: something with blocks |
//! | *driver* | the kind of a node: `file`, `host_device`, `null-co`, `raw` |
//! | *protocol* | a driver that reaches storage itself; a leaf of the graph |
//! | *format* | a driver whose bytes lie in another node, its *child* |
//! | *user* | a device or job that was given a node, with what it does and lets others do |
//! | *extent* | where the bytes of a range are: in a file, nowhere (zeros), or only the driver knows |
//! | *segments* | the pieces of memory one request reads into or writes from |
//!
//! Adding a node, on the main loop:
//!
//! ```text
//!   NodeSpec ─► BlockGraph::add ─► names checked ─► fdset::open ─► driver ─► NodeRef ─► graph
//!                                                        │ lease held by the node's file
//!   BlockGraph::remove ─► last NodeRef drops ─► file closed ─► lease back ◄───────────┘
//! ```
//!
//! A request, on an io-thread:
//!
//! ```text
//!   device ─► NodeRef::read(offset, window)
//!                │ extent
//!                ├─ At    ─► one readv straight into guest memory ─► completion
//!                ├─ Zero  ─► fill
//!                └─ Slow  ─► BlockNode::read (boxed: allocation, bounce, COW)
//! ```
//!
//! This crate must never know a guest device, a queue, KVM or QMP. It opens nothing by itself:
//! every file comes through `fdset::open`.
//!
//! Read next: [`spec`] (what a node is made of), [`graph`] (its shape), [`node`] (the seam),
//! [`engine`] (how bytes move), [`protocol::null`] (the smallest driver).

pub mod account;
pub mod bitmap;
mod corruption;
pub mod dirty;
pub mod drain;
pub mod engine;
mod error;
pub mod format;
pub mod graph;
pub mod histogram;
pub mod job;
pub mod node;
mod node_ref;
#[cfg(test)]
mod node_tests;
mod permission;
pub mod protocol;
pub mod reopen;
mod root;
mod slot;
pub mod spec;
mod threshold;
pub mod throttle;
#[cfg(test)]
mod toy;

pub use account::{Account, Operation, Outcome, Sums, Totals};
pub use bitmap::{Bitmap, BitmapChange, BitmapError, Bitmaps};
pub use corruption::{Corruption, CorruptionSink};
pub use dirty::DirtyMap;
pub use drain::{Drain, Gate, Seat};
pub use engine::{
    GuestView, Io, IoThread, IoThreadError, IoThreadSpec, PollSpec, Rings, Segments, Window,
};
pub use error::BlockError;
pub use graph::change::Append;
pub use graph::sketch::Sketch;
pub use graph::{BlockGraph, GraphReopening, Grip, JobFilter, NodeView};
pub use histogram::{Bins, Histograms};
pub use node::{
    BlockNode, Extent, Intent, Limits, NodeRef, Place, ResizeError, ResizeFuture, Status,
    WriteFlags, ZeroFlags,
};
pub use permission::{Permissions, Usage};
pub use reopen::{Prepared, Reopening};
pub use root::Root;
pub use slot::{BackingSlot, ChildSlot, Slot};
pub use threshold::{Crossing, Tell};
pub use throttle::{Limiter, LimitsError, ThrottleGroup, ThrottleLimits};
