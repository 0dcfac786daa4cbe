//! How long requests of a disk took, in bins that the client chose.
//!
//! ```text
//!   boundaries     10      50      100     nanoseconds
//!   bins       0..10 │10..50│50..100│100..
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::account::{Operation, Outcome};

/// One histogram.
#[derive(Debug)]
struct Histogram {
    boundaries: Vec<u64>,
    /// One more than boundaries.
    bins: Vec<AtomicU64>,
}

impl Histogram {
    fn add(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bin = self
            .boundaries
            .partition_point(|boundary| *boundary <= took);
        if let Some(bin) = self.bins.get(bin) {
            bin.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a histogram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bins {
    /// Where one bin ends and the next begins, in nanoseconds.
    pub boundaries: Vec<u64>,
    /// How many requests were in each: one more than boundaries.
    pub counts: Vec<u64>,
}

/// A disk's histograms: one for each operation that has boundaries. Without any, a request costs
/// one look at a flag.
#[derive(Debug, Default)]
pub struct Histograms {
    any: AtomicBool,
    of: RwLock<[Option<Histogram>; 4]>,
}

impl Histograms {
    /// Begins a histogram anew with these boundaries, or ends it (`None`). Says whether they ascend
    /// from above 0; if not, nothing has changed.
    #[must_use]
    pub fn set(&self, operation: Operation, boundaries: Option<Vec<u64>>) -> bool {
        let new = match boundaries {
            Some(boundaries) if !ascend(&boundaries) => return false,
            Some(boundaries) => Some(Histogram {
                bins: (0..=boundaries.len()).map(|_| AtomicU64::new(0)).collect(),
                boundaries,
            }),
            None => None,
        };
        let mut of = self.of.write().unwrap_or_else(PoisonError::into_inner);
        of[operation as usize] = new;
        self.any
            .store(of.iter().any(Option::is_some), Ordering::Relaxed);
        true
    }

    /// Enters a request that began at `started` and has just ended, if it was tried.
    pub fn enter(&self, operation: Operation, outcome: Outcome, started: Instant) {
        if !self.any.load(Ordering::Relaxed) || outcome == Outcome::Invalid {
            return;
        }
        let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(histogram) = &of[operation as usize] {
            histogram.add(started.elapsed());
        }
    }

    /// What was entered since the histogram was begun; `None` without one.
    #[must_use]
    pub fn bins(&self, operation: Operation) -> Option<Bins> {
        let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
        let histogram = of[operation as usize].as_ref()?;
        let counts = histogram.bins.iter();
        Some(Bins {
            boundaries: histogram.boundaries.clone(),
            counts: counts.map(|bin| bin.load(Ordering::Relaxed)).collect(),
        })
    }
}

fn ascend(boundaries: &[u64]) -> bool {
    boundaries.first().is_none_or(|first| *first > 0) && boundaries.is_sorted_by(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_in_the_bin_whose_lower_boundary_it_reaches() {
        let histograms = Histograms::default();
        assert_eq!(histograms.bins(Operation::Read), None);
        assert!(histograms.set(Operation::Read, Some(vec![10, 50, 100])));
        let of = histograms.of.read().expect("not poisoned");
        let histogram = of[Operation::Read as usize].as_ref().expect("begun");
        for took in [0, 9, 10, 49, 50, 99, 100, 1000] {
            histogram.add(Duration::from_nanos(took));
        }
        drop(of);
        let bins = histograms.bins(Operation::Read).expect("begun");
        assert_eq!(bins.counts, [2, 2, 2, 2]);
        assert_eq!(histograms.bins(Operation::Write), None);
    }

    #[test]
    fn boundaries_that_do_not_ascend_change_nothing() {
        let histograms = Histograms::default();
        assert!(histograms.set(Operation::Flush, Some(vec![1 << 20])));
        for outcome in [Outcome::Done, Outcome::Failed, Outcome::Invalid] {
            histograms.enter(Operation::Flush, outcome, Instant::now());
        }
        for wrong in [vec![0, 1], vec![2, 1], vec![3, 3]] {
            assert!(!histograms.set(Operation::Flush, Some(wrong)));
        }
        let bins = histograms.bins(Operation::Flush).expect("still there");
        assert_eq!(bins.counts.iter().sum::<u64>(), 2, "what was tried");
        assert!(histograms.set(Operation::Flush, None));
        assert_eq!(histograms.bins(Operation::Flush), None);
    }
}
