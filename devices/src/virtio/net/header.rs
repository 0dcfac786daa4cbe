//! The header before each packet, where the driver wants hashes in it (virtio 1.2, 5.1.6): eight more
//! bytes behind the [`HEADER`](crate::net::HEADER) that backends know.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_HASH_REPORT_NONE};
use vm_memory::{Address, GuestAddress};

use super::features::has;
use super::hash::Hash;
use crate::net::HEADER;
use crate::virtio::ring::Broken;

/// How many bytes there are for a hash: its value, its kind, and two of nothing.
pub(super) const HASH: usize = 8;

/// How many bytes a driver with these features has for hashes.
pub(super) fn room(features: u64) -> usize {
    if has(features, VIRTIO_NET_F_HASH_REPORT) {
        HASH
    } else {
        0
    }
}

/// The bytes that say what was hashed.
pub(super) fn fields(hash: Option<Hash>) -> [u8; HASH] {
    let none = u16::try_from(VIRTIO_NET_HASH_REPORT_NONE).unwrap_or(0);
    let (value, report) = hash.map_or((0, none), |hash| (hash.value, hash.report));
    let ([a, b, c, d], [low, high]) = (value.to_le_bytes(), report.to_le_bytes());
    [a, b, c, d, low, high, 0, 0]
}

/// The buffers of a packet that the guest sends, without the bytes for a hash. In `total` is how many
/// bytes there were with them, once all have been looked at.
pub(super) fn without_hash<'a>(
    buffers: impl Iterator<Item = Result<(GuestAddress, usize), Broken>> + 'a,
    total: &'a mut usize,
) -> impl Iterator<Item = Result<(GuestAddress, usize), Broken>> + 'a {
    buffers.flat_map(move |buffer| {
        let parts = match buffer {
            Err(Broken) => [Some(Err(Broken)), None],
            Ok((address, length)) => {
                let before = HEADER.saturating_sub(*total).min(length);
                let skipped = (HEADER + HASH).saturating_sub(*total).min(length);
                *total = total.saturating_add(length);
                let behind = || {
                    let start = address.checked_add(skipped as u64).ok_or(Broken)?;
                    Ok((start, length - skipped))
                };
                [
                    (before > 0).then_some(Ok((address, before))),
                    (skipped < length).then(behind),
                ]
            }
        };
        parts.into_iter().flatten()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hash_is_told_by_its_value_and_kind() {
        let hash = Hash {
            value: 0x1234_5678,
            report: 5,
        };
        assert_eq!(fields(Some(hash)), [0x78, 0x56, 0x34, 0x12, 5, 0, 0, 0]);
        assert_eq!(fields(None), [0; HASH]);
    }

    #[test]
    fn a_buffer_at_the_end_of_all_addresses_is_broken() {
        let mut total = 0;
        let buffers = [Ok((GuestAddress(u64::MAX), 40))];
        let parts: Result<Vec<_>, _> = without_hash(buffers.into_iter(), &mut total).collect();
        assert_eq!(parts, Err(Broken));
    }

    proptest! {
        #[test]
        fn whatever_the_buffers_only_the_bytes_of_the_hash_are_left_out(
            lengths in prop::collection::vec(0_usize..30, 0..8),
        ) {
            // Buffers one behind the other, so that an address is a place in the packet.
            let mut start = 0;
            let buffers: Vec<_> = lengths.iter().map(|length| {
                let at = GuestAddress(start as u64);
                start += length;
                Ok((at, *length))
            }).collect();
            let mut total = 0;
            let parts: Vec<_> = without_hash(buffers.into_iter(), &mut total).collect();
            let places: Vec<u64> = parts.into_iter().flat_map(|part| {
                let (at, length) = part.unwrap();
                at.0..at.0 + length as u64
            }).collect();
            let hash = HEADER as u64..(HEADER + HASH) as u64;
            let wanted: Vec<u64> = (0..start as u64).filter(|at| !hash.contains(at)).collect();
            prop_assert_eq!(places, wanted);
            prop_assert_eq!(total, start);
        }
    }
}
