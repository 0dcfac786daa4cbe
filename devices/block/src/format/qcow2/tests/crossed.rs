//! One option after the other, each read and written by both.

use super::{Rig, Tuning, stripe};
use crate::toy::OPTIONS;

const MIB: u64 = 1 << 20;

/// Every way in which an image can be laid out.
pub(super) const LAYOUTS: [&str; 14] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4096",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2",
    "refcount_bits=8",
    "refcount_bits=64,cluster_size=1024",
    "lazy_refcounts=on",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "preallocation=metadata",
    "compression_type=zstd",
];

#[test]
fn image_of_every_layout_that_we_wrote_is_read_and_found_sound_by_qemu() {
    let rig = Rig::new();
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let name = format!("{number}.qcow2");
        rig.create(&name, layout, 16 * MIB);
        let node = rig.open(&name);
        let mut wanted = vec![0; 16 << 20];
        let writes = [
            (0, 1, 512),
            (512, 2, 4096),
            (65536 - 512, 3, 1024),
            (MIB + 512, 4, 300 * 512),
            (3 * MIB, 5, 2 << 20),
            (16 * MIB - 512, 6, 512),
        ];
        for (offset, byte, len) in writes {
            rig.write(&node, offset, vec![byte; len]);
            let at = usize::try_from(offset).expect("small");
            wanted[at..at + len].fill(byte);
        }
        assert!(
            rig.read(&node, 0, 16 << 20) == wanted,
            "{layout}: as we read"
        );
        rig.zero(&node, 3 * MIB + 512, MIB, true);
        wanted[(3 << 20) + 512..(4 << 20) + 512].fill(0);
        rig.zero(&node, 4 * MIB + 1024, 512, false);
        wanted[(4 << 20) + 1024..(4 << 20) + 1536].fill(0);
        rig.discard(&node, MIB, MIB);
        // A discard leaves what is in clusters that it does not cover.
        if *layout != "cluster_size=2M" {
            wanted[1 << 20..2 << 20].fill(0);
        }
        assert!(
            rig.read(&node, 0, 16 << 20) == wanted,
            "{layout}: zeros and discards"
        );
        rig.settle(&node);
        rig.check(&name);
        assert!(
            rig.as_qemu_reads(&name) == wanted,
            "{layout}: as QEMU reads"
        );
    }
}

#[test]
fn image_of_every_layout_that_qemu_wrote_reads_the_same_here() {
    let rig = Rig::new();
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let name = format!("{number}.qcow2");
        rig.create(&name, layout, 8 * MIB);
        let mut commands = vec![
            "write -P 1 0 64k",
            "write -P 2 100k 3k",
            "write -P 3 1M 3M",
            "write -P 4 6290944 512",
            "discard 2M 128k",
        ];
        // Nothing is compressed over a place of its own.
        if *layout != "preallocation=metadata" {
            commands.push("write -c -P 5 6M 2M");
        }
        if *layout != "compat=0.10" {
            commands.push("write -z 3M 200k");
        }
        rig.qemu_io(&name, &commands);
        let node = rig.open(&name);
        assert!(
            rig.read(&node, 0, 8 << 20) == rig.as_qemu_reads(&name),
            "{layout}"
        );
        // Compressed and shared clusters are replaced by writes.
        rig.write(&node, 6 * MIB + 512, vec![7; 512]);
        rig.zero(&node, 7 * MIB, 4096, false);
        let ours = rig.read(&node, 0, 8 << 20);
        rig.settle(&node);
        rig.check(&name);
        assert!(rig.as_qemu_reads(&name) == ours, "{layout}: after writes");
    }
}

