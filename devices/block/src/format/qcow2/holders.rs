//! Who still uses a mapping that has moved: counted, so that its old place is not used again too
//! early.
//!
//! ```text
//!   lookup:  count in ── read the mapping ── use the place ── guard drops: count out
//!   change:  change the mapping ── turn() ── … ── is_quiet(turn)? ── reuse the old place
//! ```
//!
//! There are two sets of counters, and lookups count in the current one. A turn makes the other
//! one current; once the old one is back at zero, nobody is left who saw a mapping from before.
//! Each set is split, so that io-threads do not fight for one cache line.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::node::ExtentGuard;

/// Into how many counters a set is split.
const SPLIT: usize = 16;

/// The two sets, and which one is current.
pub(super) struct Holders {
    sets: [[Arc<AtomicUsize>; SPLIT]; 2],
    current: AtomicUsize,
}

/// A set that is no longer current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old(usize);

impl Holders {
    pub(super) fn new() -> Self {
        let set = || std::array::from_fn(|_| Arc::default());
        Self {
            sets: [set(), set()],
            current: AtomicUsize::new(0),
        }
    }

    /// Counts one in; `key` chooses the counter. Called before the mapping is read.
    pub(super) fn enter(&self, key: u64) -> ExtentGuard {
        // The remainder is below SPLIT.
        let slot = usize::try_from(key % SPLIT as u64).unwrap_or(0);
        loop {
            let set = self.current.load(Ordering::SeqCst);
            let guard = ExtentGuard::counted(&self.sets[set & 1][slot]);
            if self.current.load(Ordering::SeqCst) == set {
                return guard;
            }
            // A turn came between: counted in the wrong set.
        }
    }

    /// Makes the other set current. The old one before it must be quiet.
    pub(super) fn turn(&self) -> Old {
        Old(self.current.fetch_xor(1, Ordering::SeqCst) & 1)
    }

    /// Whether all that was counted in before the turn is out again.
    pub(super) fn is_quiet(&self, old: Old) -> bool {
        let set = &self.sets[old.0];
        set.iter().all(|count| count.load(Ordering::SeqCst) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_set_is_quiet_only_when_those_from_before_the_turn_are_gone() {
        let holders = Holders::new();
        let before = holders.enter(7);
        let old = holders.turn();
        let after = holders.enter(7);
        assert!(!holders.is_quiet(old));
        drop(before);
        assert!(holders.is_quiet(old), "later ones do not count");
        let next = holders.turn();
        assert!(!holders.is_quiet(next));
        drop(after);
        assert!(holders.is_quiet(next));
    }
}
