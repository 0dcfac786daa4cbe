//! The job `commit`: what the nodes above a base hold moves down into the base.
//!
//! ```text
//!   top     |##..##....|
//!   middle  |..A.....B.|  ─►  base  |##AC##CCBC|   the nodes above say what they said before,
//!   base    |CCCCCCCCCC|                           and are no longer needed
//! ```
//!
//! Nobody writes to the nodes above, except the guest if the top is what it uses: then what it
//! writes is marked ([`DirtyMap`]) and copied again, until it is told to complete; the last of it
//! is copied while the guest waits ([`catch_up`]). A commit that is killed leaves a chain that
//! reads as before: the base's new bytes are hidden behind those they were copied from.

use std::io;

use super::chain::{Chain, HeldKind};
use super::control::{Control, JobCx, JobFailure, OnError};
use super::flight::{Buffers, Failed, Piece, Sweep, fly, tell};
use crate::dirty::DirtyMap;
use crate::engine::{Io, Segments};
use crate::node::{NodeRef, WriteFlags, ZeroFlags};

/// Bytes that one step moves at most.
const CHUNK: u64 = 1 << 20;

/// What a commit is made of.
#[derive(Clone, Debug)]
pub struct CommitSpec {
    /// The topmost node whose bytes move.
    pub top: NodeRef,
    /// That and everything down to the base, without it.
    pub above: Chain,
    /// Where they move to.
    pub base: NodeRef,
    /// What it does about errors.
    pub on_error: OnError,
}

/// The loop of a commit of nodes that nobody writes to.
///
/// # Errors
/// It was cancelled, or the storage failed.
pub async fn commit(mut cx: JobCx, spec: CommitSpec) -> Result<(), JobFailure> {
    lengthen(cx.io(), &spec).await?;
    let len = spec.top.len();
    cx.control().set_total(len);
    let buffers = Buffers::new(CHUNK)?;
    // Nothing that is above the base may be missed: what is to be ignored is tried once more.
    let sweep = Sweep {
        len,
        chunk: CHUNK,
        on_error: spec.on_error,
        insists: true,
    };
    let io = cx.io().clone();
    let copied = |piece| copy_piece(&io, &spec, &buffers, piece);
    sweep.run(&mut cx, copied).await?;
    Ok(spec.base.flush(cx.io()).await?)
}

/// The loop of a commit from a node that its users write to; `dirty` marks what they write.
///
/// # Errors
/// It was cancelled, or the storage failed.
pub async fn commit_active(
    mut cx: JobCx,
    spec: CommitSpec,
    dirty: std::sync::Arc<DirtyMap>,
) -> Result<(), JobFailure> {
    lengthen(cx.io(), &spec).await?;
    mark_held(&mut cx, &spec, &dirty).await?;
    let buffers = Buffers::new(CHUNK)?;
    let io = cx.io().clone();
    let mut is_ready = false;
    loop {
        cx.point().await?;
        let next = |flying: &[Piece]| take_dirty(cx.control(), &dirty, flying);
        let copied = |piece| copy_piece(&io, &spec, &buffers, piece);
        let flown = fly(&cx, next, copied).await;
        for (piece, _) in &flown.failed {
            dirty.mark(piece.at, piece.len);
        }
        tell(&cx, flown.failed, spec.on_error).await?;
        cx.advance(flown.beyond);
        cx.rest(flown.limited).await?;
        if flown.pieces > 0 {
            continue;
        }
        spec.base.flush(&io).await?;
        if !std::mem::replace(&mut is_ready, true) {
            cx.ready();
        }
        if cx.idle().await? {
            return Ok(());
        }
    }
}

/// Takes a marked piece to copy. One that was written again while it is copied must wait: it could
/// reach the base before what it overwrites.
pub(super) fn take_dirty(control: &Control, dirty: &DirtyMap, flying: &[Piece]) -> Option<Piece> {
    let (at, len) = dirty.take(CHUNK)?;
    let piece = Piece::new(at, len);
    if flying.iter().any(|other| other.overlaps(&piece)) {
        dirty.mark(at, len);
        return None;
    }
    let (done, total) = control.progress();
    let ahead: u64 = flying.iter().map(|other| other.len).sum();
    control.set_total(total.max(done + ahead + len + dirty.count()));
    Some(piece)
}