#[test]
fn cluster_is_filled_from_the_backing_file_which_may_be_shorter_or_longer() {
    let rig = Rig::new();
    for (layout, base) in [
        ("", 3 * MIB + 512),
        ("cluster_size=512", 3 * MIB),
        ("extended_l2=on", 2 * MIB + 1024),
        ("compat=0.10", 9 * MIB),
        ("cluster_size=2M", 512),
    ] {
        let raw = rig.path("base");
        let size = usize::try_from(base).expect("small");
        let pattern: Vec<u8> = (0..size).map(|i| stripe(i, 251)).collect();
        std::fs::write(&raw, &pattern).expect("base");
        let options = format!(
            "backing_file={raw},backing_fmt=raw{}{layout}",
            if layout.is_empty() { "" } else { "," }
        );
        rig.create("over.qcow2", &options, 8 * MIB);
        let backing = rig.file("base", OPTIONS);
        let file = rig.file("over.qcow2", OPTIONS);
        let node = rig.open_on(file, None, Some(backing), Tuning::default());
        let node = node.expect("image");
        assert_eq!(
            node.backing_name(),
            Some((raw.clone(), Some("raw".to_owned())))
        );
        let mut wanted = pattern.clone();
        wanted.resize(8 << 20, 0);
        let writes = [
            (1024_u64, 0xf1_u8, 512_usize),
            (base - 512, 0xf2, 1024),
            (2 * MIB - 1024, 0xf3, 70000 / 512 * 512),
            (8 * MIB - 512, 0xf4, 512),
        ];
        for (offset, byte, len) in writes {
            let len = len.min(usize::try_from(8 * MIB - offset.min(8 * MIB)).expect("small"));
            if len == 0 {
                continue;
            }
            rig.write(&node, offset, vec![byte; len]);
            let at = usize::try_from(offset).expect("small");
            wanted[at..at + len].fill(byte);
        }
        rig.zero(&node, 4096, 512, true);
        wanted[4096..4608].fill(0);
        rig.zero(&node, 128 << 10, 256 << 10, true);
        wanted[128 << 10..384 << 10].fill(0);
        assert!(
            rig.read(&node, 0, 8 << 20) == wanted,
            "{layout}: as we read"
        );
        rig.settle(&node);
        rig.check("over.qcow2");
        assert!(
            rig.as_qemu_reads("over.qcow2") == wanted,
            "{layout}: as QEMU reads"
        );
    }
}

#[test]
fn data_file_has_the_guests_clusters_at_their_own_offsets() {
    let rig = Rig::new();
    for raw in ["off", "on"] {
        let data_path = rig.path("data");
        let options = format!("data_file={data_path},data_file_raw={raw}");
        let _ = std::fs::remove_file(&data_path);
        rig.create("meta.qcow2", &options, 4 * MIB);
        let file = rig.file("meta.qcow2", OPTIONS);
        let missing = rig.open_on(file.clone(), None, None, Tuning::default());
        let error = missing.expect_err("no data file").to_string();
        assert!(error.contains("data-file"), "{error}");
        let data = rig.file("data", OPTIONS);
        let node = rig.open_on(file, Some(data), None, Tuning::default());
        let node = node.expect("image");
        let mut wanted = vec![0; 4 << 20];
        rig.write(&node, 512, vec![1; 512]);
        wanted[512..1024].fill(1);
        rig.write(&node, MIB, vec![2; 1 << 20]);
        wanted[1 << 20..2 << 20].fill(2);
        rig.zero(&node, MIB + 65536, 65536, true);
        wanted[(1 << 20) + 65536..(1 << 20) + 131072].fill(0);
        rig.discard(&node, MIB + 262144, 65536);
        wanted[(1 << 20) + 262144..(1 << 20) + 327680].fill(0);
        assert!(rig.read(&node, 0, 4 << 20) == wanted, "raw={raw}");
        rig.settle(&node);
        rig.check("meta.qcow2");
        assert!(rig.as_qemu_reads("meta.qcow2") == wanted, "raw={raw}: QEMU");
        if raw == "on" {
            let mut bytes = std::fs::read(&data_path).expect("data");
            bytes.resize(4 << 20, 0);
            let same = bytes == wanted;
            assert!(same || bytes[..(1 << 20) + 262144] == wanted[..(1 << 20) + 262144]);
        }
    }
}

