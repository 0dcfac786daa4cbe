//! The node of a job's filter: another node, as it is.
//!
//! ```text
//!   users ─► filter ─► topmost node of the job      its name tells where the job works, and who
//!                                                   stands on it is given another node at the end
//! ```

use crate::engine::{Io, Window};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, ResizeError, ResizeFuture, Status,
    WriteFlags, ZeroFlags,
};
use crate::slot::ChildSlot;

/// A node that does nothing of its own.
#[derive(Debug)]
pub(crate) struct PassNode {
    below: ChildSlot,
}

impl PassNode {
    /// Stands for the node in `below`.
    pub(crate) fn new(below: ChildSlot) -> Self {
        Self { below }
    }
}

impl BlockNode for PassNode {
    fn length(&self) -> u64 {
        self.below.load().len()
    }

    fn limits(&self) -> Limits {
        self.below.load().limits()
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        self.below.load().extent(offset, len, intent)
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move { self.below.load().read(io, offset, into).await })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move { self.below.load().write(io, offset, from, flags).await })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            let below = self.below.load();
            below.write_zeroes(io, offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.below.load().discard(io, offset, len).await })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.below.load().flush(io).await })
    }

    fn status<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(async move { self.below.load().status(io, offset, len).await })
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.below.load().populate(io, offset, len).await })
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(async move {
            let below = self.below.load();
            below.resize(io, len).await.map_err(ResizeError::Below)
        })
    }

    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.below.load().settle(io).await })
    }

    fn compresses(&self) -> bool {
        self.below.load().compresses()
    }

    fn below(&self) -> Option<(NodeRef, u64)> {
        Some((self.below.load(), 0))
    }
}
