//! Where memory devices go: the room that the layout left for them, and who has which part of it.
//!
//! Pure. The texts of refusals are those that QEMU's clients know.

use std::ops::Range;

/// Guests take memory in by blocks of this size (Linux: a section of its memory model on x86-64), and
/// refuse a module that begins inside of one.
const GUEST_BLOCK: u64 = 128 << 20;

/// Where a memory device wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceWish {
    /// Its length in bytes.
    pub size: u64,
    /// What its address must be a multiple of; a power of two.
    pub align: u64,
    /// The address, if it matters.
    pub address: Option<u64>,
}

/// Why there is no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlaceError {
    /// The machine has no room at all.
    #[error(
        "the configuration is not prepared for memory devices (e.g., for memory hotplug), consider \
         specifying the maxmem option"
    )]
    NoRoom,
    /// `maxmem` is reached.
    #[error(
        "not enough space, currently 0x{used:x} in use of total space for memory devices \
         0x{capacity:x}"
    )]
    Full {
        /// The bytes that memory devices have.
        used: u64,
        /// The bytes that they may have.
        capacity: u64,
    },
    /// The address is no multiple of what it must be.
    #[error("address must be aligned to 0x{align:x} bytes")]
    Unaligned {
        /// What it must be.
        align: u64,
    },
    /// The address is not in the room.
    #[error(
        "can't add memory device [0x{start:x}:0x{size:x}], usable range for memory devices \
         [0x{room:x}:0x{room_size:x}]"
    )]
    Outside {
        /// The address asked for.
        start: u64,
        /// The device's length.
        size: u64,
        /// Where the room begins.
        room: u64,
        /// The room's length.
        room_size: u64,
    },
    /// The address is another device's.
    #[error("address range conflicts with memory device id='{owner}'")]
    Taken {
        /// That device.
        owner: String,
    },
    /// What is free is in pieces.
    #[error(
        "could not find position in guest address space for memory device - memory fragmented due \
         to alignments"
    )]
    Fragmented,
}

/// The room, and who is where in it.
#[derive(Clone, Debug, Default)]
pub struct Places {
    room: Range<u64>,
    capacity: u64,
    /// By their addresses.
    taken: Vec<(Range<u64>, String)>,
}

impl Places {
    /// A room of which `capacity` bytes may be used; it is larger, as devices are aligned.
    #[must_use]
    pub fn new(room: Range<u64>, capacity: u64) -> Self {
        Self {
            room,
            capacity,
            taken: Vec::new(),
        }
    }

    /// Gives a place to `owner`; returns its address.
    ///
    /// # Errors
    /// There is none, or not where it is wanted.
    pub fn take(&mut self, owner: &str, wish: PlaceWish) -> Result<u64, PlaceError> {
        let range = self.find(wish)?;
        let at = self
            .taken
            .partition_point(|(other, _)| other.start < range.start);
        let start = range.start;
        self.taken.insert(at, (range, owner.to_owned()));
        Ok(start)
    }

    /// Takes the place of `owner` back; where it was.
    pub fn give_back(&mut self, owner: &str) -> Option<Range<u64>> {
        let at = self.taken.iter().position(|(_, other)| other == owner)?;
        Some(self.taken.remove(at).0)
    }

    fn find(&self, wish: PlaceWish) -> Result<Range<u64>, PlaceError> {
        let capacity = self.capacity;
        if capacity == 0 {
            return Err(PlaceError::NoRoom);
        }
        let sizes = self.taken.iter().map(|(range, _)| range.end - range.start);
        let used: u64 = sizes.sum();
        if wish.size > capacity.saturating_sub(used) {
            return Err(PlaceError::Full { used, capacity });
        }
        match wish.address {
            Some(address) => self.at(address, wish),
            None if wish.size >= GUEST_BLOCK => self
                .first_fit(wish.size, wish.align.max(GUEST_BLOCK))
                .or_else(|_| self.first_fit(wish.size, wish.align)),
            None => self.first_fit(wish.size, wish.align),
        }
    }

    fn at(&self, start: u64, wish: PlaceWish) -> Result<Range<u64>, PlaceError> {
        let (align, size) = (wish.align.max(1), wish.size);
        if !start.is_multiple_of(align) {
            return Err(PlaceError::Unaligned { align });
        }
        let range = start..start.saturating_add(size);
        if start < self.room.start || range.end > self.room.end {
            return Err(PlaceError::Outside {
                start,
                size,
                room: self.room.start,
                room_size: self.room.end - self.room.start,
            });
        }
        match self.neighbour(&range) {
            Some((_, owner)) => Err(PlaceError::Taken {
                owner: owner.clone(),
            }),
            None => Ok(range),
        }
    }

