//! The configuration space (virtio 1.2, section 5.1.4).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::Mac;
use crate::virtio::device::read_config;

/// As the driver reads it.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C, packed)]
pub(super) struct NetConfig {
    pub(super) mac: Mac,
    pub(super) status: U16,
    pub(super) max_pairs: U16,
    pub(super) mtu: U16,
    pub(super) speed: U32,
    pub(super) duplex: u8,
    pub(super) key_size: u8,
    pub(super) table_length: U16,
    pub(super) hash_types: U32,
}

impl NetConfig {
    /// Fills `data` from `offset` on; zeros beyond the end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_config(self.as_bytes(), offset, data);
    }
}
