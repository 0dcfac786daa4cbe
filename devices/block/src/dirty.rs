//! Which parts of a node were written: one bit for each piece, set when a write has ended.
//!
//! ```text
//!   write ends ──► mark ──► |..1..11....1.| ──► take ──► a run of pieces to copy, bits cleared
//! ```
//!
//! Whoever takes a run clears its bits before it reads the bytes, and a write sets them after it
//! has ended: so bytes that changed during the reading are marked again, and none is missed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The maps that want to know of a node's writes. Without any, a write costs one look at a flag.
#[derive(Debug, Default)]
pub(crate) struct Trackers {
    any: AtomicBool,
    maps: RwLock<Vec<Arc<DirtyMap>>>,
}

impl Trackers {
    /// Whether anybody does.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(crate) fn mark(&self, offset: u64, len: u64) {
        if self.any.load(Ordering::Acquire) {
            let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
            maps.iter().for_each(|map| map.mark(offset, len));
        }
    }

    /// In place of some maps, others. The node is drained.
    pub(crate) fn exchange(&self, old: &[Arc<DirtyMap>], new: &[Arc<DirtyMap>]) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|map| !old.iter().any(|other| Arc::ptr_eq(other, map)));
        maps.extend(new.iter().cloned());
        self.any.store(!maps.is_empty(), Ordering::Release);
    }

    /// One more map. The node is drained, or a write under way may escape it.
    pub(crate) fn add(&self, map: Arc<DirtyMap>) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.push(map);
        self.any.store(true, Ordering::Release);
    }

    pub(crate) fn remove(&self, map: &Arc<DirtyMap>) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.retain(|other| !Arc::ptr_eq(other, map));
        self.any.store(!maps.is_empty(), Ordering::Release);
    }
}

/// The bits. Marking takes no lock and allocates nothing.
#[derive(Debug)]
pub struct DirtyMap {
    words: Box<[AtomicU64]>,
    /// The length in bytes of what is mapped.
    len: u64,
    /// The piece in bytes: a power of two.
    granularity: u64,
    marked: AtomicU64,
    /// The word where the next search begins.
    hand: AtomicU64,
}

impl DirtyMap {
    /// A map without a mark, for `len` bytes in pieces of `granularity`.
    #[must_use]
    pub fn new(len: u64, granularity: u64) -> Self {
        Self::from_words(len, granularity, std::iter::empty())
    }

    /// A map whose bits are those of `words`, the lowest first, and unmarked behind them. Bits
    /// beyond the end are left out.
    pub fn from_words(len: u64, granularity: u64, words: impl IntoIterator<Item = u64>) -> Self {
        let granularity = granularity.max(512).next_power_of_two();
        let pieces = len.div_ceil(granularity);
        let mut words = words.into_iter();
        let mut marked = 0;
        let words = (0..pieces.div_ceil(64).max(1)).map(|index| {
            let inside = match pieces - (index * 64).min(pieces) {
                64.. => u64::MAX,
                rest => (1 << rest) - 1,
            };
            let word = words.next().unwrap_or(0) & inside;
            marked += u64::from(word.count_ones());
            AtomicU64::new(word)
        });
        Self {
            words: words.collect(),
            len,
            granularity,
            marked: AtomicU64::new(marked),
            hand: AtomicU64::new(0),
        }
    }

