//! What a disk held at one moment: in its target where it was overwritten since, else where it was.
//!
//! ```text
//!   wanted    |111111....111111|   readable and still in the disk: a write copies it first
//!   readable  |1111111111111111|   cleared by a discard of the reader
//!
//!   write:  take the pieces ─► copy, no longer wanted ─► give them back ─► write
//!   read:   take the pieces ─► wanted? the disk : the target ─► give them back
//! ```
//!
//! Pieces are taken by one task at a time, so no write comes between a reader's look and its read.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::dirty::DirtyMap;
use crate::drain::Gate;
use crate::engine::{Io, Window};
use crate::format::qcow2::turn::Ranges;
use crate::node::{NodeRef, WriteFlags, ZeroFlags, errno};
use crate::slot::ChildSlot;
use crate::spec::CbwFailure;

/// The most that is copied at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// What a snapshot does where copying fails or takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRules {
    /// Who has to bear it.
    pub(crate) on_failure: CbwFailure,
    /// How long a write waits at most.
    pub(crate) timeout: Option<Duration>,
}

/// The disk as it was, for whoever saves it and whoever reads it.
#[derive(Debug)]
pub struct Snapshot {
    file: ChildSlot,
    target: ChildSlot,
    len: u64,
    wanted: DirtyMap,
    readable: DirtyMap,
    ranges: Ranges,
    /// A write went on without its copy: nothing can be read any more.
    broken: AtomicBool,
    rules: SnapshotRules,
    /// Where copies sit that nobody waits for.
    hurry: Gate,
}

impl Snapshot {
    /// What is in `file` now, saved to `target` in pieces of so many bytes: all of it, or only what
    /// a bitmap marks. A closed `hurry` waits for copies under way.
    pub(crate) fn new(
        (file, target): (ChildSlot, ChildSlot),
        piece: u64,
        only: Option<&DirtyMap>,
        rules: SnapshotRules,
        hurry: Gate,
    ) -> Self {
        let len = file.load().len();
        let map = || {
            let map = DirtyMap::new(len, piece);
            match only {
                Some(only) => map.merge(only),
                None => map.mark(0, len),
            }
            map
        };
        Self {
            wanted: map(),
            readable: map(),
            file,
            target,
            len,
            ranges: Ranges::default(),
            broken: AtomicBool::new(false),
            rules,
            hurry,
        }
    }

    /// The disk's length at that moment, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What reads of it must be aligned to.
    pub(super) fn alignment(&self) -> u32 {
        let of = |slot: &ChildSlot| slot.load().limits().request_alignment;
        of(&self.file).max(of(&self.target))
    }

    /// Whether a write has to be preceded by a copy.
    pub(super) fn wants(&self, offset: u64, len: u64) -> bool {
        !self.broken.load(Ordering::SeqCst) && self.wanted.touches(offset, len)
    }

    /// Copies what is wanted of a range that is about to be overwritten.
    ///
    /// # Errors
    /// It could not be copied, or not in time, and that is for the writer to bear.
    pub(super) async fn save(this: &Arc<Self>, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        if !this.wants(offset, len) {
            return Ok(());
        }
        let piece = this.wanted.granularity();
        let start = offset - offset % piece;
        let end = offset
            .saturating_add(len)
            .next_multiple_of(piece)
            .min(this.len);
        let saved = match this.rules.timeout {
            None => this.copy(io, start, end).await,
            Some(most) => Self::copy_within(this, io, start..end, most).await,
        };
        match (saved, this.rules.on_failure) {
            (Ok(()), _) => Ok(()),
            (Err(error), CbwFailure::BreakGuestWrite) => Err(error),
            (Err(error), CbwFailure::BreakSnapshot) => {
                if !this.broken.swap(true, Ordering::SeqCst) {
                    let node = this.file.load();
                    // As was asked for.
                    tracing::info!(node = node.name(), %error, "a snapshot was given up");
                }
                Ok(())
            }
        }
    }

