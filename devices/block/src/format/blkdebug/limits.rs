//! Which requests the node takes, and the pieces into which others fall: pure arithmetic.
//!
//! ```text
//!   align            │       │       │       │       │
//!   a read or write      ├───────────────┤              asked for
//!   its pieces       ├───┬───┼───────┼───┬───┤          sent below; one in the middle for each
//!                      block   whole   block            max-transfer
//! ```
//!
//! Of a block at an end only a part was asked for: it is read wholly, and written wholly with what
//! was there. Zeros are written and space is discarded in whole grains; what sticks out of them is
//! written as bytes, or stays.

use std::ops::Range;

/// The largest block to which requests are widened, in bytes: each end takes so much memory.
pub const WIDEST: u64 = 1 << 20;
/// The largest of the other limits, in bytes.
const LARGEST: u64 = i32::MAX as u64;

/// What a node claims that requests must be, in bytes. 0 is no claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestLimits {
    /// Where requests begin and end: a power of two, at most [`WIDEST`].
    pub align: u64,
    /// The longest read or write.
    pub max_transfer: u64,
    /// Where writes of zeros begin and end.
    pub opt_write_zero: u64,
    /// The longest write of zeros.
    pub max_write_zero: u64,
    /// Where discards begin and end.
    pub opt_discard: u64,
    /// The longest discard.
    pub max_discard: u64,
}

/// A limit that no request could meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The alignment.
    #[error("Cannot meet constraints with align {0}: wanted a power of two up to {WIDEST}")]
    Align(u64),
    /// Another one.
    #[error(
        "Cannot meet constraints with {name} {value}: wanted a multiple of {of} below {LARGEST}"
    )]
    Other {
        /// Its name.
        name: &'static str,
        /// What it was to be.
        value: u64,
        /// What it must be a multiple of.
        of: u64,
    },
}

impl RequestLimits {
    /// Whether requests can be such, over a node whose own alignment is `below`.
    ///
    /// # Errors
    /// One of the limits is out of its range, or no multiple of what it limits.
    pub fn check(&self, below: u32) -> Result<(), LimitError> {
        if self.align != 0 && (!self.align.is_power_of_two() || self.align > WIDEST) {
            return Err(LimitError::Align(self.align));
        }
        let align = self.alignment(below);
        for (name, value, of) in [
            ("max-transfer", self.max_transfer, align),
            ("opt-write-zero", self.opt_write_zero, align),
            (
                "max-write-zero",
                self.max_write_zero,
                self.opt_write_zero.max(align),
            ),
            ("opt-discard", self.opt_discard, align),
            ("max-discard", self.max_discard, self.opt_discard.max(align)),
        ] {
            if value >= LARGEST || !value.is_multiple_of(of) {
                return Err(LimitError::Other { name, value, of });
            }
        }
        Ok(())
    }

    /// What requests begin and end at over such a node.
    fn alignment(&self, below: u32) -> u64 {
        self.align.max(u64::from(below)).max(1)
    }
}

/// A read or write that goes below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// What was asked for.
    pub(super) asked: Range<u64>,
    /// What is sent: the same, or the block that it is a part of.
    pub(super) sent: Range<u64>,
}

/// How a range falls into grains: what sticks out in front, pieces of whole ones, and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grains {
    /// Before the first whole grain.
    pub(super) head: Range<u64>,
    /// Whole grains.
    pub(super) body: Range<u64>,
    /// Behind the last whole grain.
    pub(super) tail: Range<u64>,
    most: u64,
}

impl Grains {
    /// The body, in pieces that are not too long.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let (mut at, end, most) = (self.body.start, self.body.end, self.most);
        std::iter::from_fn(move || {
            let piece = at..end.min(at.saturating_add(most));
            at = piece.end;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// The limits over a node of some length, whose end is a boundary of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    limits: RequestLimits,
    align: u64,
    len: u64,
}

impl Shape {
    pub(super) fn new(limits: RequestLimits, below: u32, len: u64) -> Self {
        Self {
            limits,
            align: limits.alignment(below),
            len,
        }
    }

    /// Whether a write may take along what is beside it.
    pub(super) fn widens(&self) -> bool {
        self.align > 1
    }

    /// The blocks of which `range` has a part.
    pub(super) fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start - range.start % self.align;
        let end = range.end.checked_next_multiple_of(self.align);
        start..end.map_or(self.len, |end| end.min(self.len))
    }

    /// The reads or writes of a range inside the node.
    pub(super) fn pieces(self, range: Range<u64>) -> impl Iterator<Item = Piece> {
        let mut at = range.start;
        let end = range.end;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let block = self.blocks(&(at..at + 1));
            let piece = if at > block.start || end < block.end {
                Piece {
                    asked: at..end.min(block.end),
                    sent: block,
                }
            } else {
                let most = at_most(self.limits.max_transfer, self.align);
                let whole = self.floor(end, self.align);
                let asked = at..whole.min(at.saturating_add(most));
                Piece {
                    sent: asked.clone(),
                    asked,
                }
            };
            at = piece.asked.end;
            Some(piece)
        })
    }

    /// How zeros are written to a range.
    pub(super) fn zeroes(&self, range: Range<u64>) -> Grains {
        self.grains(
            range,
            self.limits.opt_write_zero,
            self.limits.max_write_zero,
        )
    }

    /// How a range is discarded.
    pub(super) fn discards(&self, range: Range<u64>) -> Grains {
        self.grains(range, self.limits.opt_discard, self.limits.max_discard)
    }

    fn grains(&self, range: Range<u64>, grain: u64, most: u64) -> Grains {
        // Below, blocks may have become larger since the limits were looked at.
        let grain = grain.next_multiple_of(self.align).max(self.align);
        let most = at_most(most, grain);
        let start = range.start.checked_next_multiple_of(grain);
        let start = start.map_or(range.end, |start| start.min(range.end));
        let end = self.floor(range.end, grain).max(start);
        Grains {
            head: range.start..start,
            body: start..end,
            tail: end..range.end,
            most,
        }
    }

    /// The last boundary up to `end`.
    fn floor(&self, end: u64, of: u64) -> u64 {
        if end == self.len { end } else { end - end % of }
    }
}