    fn first_fit(&self, size: u64, align: u64) -> Result<Range<u64>, PlaceError> {
        let mut start = self.room.start;
        loop {
            let aligned = start.checked_next_multiple_of(align.max(1));
            let range = aligned.and_then(|start| Some(start..start.checked_add(size)?));
            let range = range
                .filter(|range| range.end <= self.room.end)
                .ok_or(PlaceError::Fragmented)?;
            match self.neighbour(&range) {
                Some((other, _)) => start = other.end,
                None => return Ok(range),
            }
        }
    }

    /// Who has some of `range`.
    fn neighbour(&self, range: &Range<u64>) -> Option<&(Range<u64>, String)> {
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        self.taken.iter().find(|(other, _)| overlaps(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const START: u64 = 4 << 30;

    fn places() -> Places {
        Places::new(START..START + 64 * MIB, 32 * MIB)
    }

    fn wish(size: u64, address: Option<u64>) -> PlaceWish {
        PlaceWish {
            size: size * MIB,
            align: 2 * MIB,
            address,
        }
    }

    #[test]
    fn the_lowest_free_place_is_taken_and_given_back() {
        let mut places = places();
        assert_eq!(places.take("a", wish(3, None)), Ok(START));
        assert_eq!(places.take("b", wish(2, None)), Ok(START + 4 * MIB));
        assert_eq!(places.give_back("a"), Some(START..START + 3 * MIB));
        assert_eq!(places.give_back("a"), None);
        assert_eq!(places.take("c", wish(5, None)), Ok(START + 6 * MIB));
        assert_eq!(places.take("d", wish(4, None)), Ok(START));
    }

    #[test]
    fn large_memory_begins_where_a_block_of_the_guests_does_if_it_can() {
        let mut places = Places::new(START..START + 400 * MIB, 400 * MIB);
        assert_eq!(places.take("small", wish(32, None)), Ok(START));
        assert_eq!(places.take("large", wish(128, None)), Ok(START + 128 * MIB));
        assert_eq!(places.take("late", wish(140, None)), Ok(START + 256 * MIB));
        assert_eq!(
            places.give_back("large"),
            Some(START + 128 * MIB..START + 256 * MIB)
        );
        assert_eq!(places.take("tight", wish(200, None)), Ok(START + 32 * MIB));
    }

    #[test]
    fn a_place_that_cannot_be_says_why() {
        let mut places = places();
        places.take("a", wish(8, Some(START + 8 * MIB))).unwrap();
        for (wish, text) in [
            (
                wish(25, None),
                "not enough space, currently 0x800000 in use of total space for memory devices \
                 0x2000000",
            ),
            (
                wish(2, Some(START + MIB)),
                "address must be aligned to 0x200000 bytes",
            ),
            (
                wish(2, Some(START + 64 * MIB)),
                "can't add memory device [0x104000000:0x200000], usable range for memory devices \
                 [0x100000000:0x4000000]",
            ),
            (
                wish(4, Some(START + 6 * MIB)),
                "address range conflicts with memory device id='a'",
            ),
        ] {
            assert_eq!(places.take("b", wish).unwrap_err().to_string(), text);
        }
        assert_eq!(
            Places::default().take("a", wish(1, None)),
            Err(PlaceError::NoRoom)
        );
    }

    proptest! {
        #[test]
        fn no_two_devices_have_the_same_bytes(
            steps in prop::collection::vec((0_u8..6, 1_u64..20, prop::option::of(0_u64..40)), 0..40),
        ) {
            let mut places = places();
            for (owner, size, address) in steps {
                let owner = format!("m{owner}");
                if places.give_back(&owner).is_none() {
                    let address = address.map(|mib| START + 2 * mib * MIB);
                    places.take(&owner, wish(size, address)).ok();
                }
                for pair in places.taken.windows(2) {
                    prop_assert!(pair[0].0.end <= pair[1].0.start);
                }
                let used: u64 = places.taken.iter().map(|(range, _)| range.end - range.start).sum();
                prop_assert!(used <= 32 * MIB);
                for (range, _) in &places.taken {
                    prop_assert!(range.start >= START && range.end <= START + 64 * MIB);
                    prop_assert!(range.start.is_multiple_of(2 * MIB));
                }
            }
        }
    }
}
