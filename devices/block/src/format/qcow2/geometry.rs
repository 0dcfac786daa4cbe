//! Where things lie in an image, and what the entries of its tables say: arithmetic only.
//!
//! ```text
//!   guest offset   |  L1 index  |  L2 index  | subcluster | offset inside |
//!                        │            │            │
//!   L1 entry  ───────────┘            │            │     bits 9-55: where the L2 table is
//!   L2 entry  ────────────────────────┘            │     bits 9-55: where the cluster is
//!   bitmap of an extended entry ───────────────────┘     allocated (0-31), zero (32-63)
//! ```
//!
//! Every cluster is treated as 32 subclusters. Where an image has none, all 32 bits say the same.

/// Bits 9 to 55 of an entry: an offset in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount of what the entry points to is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry: reads as zeros.
const ZERO: u64 = 1;
/// Host offsets lie below 64 PiB, because entries have no more bits for them.
pub(super) const MAX_HOST: u64 = 1 << 56;

/// The sizes from which all places follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Clusters are `1 << cluster_bits` bytes; 9 to 21.
    pub(super) cluster_bits: u32,
    /// A refcount is `1 << refcount_order` bits wide; 0 to 6.
    pub(super) refcount_order: u32,
    /// L2 entries have a bitmap of subclusters.
    pub(super) extended: bool,
    /// Guest clusters lie in another file, each at its guest offset.
    pub(super) external: bool,
    /// Entries may say "reads as zeros" (version 3).
    pub(super) zero_flag: bool,
}

impl Geometry {
    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of one L2 entry.
    pub(super) fn entry_size(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of one L2 table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster_size() / self.entry_size()
    }