/// The longest piece of whole `of` that a limit allows, and at least one.
fn at_most(limit: u64, of: u64) -> u64 {
    let limit = if limit == 0 { u64::MAX } else { limit };
    (limit - limit % of).max(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: RequestLimits = RequestLimits {
        align: 0,
        max_transfer: 0,
        opt_write_zero: 0,
        max_write_zero: 0,
        opt_discard: 0,
        max_discard: 0,
    };

    fn pieces(limits: RequestLimits, range: Range<u64>) -> Vec<(Range<u64>, Range<u64>)> {
        let shape = Shape::new(limits, 1, 10_000);
        let pieces = shape.pieces(range);
        pieces.map(|piece| (piece.asked, piece.sent)).collect()
    }

    #[test]
    fn without_limits_requests_stay_as_they_are() {
        assert_eq!(pieces(NONE, 3..9999), [(3..9999, 3..9999)]);
        let shape = Shape::new(NONE, 1, 10_000);
        for grains in [shape.zeroes(3..9999), shape.discards(3..9999)] {
            assert!(
                grains
                    .pieces()
                    .eq([(3, 9999)].map(|(start, end)| start..end))
            );
            assert!(grains.head.is_empty() && grains.tail.is_empty());
        }
    }

    #[test]
    fn ends_become_whole_blocks_and_the_middle_falls_into_transfers() {
        let limits = RequestLimits {
            align: 1024,
            max_transfer: 2048,
            ..NONE
        };
        assert_eq!(pieces(limits, 1024..2048), [(1024..2048, 1024..2048)]);
        assert_eq!(pieces(limits, 1100..1200), [(1100..1200, 1024..2048)]);
        assert_eq!(
            pieces(limits, 500..6200),
            [
                (500..1024, 0..1024),
                (1024..3072, 1024..3072),
                (3072..5120, 3072..5120),
                (5120..6144, 5120..6144),
                (6144..6200, 6144..7168),
            ]
        );
    }

    #[test]
    fn the_end_of_the_node_ends_its_last_block() {
        let limits = RequestLimits {
            align: 4096,
            ..NONE
        };
        assert_eq!(pieces(limits, 8192..10_000), [(8192..10_000, 8192..10_000)]);
        assert_eq!(pieces(limits, 9999..10_000), [(9999..10_000, 8192..10_000)]);
        assert_eq!(pieces(limits, 0..10_000), [(0..10_000, 0..10_000)]);
    }

    #[test]
    fn what_is_no_whole_grain_sticks_out() {
        let limits = RequestLimits {
            align: 512,
            opt_write_zero: 2048,
            max_write_zero: 4096,
            opt_discard: 1024,
            ..NONE
        };
        let shape = Shape::new(limits, 1, 10_000);
        let zeroes = shape.zeroes(100..9000);
        assert_eq!(
            (zeroes.head.clone(), zeroes.tail.clone()),
            (100..2048, 8192..9000)
        );
        assert_eq!(
            zeroes.pieces().collect::<Vec<_>>(),
            [2048..6144, 6144..8192]
        );
        let few = shape.zeroes(2100..3000);
        assert_eq!(
            (few.head.clone(), few.tail.clone()),
            (2100..3000, 3000..3000)
        );
        assert_eq!(few.pieces().count(), 0);
        let discards = shape.discards(1..9999);
        assert!(
            discards
                .pieces()
                .eq([(1024, 9216)].map(|(start, end)| start..end))
        );
    }

    #[test]
    fn limits_that_no_request_meets_are_refused() {
        for align in [3, WIDEST * 2] {
            let limits = RequestLimits { align, ..NONE };
            assert_eq!(limits.check(1), Err(LimitError::Align(align)));
        }
        let limits = RequestLimits {
            align: 4096,
            max_transfer: 1024,
            ..NONE
        };
        let told = limits
            .check(1)
            .expect_err("shorter than a block")
            .to_string();
        assert_eq!(
            told,
            "Cannot meet constraints with max-transfer 1024: wanted a multiple of 4096 below 2147483647"
        );
        let limits = RequestLimits {
            opt_discard: 8192,
            max_discard: 4096,
            ..NONE
        };
        assert!(limits.check(1).is_err());
        let limits = RequestLimits {
            max_write_zero: 512,
            ..NONE
        };
        assert_eq!(limits.check(512), Ok(()));
        assert!(limits.check(4096).is_err());
    }
}