    /// The bits, the lowest first: 64 pieces a word, and at least one word.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        self.words.iter().map(|word| word.load(Ordering::SeqCst))
    }

    /// A copy for another length: what is cut off is forgotten, what is added is unmarked.
    #[must_use]
    pub fn resized(&self, len: u64) -> Self {
        Self::from_words(len, self.granularity, self.words())
    }

    /// Marks what another map marks, whatever its granularity.
    pub fn merge(&self, from: &Self) {
        for (index, mut word) in (0..).zip(from.words()) {
            while word != 0 {
                let start = word.trailing_zeros();
                let run = (word >> start).trailing_ones();
                let piece = index * 64 + u64::from(start);
                let offset = piece * from.granularity;
                let len = u64::from(run) * from.granularity;
                self.mark(offset, len.min(self.len.saturating_sub(offset)));
                let behind = start + run;
                word = if behind == 64 {
                    0
                } else {
                    word >> behind << behind
                };
            }
        }
    }

    /// The length in bytes of what is mapped.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is a node's length")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The piece in bytes.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Bytes in all marked pieces.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.marked
            .load(Ordering::SeqCst)
            .saturating_mul(self.granularity)
    }

    /// Marks every piece that the range touches.
    pub fn mark(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let first = offset / self.granularity;
        let last = offset.saturating_add(len - 1) / self.granularity;
        for index in first / 64..=last / 64 {
            let Some(word) = self.word(index) else {
                return;
            };
            let low = first.saturating_sub(index * 64);
            let high = (last - index * 64).min(63);
            let bits = (u64::MAX >> (63 - high)) & (u64::MAX << low);
            if word.load(Ordering::SeqCst) & bits == bits {
                // Whoever takes them from now on reads what was written before.
                continue;
            }
            let new = bits & !word.fetch_or(bits, Ordering::SeqCst);
            self.marked
                .fetch_add(u64::from(new.count_ones()), Ordering::SeqCst);
        }
    }

    fn word(&self, index: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(index).ok()?)
    }

    /// Takes a run of marked pieces, at most `limit` bytes (and at least one piece): its offset
    /// and length. The search goes round and round.
    #[must_use]
    pub fn take(&self, limit: u64) -> Option<(u64, u64)> {
        let count = self.words.len() as u64;
        let start = self.hand.load(Ordering::Relaxed).min(count - 1);
        for step in 0..=count {
            let index = (start + step) % count;
            let bits = self.word(index)?.load(Ordering::SeqCst);
            if bits == 0 {
                continue;
            }
            self.hand.store(index, Ordering::Relaxed);
            let first = index * 64 + u64::from(bits.trailing_zeros());
            let most = (limit / self.granularity).max(1);
            let mut taken = 0;
            while taken < most && self.clear(first + taken) {
                taken += 1;
            }
            if taken > 0 {
                return Some((first * self.granularity, taken * self.granularity));
            }
        }
        None
    }

    /// Whether a piece that the range touches is marked.
    pub(crate) fn touches(&self, offset: u64, len: u64) -> bool {
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let (is_marked, run) = self.run(at, end - at);
            if is_marked {
                return true;
            }
            at += run;
        }
        false
    }

    /// Whether the piece at `offset` is marked, and how many bytes of the range are like it: at
    /// least one. `len` is not zero.
    pub(crate) fn run(&self, offset: u64, len: u64) -> (bool, u64) {
        let end = offset.saturating_add(len);
        let mut piece = offset / self.granularity;
        let is_marked = self.has(piece);
        loop {
            piece += 1;
            let at = piece.saturating_mul(self.granularity);
            if at >= end {
                return (is_marked, len);
            }
            if self.has(piece) != is_marked {
                return (is_marked, at - offset);
            }
        }
    }

    fn has(&self, piece: u64) -> bool {
        let word = self.word(piece / 64);
        word.is_some_and(|word| word.load(Ordering::SeqCst) & (1 << (piece % 64)) != 0)
    }

    /// Takes the mark from every piece that the range touches.
    pub(crate) fn unmark(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let mut piece = offset / self.granularity;
        while piece.saturating_mul(self.granularity) < end {
            self.clear(piece);
            piece += 1;
        }
    }

    fn clear(&self, piece: u64) -> bool {
        let bit = 1 << (piece % 64);
        let had = self
            .word(piece / 64)
            .is_some_and(|word| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0);
        if had {
            self.marked.fetch_sub(1, Ordering::SeqCst);
        }
        had
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_end_where_marks_do() {
        let map = DirtyMap::new(100 * 512, 512);
        map.mark(10 * 512, 80 * 512);
        assert_eq!(map.run(0, 100 * 512), (false, 10 * 512));
        assert_eq!(map.run(10 * 512 + 1, 100 * 512), (true, 80 * 512 - 1));
        assert_eq!(map.run(95 * 512, 3), (false, 3));
        assert!(map.touches(0, 10 * 512 + 1) && !map.touches(0, 10 * 512));
        map.unmark(63 * 512 + 5, 512);
        assert_eq!(map.run(10 * 512, 90 * 512), (true, 53 * 512));
        assert_eq!(map.run(63 * 512, 37 * 512), (false, 2 * 512));
        assert_eq!(map.count(), 78 * 512);
    }

    #[test]
    fn taken_runs_are_bounded_and_marks_beyond_the_end_are_nobodys() {
        let map = DirtyMap::new(1 << 20, 4096);
        map.mark(4096, 5 * 4096);
        map.mark(u64::MAX - 1, 2);
        assert_eq!(map.count(), 5 * 4096);
        assert_eq!(map.take(2 * 4096), Some((4096, 2 * 4096)));
        assert_eq!(map.take(1), Some((3 * 4096, 4096)));
        assert_eq!(map.take(1 << 20), Some((4 * 4096, 2 * 4096)));
        assert_eq!(map.take(1 << 20), None);
    }

    proptest! {
        #[test]
        fn merged_map_marks_what_either_marked(
            ranges in prop::collection::vec((0..1_000_000u64, 1..50_000u64), 0..12),
            fine in 9..14_u32, coarse in 9..18_u32,
        ) {
            const LEN: u64 = 1_050_000;
            let (from, into) = (DirtyMap::new(LEN, 1 << fine), DirtyMap::new(LEN, 1 << coarse));
            let wanted = DirtyMap::new(LEN, 1 << coarse);
            for (index, (offset, len)) in ranges.iter().enumerate() {
                if index % 3 == 0 {
                    into.mark(*offset, *len);
                    wanted.mark(*offset, *len);
                } else {
                    from.mark(*offset, *len);
                    // As wide as the pieces that it marked there.
                    let start = offset >> fine << fine;
                    let end = (offset + len).next_multiple_of(1 << fine).min(LEN);
                    wanted.mark(start, end - start);
                }
            }
            into.merge(&from);
            prop_assert!(into.words().eq(wanted.words()));
            prop_assert_eq!(into.count(), wanted.count());
        }

        #[test]
        fn map_of_another_length_has_the_marks_that_are_inside(
            offset in 0..1_000_000u64, len in 1..50_000u64, new in 0..2_000_000u64,
        ) {
            let map = DirtyMap::new(1_050_000, 4096);
            map.mark(offset, len);
            let other = map.resized(new);
            let pieces = offset / 4096..(offset + len).div_ceil(4096);
            let inside = pieces.filter(|piece| *piece < new.div_ceil(4096)).count() as u64;
            prop_assert_eq!(other.count(), inside * 4096);
            let back = other.resized(1_050_000);
            prop_assert_eq!(back.count(), other.count());
        }

        #[test]
        fn what_was_marked_is_taken_once(ranges in prop::collection::vec((0..1_000_000u64, 1..50_000u64), 0..20)) {
            let map = DirtyMap::new(2_000_000, 4096);
            let mut model = BTreeSet::new();
            for (offset, len) in &ranges {
                map.mark(*offset, *len);
                model.extend(offset / 4096..=(offset + len - 1) / 4096);
            }
            prop_assert_eq!(map.count(), model.len() as u64 * 4096);
            while let Some((offset, len)) = map.take(64 << 10) {
                for piece in offset / 4096..(offset + len) / 4096 {
                    prop_assert!(model.remove(&piece));
                }
            }
            prop_assert!(model.is_empty());
            prop_assert_eq!(map.count(), 0);
        }
    }
}