    /// Guest bytes that one L2 table maps.
    pub(super) fn l2_span(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Bytes of a subcluster; of a cluster where there are none.
    pub(super) fn subcluster_size(self) -> u64 {
        if self.extended {
            self.cluster_size() / 32
        } else {
            self.cluster_size()
        }
    }

    /// The entry of the L1 table for a guest offset.
    pub(super) fn l1_index(self, guest: u64) -> u64 {
        guest / self.l2_span()
    }

    /// L1 entries that `size` guest bytes need.
    pub(super) fn l1_entries_for(self, size: u64) -> u64 {
        size.div_ceil(self.l2_span())
    }

    /// The start of the cluster with this offset, in the guest or the file.
    pub(super) fn floor(self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }

    /// The end of the cluster before this offset.
    pub(super) fn ceil(self, offset: u64) -> u64 {
        offset
            .checked_next_multiple_of(self.cluster_size())
            .unwrap_or(u64::MAX)
    }

    /// The offset inside its cluster.
    pub(super) fn inside(self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Whether an offset is the start of a cluster.
    pub(super) fn is_aligned(self, offset: u64) -> bool {
        self.inside(offset) == 0
    }

    /// Clusters that hold `len` bytes.
    pub(super) fn clusters(self, len: u64) -> u64 {
        len.div_ceil(self.cluster_size())
    }

    /// Refcounts in one refcount block.
    pub(super) fn refcounts_per_block(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The largest refcount.
    pub(super) fn max_refcount(self) -> u64 {
        match 1_u32 << self.refcount_order {
            64 => u64::MAX,
            bits => (1 << bits) - 1,
        }
    }

    /// The subclusters that bytes `from..to` of a cluster touch, one bit each.
    pub(super) fn touched(self, from: u64, to: u64) -> u32 {
        if !self.extended {
            return if from < to { u32::MAX } else { 0 };
        }
        let size = self.subcluster_size();
        mask(from / size, to.div_ceil(size))
    }

    /// The subclusters that lie wholly in bytes `from..to` of a cluster.
    pub(super) fn covered(self, from: u64, to: u64) -> u32 {
        let size = self.subcluster_size();
        let (first, end) = (from.div_ceil(size), to / size);
        if !self.extended {
            return if first == 0 && end == 1 { u32::MAX } else { 0 };
        }
        mask(first, end)
    }

    /// The number of the subcluster with this offset inside its cluster; 0 where there are none.
    pub(super) fn subcluster(self, inside: u64) -> u32 {
        if self.extended {
            u32::try_from(inside / self.subcluster_size()).unwrap_or(31)
        } else {
            0
        }
    }

    /// Where in its cluster a run of subclusters that look like number `first` ends: `same` has a
    /// bit for each that does.
    pub(super) fn run_end(self, first: u32, same: u32) -> u64 {
        if !self.extended {
            return self.cluster_size();
        }
        let run = (same >> first.min(31)).trailing_ones();
        u64::from(first + run).min(32) * self.subcluster_size()
    }

    /// What the entry of an L1 table says: where the table is, if there is one.
    pub(super) fn l2_table(self, entry: u64) -> Result<Option<u64>, BadEntry> {
        let offset = entry & OFFSET_MASK;
        if !self.is_aligned(offset) {
            return Err(BadEntry::Unaligned(offset));
        }
        Ok((offset != 0).then_some(offset))
    }

    /// The entry of an L1 table for a table of its own at `offset`.
    pub(super) fn l1_entry(offset: u64) -> u64 {
        offset | COPIED
    }

    /// What an L2 entry says. `guest` is the offset of the cluster it maps.
    pub(super) fn decode(self, entry: Entry, guest: u64) -> Result<Cluster, BadEntry> {
        let Entry { word, bitmap } = entry;
        if word & COMPRESSED != 0 {
            return self.decode_compressed(word);
        }
        let copied = word & COPIED != 0;
        let offset = word & OFFSET_MASK;
        if !self.is_aligned(offset) {
            return Err(BadEntry::Unaligned(offset));
        }
        let host = (offset != 0 || (self.external && copied)).then_some(offset);
        if let Some(host) = host
            && self.external
            && host != guest
        {
            return Err(BadEntry::NotInPlace(host));
        }
        let (allocated, zero) = if self.extended {
            halves(bitmap)
        } else if word & ZERO != 0 {
            if !self.zero_flag {
                return Err(BadEntry::ZeroInVersion2);
            }
            (0, u32::MAX)
        } else {
            (if host.is_some() { u32::MAX } else { 0 }, 0)
        };
        if allocated & zero != 0 || (allocated != 0 && host.is_none()) {
            return Err(BadEntry::Bitmap(bitmap));
        }
        Ok(Cluster::Standard(Standard {
            host,
            copied,
            allocated,
            zero,
        }))
    }

    fn decode_compressed(self, word: u64) -> Result<Cluster, BadEntry> {
        if self.external {
            return Err(BadEntry::CompressedOutside);
        }
        // The offset takes the lower bits, the number of further sectors the upper ones.
        let offset_bits = 62 - (self.cluster_bits - 8);
        let at = word & ((1 << offset_bits) - 1);
        let sectors = (word & !(COMPRESSED | COPIED)) >> offset_bits;
        if at >= MAX_HOST {
            return Err(BadEntry::TooFar(at));
        }
        let len = (sectors + 1) * 512 - at % 512;
        Ok(Cluster::Compressed { at, len })
    }

    /// Where the cluster of a standard entry is, if it has a place.
    pub(super) fn standard_host(word: u64) -> Option<u64> {
        let host = word & OFFSET_MASK;
        (word & COMPRESSED == 0 && host != 0).then_some(host)
    }

    /// The entry that says this.
    pub(super) fn encode(self, cluster: Standard) -> Entry {
        let mut word = cluster.host.unwrap_or(0);
        if cluster.copied && cluster.host.is_some() {
            word |= COPIED;
        }
        if self.extended {
            let bitmap = u64::from(cluster.zero) << 32 | u64::from(cluster.allocated);
            return Entry { word, bitmap };
        }
        if cluster.zero != 0 {
            word |= ZERO;
        }
        Entry { word, bitmap: 0 }
    }

    /// The entry of a compressed cluster of `len` bytes at `at`; `None` where it does not fit into
    /// one.
    pub(super) fn encode_compressed(self, at: u64, len: u64) -> Option<Entry> {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let last = at.checked_add(len.checked_sub(1)?)?;
        let sectors = last / 512 - at / 512;
        let fits = at < (1 << offset_bits).min(MAX_HOST) && sectors < 1 << (62 - offset_bits);
        fits.then_some(Entry {
            word: COMPRESSED | sectors << offset_bits | at,
            bitmap: 0,
        })
    }
}

/// The lower and the upper half of a bitmap.
fn halves(bitmap: u64) -> (u32, u32) {
    let [a, b, c, d, lower @ ..] = bitmap.to_be_bytes();
    (u32::from_be_bytes(lower), u32::from_be_bytes([a, b, c, d]))
}

/// Bits `from` to `to`, without `to`; at most 32.
fn mask(from: u64, to: u64) -> u32 {
    // The lowest `count` bits of 32.
    let lowest = |count: u64| u32::MAX.checked_shr(u32::try_from(32 - count).unwrap_or(0));
    let (from, to) = (from.min(32), to.min(32));
    lowest(to).unwrap_or(0) & !lowest(from).unwrap_or(0)
}

/// An entry of an L2 table: one word, or two where there are subclusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The descriptor.
    pub(super) word: u64,
    /// What its subclusters are; 0 where there are none.
    pub(super) bitmap: u64,
}

/// What an L2 entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Compressed: at most this many bytes from there on.
    Compressed {
        /// Offset in the file, at any byte.
        at: u64,
        /// Bytes to the end of its last sector.
        len: u64,
    },
    /// Anything else.
    Standard(Standard),
}

/// A cluster that is not compressed. Bits of subclusters: neither allocated nor zero is what the
/// backing file has there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standard {
    /// Where its bytes are, if it has a place.
    pub(super) host: Option<u64>,
    /// Whether nobody else uses that place.
    pub(super) copied: bool,
    /// Subclusters whose bytes are at `host`.
    pub(super) allocated: u32,
    /// Subclusters that read as zeros.
    pub(super) zero: u32,
}

