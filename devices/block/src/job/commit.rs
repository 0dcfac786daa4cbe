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
use super::control::{JobCx, JobFailure, OnError};
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
    let buffer = Segments::owned(usize::try_from(CHUNK).map_err(io::Error::other)?, 4096)?;
    let mut ignored = None;
    // Where a piece has failed already, to be ignored.
    let mut again = None;
    let mut at = 0;
    while at < len {
        cx.point().await?;
        let piece = CHUNK.min(len - at);
        let (done, moved) = match copy(cx.io(), &spec, &buffer, at, piece).await {
            Ok(step) => step,
            Err(Failed { write, error }) => {
                let number = error.raw_os_error();
                let stopped = cx.failed(error, write, spec.on_error).await?;
                // Nothing that is above the base may be missed: what is ignored is tried once more.
                if stopped || again.replace(at) != Some(at) {
                    continue;
                }
                ignored = ignored.or(number);
                (piece, 0)
            }
        };
        at += done;
        cx.advance(done, moved).await?;
    }
    match ignored {
        None => Ok(spec.base.flush(cx.io()).await?),
        Some(number) => Err(io::Error::from_raw_os_error(number).into()),
    }
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
    let buffer = Segments::owned(usize::try_from(CHUNK).map_err(io::Error::other)?, 4096)?;
    let mut is_ready = false;
    loop {
        cx.point().await?;
        let Some((at, piece)) = dirty.take(CHUNK) else {
            spec.base.flush(cx.io()).await?;
            if !std::mem::replace(&mut is_ready, true) {
                cx.ready();
            }
            if cx.idle().await? {
                return Ok(());
            }
            continue;
        };
        let (done, total) = cx.control().progress();
        cx.control()
            .set_total(total.max(done + piece + dirty.count()));
        if let Err(Failed { write, error }) = copy(cx.io(), &spec, &buffer, at, piece).await {
            dirty.mark(at, piece);
            cx.failed(error, write, spec.on_error).await?;
            continue;
        }
        cx.advance(piece, piece).await?;
    }
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

struct Failed {
    write: bool,
    error: io::Error,
}

fn while_reading(error: io::Error) -> Failed {
    Failed {
        write: false,
        error,
    }
}

fn while_writing(error: io::Error) -> Failed {
    Failed { write: true, error }
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
        let held = held.map_err(while_reading)?;
        match held.kind {
            HeldKind::Below => {}
            HeldKind::Zero => {
                let flags = ZeroFlags {
                    unmap: true,
                    durable: false,
                };
                let zeroed = spec.base.write_zeroes(io, next, held.len, flags).await;
                zeroed.map_err(while_writing)?;
                moved += held.len;
            }
            HeldKind::Data => {
                let part = buffer.all().part(0, held.len);
                spec.top.read(io, next, part).await.map_err(while_reading)?;
                let flags = WriteFlags::default();
                let written = spec.base.write(io, next, part, flags).await;
                written.map_err(while_writing)?;
                moved += held.len;
            }
        }
        next += held.len;
    }
    Ok((piece, moved))
}
