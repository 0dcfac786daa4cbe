//! The configuration space of a block device (virtio 1.2, 5.2.4).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use crate::virtio::device::read_config;

/// Where the one field a driver may write stands: `writeback`.
pub(super) const WRITEBACK_OFFSET: u64 = 32;

/// The layout, as the driver reads it. All fields are little-endian; what belongs to a feature
/// that is not offered stays zero.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct BlkConfig {
    /// In sectors of 512 bytes, whatever the block size.
    pub(super) capacity: U64,
    pub(super) size_max: U32,
    /// Data segments in one request.
    pub(super) seg_max: U32,
    pub(super) cylinders: U16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
    /// The logical block size in bytes.
    pub(super) blk_size: U32,
    /// Logical blocks per physical one, as a power of two.
    pub(super) physical_block_exp: u8,
    pub(super) alignment_offset: u8,
    /// The smallest sensible transfer, in logical blocks.
    pub(super) min_io_size: U16,
    pub(super) opt_io_size: U32,
    /// 1: a write cache that wants flushes; 0: writes are durable when they complete.
    pub(super) writeback: u8,
    pub(super) unused0: u8,
    pub(super) num_queues: U16,
    /// Limits of one segment (in sectors) and of one request (in segments).
    pub(super) max_discard_sectors: U32,
    pub(super) max_discard_seg: U32,
    /// In sectors.
    pub(super) discard_sector_alignment: U32,
    pub(super) max_write_zeroes_sectors: U32,
    pub(super) max_write_zeroes_seg: U32,
    pub(super) write_zeroes_may_unmap: u8,
    pub(super) unused1: [u8; 3],
}

impl BlkConfig {
    /// Copies from `offset` on; what lies beyond the end is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_config(self.as_bytes(), offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_puts_them() {
        assert_eq!(size_of::<BlkConfig>(), 60);
        assert_eq!(std::mem::offset_of!(BlkConfig, seg_max), 12);
        assert_eq!(std::mem::offset_of!(BlkConfig, cylinders), 16);
        assert_eq!(std::mem::offset_of!(BlkConfig, blk_size), 20);
        assert_eq!(
            std::mem::offset_of!(BlkConfig, writeback) as u64,
            WRITEBACK_OFFSET
        );
        assert_eq!(std::mem::offset_of!(BlkConfig, num_queues), 34);
        assert_eq!(std::mem::offset_of!(BlkConfig, max_discard_sectors), 36);
        assert_eq!(std::mem::offset_of!(BlkConfig, write_zeroes_may_unmap), 56);
    }

    #[test]
    fn reading_across_the_end_gives_zeros_there() {
        let config = BlkConfig {
            write_zeroes_may_unmap: 1,
            ..BlkConfig::default()
        };
        let mut data = [0xff; 8];
        config.read(56, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
        config.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
