//! What virtio devices and their features are called.

use virtio_bindings::{virtio_blk, virtio_config, virtio_net, virtio_ring, virtio_scsi};

/// A number, and what it is called.
pub type Name = (u32, &'static str);

/// Names of numbers that are constants of the same name.
macro_rules! names {
    ($($module:ident: $($name:ident),+;)+) => { &[$($(($module::$name, stringify!($name))),+),+] };
}

/// Features of queues and transports.
pub const TRANSPORT: &[Name] = names! {
    virtio_config: VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_ANY_LAYOUT, VIRTIO_F_VERSION_1,
        VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER, VIRTIO_F_ORDER_PLATFORM,
        VIRTIO_F_SR_IOV, VIRTIO_F_RING_RESET;
    virtio_ring: VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX;
};

const NET: &[Name] = names! {
    virtio_net: VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_F_MTU, VIRTIO_NET_F_MAC, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_UFO,
        VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_GUEST_ANNOUNCE,
        VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_HASH_REPORT,
        VIRTIO_NET_F_GUEST_HDRLEN, VIRTIO_NET_F_RSS, VIRTIO_NET_F_RSC_EXT, VIRTIO_NET_F_STANDBY,
        VIRTIO_NET_F_SPEED_DUPLEX;
};

const BLK: &[Name] = names! {
    virtio_blk: VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_GEOMETRY,
        VIRTIO_BLK_F_RO, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_ZONED;
};

const SCSI: &[Name] = names! {
    virtio_scsi: VIRTIO_SCSI_F_INOUT, VIRTIO_SCSI_F_HOTPLUG, VIRTIO_SCSI_F_CHANGE,
        VIRTIO_SCSI_F_T10_PI;
};

/// virtio 1.2, 5.3.3.
const CONSOLE: &[Name] = &[
    (0, "VIRTIO_CONSOLE_F_SIZE"),
    (1, "VIRTIO_CONSOLE_F_MULTIPORT"),
    (2, "VIRTIO_CONSOLE_F_EMERG_WRITE"),
];

/// virtio 1.2, 5.5.3.
const BALLOON: &[Name] = &[
    (0, "VIRTIO_BALLOON_F_MUST_TELL_HOST"),
    (1, "VIRTIO_BALLOON_F_STATS_VQ"),
    (2, "VIRTIO_BALLOON_F_DEFLATE_ON_OOM"),
    (3, "VIRTIO_BALLOON_F_FREE_PAGE_HINT"),
    (4, "VIRTIO_BALLOON_F_PAGE_POISON"),
    (5, "VIRTIO_BALLOON_F_REPORTING"),
];

/// virtio 1.2, 5.10.3.
const VSOCK: &[Name] = &[
    (0, "VIRTIO_VSOCK_F_STREAM"),
    (1, "VIRTIO_VSOCK_F_SEQPACKET"),
];

/// virtio 1.2, 5.11.3.
const FS: &[Name] = &[(0, "VIRTIO_FS_F_NOTIFICATION")];

/// virtio 1.2, 5.15.3.
const MEM: &[Name] = &[
    (0, "VIRTIO_MEM_F_ACPI_PXM"),
    (1, "VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE"),
];

/// virtio 1.2, 5.19.3.
const PMEM: &[Name] = &[(0, "VIRTIO_PMEM_F_SHMEM_REGION")];

/// What devices of a type (virtio 1.2, section 5) are called, and features of their own.
#[must_use]
pub fn of(device_type: u16) -> Option<(&'static str, &'static [Name])> {
    Some(match device_type {
        1 => ("virtio-net", NET),
        2 => ("virtio-blk", BLK),
        3 => ("virtio-serial", CONSOLE),
        4 => ("virtio-rng", &[]),
        5 => ("virtio-balloon", BALLOON),
        8 => ("virtio-scsi", SCSI),
        18 => ("virtio-input", &[]),
        19 => ("vhost-vsock", VSOCK),
        24 => ("virtio-mem", MEM),
        26 => ("virtio-user-fs", FS),
        27 => ("virtio-pmem", PMEM),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_feature_has_one_name_and_is_a_queues_or_a_devices() {
        for device_type in 0..64 {
            let Some((name, own)) = of(device_type) else {
                continue;
            };
            let all: Vec<_> = TRANSPORT.iter().chain(own).collect();
            let numbers: BTreeSet<_> = all.iter().map(|(number, _)| number).collect();
            assert_eq!(numbers.len(), all.len(), "{name}");
            assert!(numbers.iter().all(|number| **number < 64), "{name}");
        }
    }
}
