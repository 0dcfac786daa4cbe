//! What all filters share: a node over one other, which has each request as it is, but for those of
//! which the filter has something to say.
//!
//! ```text
//!   users ─► Filter: read ─┬─ said something of it ─► its own way ─┐
//!                          └─ nothing ─────────────────────────────┴─► the node under it
//! ```

use std::sync::Arc;

use super::cbw::Snapshot;
use crate::engine::{Io, Window};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, ResizeError, ResizeFuture, Status,
    WriteFlags, ZeroFlags,
};

/// A driver of nodes that stand over exactly one other and have its length. Whatever is not
/// implemented goes to that node; see [`BlockNode`] for what each method means.
pub(crate) trait Filter: Send + Sync {
    /// The node under it, now.
    fn under(&self) -> NodeRef;

    /// As [`BlockNode::extent`]: [`Extent::Slow`] for requests that the filter must see.
    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        self.under().extent(offset, len, intent)
    }

    /// As [`BlockNode::read`].
    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move { self.under().read(io, offset, into).await })
    }

    /// As [`BlockNode::write`].
    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move { self.under().write(io, offset, from, flags).await })
    }

    /// As [`BlockNode::write_zeroes`].
    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move { self.under().write_zeroes(io, offset, len, flags).await })
    }

    /// As [`BlockNode::discard`].
    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.under().discard(io, offset, len).await })
    }

    /// As [`BlockNode::resize`].
    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(async move {
            let under = self.under();
            under.resize(io, len).await.map_err(ResizeError::Below)
        })
    }

    /// As [`BlockNode::snapshot`].
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        None
    }

    /// As [`BlockNode::populate`].
    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.under().populate(io, offset, len).await })
    }
}

impl<F: Filter> BlockNode for F {
    fn length(&self) -> u64 {
        self.under().len()
    }

    fn limits(&self) -> Limits {
        self.under().limits()
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        Filter::extent(self, offset, len, intent)
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Filter::read(self, io, offset, into)
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Filter::write(self, io, offset, from, flags)
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Filter::write_zeroes(self, io, offset, len, flags)
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Filter::discard(self, io, offset, len)
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.under().flush(io).await })
    }

    fn status<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(async move { self.under().status(io, offset, len).await })
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Filter::populate(self, io, offset, len)
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Filter::resize(self, io, len)
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        Filter::snapshot(self)
    }

    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.under().settle(io).await })
    }

    fn compresses(&self) -> bool {
        self.under().compresses()
    }

    fn below(&self) -> Option<(NodeRef, u64)> {
        Some((self.under(), 0))
    }
}
