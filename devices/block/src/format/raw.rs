//! The node `raw`: the bytes of another node, or a window of them.
//!
//! ```text
//!   child    |·········|==================|········|
//!            0       offset         offset + size
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, Place, ResizeError, ResizeFuture, Status,
    WriteFlags, ZeroFlags,
};
use crate::reopen::{Prepared, Untouched};
use crate::slot::ChildSlot;
use crate::spec::{DiscardMode, DriverSpec};

/// Bytes of the smallest piece that a guest reads or writes.
const SECTOR: u32 = 512;

/// A window of another node.
#[derive(Debug)]
pub struct RawNode {
    file: ChildSlot,
    part: Arc<Part>,
}

/// Which part of the child it is; changes while nobody looks.
#[derive(Debug)]
struct Part {
    offset: AtomicU64,
    /// [`TO_THE_END`] if it goes on with the child.
    size: AtomicU64,
}

/// No child is that long.
const TO_THE_END: u64 = u64::MAX;

impl Part {
    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    fn size(&self) -> Option<u64> {
        let size = self.size.load(Ordering::Relaxed);
        (size != TO_THE_END).then_some(size)
    }
}

impl RawNode {
    /// Lays a window over the node in `file`: `size` bytes from `offset` on, or everything from there
    /// (`None`), also when the child grows. `name` is the new node's, for the error.
    ///
    /// # Errors
    /// The window does not lie inside the child, or not on the boundaries of sectors (with
    /// O_DIRECT, of what the storage wants).
    pub fn new(
        name: &str,
        file: ChildSlot,
        offset: u64,
        size: Option<u64>,
    ) -> Result<Self, BlockError> {
        check(name, &file.load(), offset, size)?;
        let part = Arc::new(Part {
            offset: AtomicU64::new(offset),
            size: AtomicU64::new(size.unwrap_or(TO_THE_END)),
        });
        Ok(Self { file, part })
    }

    fn place(&self, offset: u64) -> u64 {
        // Offsets lie inside the window, which lies inside the child.
        self.part.offset().saturating_add(offset)
    }
}

/// Whether a child has such a part, and can move all of it.
fn check(name: &str, child: &NodeRef, offset: u64, size: Option<u64>) -> Result<(), BlockError> {
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
    check_alignment(name, offset, size, child.limits().request_alignment)
}

/// Whether a part begins and ends where its child can begin and end a transfer.
///
/// # Errors
/// It does not.
pub(crate) fn check_alignment(
    name: &str,
    offset: u64,
    size: Option<u64>,
    alignment: u32,
) -> Result<(), BlockError> {
    // A disk is made of sectors: a window that splits one could never be read whole.
    let alignment = alignment.max(SECTOR);
    if !(offset | size.unwrap_or(0)).is_multiple_of(u64::from(alignment)) {
        return Err(BlockError::UnalignedWindow {
            node: name.to_owned(),
            offset,
            alignment,
        });
    }
    Ok(())
}

/// Another part, about to be the node's.
struct OtherPart {
    part: Arc<Part>,
    offset: u64,
    size: Option<u64>,
}

impl Prepared for OtherPart {
    fn commit(self: Box<Self>) {
        let size = self.size.unwrap_or(TO_THE_END);
        self.part.offset.store(self.offset, Ordering::Relaxed);
        self.part.size.store(size, Ordering::Relaxed);
    }
}

impl BlockNode for RawNode {
    fn length(&self) -> u64 {
        let rest = self.file.load().len().saturating_sub(self.part.offset());
        self.part.size().map_or(rest, |size| size.min(rest))
    }

    fn limits(&self) -> Limits {
        let child = self.file.load();
        let discards = child.options().discard == DiscardMode::Unmap;
        let child = child.limits();
        Limits {
            discard: child.discard && discards,
            ..child
        }
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        self.file.load().extent(self.place(offset), len, intent)
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().read(io, self.place(offset), into).await })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            self.file
                .load()
                .write(io, self.place(offset), from, flags)
                .await
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
            self.file
                .load()
                .write_zeroes(io, self.place(offset), len, flags)
                .await
        })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().discard(io, self.place(offset), len).await })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().flush(io).await })
    }

    fn status<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(async move {
            // All of it lies in the child; only whether that holds zeros is the child's to say.
            let at = self.place(offset);
            let below = self.file.load().status(io, at, len).await?;
            let place = match below.place {
                Place::Zero => Place::Zero,
                Place::Data { .. } | Place::Below => Place::Data { at: Some(at) },
            };
            Ok(Status { place, ..below })
        })
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().populate(io, self.place(offset), len).await })
    }

    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move { self.file.load().settle(io).await })
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(async move {
            if self.part.size().is_some() {
                return Err(ResizeError::Unable("Cannot resize fixed-size raw disks"));
            }
            let whole = self.part.offset().checked_add(len);
            let whole = whole.ok_or(ResizeError::Unable(
                "Disk size too large for the chosen offset",
            ))?;
            let file = self.file.load();
            file.resize(io, whole).await.map_err(ResizeError::Below)
        })
    }

    fn prepare_driver(
        &self,
        name: &str,
        to: &DriverSpec,
        over: Option<&NodeRef>,
    ) -> Result<Box<dyn Prepared>, BlockError> {
        let DriverSpec::Raw(raw) = to else {
            return Ok(Box::new(Untouched));
        };
        let child = over.cloned().unwrap_or_else(|| self.file.load());
        check(name, &child, raw.offset, raw.size)?;
        Ok(Box::new(OtherPart {
            part: Arc::clone(&self.part),
            offset: raw.offset,
            size: raw.size,
        }))
    }

    fn below(&self) -> Option<(NodeRef, u64)> {
        Some((self.file.load(), self.part.offset()))
    }
}
