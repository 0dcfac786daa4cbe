//! Which features a card offers, and what those that the driver took mean for the backend.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HASH_REPORT,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The numbers of features.
pub use virtio_bindings::virtio_net as numbers;

use crate::net::{Abilities, Offloads};

/// The bit of a feature.
#[must_use]
pub const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Whether `features` has the feature.
#[must_use]
pub const fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}

/// What the guest may be given, by the feature that says so.
const GUEST: [(u32, Offloads); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, Offloads::CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, Offloads::TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, Offloads::TSO6),
    (VIRTIO_NET_F_GUEST_ECN, Offloads::ECN),
    (VIRTIO_NET_F_GUEST_UFO, Offloads::UFO),
    (VIRTIO_NET_F_GUEST_USO4, Offloads::USO4),
    (VIRTIO_NET_F_GUEST_USO6, Offloads::USO6),
];

/// What the guest may send, by the feature that says so.
const HOST: [(u32, Offloads); 6] = [
    (VIRTIO_NET_F_CSUM, Offloads::CSUM),
    (VIRTIO_NET_F_HOST_TSO4, Offloads::TSO4),
    (VIRTIO_NET_F_HOST_TSO6, Offloads::TSO6),
    (VIRTIO_NET_F_HOST_ECN, Offloads::ECN),
    (VIRTIO_NET_F_HOST_UFO, Offloads::UFO),
    (VIRTIO_NET_F_HOST_USO, Offloads::USO4.union(Offloads::USO6)),
];

const ALWAYS: u64 = bit(VIRTIO_NET_F_MAC)
    | bit(VIRTIO_NET_F_SPEED_DUPLEX)
    | bit(VIRTIO_NET_F_STATUS)
    | bit(VIRTIO_NET_F_MRG_RXBUF)
    | bit(VIRTIO_NET_F_CTRL_VQ)
    | CONTROLLED
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(VIRTIO_RING_F_EVENT_IDX);

/// What is of no use without a control queue, but for [`VIRTIO_NET_F_MQ`].
const CONTROLLED: u64 = bit(VIRTIO_NET_F_CTRL_RX)
    | bit(VIRTIO_NET_F_CTRL_RX_EXTRA)
    | bit(VIRTIO_NET_F_CTRL_VLAN)
    | bit(VIRTIO_NET_F_CTRL_MAC_ADDR)
    | bit(VIRTIO_NET_F_GUEST_ANNOUNCE);

/// What a card offers whose backend has these abilities: all but what is switched `off`, and of what
/// not every card has that which is `asked` for.
#[must_use]
pub fn offered(abilities: Abilities, pairs: u16, asked: u64, off: u64) -> u64 {
    let mut features = ALWAYS | asked;
    if abilities.header {
        let able = |(feature, needs): &(u32, Offloads)| {
            abilities.offloads.contains(*needs).then_some(bit(*feature))
        };
        let offloads = HOST.iter().chain(&GUEST).filter_map(able);
        features |= offloads.fold(bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS), |all, one| all | one);
    }
    if pairs > 1 {
        features |= bit(VIRTIO_NET_F_MQ);
    }
    features &= !off;
    // What depends on what was switched off goes with it (virtio 1.2, 5.1.3.1).
    if !has(features, VIRTIO_NET_F_CTRL_VQ) {
        let needing = [
            VIRTIO_NET_F_MQ,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_RSS,
            VIRTIO_NET_F_HASH_REPORT,
        ];
        let needing = needing.into_iter().fold(0, |all, one| all | bit(one));
        features &= !(CONTROLLED | needing);
    }
    for (checksum, dependents) in [
        (VIRTIO_NET_F_CSUM, HOST.as_slice()),
        (VIRTIO_NET_F_GUEST_CSUM, GUEST.as_slice()),
    ] {
        if !has(features, checksum) {
            features = dependents
                .iter()
                .fold(features, |all, (feature, _)| all & !bit(*feature));
        }
    }
    features
}

/// What a driver with these features may be given.
#[must_use]
pub fn offloads(features: u64) -> Offloads {
    let taken = |(feature, offload): &(u32, Offloads)| has(features, *feature).then_some(*offload);
    GUEST.iter().filter_map(taken).collect()
}

/// The features that the driver can change by command while it runs.
#[must_use]
pub fn changeable() -> u64 {
    GUEST
        .iter()
        .fold(0, |all, (feature, _)| all | bit(*feature))
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_net::VIRTIO_NET_F_MTU;

    use super::*;

    #[test]
    fn without_a_header_no_work_on_packets_is_offered() {
        let features = offered(Abilities::default(), 1, 0, 0);
        assert!(!has(features, VIRTIO_NET_F_CSUM));
        assert!(!has(features, VIRTIO_NET_F_GUEST_TSO4));
        assert!(!has(features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS));
        assert!(!has(features, VIRTIO_NET_F_MQ));
        assert!(has(features, VIRTIO_NET_F_MRG_RXBUF));
    }

    #[test]
    fn what_depends_on_what_is_off_is_off_too() {
        let able = Abilities {
            header: true,
            offloads: Offloads::all(),
        };
        let asked = [VIRTIO_NET_F_MTU, VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT];
        let asked = asked.into_iter().fold(0, |all, one| all | bit(one));
        let all = offered(able, 4, asked, 0);
        assert_eq!(offloads(all), Offloads::all());
        assert!(has(all, VIRTIO_NET_F_MQ) && all & asked == asked);
        let plain = offered(able, 4, 0, bit(VIRTIO_NET_F_GUEST_CSUM));
        assert_eq!(offloads(plain), Offloads::empty());
        assert!(has(plain, VIRTIO_NET_F_HOST_TSO4));
        assert_eq!(plain & asked, 0);
        let silent = offered(able, 4, asked, bit(VIRTIO_NET_F_CTRL_VQ));
        assert!(!has(silent, VIRTIO_NET_F_MQ) && !has(silent, VIRTIO_NET_F_CTRL_RX));
        assert_eq!(silent & asked, bit(VIRTIO_NET_F_MTU));
    }
}
