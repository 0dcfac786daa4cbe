//! The node `compress`: an image, into which whatever is written is compressed.
//!
//! ```text
//!   write ─► the image's own slow path, with the wish to compress
//!   read, zeros, discard, flush ─► as they are
//! ```
//!
//! How a cluster is compressed, and whether that is worth it, only the image knows.

use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, ResizeError, ResizeFuture, Status,
    WriteFlags, ZeroFlags,
};
use crate::slot::ChildSlot;

/// A node whose writes are compressed.
#[derive(Debug)]
pub struct CompressNode {
    file: ChildSlot,
}

impl CompressNode {
    /// Writes compressed into the image in `file`.
    #[must_use]
    pub fn new(file: ChildSlot) -> Self {
        Self { file }
    }

    /// Whether such a node can stand on this one.
    ///
    /// # Errors
    /// It stores nothing compressed.
    pub fn check(file: &NodeRef) -> Result<(), BlockError> {
        if file.compresses() {
            return Ok(());
        }
        Err(BlockError::NotCompressible {
            name: file.name().to_owned(),
            driver: file.driver(),
        })
    }
}

impl BlockNode for CompressNode {
    fn length(&self) -> u64 {
        self.file.load().len()
    }

    fn limits(&self) -> Limits {
        self.file.load().limits()
    }

    /// Writes must be seen; reads need not.
    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        match intent {
            Intent::Read => self.file.load().extent(offset, len, intent),
            Intent::Write => Extent::Slow { len },
        }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().read(io, offset, into).await })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        let flags = WriteFlags {
            compress: true,
            ..flags
        };
        Box::pin(async move { self.file.load().write(io, offset, from, flags).await })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().write_zeroes(io, offset, len, flags).await })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().discard(io, offset, len).await })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().flush(io).await })
    }

    fn status<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(async move { self.file.load().status(io, offset, len).await })
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().populate(io, offset, len).await })
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(async move {
            let file = self.file.load();
            file.resize(io, len).await.map_err(ResizeError::Below)
        })
    }

    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().settle(io).await })
    }

    fn below(&self) -> Option<(NodeRef, u64)> {
        Some((self.file.load(), 0))
    }
}