/// An entry that the format does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadEntry {
    /// A table or cluster that does not begin where a cluster does.
    #[error("offset {0:#x} is not the start of a cluster")]
    Unaligned(u64),
    /// A place that no file has.
    #[error("offset {0:#x} is beyond 64 PiB")]
    TooFar(u64),
    /// A cluster of an external data file that is not at its guest offset.
    #[error("offset {0:#x} in the data file is not the guest's own")]
    NotInPlace(u64),
    /// A flag that only version 3 has.
    #[error("a zero cluster in an image of version 2")]
    ZeroInVersion2,
    /// Subclusters that are both allocated and zero, or allocated nowhere.
    #[error("impossible subcluster bitmap {0:#x}")]
    Bitmap(u64),
    /// Data files have no compressed clusters.
    #[error("a compressed cluster in an image with a data file")]
    CompressedOutside,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(cluster_bits: u32, extended: bool) -> Geometry {
        Geometry {
            cluster_bits,
            refcount_order: 4,
            extended,
            external: false,
            zero_flag: true,
        }
    }

    #[test]
    fn masks_of_subclusters_cover_and_touch_what_the_bytes_say() {
        let sub = geometry(16, true);
        assert_eq!(sub.subcluster_size(), 2048);
        assert_eq!(sub.touched(0, 1), 1);
        assert_eq!(sub.touched(2047, 2049), 3);
        assert_eq!(sub.covered(1, 6144), 0b110);
        assert_eq!(sub.covered(0, 65536), u32::MAX);
        assert_eq!(sub.run_end(3, 0b11000), 5 * 2048);
        let plain = geometry(16, false);
        assert_eq!(plain.touched(5, 6), u32::MAX);
        assert_eq!(plain.covered(0, 65535), 0);
        assert_eq!(plain.covered(0, 65536), u32::MAX);
    }

    #[test]
    fn widest_refcounts_fill_a_word() {
        let mut wide = geometry(9, false);
        wide.refcount_order = 6;
        assert_eq!(
            (wide.refcounts_per_block(), wide.max_refcount()),
            (64, u64::MAX)
        );
        wide.refcount_order = 0;
        assert_eq!((wide.refcounts_per_block(), wide.max_refcount()), (4096, 1));
    }

    proptest! {
        #[test]
        fn decoded_entry_encodes_to_itself_or_is_refused(
            bits in 14_u32..=21, extended: bool, word: u64, bitmap: u64,
        ) {
            let geometry = geometry(bits, extended);
            let bitmap = if extended { bitmap } else { 0 };
            let entry = Entry { word, bitmap };
            match geometry.decode(entry, 0) {
                Ok(Cluster::Standard(cluster)) => {
                    let again = geometry.decode(geometry.encode(cluster), 0);
                    let copied = cluster.copied && cluster.host.is_some();
                    prop_assert_eq!(again, Ok(Cluster::Standard(Standard { copied, ..cluster })));
                }
                Ok(Cluster::Compressed { at, len }) => {
                    prop_assert!(len >= 1 && at < MAX_HOST);
                    let again = geometry.encode_compressed(at, len);
                    prop_assert_eq!(again.map(|entry| entry.word), Some(word & !COPIED));
                }
                Err(_) => {}
            }
        }
    }
}
