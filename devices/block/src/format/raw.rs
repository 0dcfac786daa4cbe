//! The node `raw`: the bytes of another node, or a window of them.
//!
//! ```text
//!   child    |·········|==================|········|
//!            0       offset         offset + size
//! ```

use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, ResizeError, WriteFlags, ZeroFlags,
};
use crate::spec::DiscardMode;

/// Bytes of the smallest piece that a guest reads or writes.
const SECTOR: u32 = 512;

/// A window of another node.
#[derive(Debug)]
pub struct RawNode {
    child: NodeRef,
    offset: u64,
    size: Option<u64>,
}

impl RawNode {
    /// Lays a window over `child`: `size` bytes from `offset` on, or everything from there
    /// (`None`), also when the child grows. `name` is the new node's, for the error.
    ///
    /// # Errors
    /// The window does not lie inside the child, or not on the boundaries of sectors (with
    /// O_DIRECT, of what the storage wants).
    pub fn new(
        name: &str,
        child: NodeRef,
        offset: u64,
        size: Option<u64>,
    ) -> Result<Self, BlockError> {
        let available = child.len();
        let wanted = size.unwrap_or(0);
        let fits = offset
            .checked_add(wanted)
            .is_some_and(|end| end <= available);
        if !fits {
            let node = name.to_owned();
            return Err(BlockError::Window {
                node,
                offset,
                size: wanted,
                available,
            });
        }
        // A disk is made of sectors: a window that splits one could never be read whole.
        let alignment = child.limits().request_alignment.max(SECTOR);
        if !(offset | wanted).is_multiple_of(u64::from(alignment)) {
            return Err(BlockError::UnalignedWindow {
                node: name.to_owned(),
                offset,
                alignment,
            });
        }
        Ok(Self {
            child,
            offset,
            size,
        })
    }

    fn place(&self, offset: u64) -> u64 {
        // Offsets lie inside the window, which lies inside the child.
        self.offset.saturating_add(offset)
    }
}

impl BlockNode for RawNode {
    fn length(&self) -> u64 {
        let rest = self.child.len().saturating_sub(self.offset);
        self.size.map_or(rest, |size| size.min(rest))
    }

    fn limits(&self) -> Limits {
        let child = self.child.limits();
        let discards = self.child.options().discard == DiscardMode::Unmap;
        Limits {
            discard: child.discard && discards,
            ..child
        }
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        self.child.extent(self.place(offset), len, intent)
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(self.child.read(io, self.place(offset), into))
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(self.child.write(io, self.place(offset), from, flags))
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(self.child.write_zeroes(io, self.place(offset), len, flags))
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(self.child.discard(io, self.place(offset), len))
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(self.child.flush(io))
    }

    fn resize(&self, len: u64) -> Result<(), ResizeError> {
        if self.size.is_some() {
            return Err(ResizeError::Unable("Cannot resize fixed-size raw disks"));
        }
        let whole = self.offset.checked_add(len);
        let whole = whole.ok_or(ResizeError::Unable(
            "Disk size too large for the chosen offset",
        ))?;
        self.child.resize(whole).map_err(ResizeError::Below)
    }

    fn below(&self) -> Option<(&NodeRef, u64)> {
        Some((&self.child, self.offset))
    }
}
