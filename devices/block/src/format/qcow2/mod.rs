//! The node `qcow2`: a disk of clusters that appear when they are written, over another disk.
//!
//! ```text
//!   guest range ─► map ─┬─ data, nobody else's ─► extent: At the file (no lock but a shard's)
//!                       ├─ zeros, nothing below ─► extent: Zero
//!                       └─ else: slow
//!        read:  below ─► backing node      compressed ─► decompress      shared ─► file
//!        write: range taken ─► turn taken ─► clusters allocated ─► turn back
//!                 ─► data and what surrounds it written ─► turn taken ─► map changed
//!               (compressed, where asked for: the same with bytes of a shared cluster, `pack`)
//!
//!   write back (a flush, or too much waits), so that a crash anywhere leaves leaks at worst:
//!        refcounts up ─► L2 tables ─► L1 ─► old places are let go: refcounts down, next time
//! ```
//!
//! Everything comes from the format's public specification. The room knows files only as nodes, and
//! everything that an image says is checked before it is used.
//!
//! Read next: [`geometry`] (the arithmetic), [`header`], [`map`] (lookups), [`image`] (what is held
//! in memory), [`flush`] (what is written when).

mod allocate;
mod begin;
mod bitmaps;
mod bytes;
mod compress;
mod create;
mod details;
mod error;
mod features;
mod flush;
mod geometry;
mod header;
mod holders;
mod image;
mod map;
mod node;
mod open;
mod pack;
mod peek;
mod read;
mod refcount;
mod repair;
mod resize;
mod snapshots;
mod storage;
mod stored;
mod switch;
#[cfg(test)]
mod tests;
pub(crate) mod turn;
mod write;
mod zero;

pub use compress::Compression;
pub use create::{NewImage, Preallocation, create};
pub use details::Details;
pub use error::ImageError;
pub use node::Qcow2Node;
pub use open::{Children, Outside, Tuning, peek};
pub use peek::look_into;
pub use snapshots::{Snapshot, SnapshotChange};
