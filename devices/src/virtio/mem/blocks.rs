//! Which blocks are plugged: a bit for each.

use std::ops::Range;

const BITS: u64 = u64::BITS as u64;

/// The blocks of a region.
#[derive(Debug)]
pub(super) struct Blocks {
    bits: Vec<u64>,
    count: u64,
    plugged: u64,
}

fn place(block: u64) -> (usize, u64) {
    (
        usize::try_from(block / BITS).unwrap_or(usize::MAX),
        1 << (block % BITS),
    )
}

impl Blocks {
    /// So many, none of them plugged.
    pub(super) fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(BITS)).unwrap_or(0);
        Self {
            bits: vec![0; words],
            count,
            plugged: 0,
        }
    }

    /// How many are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged
    }

    fn is_plugged(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// Whether all of these are plugged, or all are not.
    pub(super) fn are_all(&self, blocks: Range<u64>, plugged: bool) -> bool {
        blocks
            .into_iter()
            .all(|block| self.is_plugged(block) == plugged)
    }

    /// Notes of each of these whether it is plugged. Those that are not there stay so.
    pub(super) fn set(&mut self, blocks: Range<u64>, plugged: bool) {
        for block in blocks.start..blocks.end.min(self.count) {
            let (word, bit) = place(block);
            let Some(bits) = self.bits.get_mut(word) else {
                continue;
            };
            match (*bits & bit != 0, plugged) {
                (false, true) => self.plugged += 1,
                (true, false) => self.plugged -= 1,
                _ => continue,
            }
            *bits ^= bit;
        }
    }

    /// Notes that none is plugged.
    pub(super) fn clear(&mut self) {
        self.bits.fill(0);
        self.plugged = 0;
    }

    /// The plugged ones, lowest first, neighbours together.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in (0..self.count).filter(|block| self.is_plugged(*block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_are_a_set(
            changes in prop::collection::vec((0_u64..200, 0_u64..80, any::<bool>()), 0..30),
        ) {
            const COUNT: u64 = 150;
            let mut blocks = Blocks::new(COUNT);
            let mut model = BTreeSet::new();
            for (start, len, plug) in changes {
                let range = start..start + len;
                let known = start..(start + len).min(COUNT);
                let uniform = known.clone().all(|block| model.contains(&block) == plug);
                prop_assert_eq!(blocks.are_all(known.clone(), plug), uniform);
                blocks.set(range, plug);
                for block in known {
                    if plug { model.insert(block); } else { model.remove(&block); }
                }
                prop_assert_eq!(blocks.plugged(), model.len() as u64);
                let all: Vec<u64> = blocks.runs().into_iter().flatten().collect();
                prop_assert_eq!(&all, &model.iter().copied().collect::<Vec<_>>());
            }
            blocks.clear();
            prop_assert!(blocks.runs().is_empty() && blocks.plugged() == 0);
        }
    }
}
