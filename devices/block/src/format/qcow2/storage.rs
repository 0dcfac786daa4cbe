//! The file below an image, for what is not the guest's: headers, tables, compressed bytes.
//!
//! Places here may be any; what the storage wants aligned is widened. Beyond the end there are
//! zeros. Only one task at a time changes what lies here (the image's turn), so widening a write
//! by what is there loses nothing; compressed bytes are whole blocks, which need no widening.

use std::io;

use crate::engine::{Io, Segments, Window};
use crate::error::BlockError;
use crate::node::{NodeRef, WriteFlags, ZeroFlags, errno};

/// The largest piece moved at once.
const CHUNK: u64 = 1 << 20;

/// A node with bytes of ours.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    node: NodeRef,
    alignment: u64,
}

impl Storage {
    /// Over the node that is in a place now. The place is looked at for every request: its node
    /// may be exchanged between two.
    pub(super) fn new(node: NodeRef) -> Self {
        let alignment = u64::from(node.limits().request_alignment);
        Self { node, alignment }
    }

    pub(super) fn node(&self) -> &NodeRef {
        &self.node
    }

    /// Whether the storage moves such offsets and lengths itself.
    pub(super) fn is_aligned(&self, offset: u64) -> bool {
        offset.is_multiple_of(self.alignment)
    }

    pub(super) fn len(&self) -> u64 {
        self.node.len()
    }

    fn buffer(&self, len: u64) -> io::Result<Segments> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let alignment = usize::try_from(self.alignment.max(512)).map_err(io::Error::other)?;
        Segments::owned(len, alignment)
    }

    /// Reads `len` bytes from `offset` on. The caller has bounded `len`.
    pub(super) async fn read(&self, io: &Io, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let end = offset.checked_add(len).ok_or_else(overflow)?;
        let mut bytes = vec![0; size];
        let (mut at, stop) = (offset, end.min(self.node.len()));
        while at < stop {
            let from = at - at % self.alignment;
            let to = stop.min(from + CHUNK);
            let wide = to.next_multiple_of(self.alignment).min(self.node.len());
            let buffer = self.buffer(wide - from)?;
            self.node.read(io, from, buffer.all()).await?;
            let start = usize::try_from(at - offset).map_err(io::Error::other)?;
            let count = usize::try_from(to - at).map_err(io::Error::other)?;
            buffer
                .all()
                .part(at - from, to - at)
                .copy_to(&mut bytes[start..start + count]);
            at = to;
        }
        Ok(bytes)
    }

    /// Writes `bytes` at `offset`, with what is around them where the storage wants more.
    pub(super) async fn write(&self, io: &Io, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or_else(overflow)?;
        let from = offset - offset % self.alignment;
        let to = end.next_multiple_of(self.alignment);
        self.reach(io, to).await?;
        let buffer = self.buffer(to - from)?;
        if from != offset || to != end {
            let around = self.read(io, from, to - from).await?;
            buffer.all().copy_from(&around);
        }
        buffer.all().part(offset - from, u64::MAX).copy_from(bytes);
        self.node
            .write(io, from, buffer.all(), WriteFlags::default())
            .await
    }

    /// Makes whole clusters zeros.
    pub(super) async fn write_zeroes(&self, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        self.reach(io, offset.checked_add(len).ok_or_else(overflow)?)
            .await?;
        self.node
            .write_zeroes(io, offset, len, ZeroFlags::default())
            .await
    }

    /// Makes the file at least this long.
    pub(super) async fn reach(&self, io: &Io, end: u64) -> io::Result<()> {
        if end > self.node.len() {
            self.resize(io, end).await?;
        }
        Ok(())
    }

    /// Gives the file this length.
    pub(super) async fn resize(&self, io: &Io, len: u64) -> io::Result<()> {
        self.node
            .resize(io, len)
            .await
            .map_err(|error| match error {
                BlockError::Resize { source, .. } => source,
                // A device or a window that ends where it ends.
                other => {
                    tracing::debug!(%other, "qcow2: the storage does not grow");
                    errno(libc::ENOSPC)
                }
            })
    }

    /// Reads into memory of any alignment; zeros beyond the end.
    pub(super) async fn read_into(&self, io: &Io, offset: u64, into: Window<'_>) -> io::Result<()> {
        let inside = self.node.len().saturating_sub(offset).min(into.len());
        into.part(inside, u64::MAX).fill_zero();
        let into = into.part(0, inside);
        if (offset | inside).is_multiple_of(self.alignment) {
            return match inside {
                0 => Ok(()),
                _ => self.node.read(io, offset, into).await,
            };
        }
        let mut done = 0;
        while done < inside {
            let part = into.part(done, CHUNK);
            part.copy_from(&self.read(io, offset + done, part.len()).await?);
            done += part.len();
        }
        Ok(())
    }

    pub(super) async fn flush(&self, io: &Io) -> io::Result<()> {
        self.node.flush(io).await
    }
}

fn overflow() -> io::Error {
    errno(libc::EFBIG)
}
