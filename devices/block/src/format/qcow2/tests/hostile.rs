//! Images whose numbers are lies: refused soon, with a reason, and nothing is written over.

use std::sync::{Arc, mpsc};

use fdset::{Door, FdRegistry, Scope};

use super::kept::change;
use super::{Rig, Tuning, run};
use crate::corruption::{Corruption, CorruptionSink};
use crate::engine::Segments;
use crate::format::qcow2::{Snapshot, SnapshotChange};
use crate::graph::BlockGraph;
use crate::node::NodeRef;
use crate::spec::{BackingSpec, ChildSpec, DriverSpec, FileSpec, Locking, NodeSpec, Qcow2Spec};
use crate::toy::OPTIONS;

const MIB: u64 = 1 << 20;
/// Where QEMU puts the tables of a new image, in clusters of 64 KiB.
const REFTABLE: usize = 1 << 16;
const L1: usize = 3 << 16;

/// An image with `at` made `number`.
fn poked(rig: &Rig, name: &str, at: usize, number: u64) {
    let path = rig.path(name);
    let mut bytes = std::fs::read(&path).expect("image");
    bytes[at..at + 8].copy_from_slice(&number.to_be_bytes());
    std::fs::write(&path, &bytes).expect("image");
}

/// The first write fails, and what was there stays.
fn is_not_written(rig: &Rig, name: &str, what: &str) {
    let before = std::fs::read(rig.path(name)).expect("image");
    let node = rig.open(name);
    let refused = rig.try_write(&node, 512 << 10, vec![2; 512]);
    let refused = refused.map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EIO)), "{what}");
    let shown = node.details().expect("an image");
    rig.settle(&node);
    let mut after = std::fs::read(rig.path(name)).expect("image");
    // Not opened for writing any more: the bit that says "corrupt".
    assert_eq!(after[79] & 2, 0, "{what}: {shown:?}");
    after[79] = before[79];
    assert!(after == before, "{what}");
}

#[test]
fn refcount_blocks_at_impossible_places_are_noticed_before_the_first_write() {
    let rig = Rig::new();
    for (number, what) in [
        (0x2_0200, "inside a cluster"),
        (0x7fff_ffff_ffff_0000, "at the end of what a file can have"),
        (0xffff_ffff_ffff_0000, "at the end of all numbers"),
        (0x4000_0000, "behind the end of the file"),
        (0x1_0000, "over its own table"),
    ] {
        rig.create("disk", "", MIB);
        rig.qemu_io("disk", &["write -P 1 0 64k"]);
        poked(&rig, "disk", REFTABLE, number);
        let node = rig.open("disk");
        assert_eq!(rig.read(&node, 0, 4), [1; 4], "{what}: it can be read");
        drop(node);
        is_not_written(&rig, "disk", what);
    }
}

/// Opens an image in a graph, which says what it is told of it.
fn watched(rig: &Rig, name: &str) -> (NodeRef, mpsc::Receiver<Corruption>) {
    let (told, hears) = mpsc::channel();
    let mut graph = BlockGraph::new();
    graph.use_thread(rig.thread.clone());
    graph.tell_corruptions(CorruptionSink::new(move |corruption| {
        told.send(corruption).expect("the test listens");
    }));
    let node = |name: &str, driver| NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some(name.to_owned()),
        options: OPTIONS,
        driver,
    };
    let file = DriverSpec::File(FileSpec {
        filename: rig.path(name),
        role: fdset::Role::Image,
        locking: Locking::Auto,
    });
    let image = DriverSpec::Qcow2(Box::new(Qcow2Spec {
        file: ChildSpec::Inline(Box::new(node("storage", file))),
        data_file: None,
        backing: BackingSpec::Nothing,
        pass_discard: None,
        tuning: Tuning::default(),
    }));
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let node = graph.add(&door, node("disk", image)).expect("an image");
    (node, hears)
}

#[test]
fn write_over_a_table_is_prevented_told_once_and_marked_in_the_image() {
    let rig = Rig::new();
    rig.create("disk", "", MIB);
    poked(&rig, "disk", REFTABLE, 0);
    let (node, hears) = watched(&rig, "disk");
    for _ in 0..2 {
        let refused = rig.try_write(&node, 0, vec![1; 512]);
        let refused = refused.map_err(|error| error.raw_os_error());
        assert_eq!(refused, Err(Some(libc::EIO)));
    }
    let told: Vec<Corruption> = hears.try_iter().collect();
    let wanted = Corruption {
        node: "disk".to_owned(),
        driver: "qcow2",
        message: "Preventing invalid write on metadata (overlaps with refcount table)".to_owned(),
        place: Some((1 << 16, 1 << 16)),
        fatal: true,
    };
    assert_eq!(told, [wanted]);
    let bytes = std::fs::read(rig.path("disk")).expect("image");
    assert_eq!(bytes[79] & 2, 2, "the bit that says so");
    let opened = rig.open_on(rig.file("disk", OPTIONS), None, None, Tuning::default());
    let error = opened.expect_err("not for writing").to_string();
    assert!(error.contains("cannot be opened read/write"), "{error}");
}

