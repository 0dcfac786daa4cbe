//! How an image's file grows, and what is left where it cannot.

use super::memory::{Change, Memory};
use super::{Rig, Tuning};

const MIB: u64 = 1 << 20;

#[test]
fn file_grows_in_long_steps_and_ends_behind_its_last_cluster_once_settled() {
    let rig = Rig::new();
    rig.create("disk", "", 64 * MIB);
    let before = std::fs::read(rig.path("disk")).expect("image");
    let memory = Memory::new(before.clone());
    let node = rig.open_on(memory.node(), None, None, Tuning::default());
    let node = node.expect("image");
    for number in 0..128 {
        rig.write(&node, number * 65536, vec![5; 4096]);
    }
    let log = memory.log();
    let lengths = log
        .iter()
        .filter(|change| matches!(change, Change::Length(_)));
    let steps = lengths.count();
    assert!(steps < 32, "{steps} changes of the length");
    rig.settle(&node);
    // 128 clusters of data and one L2 table, behind what there was.
    let used = before.len().next_multiple_of(65536) + 129 * 65536;
    assert_eq!(memory.bytes().len(), used);
    std::fs::write(rig.path("left"), memory.bytes()).expect("image");
    rig.check("left");
}

#[test]
fn image_whose_file_stops_growing_anywhere_keeps_its_tables_when_it_is_cut_off() {
    let rig = Rig::new();
    rig.create("disk", "cluster_size=512", 8 * MIB);
    let before = std::fs::read(rig.path("disk")).expect("image");
    for failing in 0..64 {
        let memory = Memory::new(before.clone());
        let node = rig.open_on(memory.node(), None, None, Tuning::default());
        let node = node.expect("image");
        memory.fail_after(failing, libc::ENOSPC, true);
        // Data, L2 tables and, after each 256 clusters, a block of refcounts.
        let wrote = (0..64).map(|number| rig.try_write(&node, number * 16384, vec![5; 16384]));
        let wrote = wrote.take_while(Result::is_ok).count();
        assert!(wrote < 64, "change {failing} was to fail");
        memory.mend();
        rig.settle(&node);
        let what = format!("change {failing}, after {wrote} writes");
        std::fs::write(rig.path("left"), memory.bytes()).expect("image");
        rig.check("left");
        // Once more, with what was given back used for the first time.
        rig.try_write(&node, 4 * MIB, vec![7; 65536]).expect(&what);
        rig.settle(&node);
        std::fs::write(rig.path("left"), memory.bytes()).expect("image");
        rig.check("left");
    }
}
