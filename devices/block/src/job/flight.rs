//! Pieces of a job that are copied at the same time.
//!
//! ```text
//!   point ─► start, start, start … ─► a piece lands ─► start … ─► nothing in flight ─► point
//!              │                         │
//!              └ up to PIECES, and only  └ progress; what failed is told of
//!                one under a limit         when all have landed
//! ```
//!
//! Pieces in flight have no byte in common. No more are started once the job is to be at its point
//! (a drain, a pause, a cancel) or one has failed.

use std::cell::RefCell;
use std::io;
use std::task::Poll;

use super::control::{JobCx, JobFailure, OnError};
use crate::engine::Segments;
use crate::engine::executor::{TaskSet, own_waker};

/// The most pieces in flight. With pieces of at most 1 MiB that bounds a job's memory.
pub(super) const PIECES: usize = 16;

/// A range that is copied in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it begins.
    pub(super) at: u64,
    /// Its bytes.
    pub(super) len: u64,
    /// Whether it has failed before and was to be ignored.
    tried: bool,
}

impl Piece {
    /// A piece that nobody has tried yet.
    pub(super) fn new(at: u64, len: u64) -> Self {
        let tried = false;
        Self { at, len, tried }
    }

    /// Whether they have a byte in common.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.at < other.at.saturating_add(other.len) && other.at < self.at.saturating_add(self.len)
    }
}

/// Why a piece was not copied.
#[derive(Debug)]
pub(super) struct Failed {
    /// Whether a write failed, and not a read.
    pub(super) write: bool,
    /// What the storage said.
    pub(super) error: io::Error,
}

impl Failed {
    pub(super) fn reading(error: io::Error) -> Self {
        let write = false;
        Self { write, error }
    }

    pub(super) fn writing(error: io::Error) -> Self {
        let write = true;
        Self { write, error }
    }
}

/// What came of some pieces.
#[derive(Debug, Default)]
pub(super) struct Flown {
    /// How many there were.
    pub(super) pieces: u64,
    /// Bytes that count for the limit.
    pub(super) limited: u64,
    /// Bytes that were copied behind the lowest piece that failed: no progress yet, which is as far
    /// as all is well.
    pub(super) beyond: u64,
    /// The pieces that were not copied, from the lowest on.
    pub(super) failed: Vec<(Piece, Failed)>,
}

/// Copies pieces until `next` has none, one has failed, or the job is to be at its point: at least
/// one, if there is one. `next` is told what is in flight; `copy` says how many bytes it moved.
/// Nothing is in flight before and afterwards.
pub(super) async fn fly<F>(
    cx: &JobCx,
    mut next: impl FnMut(&[Piece]) -> Option<Piece>,
    copy: impl Fn(Piece) -> F,
) -> Flown
where
    F: Future<Output = Result<u64, Failed>>,
{
    let is_limited = cx.control().speed() != 0;
    let mut set = TaskSet::new(PIECES, own_waker().await);
    let mut flying: Vec<Piece> = Vec::with_capacity(PIECES);
    let mut copies: Vec<Piece> = Vec::with_capacity(PIECES);
    let mut flown = Flown::default();
    loop {
        while !set.is_full()
            && flown.failed.is_empty()
            && (flown.pieces == 0 || (!is_limited && cx.is_free()))
            && let Some(piece) = next(&flying)
        {
            let copied = copy(piece);
            // There is room: the set is not full.
            drop(set.push(async move { (piece, copied.await) }));
            flying.push(piece);
            flown.pieces += 1;
        }
        let Some((piece, copied)) = landed(&mut set).await else {
            flown.failed.sort_unstable_by_key(|(piece, _)| piece.at);
            flown.beyond = copies.iter().map(|piece| piece.len).sum();
            return flown;
        };
        flying.retain(|other| *other != piece);
        match copied {
            Ok(moved) => {
                copies.push(piece);
                flown.limited += if is_limited { moved } else { 0 };
            }
            Err(failed) => flown.failed.push((piece, failed)),
        }
        let failed = flown.failed.iter().map(|(piece, _)| piece.at);
        let open = flying.iter().map(|piece| piece.at).chain(failed).min();
        copies.retain(|piece| {
            let waits = open.is_some_and(|open| open < piece.at);
            if !waits {
                cx.advance(piece.len);
            }
            waits
        });
    }
}

