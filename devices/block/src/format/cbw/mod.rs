//! The nodes `copy-before-write` and `snapshot-access`: what a disk held at one moment stays to be
//! read while the guest goes on writing.
//!
//! ```text
//!   guest ─► copy-before-write ── write: the old bytes first ──► target
//!                  │                                               ▲
//!                  ▼ file                                          │ copied already
//!                the disk ◄─────────── not copied yet ──── snapshot-access ◄─ reader
//! ```
//!
//! Both share a [`Snapshot`]: which pieces are still to be copied, which may be read, and who has
//! which pieces for himself at the moment. It lives as long as the one node or the other, and in
//! memory only: the process ends, and the target is worth nothing without it.
//!
//! Read next: [`snapshot`] (the pieces), `access` (the reader's node).

mod access;
pub(crate) mod snapshot;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

pub use self::access::SnapshotAccessNode;
pub(crate) use self::snapshot::{Snapshot, SnapshotRules};
use super::filter::Filter;
use crate::engine::{Io, Window};
use crate::node::{
    Extent, Intent, IoFuture, NodeRef, ResizeError, ResizeFuture, WriteFlags, ZeroFlags,
};
use crate::slot::ChildSlot;

/// A node that saves what is about to be overwritten.
#[derive(Debug)]
pub struct CopyBeforeWriteNode {
    file: ChildSlot,
    snapshot: Arc<Snapshot>,
}

impl CopyBeforeWriteNode {
    /// Has the node in `file` written to once `snapshot` has what it wants of it.
    #[must_use]
    pub(crate) fn new(file: ChildSlot, snapshot: Arc<Snapshot>) -> Self {
        Self { file, snapshot }
    }

    async fn under_after_copying(&self, io: &Io, offset: u64, len: u64) -> io::Result<NodeRef> {
        Snapshot::save(&self.snapshot, io, offset, len).await?;
        Ok(self.file.load())
    }
}

impl Filter for CopyBeforeWriteNode {
    fn under(&self) -> NodeRef {
        self.file.load()
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        if intent == Intent::Write && self.snapshot.wants(offset, len) {
            return Extent::Slow { len };
        }
        self.file.load().extent(offset, len, intent)
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.under_after_copying(io, offset, from.len()).await?;
            file.write(io, offset, from, flags).await
        })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.under_after_copying(io, offset, len).await?;
            file.write_zeroes(io, offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.under_after_copying(io, offset, len).await?;
            file.discard(io, offset, len).await
        })
    }

    fn resize<'a>(&'a self, _io: &'a Io, _len: u64) -> ResizeFuture<'a> {
        let unable =
            ResizeError::Unable("a copy-before-write node has what it had at its beginning");
        Box::pin(std::future::ready(Err(unable)))
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        Some(Arc::clone(&self.snapshot))
    }
}
