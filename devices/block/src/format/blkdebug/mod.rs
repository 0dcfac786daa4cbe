//! The node `blkdebug`: another node, whose requests fail as rules say, and are no others than it
//! claims to take.
//!
//! ```text
//!   request ─► Shape: the pieces that limits allow; each of them
//!           ─► Breakpoints::pass: held until a tester lets it go?
//!           ─► Rules::judge: its event ─► set-state rules ─► state
//!                 │                  └─► inject-error rules: state, kind, sector? ─► errno
//!                 ├─ fails ─► that error, and the node below never sees the request
//!                 └─ goes through ─► the node below
//! ```
//!
//! The rules come with the node and from a file ([`config`]). The names of events and the state
//! that counts from 1 are those of QEMU's driver. A write of part of a block is one of the block,
//! with what was there; while it is under way, no other change of that block is.
//!
//! Read next: [`rules`], [`limits`].

pub mod breakpoints;
pub mod config;
pub mod limits;
pub mod rules;

#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use self::breakpoints::Breakpoints;
use self::limits::{Piece, RequestLimits, Shape};
use self::rules::{RequestKind, Rules};
use crate::drain::Gate;
use crate::engine::{Io, Window};
use crate::format::qcow2::turn::{RangeTaken, Ranges};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, ResizeError, ResizeFuture, Status, WriteFlags,
    ZeroFlags,
};
use crate::slot::ChildSlot;
use crate::spec::DiscardMode;

/// The most zeros that are written as bytes at once.
const ZEROS: u64 = 64 << 10;

/// A node that fails on purpose.
#[derive(Debug)]
pub struct BlkdebugNode {
    image: ChildSlot,
    rules: Mutex<Rules>,
    limits: RequestLimits,
    /// The blocks that are being changed, where a change may take along what is beside it.
    changing: Ranges,
    breakpoints: Breakpoints,
}

impl BlkdebugNode {
    /// Lays `rules` over the node in `image`, which gets only requests within `limits`. While
    /// `hurry` is closed, no request is held.
    #[must_use]
    pub fn new(image: ChildSlot, rules: Rules, limits: RequestLimits, hurry: Gate) -> Self {
        Self {
            image,
            rules: Mutex::new(rules),
            limits,
            changing: Ranges::default(),
            breakpoints: Breakpoints::new(hurry),
        }
    }

    async fn judge(&self, kind: RequestKind, range: &Range<u64>) -> io::Result<()> {
        self.breakpoints.pass(kind).await;
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        match rules.judge(kind, range.start, range.end - range.start) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    fn shape(&self) -> Shape {
        let image = self.image.load();
        Shape::new(self.limits, image.limits().request_alignment, image.len())
    }

    /// Waits until nobody changes the blocks of `range`.
    async fn changes(&self, shape: &Shape, range: &Range<u64>) -> Option<RangeTaken<'_>> {
        if !shape.widens() {
            return None;
        }
        Some(self.changing.take(shape.blocks(range)).await)
    }

    async fn read_sent(&self, io: &Io, sent: &Range<u64>, into: Window<'_>) -> io::Result<()> {
        self.judge(RequestKind::Read, sent).await?;
        self.image.load().read(io, sent.start, into).await
    }

    /// Writes a range of which the caller has the blocks.
    async fn write_taken(
        &self,
        io: &Io,
        shape: Shape,
        offset: u64,
        from: Window<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        for Piece { asked, sent } in shape.pieces(offset..offset + from.len()) {
            let part = from.part(asked.start - offset, asked.end - asked.start);
            if asked == sent {
                self.judge(RequestKind::Write, &sent).await?;
                self.image.load().write(io, sent.start, part, flags).await?;
                continue;
            }
            let block = io.buffer(sent.end - sent.start)?;
            let block = block.part(sent.end - sent.start);
            self.read_sent(io, &sent, block).await?;
            let within = block.part(asked.start - sent.start, part.len());
            within.copy_from_window(&part);
            self.judge(RequestKind::Write, &sent).await?;
            self.image
                .load()
                .write(io, sent.start, block, flags)
                .await?;
        }
        Ok(())
    }

    /// Writes zeros as bytes to a range of which the caller has the blocks.
    async fn fill_taken(
        &self,
        io: &Io,
        shape: Shape,
        range: Range<u64>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let zeros = io.buffer(ZEROS)?;
        let zeros = zeros.part(ZEROS);
        zeros.fill_zero();
        let mut at = range.start;
        while at < range.end {
            let part = zeros.part(0, range.end - at);
            self.write_taken(io, shape, at, part, flags).await?;
            at += part.len();
        }
        Ok(())
    }
}

impl BlockNode for BlkdebugNode {
    fn length(&self) -> u64 {
        self.image.load().len()
    }

    fn limits(&self) -> Limits {
        let child = self.image.load();
        let discards = child.options().discard == DiscardMode::Unmap;
        let child = child.limits();
        Limits {
            // Who claims an alignment widens what has none.
            request_alignment: match self.limits.align {
                0 => child.request_alignment,
                _ => 1,
            },
            discard: child.discard && discards,
            ..child
        }
    }

    /// Nobody goes around the rules.
    fn extent(&self, _offset: u64, len: u64, _intent: Intent) -> Extent {
        Extent::Slow { len }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move {
            for Piece { asked, sent } in self.shape().pieces(offset..offset + into.len()) {
                let part = into.part(asked.start - offset, asked.end - asked.start);
                if asked == sent {
                    self.read_sent(io, &sent, part).await?;
                    continue;
                }
                let block = io.buffer(sent.end - sent.start)?;
                let block = block.part(sent.end - sent.start);
                self.read_sent(io, &sent, block).await?;
                part.copy_from_window(&block.part(asked.start - sent.start, part.len()));
            }
            Ok(())
        })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            let shape = self.shape();
            let _taken = self.changes(&shape, &(offset..offset + from.len())).await;
            self.write_taken(io, shape, offset, from, flags).await
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
            let shape = self.shape();
            let grains = shape.zeroes(offset..offset + len);
            let as_bytes = WriteFlags {
                durable: flags.durable,
                compress: false,
            };
            let _taken = self.changes(&shape, &(offset..offset + len)).await;
            self.fill_taken(io, shape, grains.head.clone(), as_bytes)
                .await?;
            for piece in grains.pieces() {
                self.judge(RequestKind::WriteZeroes, &piece).await?;
                let len = piece.end - piece.start;
                self.image
                    .load()
                    .write_zeroes(io, piece.start, len, flags)
                    .await?;
            }
            self.fill_taken(io, shape, grains.tail, as_bytes).await
        })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move {
            let shape = self.shape();
            let _taken = self.changes(&shape, &(offset..offset + len)).await;
            for piece in shape.discards(offset..offset + len).pieces() {
                self.judge(RequestKind::Discard, &piece).await?;
                let len = piece.end - piece.start;
                self.image.load().discard(io, piece.start, len).await?;
            }
            Ok(())
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move {
            self.judge(RequestKind::Flush, &(0..0)).await?;
            self.image.load().flush(io).await
        })
    }

    fn status<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(async move { self.image.load().status(io, offset, len).await })
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(async move {
            let image = self.image.load();
            image.resize(io, len).await.map_err(ResizeError::Below)
        })
    }

    fn breakpoints(&self) -> Option<&Breakpoints> {
        Some(&self.breakpoints)
    }

    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move {
            self.judge(RequestKind::Flush, &(0..0)).await?;
            self.image.load().settle(io).await
        })
    }
}