#[test]
fn what_a_read_finds_is_told_and_not_marked() {
    let rig = Rig::new();
    rig.create("disk", "", MIB);
    poked(&rig, "disk", L1, 0x2a2a_2a00);
    let before = std::fs::read(rig.path("disk")).expect("image");
    let (node, hears) = watched(&rig, "disk");
    let read = rig.on_thread(move |io| async move {
        let into = Segments::owned(512, 4096).expect("memory");
        node.read(&io, 0, into.all()).await
    });
    assert!(read.is_err());
    let told: Vec<Corruption> = hears.try_iter().collect();
    let [told] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert_eq!(
        told.message,
        "L2 table offset 0x2a2a2a00 unaligned (L1 index: 0)"
    );
    assert_eq!((told.place, told.fatal), (None, false));
    let after = std::fs::read(rig.path("disk")).expect("image");
    assert!(before == after);
}

#[test]
fn header_without_snapshots_may_name_any_place_for_them() {
    let rig = Rig::new();
    rig.create("disk", "", MIB);
    poked(&rig, "disk", 64, 5);
    let node = rig.open("disk");
    rig.write(&node, 0, vec![1; 512]);
    rig.settle(&node);
    assert_eq!(rig.read(&rig.open("disk"), 0, 4), [1; 4]);
}

#[test]
fn raw_bit_without_a_data_file_is_refused_as_qemu_does() {
    let rig = Rig::new();
    rig.create("disk", "", MIB);
    // Of the bits that are cleared by who does not know them: the raw data file's.
    poked(&rig, "disk", 88, 2);
    let opened = rig.open_on(rig.file("disk", OPTIONS), None, None, Tuning::default());
    let error = opened.expect_err("refused").to_string();
    assert_eq!(error, "data-file-raw requires a data file");
    let (_, told) = super::run_with_status("qemu-img", &["check", &rig.path("disk")]);
    assert!(told.contains(&error), "{told}");
}

#[test]
fn repair_does_not_follow_entries_far_behind_the_end() {
    let rig = Rig::new();
    for (at, number, what) in [
        (4 << 16, 0x8080_0000_0000_0000_u64, "a cluster at 36 PB"),
        (L1, 0x8080_0000_0000_0000, "a table at 36 PB"),
    ] {
        rig.create("disk", "lazy_refcounts=on", MIB);
        rig.qemu_io("disk", &["write -P 1 0 64k"]);
        poked(&rig, "disk", at, number);
        // Dirty and lazy.
        poked(&rig, "disk", 72, 1);
        is_not_written(&rig, "disk", what);
    }
}

#[test]
fn repair_reads_no_bitmap_table_twice() {
    let rig = Rig::new();
    rig.create("disk", "lazy_refcounts=on", MIB);
    let path = rig.path("disk");
    for name in ["one", "two"] {
        run("qemu-img", &["bitmap", "--add", &path, name]);
    }
    let bytes = std::fs::read(&path).expect("image");
    // An entry of the directory is 24 bytes, which begin with the table's offset, and the name.
    let entry = |name: &[u8]| {
        let at = bytes.windows(3).rposition(|part| part == name);
        at.expect("in the directory") - 24
    };
    let (one, two) = (entry(b"one"), entry(b"two"));
    let table = bytes[one..one + 8].try_into().expect("eight bytes");
    poked(&rig, "disk", two, u64::from_be_bytes(table));
    poked(&rig, "disk", 72, 1);
    is_not_written(&rig, "disk", "two bitmaps with one table");
}

#[test]
fn states_whose_tables_are_not_in_the_file_are_not_gone_back_to() {
    let rig = Rig::new();
    for (offset, what) in [(0_u64, "L1 entry twice"), (1 << 40, "L2 table nowhere")] {
        rig.create("disk", "cluster_size=4096", 8 * MIB);
        rig.qemu_io("disk", &["write -P 1 0 8k", "write -P 1 4M 8k"]);
        let path = rig.path("disk");
        run("qemu-img", &["snapshot", "-c", "one", &path]);
        let bytes = std::fs::read(&path).expect("image");
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8"));
        let table = usize::try_from(number(64)).expect("small");
        let l1 = usize::try_from(number(table)).expect("small");
        let wrong = if offset == 0 { number(l1) } else { offset };
        poked(&rig, "disk", l1 + 8, wrong);
        let node = rig.open("disk");
        for wanted in [
            SnapshotChange::Apply("1".to_owned()),
            SnapshotChange::Delete("1".to_owned()),
        ] {
            let error = change(&rig, &node, wanted).expect_err(what);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let source = source.expect("a reason");
            assert!(source.contains("is there twice or behind"), "{source}");
        }
        let kept = SnapshotChange::Create(Snapshot::new("2", "two", 1, 2));
        change(&rig, &node, kept).expect("the present state is sound");
    }
}

#[test]
fn hugest_disk_is_made_short_without_a_look_at_each_of_its_clusters() {
    let rig = Rig::new();
    // 1 EiB: more slices than could be looked at one by one.
    rig.create("disk", "cluster_size=2M", 1 << 60);
    let node: NodeRef = rig
        .open_on(rig.file("disk", OPTIONS), None, None, Tuning::default())
        .expect("image");
    rig.write(&node, 0, vec![1; 4096]);
    let shorter = node.clone();
    let done = rig.on_thread(move |io| async move { shorter.resize(&io, MIB).await });
    done.expect("shorter");
    rig.settle(&node);
    rig.check("disk");
    assert_eq!(rig.read(&node, 0, 4), [1; 4]);
}
