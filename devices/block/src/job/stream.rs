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
use super::flight::{Failed, Piece, Sweep};
use crate::engine::Io;
use crate::node::NodeRef;

/// The most bytes of one piece.
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
    let sweep = Sweep {
        len,
        chunk: CHUNK,
        on_error: spec.on_error,
        insists: false,
    };
    let io = cx.io().with_stock();
    let copied = |piece| copy(&io, &spec, &own, piece);
    sweep.run(&mut cx, copied).await
}

/// Copies a piece; how many bytes had to be.
async fn copy(io: &Io, spec: &StreamSpec, own: &Chain, piece: Piece) -> Result<u64, Failed> {
    let end = piece.at + piece.len;
    let (mut at, mut moved) = (piece.at, 0);
    while at < end {
        let held = own.held(io, at, end - at).await;
        let mut held = held.map_err(Failed::reading)?;
        if held.kind == HeldKind::Below {
            let between = spec.between.held(io, at, held.len).await;
            held = between.map_err(Failed::reading)?;
            if held.kind != HeldKind::Below {
                let populated = spec.top.populate(io, at, held.len).await;
                populated.map_err(Failed::reading)?;
                moved += held.len;
            }
        }
        at += held.len;
    }
    Ok(moved)
}
