//! The configuration space (virtio 1.2, section 5.1.4).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::Mac;

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
}

impl NetConfig {
    /// Fills `data` from `offset` on; zeros beyond the end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.as_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(start..).unwrap_or_default();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = rest.get(at).copied().unwrap_or(0);
        }
    }
}
