//! The node `snapshot-access`: the disk under a `copy-before-write` node as it was when that began.

use std::sync::Arc;

use super::Snapshot;
use crate::engine::{Io, Window};
use crate::node::{BlockNode, Extent, Intent, IoFuture, Limits, WriteFlags, ZeroFlags, errno};

/// A node that reads a snapshot.
#[derive(Debug)]
pub struct SnapshotAccessNode {
    snapshot: Arc<Snapshot>,
}

impl SnapshotAccessNode {
    /// A node with what `snapshot` has.
    #[must_use]
    pub(crate) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }
}

impl BlockNode for SnapshotAccessNode {
    fn length(&self) -> u64 {
        self.snapshot.len()
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.snapshot.alignment(),
            discard: true,
            write_zeroes: false,
        }
    }

    /// Each read has to take its pieces.
    fn extent(&self, _offset: u64, len: u64, _intent: Intent) -> Extent {
        Extent::Slow { len }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(self.snapshot.read(io, offset, into))
    }

    fn write<'a>(&'a self, _: &'a Io, _: u64, _: Window<'a>, _: WriteFlags) -> IoFuture<'a> {
        Box::pin(std::future::ready(Err(errno(libc::ENOTSUP))))
    }

    fn write_zeroes<'a>(&'a self, _: &'a Io, _: u64, _: u64, _: ZeroFlags) -> IoFuture<'a> {
        Box::pin(std::future::ready(Err(errno(libc::ENOTSUP))))
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(self.snapshot.forget(io, offset, len))
    }

    fn flush<'a>(&'a self, _: &'a Io) -> IoFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}
