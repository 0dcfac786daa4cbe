//! What was asked of a disk or a node, counted where it is done.
//!
//! ```text
//!   queue 0 ─► Account ─┐
//!   queue 1 ─► Account ─┼─► Totals ─► query-blockstats
//!   node    ─► Account ─┘
//! ```
//!
//! Counting takes no lock and allocates nothing: relaxed additions to counters that one thread
//! writes (a queue has an account of its own, so that queues do not fight for cache lines) and any
//! may read. A reader sees each counter true, not all of them at one instant.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What instants are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It reads.
    Read,
    /// It writes, also zeros.
    Write,
    /// It makes writes durable.
    Flush,
    /// It discards.
    Unmap,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The storage failed it.
    Failed,
    /// It asked for what cannot be, and was not tried.
    Invalid,
}

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    invalid: AtomicU64,
    nanoseconds: AtomicU64,
}

/// What one place counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Account {
    counters: [Counters; 4],
    /// Where the highest write ended.
    highest: AtomicU64,
    /// When the last request ended, in nanoseconds since [`EPOCH`]; 0 for never.
    last: AtomicU64,
}

impl Account {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a request that moved `bytes`, in an account that keeps no times.
    pub fn enter(&self, operation: Operation, bytes: u64, outcome: Outcome) {
        let counters = &self.counters[operation as usize];
        let counter = match outcome {
            Outcome::Done => {
                counters.bytes.fetch_add(bytes, Ordering::Relaxed);
                &counters.done
            }
            Outcome::Failed => &counters.failed,
            Outcome::Invalid => &counters.invalid,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Enters a request that began at `started` and has just ended.
    pub fn enter_timed(
        &self,
        operation: Operation,
        bytes: u64,
        outcome: Outcome,
        started: Instant,
    ) {
        self.enter(operation, bytes, outcome);
        let now = Instant::now();
        if outcome != Outcome::Invalid {
            let took = nanoseconds(now.saturating_duration_since(started));
            let counters = &self.counters[operation as usize];
            counters.nanoseconds.fetch_add(took, Ordering::Relaxed);
        }
        self.last.store(since_epoch(now), Ordering::Relaxed);
    }

    /// Remembers that a write ended at `end`.
    pub fn reach(&self, end: u64) {
        if end > self.highest.load(Ordering::Relaxed) {
            self.highest.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// What was counted until now.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sums = |operation: Operation| {
            let counters = &self.counters[operation as usize];
            Sums {
                bytes: read(&counters.bytes),
                done: read(&counters.done),
                failed: read(&counters.failed),
                invalid: read(&counters.invalid),
                nanoseconds: read(&counters.nanoseconds),
            }
        };
        Totals {
            reads: sums(Operation::Read),
            writes: sums(Operation::Write),
            flushes: sums(Operation::Flush),
            unmaps: sums(Operation::Unmap),
            highest: read(&self.highest),
            last: read(&self.last),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Never 0, which means "never".
fn since_epoch(now: Instant) -> u64 {
    nanoseconds(now.saturating_duration_since(*EPOCH)).max(1)
}

/// The sums of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Bytes that requests moved which were done.
    pub bytes: u64,
    /// Requests that were done.
    pub done: u64,
    /// Requests that the storage failed.
    pub failed: u64,
    /// Requests that asked for what cannot be.
    pub invalid: u64,
    /// How long the done and the failed ones took together; 0 in an account without times.
    pub nanoseconds: u64,
}

impl Sums {
    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            done: self.done.saturating_add(other.done),
            failed: self.failed.saturating_add(other.failed),
            invalid: self.invalid.saturating_add(other.invalid),
            nanoseconds: self.nanoseconds.saturating_add(other.nanoseconds),
        }
    }
}

/// What one or more accounts say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The reads.
    pub reads: Sums,
    /// The writes, also of zeros.
    pub writes: Sums,
    /// The flushes.
    pub flushes: Sums,
    /// The discards.
    pub unmaps: Sums,
    /// Where the highest write ended, in bytes from the start.
    pub highest: u64,
    last: u64,
}

impl Totals {
    /// The sums of both, and the later of both ends.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            reads: self.reads.and(other.reads),
            writes: self.writes.and(other.writes),
            flushes: self.flushes.and(other.flushes),
            unmaps: self.unmaps.and(other.unmaps),
            highest: self.highest.max(other.highest),
            last: self.last.max(other.last),
        }
    }

    /// How long ago the last request ended; `None` before the first, and in accounts without
    /// times.
    pub fn idle(&self) -> Option<Duration> {
        (self.last > 0).then(|| {
            let now = since_epoch(Instant::now());
            Duration::from_nanos(now.saturating_sub(self.last))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_and_outcome_is_counted_apart() {
        let account = Account::new();
        account.enter(Operation::Read, 512, Outcome::Done);
        account.enter(Operation::Read, 1024, Outcome::Done);
        account.enter(Operation::Write, 4096, Outcome::Failed);
        account.enter(Operation::Unmap, 4096, Outcome::Invalid);
        let totals = account.totals();
        assert_eq!((totals.reads.done, totals.reads.bytes), (2, 1536));
        assert_eq!((totals.writes.failed, totals.writes.bytes), (1, 0));
        assert_eq!((totals.unmaps.invalid, totals.unmaps.bytes), (1, 0));
        assert_eq!(totals.flushes, Sums::default());
        assert_eq!(totals.idle(), None);
    }

    #[test]
    fn time_is_counted_for_what_was_tried_and_idleness_since_its_end() {
        let account = Account::new();
        let Some(started) = Instant::now().checked_sub(Duration::from_secs(3)) else {
            return;
        };
        account.enter_timed(Operation::Flush, 0, Outcome::Failed, started);
        let before = account.totals();
        assert!(before.flushes.nanoseconds >= 3_000_000_000);
        assert!(
            before
                .idle()
                .is_some_and(|idle| idle < Duration::from_secs(3))
        );
        account.enter_timed(Operation::Flush, 0, Outcome::Invalid, started);
        let after = account.totals();
        assert_eq!(after.flushes.nanoseconds, before.flushes.nanoseconds);
    }

    #[test]
    fn totals_add_up_and_keep_the_highest_and_the_latest() {
        let (one, two) = (Account::new(), Account::new());
        one.reach(4096);
        one.reach(512);
        two.enter_timed(Operation::Write, 512, Outcome::Done, Instant::now());
        two.reach(1024);
        let both = one.totals().and(two.totals());
        assert_eq!(
            (both.highest, both.writes.done, both.writes.bytes),
            (4096, 1, 512)
        );
        assert!(both.idle().is_some());
    }
}