    /// As [`copy`](Self::copy), for so long at most; the copy goes on behind the writer's back.
    async fn copy_within(
        this: &Arc<Self>,
        io: &Io,
        range: std::ops::Range<u64>,
        most: Duration,
    ) -> io::Result<()> {
        let outcome = Rc::new(Outcome::default());
        let (copying, told, own) = (Arc::clone(this), Rc::clone(&outcome), io.clone());
        let seat = this.hurry.take_seat(Waker::noop().clone());
        if !seat.is_open() {
            // Somebody drains, and waits for the writer only.
            return this.copy(io, range.start, range.end).await;
        }
        io.spawn(async move {
            let copied = copying.copy(&own, range.start, range.end).await;
            // Whoever drains waits for this.
            drop(seat);
            told.tell(copied);
        });
        let mut rest = pin!(io.sleep(most));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(copied) = outcome.poll(cx.waker()) {
                return Poll::Ready(copied);
            }
            let Poll::Ready(rested) = Pin::as_mut(&mut rest).poll(cx) else {
                return Poll::Pending;
            };
            Poll::Ready(rested.and_then(|()| Err(errno(libc::ETIMEDOUT))))
        })
        .await
    }

    /// Copies what is wanted of whole pieces.
    async fn copy(&self, io: &Io, start: u64, end: u64) -> io::Result<()> {
        let _pieces = self.ranges.take(start..end).await;
        let mut at = start;
        while at < end {
            let (is_wanted, len) = self.wanted.run(at, (end - at).min(CHUNK.max(self.piece())));
            if is_wanted && !self.broken.load(Ordering::SeqCst) {
                let buffer = io.buffer(len)?;
                let bytes = buffer.part(len);
                self.file.load().read(io, at, buffer.part(len)).await?;
                let target = self.target.load();
                if bytes.is_zero() {
                    let flags = ZeroFlags {
                        unmap: true,
                        durable: false,
                    };
                    target.write_zeroes(io, at, len, flags).await?;
                } else {
                    target.write(io, at, bytes, WriteFlags::default()).await?;
                }
                self.wanted.unmark(at, len);
            }
            at += len;
        }
        Ok(())
    }

    fn piece(&self) -> u64 {
        self.wanted.granularity()
    }

    fn source(&self, is_wanted: bool) -> NodeRef {
        match is_wanted {
            true => self.file.load(),
            false => self.target.load(),
        }
    }

    /// Reads what the disk held then.
    ///
    /// # Errors
    /// `EACCES` where it is not known any more, or what the storage said.
    pub(super) async fn read(&self, io: &Io, offset: u64, into: Window<'_>) -> io::Result<()> {
        let lost = || errno(libc::EACCES);
        let len = into.len();
        let _pieces = self.ranges.take(offset..offset.saturating_add(len)).await;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (is_readable, run) = self.readable.run(at, len - done);
            let (is_wanted, run) = self.wanted.run(at, run);
            if !is_readable || self.broken.load(Ordering::SeqCst) {
                return Err(lost());
            }
            let source = self.source(is_wanted);
            source.read(io, at, into.part(done, run)).await?;
            done += run;
        }
        // A write may have gone on without its copy meanwhile.
        match self.broken.load(Ordering::SeqCst) {
            true => Err(lost()),
            false => Ok(()),
        }
    }

    /// Forgets whole pieces: they are not copied any more, and what was copied is discarded.
    ///
    /// # Errors
    /// What the storage said.
    pub(super) async fn forget(&self, io: &Io, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.len);
        let first = offset.next_multiple_of(self.piece());
        // The last piece may be shorter than others.
        let last = match end == self.len {
            true => end,
            false => end - end % self.piece(),
        };
        if first >= last {
            return Ok(());
        }
        let _pieces = self.ranges.take(first..last).await;
        self.readable.unmark(first, last - first);
        self.wanted.unmark(first, last - first);
        self.target.load().discard(io, first, last - first).await
    }
}

/// What came of a copy that another task made, on the same thread.
#[derive(Default)]
struct Outcome(RefCell<(Option<io::Result<()>>, Option<Waker>)>);

impl Outcome {
    fn tell(&self, copied: io::Result<()>) {
        let waker = {
            let mut place = self.0.borrow_mut();
            place.0 = Some(copied);
            place.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, waker: &Waker) -> Poll<io::Result<()>> {
        let mut place = self.0.borrow_mut();
        match place.0.take() {
            Some(copied) => Poll::Ready(copied),
            None => {
                place.1 = Some(waker.clone());
                Poll::Pending
            }
        }
    }
}
