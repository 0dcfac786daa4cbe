//! The job `stream`: what shows through an overlay from the nodes between it and a base moves
//! into the overlay, while its users go on.
//!
//! ```text
//!   top     |##..##....|      top     |##A.##..B.|
//!   middle  |..A.....B.|  ─►                        the middle is no longer needed
//!   base    |CCCCCCCCCC|      base    |CCCCCCCCCC|
//! ```
//!
//! Each piece is copied by the overlay's own driver ([`BlockNode::populate`](crate::BlockNode)),
//! so that a write of the guest that comes at the same moment wins. A stream that is killed leaves
//! an overlay that reads as before: what was copied is what shone through.

use super::chain::{Chain, HeldKind};
use super::control::{JobCx, JobFailure, OnError};
use crate::node::NodeRef;

/// Bytes that one step looks at.
const CHUNK: u64 = 512 << 10;

/// What a stream is made of.
#[derive(Debug)]
pub struct StreamSpec {
    /// The overlay.
    pub top: NodeRef,
    /// What is between it and the base.
    pub between: Chain,
    /// What it does about errors.
    pub on_error: OnError,
}

/// The loop.
///
/// # Errors
/// It was cancelled, or the storage failed.
pub async fn stream(mut cx: JobCx, spec: StreamSpec) -> Result<(), JobFailure> {
    let len = spec.top.len();
    cx.control().set_total(len);
    let own = Chain::new(vec![spec.top.clone()]);
    let mut at = 0;
    let mut ignored = None;
    while at < len {
        cx.point().await?;
        let piece = CHUNK.min(len - at);
        let step = copy(&cx, &spec, &own, at, piece).await;
        let (done, moved) = match step {
            Ok(step) => step,
            Err(error) => {
                let number = error.raw_os_error();
                if cx.failed(error, false, spec.on_error).await? {
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
        None => Ok(()),
        Some(number) => Err(std::io::Error::from_raw_os_error(number).into()),
    }
}

/// One step: how many bytes it got further, and how many of them it copied.
async fn copy(
    cx: &JobCx,
    spec: &StreamSpec,
    own: &Chain,
    at: u64,
    piece: u64,
) -> std::io::Result<(u64, u64)> {
    let held = own.held(cx.io(), at, piece).await?;
    if held.kind != HeldKind::Below {
        return Ok((held.len, 0));
    }
    let held = spec.between.held(cx.io(), at, held.len).await?;
    if held.kind == HeldKind::Below {
        return Ok((held.len, 0));
    }
    spec.top.populate(cx.io(), at, held.len).await?;
    Ok((held.len, held.len))
}
