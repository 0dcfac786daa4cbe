//! The nodes `null-co` and `null-aio`: a length, and nothing else. For benchmarks and tests.

use std::future::ready;

use crate::engine::{Io, Window};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, Place, Status, WriteFlags, ZeroFlags,
};
use crate::spec::NullSpec;

/// A node that forgets.
#[derive(Debug)]
pub struct NullNode {
    spec: NullSpec,
}

impl NullNode {
    /// Makes one.
    pub fn new(spec: NullSpec) -> Self {
        Self { spec }
    }
}

fn done<'a>() -> IoFuture<'a> {
    Box::pin(ready(Ok(())))
}

impl BlockNode for NullNode {
    fn length(&self) -> u64 {
        self.spec.size
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, _offset: u64, len: u64, intent: Intent) -> Extent {
        match intent {
            Intent::Read if self.spec.read_zeroes => Extent::Zero { len },
            _ => Extent::Slow { len },
        }
    }

    fn read<'a>(&'a self, _: &'a Io, _: u64, _: Window<'a>) -> IoFuture<'a> {
        done()
    }

    fn write<'a>(&'a self, _: &'a Io, _: u64, _: Window<'a>, _: WriteFlags) -> IoFuture<'a> {
        done()
    }

    fn write_zeroes<'a>(&'a self, _: &'a Io, _: u64, _: u64, _: ZeroFlags) -> IoFuture<'a> {
        done()
    }

    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> IoFuture<'a> {
        done()
    }

    fn flush<'a>(&'a self, _: &'a Io) -> IoFuture<'a> {
        done()
    }

    fn status<'a>(&'a self, _: &'a Io, _: u64, len: u64) -> IoFuture<'a, Status> {
        let place = if self.spec.read_zeroes {
            Place::Zero
        } else {
            Place::Data { at: None }
        };
        Box::pin(ready(Ok(Status { len, place })))
    }
}
