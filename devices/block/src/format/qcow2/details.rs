//! What lists show of an image beyond its length.

use super::compress::Compression;
use super::features::{AutoClear, Compatible, Incompatible};
use super::header::Header;
use super::snapshots::Snapshot;

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// Whether refcounts are written late.
    pub lazy_refcounts: bool,
    /// Whether refcounts may be wrong: somebody writes, or did not close it.
    pub dirty: bool,
    /// Whether it was found to be corrupt.
    pub corrupt: bool,
    /// Whether L2 entries have a bitmap of subclusters.
    pub extended_l2: bool,
    /// The external data file's name in the header.
    pub data_file: Option<String>,
    /// Whether the data file alone is the disk.
    pub data_file_raw: bool,
    /// The backing file's name and format in the header.
    pub backing: Option<(String, Option<String>)>,
    /// The states that it keeps.
    pub snapshots: Vec<Snapshot>,
}

impl Details {
    pub(super) fn new(header: &Header, snapshots: Vec<Snapshot>) -> Self {
        Self {
            version: header.version,
            cluster_size: 1 << header.cluster_bits,
            compression: header.compression,
            refcount_bits: 1 << header.refcount_order,
            lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
            dirty: header.incompatible.contains(Incompatible::DIRTY),
            corrupt: header.incompatible.contains(Incompatible::CORRUPT),
            extended_l2: header.incompatible.contains(Incompatible::EXTENDED_L2),
            data_file: header.data_file.clone(),
            data_file_raw: header.autoclear.contains(AutoClear::RAW_DATA_FILE),
            backing: header
                .backing_file
                .clone()
                .map(|file| (file, header.backing_format.clone())),
            snapshots,
        }
    }
}
