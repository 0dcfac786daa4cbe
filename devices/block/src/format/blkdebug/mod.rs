//! The node `blkdebug`: another node, whose requests fail as rules say.
//!
//! ```text
//!   request ─► Breakpoints::pass: held until a tester lets it go?
//!           ─► Rules::judge: its event ─► set-state rules ─► state
//!                 │                  └─► inject-error rules: state, kind, sector? ─► errno
//!                 ├─ fails ─► that error, and the node below never sees the request
//!                 └─ goes through ─► the node below
//! ```
//!
//! The rules come with the node and from a file ([`config`]). The names of events and the state
//! that counts from 1 are those of QEMU's driver.
//!
//! Read next: [`rules`].

pub mod breakpoints;
pub mod config;
pub mod rules;

use std::io;
use std::sync::{Mutex, PoisonError};

use self::breakpoints::Breakpoints;
use self::rules::{RequestKind, Rules};
use crate::drain::Gate;
use crate::engine::{Io, Window};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, ResizeError, ResizeFuture, Status, WriteFlags,
    ZeroFlags,
};
use crate::slot::ChildSlot;
use crate::spec::DiscardMode;

/// A node that fails on purpose.
#[derive(Debug)]
pub struct BlkdebugNode {
    image: ChildSlot,
    rules: Mutex<Rules>,
    breakpoints: Breakpoints,
}

impl BlkdebugNode {
    /// Lays `rules` over the node in `image`. While `hurry` is closed, no request is held.
    #[must_use]
    pub fn new(image: ChildSlot, rules: Rules, hurry: Gate) -> Self {
        Self {
            image,
            rules: Mutex::new(rules),
            breakpoints: Breakpoints::new(hurry),
        }
    }

    async fn judge(&self, kind: RequestKind, offset: u64, len: u64) -> io::Result<()> {
        self.breakpoints.pass(kind).await;
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        match rules.judge(kind, offset, len) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
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
            self.judge(RequestKind::Read, offset, into.len()).await?;
            self.image.load().read(io, offset, into).await
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
            self.judge(RequestKind::Write, offset, from.len()).await?;
            self.image.load().write(io, offset, from, flags).await
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
            self.judge(RequestKind::WriteZeroes, offset, len).await?;
            self.image.load().write_zeroes(io, offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move {
            self.judge(RequestKind::Discard, offset, len).await?;
            self.image.load().discard(io, offset, len).await
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(async move {
            self.judge(RequestKind::Flush, 0, 0).await?;
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
            self.judge(RequestKind::Flush, 0, 0).await?;
            self.image.load().settle(io).await
        })
    }
}
