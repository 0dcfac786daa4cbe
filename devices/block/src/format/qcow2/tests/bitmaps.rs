//! Bitmaps in images: stored and read by both, and never silently wrong.

use super::memory::{Change, Memory, apply};
use super::{Rig, Tuning, run, run_with_status};
use crate::bitmap::{Bitmap, BitmapChange};
use crate::node::NodeRef;

const MIB: u64 = 1 << 20;

fn change(rig: &Rig, node: &NodeRef, change: BitmapChange) -> Result<(), String> {
    let (node, announced) = (node.clone(), change.clone());
    let changing = node.clone();
    let claimed = rig.on_thread(move |io| async move { node.claim_bitmaps(&io, &announced).await });
    claimed.map_err(|error| error.to_string())?;
    let changed = changing.change_bitmap(change);
    changed.map_err(|error| error.to_string())
}

fn add(rig: &Rig, node: &NodeRef, name: &str, granularity: u64) {
    let change_of = BitmapChange::Add {
        name: name.to_owned(),
        granularity: Some(granularity),
        persistent: true,
        enabled: true,
    };
    change(rig, node, change_of).expect("added");
}

fn found(node: &NodeRef, name: &str) -> Bitmap {
    node.bitmaps().find(name).expect("there")
}

fn words(node: &NodeRef, name: &str) -> Vec<u64> {
    let map = found(node, name).map;
    map.expect("consistent").words().collect()
}

fn in_use(rig: &Rig, name: &str) -> bool {
    let told = run("qemu-img", &["info", "-U", &rig.path(name)]);
    told.contains("in-use")
}

#[test]
fn bits_that_qemu_recorded_are_ours_and_the_reverse() {
    let rig = Rig::new();
    for layout in [
        "",
        "cluster_size=512",
        "lazy_refcounts=on,cluster_size=4096",
    ] {
        rig.create("disk", layout, 64 * MIB);
        let path = rig.path("disk");
        for (name, granularity) in [("fine", "512"), ("wide", "1M")] {
            let arguments = ["bitmap", "--add", "-g", granularity, &path, name];
            run("qemu-img", &arguments);
        }
        run("qemu-img", &["bitmap", "--add", "--disable", &path, "past"]);
        rig.qemu_io("disk", &["write 1M 64k", "write 63M 512", "discard 5M 64k"]);
        let node = rig.open("disk");
        let count = |name| found(&node, name).map.map(|map| map.count());
        assert_eq!(count("fine"), Some(2 * 65536 + 512), "{layout}");
        assert_eq!(count("wide"), Some(3 * MIB), "{layout}");
        assert_eq!(count("past"), Some(0), "{layout}");
        rig.write(&node, 9 * MIB, vec![1; 1024]);
        assert!(in_use(&rig, "disk"), "{layout}: while it is written");
        add(&rig, &node, "ours", 65536);
        rig.write(&node, 10 * MIB, vec![1; 1024]);
        let wanted = words(&node, "fine");
        rig.settle(&node);
        drop(node);
        rig.check("disk");
        assert!(!in_use(&rig, "disk"), "{layout}: after it was closed");
        // QEMU reads what we stored and writes it anew.
        run("qemu-img", &["bitmap", "--add", "-g", "512", &path, "copy"]);
        run("qemu-img", &["bitmap", "--merge", "fine", &path, "copy"]);
        let node = rig.open("disk");
        assert!(words(&node, "copy") == wanted, "{layout}: through QEMU");
        assert_eq!(found(&node, "ours").map.expect("bits").count(), 65536);
        assert!(!found(&node, "past").enabled && found(&node, "ours").enabled);
        change(&rig, &node, BitmapChange::Remove("ours".to_owned())).expect("removed");
        rig.settle(&node);
        rig.check("disk");
        let told = run("qemu-img", &["info", &path]);
        assert!(!told.contains("ours") && told.contains("fine"), "{told}");
    }
}

