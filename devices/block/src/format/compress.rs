//! The node `compress`: an image, into which whatever is written is compressed.
//!
//! ```text
//!   write ─► the image's own slow path, with the wish to compress
//!   read, zeros, discard, flush ─► as they are
//! ```
//!
//! How a cluster is compressed, and whether that is worth it, only the image knows.

use super::filter::Filter;
use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{Extent, Intent, IoFuture, NodeRef, WriteFlags};
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

impl Filter for CompressNode {
    fn under(&self) -> NodeRef {
        self.file.load()
    }

    /// Writes must be seen; reads need not.
    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        match intent {
            Intent::Read => self.file.load().extent(offset, len, intent),
            Intent::Write => Extent::Slow { len },
        }
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
}
