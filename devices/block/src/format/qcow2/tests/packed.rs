//! Compressed clusters that we write, as QEMU reads them.

use super::{Rig, Tuning, run, stripe};
use crate::format::compress::CompressNode;
use crate::node::NodeRef;
use crate::slot::ChildSlot;
use crate::toy::{OPTIONS, Toy};

const MIB: u64 = 1 << 20;
const LAYOUTS: [&str; 9] = [
    "",
    "compat=0.10,cluster_size=4096",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2,cluster_size=16k",
    "lazy_refcounts=on",
    "extended_l2=on",
    "compression_type=zstd",
];

/// A node that compresses what is written into `image`.
fn over(image: &NodeRef) -> NodeRef {
    let body = CompressNode::new(ChildSlot::from(image.clone()));
    let node = NodeRef::new("packs".to_owned(), "compress", OPTIONS, Box::new(body));
    node.expect("node")
}

/// Bytes that get smaller by different amounts, none of it by nothing.
fn text(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [byte, run, ..] = state.to_be_bytes();
        bytes.resize(bytes.len() + usize::from(run % 7) + 1, byte);
    }
    bytes.truncate(len);
    bytes
}

/// How many clusters QEMU finds compressed, in its words; nothing if none.
fn counted(rig: &Rig, name: &str) -> String {
    let json = ["check", "--output=json", "-f", "qcow2", &rig.path(name)];
    let said = run("qemu-img", &json);
    let line = said
        .lines()
        .find(|line| line.contains("compressed-clusters"));
    line.unwrap_or_default()
        .trim()
        .trim_end_matches(',')
        .to_owned()
}

#[test]
fn what_we_compress_in_every_layout_is_read_and_found_sound_by_qemu() {
    let rig = Rig::new();
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let name = format!("{number}.qcow2");
        rig.create(&name, layout, 8 * MIB + 512);
        let image = rig.open(&name);
        let node = over(&image);
        let mut wanted = vec![0; (8 << 20) + 512];
        let writes = [
            // Whole clusters, parts, over each other, and the disk's last part of one.
            (0, 2 << 20),
            (3 * MIB + 512, 1 << 20),
            (MIB, 4096),
            (MIB + 65536, 1 << 20),
            (6 * MIB, (2 << 20) + 512),
        ];
        for (seed, (offset, len)) in (1..).zip(writes) {
            let bytes = text(seed, len);
            let at = usize::try_from(offset).expect("small");
            wanted[at..at + len].copy_from_slice(&bytes);
            rig.write(&node, offset, bytes);
        }
        rig.discard(&node, 0, MIB);
        if *layout != "cluster_size=2M" {
            wanted[..1 << 20].fill(0);
        }
        rig.flush(&node);
        let again = text(9, 1 << 20);
        wanted[5 << 20..6 << 20].copy_from_slice(&again);
        rig.write(&node, 5 * MIB, again);
        assert!(
            rig.read(&node, 0, wanted.len()) == wanted,
            "{layout}: as we read"
        );
        rig.settle(&node);
        rig.check(&name);
        assert!(
            rig.as_qemu_reads(&name) == wanted,
            "{layout}: as QEMU reads"
        );
        // A compressed cluster takes whole sectors: one of a sector has nothing to win.
        assert_eq!(
            counted(&rig, &name).is_empty(),
            *layout == "cluster_size=512",
            "{layout}"
        );
    }
}

#[test]
fn compressed_clusters_share_clusters_of_the_file_and_leave_them_when_all_are_gone() {
    let rig = Rig::new();
    rig.create("disk", "", 8 * MIB);
    let image = rig.open("disk");
    let node = over(&image);
    let len = |name: &str| {
        let file = std::fs::metadata(rig.path(name));
        file.expect("file").len()
    };
    let before = len("disk");
    rig.write(&node, 0, vec![7; 4 << 20]);
    assert_eq!(counted_after(&rig, &node), "\"compressed-clusters\": 64");
    // 64 clusters of a sector or a few each, and a table.
    assert!(len("disk") <= before + 4 * 65536, "{}", len("disk"));
    // The cluster that the next compressed one would have shared is somebody else's by then.
    rig.discard(&node, 0, 4 * MIB);
    rig.settle(&node);
    rig.write(&image, 4 * MIB, text(1, 1 << 20));
    rig.write(&node, 0, vec![8; 1 << 20]);
    rig.settle(&node);
    rig.check("disk");
    let mut wanted = vec![0; 8 << 20];
    wanted[..1 << 20].fill(8);
    wanted[4 << 20..5 << 20].copy_from_slice(&text(1, 1 << 20));
    assert!(rig.as_qemu_reads("disk") == wanted);
}

fn counted_after(rig: &Rig, node: &NodeRef) -> String {
    rig.settle(node);
    counted(rig, "disk")
}

#[test]
fn what_does_not_shrink_and_what_is_in_place_are_written_right() {
    let rig = Rig::new();
    rig.create("disk", "", MIB);
    let image = rig.open("disk");
    let node = over(&image);
    // No two bytes in a row tell anything of the next.
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[0]
    })
    .take(65536)
    .collect();
    rig.write(&node, 0, noise.clone());
    rig.write(&image, 65536, noise.clone());
    // In place it would not be compressed.
    rig.write(&node, 65536, (0..65536).map(|at| stripe(at, 9)).collect());
    assert_eq!(counted_after(&rig, &node), "\"compressed-clusters\": 1");
    rig.check("disk");
    let read = rig.as_qemu_reads("disk");
    assert!(read[..65536] == noise);
    assert!((65536..131_072).all(|at| read[at] == stripe(at - 65536, 9)));
}

#[test]
fn node_that_keeps_nothing_compressed_is_refused_below() {
    let rig = Rig::new();
    let said = |node: &NodeRef| match CompressNode::check(node) {
        Ok(()) => "taken".to_owned(),
        Err(error) => error.to_string(),
    };
    let toy = Toy::node("plain", MIB, crate::slot::BackingSlot::new(None));
    assert_eq!(
        said(&toy),
        format!(
            "Compression is not supported for underlying format: {} (node 'plain' must be a \
             qcow2 image that has its clusters inside)",
            toy.driver()
        )
    );
    let data = rig.path("data");
    rig.create("disk", &format!("data_file={data}"), MIB);
    let (file, data) = (rig.file("disk", OPTIONS), rig.file("data", OPTIONS));
    let outside = rig.open_on(file, Some(data), None, Tuning::default());
    let outside = outside.expect("image");
    assert!(
        said(&outside).starts_with("Compression is not supported for underlying format: qcow2")
    );
    // The graph may bring such an image below one that was taken: it is written as it is.
    rig.write(&over(&outside), 0, vec![3; 65536]);
    assert_eq!(rig.read(&outside, 0, 65536), vec![3; 65536]);
    rig.create("inside", "", MIB);
    assert_eq!(said(&rig.open("inside")), "taken");
}