#[test]
fn image_that_was_not_closed_has_inconsistent_bitmaps_which_stay_until_they_are_removed() {
    let rig = Rig::new();
    rig.create("disk", "", 4 * MIB);
    let node = rig.open("disk");
    add(&rig, &node, "a", 65536);
    rig.settle(&node);
    rig.write(&node, 0, vec![1; 512]);
    // Without settling: as if the process had been killed.
    drop(node);
    let node = rig.open("disk");
    assert!(found(&node, "a").map.is_none());
    rig.write(&node, 0, vec![1; 512]);
    rig.settle(&node);
    rig.check("disk");
    assert!(in_use(&rig, "disk"));
    let told = change(&rig, &node, BitmapChange::Clear("a".to_owned()));
    let wanted = "Bitmap 'a' is inconsistent and cannot be used";
    assert_eq!(told.expect_err("refused"), wanted);
    change(&rig, &node, BitmapChange::Remove("a".to_owned())).expect("removed");
    rig.settle(&node);
    rig.check("disk");
    let told = run("qemu-img", &["info", &rig.path("disk")]);
    assert!(!told.contains("bitmaps"), "{told}");
}

#[test]
fn bitmaps_follow_a_disk_that_grows_and_shrinks() {
    let rig = Rig::new();
    rig.create("disk", "", 16 * MIB);
    let node = rig.open("disk");
    add(&rig, &node, "a", 65536);
    rig.write(&node, 15 * MIB, vec![1; 65536]);
    for (size, count) in [(64, 65536), (8, 0), (32, 0)] {
        let resized = node.clone();
        let resized = rig.on_thread(move |io| async move { resized.resize(&io, size * MIB).await });
        resized.expect("resized");
        let map = found(&node, "a").map.expect("bits");
        assert_eq!((map.len(), map.count()), (size * MIB, count));
        rig.settle(&node);
        rig.check("disk");
    }
}

#[test]
fn bitmap_of_the_storage_knows_what_an_image_writes_in_place() {
    let rig = Rig::new();
    rig.create("disk", "", 4 * MIB);
    let file = rig.file("disk", crate::toy::OPTIONS);
    let opened = rig.open_on(file.clone(), None, None, Tuning::default());
    let node = opened.expect("image");
    rig.write(&node, 0, vec![1; 65536]);
    let recorded = BitmapChange::Add {
        name: "a".to_owned(),
        granularity: None,
        persistent: false,
        enabled: true,
    };
    change(&rig, &file, recorded).expect("added");
    rig.write(&node, 4096, vec![2; 512]);
    assert_eq!(found(&file, "a").map.expect("bits").count(), 65536);
}

#[test]
fn image_that_cannot_keep_a_bitmap_says_why() {
    let rig = Rig::new();
    rig.create("old", "compat=0.10", MIB);
    let old = rig.open("old");
    let persistent = |granularity| BitmapChange::Add {
        name: "a".to_owned(),
        granularity: Some(granularity),
        persistent: true,
        enabled: true,
    };
    let told = change(&rig, &old, persistent(65536)).expect_err("refused");
    let wanted = "Can't make bitmap 'a' persistent in 'disk': Cannot store dirty bitmaps in qcow2 \
                  v2 files";
    assert_eq!(told, wanted);
    let told = change(
        &rig,
        &rig.file("old", crate::toy::OPTIONS),
        persistent(65536),
    );
    let wanted = "Can't store persistent bitmaps to storage: Operation not supported";
    assert_eq!(told.expect_err("refused"), wanted);
}

/// Writes between settlings, and what the bitmap must then know: after how many changes of the
/// storage which write began (its piece), or at which point it was cleared.
enum Event {
    Wrote(usize, u64),
    Cleared(usize),
}

fn tell(rig: &Rig, node: &NodeRef, memory: &Memory) -> Vec<Event> {
    let mut events = Vec::new();
    let write = |events: &mut Vec<Event>, piece: u64| {
        events.push(Event::Wrote(memory.steps(), piece));
        // Some of it may fail: then it may have been written.
        drop(rig.try_write(node, piece * 4096, vec![7; 4096]));
    };
    let settle = || {
        let node = node.clone();
        let settled = rig.on_thread(move |io| async move { node.settle(&io).await });
        drop(settled);
    };
    write(&mut events, 1);
    settle();
    write(&mut events, 2);
    write(&mut events, 200);
    settle();
    settle();
    events.push(Event::Cleared(memory.steps()));
    drop(change(rig, node, BitmapChange::Clear("a".to_owned())));
    write(&mut events, 3);
    settle();
    write(&mut events, 255);
    events
}