#[test]
fn encrypted_and_unknown_images_are_refused_with_what_is_wrong() {
    let rig = Rig::new();
    rig.create("plain.qcow2", "", MIB);
    let bytes = std::fs::read(rig.path("plain.qcow2")).expect("image");
    let refused = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        std::fs::write(rig.path("bad.qcow2"), &bytes).expect("image");
        let file = rig.file("bad.qcow2", OPTIONS);
        let opened = rig.open_on(file, None, None, Tuning::default());
        opened.expect_err("refused").to_string()
    };
    assert_eq!(refused(0, b"XXXX"), "Image is not in qcow2 format");
    assert!(refused(32, &[0, 0, 0, 2]).contains("LUKS"));
    assert!(refused(32, &[0, 0, 0, 1]).contains("AES"));
    assert!(refused(20, &[0, 0, 0, 22]).contains("cluster_bits is 22"));
    assert!(refused(4, &[0, 0, 0, 4]).contains("version 4"));
    assert!(refused(72, &[0x80]).contains("Unsupported qcow2 feature(s)"));
    assert!(refused(79, &[2]).contains("corrupt"));
    assert!(refused(36, &[0xff, 0xff]).contains("l1_size"));
    assert!(refused(47, &[1]).contains("l1_table_offset"));
    assert!(refused(56, &[0xff]).contains("refcount_table_clusters"));
    assert!(refused(99, &[7]).contains("refcount_order is 7"));
    assert!(refused(100, &[0, 0, 0xff, 0xff]).contains("header_length"));
    assert!(refused(104, &[1]).contains("compression_type is 1"));
}

#[test]
fn dirty_image_is_repaired_by_the_first_write_and_by_no_read() {
    let rig = Rig::new();
    rig.create("lazy.qcow2", "lazy_refcounts=on", 64 * MIB);
    rig.qemu_io("lazy.qcow2", &["write -P 1 0 3M"]);
    let node = rig.open("lazy.qcow2");
    rig.write(&node, 5 * MIB, vec![2; 1 << 20]);
    rig.flush(&node);
    // Dropped without settling: as if the process had been killed.
    drop(node);
    let before = std::fs::read(rig.path("lazy.qcow2")).expect("image");
    assert_eq!(before[79] & 1, 1, "the dirty bit");
    let node = rig.open("lazy.qcow2");
    assert_eq!(rig.read(&node, 5 * MIB, 4), [2; 4]);
    let after = std::fs::read(rig.path("lazy.qcow2")).expect("image");
    assert!(before == after, "reading changes nothing");
    rig.write(&node, 9 * MIB, vec![3; 4096]);
    rig.settle(&node);
    let after = std::fs::read(rig.path("lazy.qcow2")).expect("image");
    assert_eq!(after[79] & 1, 0, "clean again");
    rig.check("lazy.qcow2");
    let wanted = rig.read(&node, 0, 64 << 20);
    assert!(rig.as_qemu_reads("lazy.qcow2") == wanted);
}

#[test]
fn image_whose_refcounts_are_not_there_is_not_written_over_its_own_tables() {
    let rig = Rig::new();
    rig.create("disk", "", MIB);
    rig.qemu_io("disk", &["write -P 1 0 64k"]);
    let mut bytes = std::fs::read(rig.path("disk")).expect("image");
    bytes[48..56].copy_from_slice(&0x4000_0000_u64.to_be_bytes());
    std::fs::write(rig.path("disk"), &bytes).expect("image");
    let node = rig.open("disk");
    let refused = rig.try_write(&node, 512 << 10, vec![2; 512]);
    assert_eq!(refused.map_err(|e| e.raw_os_error()), Err(Some(libc::EIO)));
    rig.settle(&node);
    let mut after = std::fs::read(rig.path("disk")).expect("image");
    assert_eq!(after[79] & 2, 2, "marked as corrupt");
    after[79] = bytes[79];
    assert!(after[..bytes.len()] == bytes, "nothing was overwritten");
}