/// The next future of the set that ends; `None` if there is none in it.
async fn landed<F: Future>(set: &mut TaskSet<F>) -> Option<F::Output> {
    std::future::poll_fn(|_| {
        if set.is_empty() {
            return Poll::Ready(None);
        }
        set.next_done()
            .map_or(Poll::Pending, |output| Poll::Ready(Some(output)))
    })
    .await
}

/// Tells of the pieces that failed, and does what the policy says. Once the job has waited, the
/// others are tried again untold. Returns each with the error that is ignored, if it is.
///
/// # Errors
/// The job fails, or was cancelled.
pub(super) async fn tell(
    cx: &JobCx,
    failed: Vec<(Piece, Failed)>,
    policy: OnError,
) -> Result<Vec<(Piece, Option<i32>)>, JobFailure> {
    let mut told = Vec::with_capacity(failed.len());
    let mut has_waited = false;
    for (piece, Failed { write, error }) in failed {
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        has_waited = has_waited || cx.failed(error, write, policy).await?;
        told.push((piece, (!has_waited).then_some(number)));
    }
    Ok(told)
}

/// A walk over a whole node.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Bytes to walk over.
    pub(super) len: u64,
    /// The most bytes of a piece.
    pub(super) chunk: u64,
    /// What is done about errors.
    pub(super) on_error: OnError,
    /// Whether a piece whose error is to be ignored is tried once more before it is.
    pub(super) insists: bool,
}

impl Sweep {
    /// Copies all pieces.
    ///
    /// # Errors
    /// The job was cancelled, or the storage failed: at once, or somewhere on the way.
    pub(super) async fn run<F>(
        self,
        cx: &mut JobCx,
        copy: impl Fn(Piece) -> F,
    ) -> Result<(), JobFailure>
    where
        F: Future<Output = Result<u64, Failed>>,
    {
        let (mut at, mut again, mut ignored) = (0, Vec::new(), None);
        while at < self.len || !again.is_empty() {
            cx.point().await?;
            let next = |_: &[Piece]| {
                again.pop().or_else(|| {
                    let len = self.chunk.min(self.len - at);
                    let piece = Piece::new(at, len);
                    at += len;
                    (len > 0).then_some(piece)
                })
            };
            let flown = fly(cx, next, &copy).await;
            for (piece, error) in tell(cx, flown.failed, self.on_error).await? {
                match error {
                    None => again.push(piece),
                    Some(_) if self.insists && !piece.tried => {
                        again.push(Piece {
                            tried: true,
                            ..piece
                        });
                    }
                    Some(number) => {
                        ignored.get_or_insert(number);
                        cx.advance(piece.len);
                    }
                }
            }
            cx.advance(flown.beyond);
            cx.rest(flown.limited).await?;
        }
        // Also the last pieces may have been copied after it was told to wait.
        cx.point().await?;
        ignored.map_or(Ok(()), |number| {
            Err(io::Error::from_raw_os_error(number).into())
        })
    }
}

/// Memory for pieces in flight: as much as there were at the same time.
#[derive(Debug)]
pub(super) struct Buffers {
    size: usize,
    free: RefCell<Vec<Segments>>,
}

impl Buffers {
    /// None yet; each will have `size` bytes.
    ///
    /// # Errors
    /// That is more than there are addresses.
    pub(super) fn new(size: u64) -> io::Result<Self> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let free = RefCell::default();
        Ok(Self { size, free })
    }

    /// One that nobody has.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn take(&self) -> io::Result<Segments> {
        let free = self.free.borrow_mut().pop();
        free.map_or_else(|| Segments::owned(self.size, 4096), Ok)
    }

    /// It is free again.
    pub(super) fn give(&self, buffer: Segments) {
        self.free.borrow_mut().push(buffer);
    }
}