/// No error is in the image, and a bitmap that is to be trusted knows every write.
fn judge(rig: &Rig, bytes: &[u8], events: &[Event], steps: usize, what: &str) {
    let path = rig.path("left");
    std::fs::write(&path, bytes).expect("image");
    let mut arguments = vec!["check", "-f", "qcow2"];
    if bytes[79] & 1 != 0 {
        // Refcounts are late, and whoever opens it repairs them.
        arguments.extend(["-r", "all"]);
    }
    arguments.push(&path);
    let (code, text) = run_with_status("qemu-img", &arguments);
    assert!(matches!(code, 0 | 3), "{what}: {text}");
    let node = rig.open_on(
        Memory::new(bytes.to_vec()).node(),
        None,
        None,
        Tuning::default(),
    );
    let node = node.expect("image");
    let Some(map) = found(&node, "a").map else {
        return;
    };
    let words: Vec<u64> = map.words().collect();
    let mut wanted = Vec::new();
    for event in events {
        match event {
            Event::Wrote(began, piece) if *began < steps => wanted.push(*piece),
            Event::Cleared(at) if *at <= steps => wanted.clear(),
            _ => {}
        }
    }
    // What never reached the disk need not be known.
    wanted.retain(|piece| rig.read(&node, piece * 4096, 1) == [7]);
    for piece in wanted {
        let word = words[usize::try_from(piece / 64).expect("small")];
        assert!(
            word >> (piece % 64) & 1 == 1,
            "{what}: piece {piece} is missed"
        );
    }
}

fn image(rig: &Rig, layout: &str) -> Memory {
    rig.create("start", layout, MIB);
    let path = rig.path("start");
    for name in ["a", "b"] {
        run("qemu-img", &["bitmap", "--add", "-g", "4096", &path, name]);
    }
    Memory::new(std::fs::read(path).expect("image"))
}

const LAYOUTS: [&str; 3] = [
    "",
    "cluster_size=512",
    "cluster_size=1024,lazy_refcounts=on",
];

#[test]
fn process_killed_after_any_write_leaves_no_bitmap_that_misses_one() {
    let rig = Rig::new();
    for layout in LAYOUTS {
        let memory = image(&rig, layout);
        let mut bytes = memory.bytes();
        let opened = rig.open_on(memory.node(), None, None, Tuning::default());
        let events = tell(&rig, &opened.expect("image"), &memory);
        for (step, change) in memory.log().iter().enumerate() {
            if matches!(change, Change::Sync) {
                continue;
            }
            apply(&mut bytes, change);
            let what = format!("{layout}: killed after change {step}");
            judge(&rig, &bytes, &events, step, &what);
        }
    }
}

#[test]
fn any_write_that_fails_leaves_no_bitmap_that_misses_one_and_later_ones_are_stored() {
    let rig = Rig::new();
    for layout in LAYOUTS {
        let mut failing = 0;
        loop {
            let memory = image(&rig, layout);
            let opened = rig.open_on(memory.node(), None, None, Tuning::default());
            let node = opened.expect("image");
            memory.fail_after(failing, libc::ENOSPC, false);
            let events = tell(&rig, &node, &memory);
            if memory.will_fail() {
                break;
            }
            let what = format!("{layout}: change {failing} fails");
            judge(&rig, &memory.bytes(), &events, usize::MAX, &what);
            rig.settle(&node);
            judge(&rig, &memory.bytes(), &events, usize::MAX, &what);
            let left = Memory::new(memory.bytes()).node();
            let left = rig
                .open_on(left, None, None, Tuning::default())
                .expect("image");
            assert!(found(&left, "a").map.is_some(), "{what}: stored");
            failing += 1;
        }
        assert!(failing > 10, "{layout}: there were writes to fail");
    }
}
