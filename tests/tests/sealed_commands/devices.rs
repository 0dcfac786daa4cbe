//! Rows about disks, block drivers and devices.

use serde_json::{Value, json};

use super::row::{FILE, Hand, MIB, Row, named, row};

/// The models that the machine does not have: there is no second one in it.
const OTHER_CPUS: &[&str] = &[
    "Broadwell",
    "Broadwell-noTSX",
    "Cascadelake-Server",
    "EPYC",
    "EPYC-Milan",
    "EPYC-Rome",
    "Haswell",
    "Haswell-noTSX",
    "Icelake-Server",
    "IvyBridge",
    "Nehalem",
    "SandyBridge",
    "Skylake-Client",
    "Skylake-Server",
    "Westmere",
    "kvm64",
    "max",
    "qemu64",
    "x86-64-v1",
    "x86-64-v2",
    "x86-64-v3",
    "x86-64-v4",
];

pub(super) fn other_cpus() -> Vec<Row> {
    let rows = OTHER_CPUS.iter().map(|model| {
        row(
            "device_add",
            json!({"driver": format!("{model}-x86_64-cpu"), "id": "other",
            "socket-id": 1, "core-id": 0, "thread-id": 0}),
        )
    });
    rows.collect()
}

pub(super) fn disks_and_devices() -> Vec<Row> {
    let device = |id: u32, driver: &str, more: Value| {
        let mut options = json!({"driver": driver, "id": format!("d{id}")});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        row("device_add", options)
    };
    let vcpu = || json!({"socket-id": 1, "core-id": 0, "thread-id": 0});
    let port = |number: u32| json!({"bus": format!("port{number}")});
    vec![
        row(
            "blockdev-add",
            json!({"driver": "raw", "node-name": "disk", "file": {
            "driver": "file", "node-name": "file", "filename": "/dev/fdset/50"}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "file", "node-name": "path",
            "filename": FILE, "read-only": true}),
        )
        .wants_to_open(),
        row(
            "blockdev-add",
            json!({"driver": "file", "node-name": "alone", "filename": "/dev/fdset/50"}),
        ),
        row("add-fd", json!({"fdset-id": 53})).with(Hand::Image),
        row(
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "image", "lazy-refcounts": true, "file": {
            "driver": "file", "filename": "/dev/fdset/53"}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "compress", "node-name": "packs", "file": "image"}),
        ),
        row("blockdev-del", json!({"node-name": "packs"})),
        row(
            "blockdev-add",
            json!({"driver": "copy-before-write", "node-name": "saves", "file": "image",
            "target": {"driver": "null-co", "size": 64 * MIB}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "snapshot-access", "node-name": "was", "file": "saves"}),
        ),
        row("blockdev-del", json!({"node-name": "was"})),
        row("blockdev-del", json!({"node-name": "saves"})),
        // Longer: the file grows, on the thread that may do that.
        row(
            "block_resize",
            json!({"node-name": "image", "size": 2 * MIB}),
        ),
        row("blockdev-del", json!({"node-name": "image"})),
        row(
            "blockdev-add",
            json!({"driver": "host_device", "node-name": "host",
            "filename": "/dev/fdset/50"}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "null", "size": MIB}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "null-aio", "node-name": "aio", "size": MIB}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "blkdebug", "node-name": "debug",
            "image": {"driver": "null-co", "node-name": "debugged", "size": MIB}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "copy-on-read", "node-name": "keeps", "file": "debug"}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "throttle", "node-name": "slow", "throttle-group": "of-throttle-group",
            "file": "keeps"}),
        ),
        device(
            0,
            "virtio-blk-pci",
            json!({"bus": "port0", "drive": "disk"}),
        ),
        device(
            1,
            "virtio-blk-pci-non-transitional",
            json!({"bus": "port1", "drive": "null", "num-queues": 2,
                "iothread-vq-mapping": [{"iothread": "of-iothread"}]}),
        ),
        device(
            2,
            "virtio-rng-pci",
            json!({"bus": "port2", "rng": "of-rng-random"}),
        ),
        device(3, "virtio-rng-pci-non-transitional", port(3)),
        device(4, "virtio-serial-pci", port(4)),
        device(5, "virtio-serial-pci-non-transitional", port(5)),
        device(
            6,
            "virtserialport",
            json!({"bus": "d4.0", "chardev": "server"}),
        ),
        device(
            7,
            "virtconsole",
            json!({"bus": "d5.0", "chardev": "client"}),
        ),
        device(
            20,
            "virtio-net-pci",
            json!({"bus": "port12", "netdev": "tap"}),
        ),
        device(
            21,
            "virtio-net-pci-non-transitional",
            json!({"bus": "port13", "netdev": "hub"}),
        ),
        row("query-rx-filter", json!({"name": "d20"})),
        row("set_link", json!({"name": "d20", "up": false})),
        row(
            "announce-self",
            json!({"initial": 1, "max": 1, "rounds": 2, "step": 0}),
        ),
        row("netdev_del", json!({"id": "tap"})),
        // What is no vhost is refused and stays; what is one needs a kernel that has it.
        named("no-vhost", Hand::Pipe),
        device(
            18,
            "vhost-vsock-pci",
            json!({"guest-cid": 18, "vhostfd": "no-vhost"}),
        ),
        device(
            19,
            "vhost-vsock-pci-non-transitional",
            json!({"guest-cid": 19, "vhostfd": "no-vhost"}),
        ),
        row("closefd", json!({"fdname": "no-vhost"})),
        device(8, "isa-serial", json!({"chardev": "file"})),
        device(9, "pcie-root-port", json!({"chassis": 90, "slot": 90})),
        device(27, "pcie-pci-bridge", port(15)),
        row("device_del", json!({"id": "d27"})),
        device(10, "pvpanic", json!({})),
        device(11, "virtio-balloon-pci", port(6)),
        row("balloon", json!({"value": 64 * MIB})),
        row("query-balloon", json!({})),
        row(
            "qom-set",
            json!({"path": "/machine/peripheral/d11",
            "property": "guest-stats-polling-interval", "value": 2}),
        ),
        row("device_del", json!({"id": "d11"})),
        device(12, "virtio-balloon-pci-non-transitional", port(7)),
        row(
            "object-add",
            json!({"qom-type": "memory-backend-memfd", "id": "blocks", "size": 4 * MIB}),
        ),
        device(
            24,
            "virtio-mem-pci",
            json!({"bus": "port14", "memdev": "blocks", "block-size": MIB}),
        ),
        row(
            "qom-set",
            json!({"path": "d24", "property": "requested-size", "value": 2 * MIB}),
        ),
        row("query-memory-devices", json!({})),
        row(
            "qom-set",
            json!({"path": "d24", "property": "requested-size", "value": 0}),
        ),
        row("device_del", json!({"id": "d24"})),
        row("object-del", json!({"id": "blocks"})),
        row(
            "object-add",
            json!({"qom-type": "memory-backend-memfd", "id": "module", "size": 4 * MIB}),
        ),
        device(25, "pc-dimm", json!({"memdev": "module", "slot": 1})),
        row("query-memory-devices", json!({})),
        row("device_del", json!({"id": "d25"})),
        row(
            "object-add",
            json!({"qom-type": "memory-backend-memfd", "id": "lasting", "size": 4 * MIB}),
        ),
        device(
            28,
            "virtio-pmem-pci",
            json!({"bus": "port16", "memdev": "lasting"}),
        ),
        device(17, "pvpanic-pci", port(10)),
        device(18, "i6300esb", port(11)),
        device(24, "virtio-keyboard-pci", port(14)),
        device(25, "virtio-mouse-pci", port(15)),
        device(26, "virtio-tablet-pci", port(15)),
        row(
            "send-key",
            json!({"keys": [{"type": "qcode", "data": "a"}]}),
        ),
        row(
            "input-send-event",
            json!({"events": [{"type": "rel", "data": {"axis": "x", "value": 1}}]}),
        ),
        // The guest's memory is not shared here, which is told before anybody is waited for.
        device(
            21,
            "vhost-user-blk-pci",
            json!({"bus": "port10", "chardev": "server"}),
        ),
        device(
            22,
            "vhost-user-blk-pci-non-transitional",
            json!({"bus": "port10", "chardev": "server"}),
        ),
        device(
            23,
            "vhost-user-fs-pci",
            json!({"bus": "port10", "chardev": "server", "tag": "share"}),
        ),
        device(19, "vmcoreinfo", json!({})),
        device(20, "vmgenid", json!({})),
        row("set-numa-node", json!({"type": "node"})),
        device(21, "host-x86_64-cpu", vcpu()),
        row("device_del", json!({"id": "d21"})),
        device(23, "tpm-crb", json!({"tpmdev": "tpm"})),
        device(13, "virtio-scsi-pci", port(8)),
        device(14, "virtio-scsi-pci-non-transitional", port(9)),
        row(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "disc", "size": MIB, "read-only": true}),
        ),
        device(15, "scsi-hd", json!({"bus": "d13.0", "drive": "aio"})),
        device(16, "scsi-cd", json!({"bus": "d13.0", "drive": "disc"})),
        row("eject", json!({"id": "d16"})),
        row(
            "blockdev-insert-medium",
            json!({"id": "d16", "node-name": "disc"}),
        ),
        row("blockdev-close-tray", json!({"id": "d16"})),
        row("blockdev-open-tray", json!({"id": "d16"})),
        row("blockdev-remove-medium", json!({"id": "d16"})),
        row("device_del", json!({"id": "d15"})),
        row(
            "device-list-properties",
            json!({"typename": "virtio-blk-pci"}),
        ),
        row("query-block", json!({})),
        row("query-named-block-nodes", json!({})),
        row("query-block-jobs", json!({})),
        row(
            "block_set_io_throttle",
            json!({"id": "/machine/peripheral/d0/virtio-backend", "bps": 1_u64 << 40, "bps_rd": 0,
                "bps_wr": 0, "iops": 0, "iops_rd": 100_000, "iops_wr": 0}),
        ),
        row("query-block", json!({})),
        row(
            "block-latency-histogram-set",
            json!({"id": "d0", "boundaries": [1000, 1_000_000]}),
        ),
        row(
            "block-set-write-threshold",
            json!({"node-name": "disk", "write-threshold": MIB / 2}),
        ),
        row("query-blockstats", json!({})),
        row("query-blockstats", json!({"query-nodes": true})),
        row(
            "block_resize",
            json!({"node-name": "disk", "size": 2 * MIB}),
        ),
        row("block_resize", json!({"device": "d0", "size": MIB})),
        row("query-pci", json!({})),
        row("device_del", json!({"id": "d1"})),
        row("blockdev-del", json!({"node-name": "aio"})),
    ]
}