/// Marks everything that the nodes above the base hold.
async fn mark_held(cx: &mut JobCx, spec: &CommitSpec, dirty: &DirtyMap) -> Result<(), JobFailure> {
    let len = spec.top.len();
    let mut at = 0;
    while at < len {
        cx.point().await?;
        let held = spec.above.held(cx.io(), at, len - at).await?;
        if held.kind != HeldKind::Below {
            dirty.mark(at, held.len);
        }
        at += held.len;
    }
    cx.control().set_total(dirty.count());
    Ok(())
}

/// Copies what is still marked, while nobody writes: the last step before the users get the base.
///
/// # Errors
/// What the storage said.
pub async fn catch_up(io: &Io, spec: &CommitSpec, dirty: &DirtyMap) -> io::Result<()> {
    let buffer = Segments::owned(usize::try_from(CHUNK).map_err(io::Error::other)?, 4096)?;
    lengthen(io, spec).await?;
    while let Some((at, piece)) = dirty.take(CHUNK) {
        let copied = copy(io, spec, &buffer, at, piece).await;
        if let Err(Failed { error, .. }) = copied {
            dirty.mark(at, piece);
            return Err(error);
        }
    }
    spec.base.flush(io).await
}

/// Copies all of it in one go, while nobody writes.
///
/// # Errors
/// What the storage said.
pub async fn commit_at_once(io: &Io, spec: &CommitSpec) -> io::Result<()> {
    let buffer = Segments::owned(usize::try_from(CHUNK).map_err(io::Error::other)?, 4096)?;
    lengthen(io, spec).await?;
    let mut at = 0;
    while at < spec.top.len() {
        let copied = copy(io, spec, &buffer, at, CHUNK).await;
        at += copied.map_err(|failed| failed.error)?.0;
    }
    spec.base.flush(io).await
}

/// The base becomes as long as the top, or it could not hold all of it.
async fn lengthen(io: &Io, spec: &CommitSpec) -> io::Result<()> {
    if spec.base.len() < spec.top.len() {
        let resized = spec.base.resize(io, spec.top.len()).await;
        resized.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Copies a piece of those in flight; how many bytes it moved.
async fn copy_piece(
    io: &Io,
    spec: &CommitSpec,
    buffers: &Buffers,
    piece: Piece,
) -> Result<u64, Failed> {
    let buffer = buffers.take().map_err(Failed::reading)?;
    let copied = copy(io, spec, &buffer, piece.at, piece.len).await;
    buffers.give(buffer);
    Ok(copied?.1)
}

/// One step: how many bytes it got further, and how many of them it moved. All of `piece` is
/// looked at.
async fn copy(
    io: &Io,
    spec: &CommitSpec,
    buffer: &Segments,
    at: u64,
    piece: u64,
) -> Result<(u64, u64), Failed> {
    let end = at.saturating_add(piece).min(spec.top.len());
    let (mut next, mut moved) = (at, 0);
    while next < end {
        let held = spec.above.held(io, next, end - next).await;
        let held = held.map_err(Failed::reading)?;
        match held.kind {
            HeldKind::Below => {}
            HeldKind::Zero => {
                let flags = ZeroFlags {
                    unmap: true,
                    durable: false,
                };
                let zeroed = spec.base.write_zeroes(io, next, held.len, flags).await;
                zeroed.map_err(Failed::writing)?;
                moved += held.len;
            }
            HeldKind::Data => {
                let part = buffer.all().part(0, held.len);
                spec.top
                    .read(io, next, part)
                    .await
                    .map_err(Failed::reading)?;
                let flags = WriteFlags::default();
                let written = spec.base.write(io, next, part, flags).await;
                written.map_err(Failed::writing)?;
                moved += held.len;
            }
        }
        next += held.len;
    }
    Ok((piece, moved))
}
