//! Snapshots inside an image: made, gone back to, deleted, and crashes on the way.

use super::memory::{Change, Memory, apply};
use super::{Rig, Tuning, run, run_with_status};
use crate::BlockError;
use crate::format::qcow2::{Snapshot, SnapshotChange};
use crate::node::NodeRef;

const MIB: u64 = 1 << 20;
const SIZE: usize = 2 << 20;

pub(super) fn change(rig: &Rig, node: &NodeRef, change: SnapshotChange) -> Result<(), BlockError> {
    let node = node.clone();
    rig.on_thread(move |io| async move { node.change_snapshots(&io, change).await })
}

fn keep(rig: &Rig, node: &NodeRef, id: &str) {
    let snapshot = Snapshot::new(id, &format!("name {id}"), 1, 2);
    change(rig, node, SnapshotChange::Create(snapshot)).expect("created");
}

const LAYOUTS: [&str; 6] = [
    "",
    "cluster_size=512",
    "extended_l2=on,cluster_size=16k",
    "refcount_bits=8,cluster_size=4096",
    "compat=0.10",
    "lazy_refcounts=on,cluster_size=1024",
];

#[test]
fn kept_states_come_back_as_they_were_and_qemu_agrees() {
    let rig = Rig::new();
    for layout in LAYOUTS {
        rig.create("disk", layout, SIZE as u64);
        rig.qemu_io("disk", &["write -c -P 9 1M 64k"]);
        let node = rig.open("disk");
        rig.write(&node, 0, vec![1; 300 << 10]);
        let first = rig.read(&node, 0, SIZE);
        keep(&rig, &node, "1");
        rig.write(&node, 4096, vec![2; 4096]);
        rig.zero(&node, MIB, 65536, true);
        rig.discard(&node, 128 << 10, 64 << 10);
        let second = rig.read(&node, 0, SIZE);
        assert!(first != second);
        keep(&rig, &node, "2");
        rig.write(&node, 4096, vec![3; 512]);
        let third = rig.read(&node, 0, SIZE);
        rig.settle(&node);
        rig.check("disk");
        assert!(rig.as_qemu_reads("disk") == third, "{layout}");
        let told = run("qemu-img", &["snapshot", "-l", &rig.path("disk")]);
        assert!(told.contains("name 1") && told.contains("name 2"), "{told}");
        change(&rig, &node, SnapshotChange::Apply("1".to_owned())).expect("applied");
        assert!(
            rig.read(&node, 0, SIZE) == first,
            "{layout}: the first again"
        );
        rig.write(&node, 8192, vec![4; 512]);
        rig.settle(&node);
        rig.check("disk");
        // QEMU goes to the other one, and we see it.
        run("qemu-img", &["snapshot", "-a", "2", &rig.path("disk")]);
        rig.check("disk");
        let node = rig.open("disk");
        assert!(
            rig.read(&node, 0, SIZE) == second,
            "{layout}: the second again"
        );
        change(&rig, &node, SnapshotChange::Delete("2".to_owned())).expect("deleted");
        assert!(rig.read(&node, 0, SIZE) == second, "{layout}: still there");
        rig.write(&node, 0, vec![5; 300 << 10]);
        rig.settle(&node);
        rig.check("disk");
        change(&rig, &node, SnapshotChange::Delete("1".to_owned())).expect("deleted");
        rig.settle(&node);
        rig.check("disk");
        assert_eq!(node.details().expect("an image").snapshots, []);
        let error = change(&rig, &node, SnapshotChange::Apply("1".to_owned()));
        let error = std::error::Error::source(&error.expect_err("gone")).map(ToString::to_string);
        assert!(error.is_some_and(|text| text.starts_with("Can't find a snapshot")));
    }
}

#[test]
fn narrow_refcounts_refuse_a_snapshot_and_nothing_has_changed() {
    let rig = Rig::new();
    rig.create("disk", "refcount_bits=1", SIZE as u64);
    let node = rig.open("disk");
    rig.write(&node, 0, vec![1; 65536]);
    let snapshot = Snapshot::new("1", "one", 1, 2);
    change(&rig, &node, SnapshotChange::Create(snapshot)).expect_err("one bit counts to one");
    rig.write(&node, 65536, vec![2; 65536]);
    rig.settle(&node);
    rig.check("disk");
}

#[test]
fn crash_while_snapshots_change_leaves_the_one_state_or_the_other() {
    let rig = Rig::new();
    for layout in LAYOUTS {
        rig.create("start", layout, SIZE as u64);
        let bytes = std::fs::read(rig.path("start")).expect("image");
        let memory = Memory::new(bytes.clone());
        let tuning = Tuning {
            lazy_refcounts: Some(false),
            ..Tuning::default()
        };
        let node = rig.open_on(memory.node(), None, None, tuning);
        let node = node.expect("image");
        rig.write(&node, 0, vec![1; 100 << 10]);
        rig.settle(&node);
        let began = memory.steps();
        keep(&rig, &node, "1");
        rig.write(&node, 4096, vec![2; 4096]);
        rig.settle(&node);
        let kept = memory.steps();
        change(&rig, &node, SnapshotChange::Apply("1".to_owned())).expect("applied");
        change(&rig, &node, SnapshotChange::Delete("1".to_owned())).expect("deleted");
        rig.settle(&node);
        let log = memory.log();
        let mut bytes = bytes;
        for (step, change) in log.iter().enumerate() {
            apply(&mut bytes, change);
            if step < began || matches!(change, Change::Sync) {
                continue;
            }
            std::fs::write(rig.path("left"), &bytes).expect("image");
            let (code, text) =
                run_with_status("qemu-img", &["check", "-f", "qcow2", &rig.path("left")]);
            let what = format!("{layout}: killed after change {step} of {}", log.len());
            assert!(matches!(code, 0 | 3), "{what}: {text}");
            let seen = rig.as_qemu_reads("left");
            assert_eq!(seen[..4096], [1; 4096], "{what}");
            assert!(matches!(seen[4096], 1 | 2), "{what}");
            if step >= kept {
                assert_eq!(seen[8192], 1, "{what}");
            }
        }
    }
}
