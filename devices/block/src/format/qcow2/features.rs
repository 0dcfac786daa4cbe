//! The features of an image: what one must know to read it, and their names.

use super::header::feature_entry;

/// Bytes of one entry of the table of names.
const NAME_ENTRY: usize = 48;

bitflags::bitflags! {
    /// Who does not know one of these must not open the image.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Incompatible: u64 {
        /// Refcounts may be wrong.
        const DIRTY = 1;
        /// Anything may be wrong.
        const CORRUPT = 2;
        /// The guest's clusters are in another file.
        const DATA_FILE = 4;
        /// Compressed clusters are not deflated.
        const COMPRESSION = 8;
        /// L2 entries have a bitmap of subclusters.
        const EXTENDED_L2 = 16;
    }

    /// Features one may ignore.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Compatible: u64 {
        /// Refcounts may be written late, with the dirty bit set.
        const LAZY_REFCOUNTS = 1;
    }

    /// Features that whoever writes without knowing them must clear.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct AutoClear: u64 {
        /// The bitmaps extension says what is so.
        const BITMAPS = 1;
        /// The data file alone is the disk.
        const RAW_DATA_FILE = 2;
    }
}

/// Type, bit and name of every feature known here.
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// The table of names that a new image gets.
pub(super) fn name_table() -> Vec<u8> {
    let mut table = Vec::with_capacity(NAMES.len() * NAME_ENTRY);
    for (kind, bit, name) in NAMES {
        let end = table.len() + NAME_ENTRY;
        table.extend([kind, bit]);
        table.extend(name.as_bytes());
        table.resize(end, 0);
    }
    table
}

/// The names of incompatible features, from the image's own table where it has them.
pub(super) fn names_of(bits: u64, table: &[u8]) -> String {
    let names = (0..64_u16).filter(|bit| bits >> bit & 1 != 0).map(|bit| {
        table
            .chunks_exact(NAME_ENTRY)
            .filter_map(feature_entry)
            .find(|(key, _)| *key == bit)
            .map_or_else(
                || format!("Unknown incompatible feature: {:x}", 1_u64 << bit),
                |(_, name)| name,
            )
    });
    names.collect::<Vec<_>>().join(", ")
}
