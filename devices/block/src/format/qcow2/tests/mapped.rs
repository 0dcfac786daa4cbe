//! Where an image's bytes are: our answer beside `qemu-img map`, for every layout.

use serde_json::Value;

use super::crossed::LAYOUTS;
use super::{Rig, Tuning, run};
use crate::node::{NodeRef, Place};
use crate::toy::OPTIONS;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// Bytes that are alike: where they begin and end, and what they are.
type Piece = (u64, u64, Place);

/// Puts `next` behind `map`: as one piece with the last one, where it goes on.
fn join(map: &mut Vec<Piece>, next: Piece) {
    let goes_on = |last: &Piece| match (last.2, next.2) {
        (Place::Data { at: Some(at) }, Place::Data { at: Some(next_at) }) => {
            at + (last.1 - last.0) == next_at
        }
        (one, other) => one == other,
    };
    match map.last_mut() {
        Some(last) if last.1 == next.0 && goes_on(last) => last.1 = next.1,
        _ => map.push(next),
    }
}

fn as_we_say(rig: &Rig, node: &NodeRef) -> Vec<Piece> {
    let node = node.clone();
    rig.on_thread(move |io| async move {
        let (mut map, mut at) = (Vec::new(), 0);
        while at < node.len() {
            let status = node.status(&io, at, node.len() - at).await;
            let status = status.expect("status");
            join(&mut map, (at, at + status.len, status.place));
            at += status.len;
        }
        map
    })
}

/// As QEMU sees the image alone: what lies below it is not there.
fn as_qemu_says(rig: &Rig, name: &str) -> Vec<Piece> {
    let path = rig.path(name);
    let text = run("qemu-img", &["map", "--output=json", &path]);
    let pieces: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let mut map = Vec::new();
    for piece in pieces {
        let number = |name: &str| piece[name].as_u64();
        let (start, len) = (number("start"), number("length"));
        let (start, len) = start.zip(len).expect("start and length");
        let is = |name: &str| piece[name] == true;
        let place = if !is("present") || piece["depth"] != 0 {
            Place::Below
        } else if is("zero") && !is("data") && !is("preallocated") {
            Place::Zero
        } else {
            Place::Data {
                at: number("offset"),
            }
        };
        join(&mut map, (start, start + len, place));
    }
    map
}

fn compare(rig: &Rig, node: &NodeRef, name: &str, what: &str) {
    let (ours, theirs) = (as_we_say(rig, node), as_qemu_says(rig, name));
    assert_eq!(ours, theirs, "{what}");
    assert!(ours.len() > 3, "{what}: {ours:?}");
}

fn write_here(rig: &Rig, node: &NodeRef) {
    rig.write(node, 512, vec![1; 4096]);
    rig.write(node, 3 * MIB, vec![2; 3 << 20]);
    rig.write(node, 9 * MIB + 65536 - 512, vec![3; 1024]);
    rig.write(node, SIZE - 512, vec![4; 512]);
    rig.zero(node, 4 * MIB + 1024, MIB, true);
    rig.zero(node, 12 * MIB, MIB, false);
    rig.discard(node, 3 * MIB, 131_072);
    rig.settle(node);
}

#[test]
fn map_of_every_layout_is_the_one_that_qemu_sees() {
    let rig = Rig::new();
    rig.create("below", "", SIZE);
    rig.qemu_io("below", &["write -P 9 0 16M"]);
    for (number, layout) in LAYOUTS.iter().enumerate() {
        for below in [false, true] {
            let what = format!("{layout}, over another: {below}");
            let name = format!("{number}-{below}");
            // Places made beforehand are no zeros of the image's own: QEMU asks the file system.
            if layout.contains("preallocation") {
                continue;
            }
            let options = match below {
                true => format!(
                    "{layout},backing_file={},backing_fmt=qcow2",
                    rig.path("below")
                ),
                false => (*layout).to_owned(),
            };
            rig.create(&name, options.trim_start_matches(','), SIZE);
            rig.qemu_io(
                &name,
                &[
                    "write -c -P 5 6M 2M",
                    "write -P 6 8M 100k",
                    "discard 8M 64k",
                ],
            );
            let node = match below {
                true => {
                    let below = Some(rig.open("below"));
                    rig.open_on(rig.file(&name, OPTIONS), None, below, Tuning::default())
                        .expect("image")
                }
                false => rig.open(&name),
            };
            compare(&rig, &node, &name, &format!("{what}: QEMU wrote"));
            write_here(&rig, &node);
            compare(&rig, &node, &name, &format!("{what}: we wrote"));
            rig.check(&name);
        }
    }
}

#[test]
fn map_of_a_data_file_is_the_one_that_qemu_sees() {
    let rig = Rig::new();
    let options = format!("data_file={}", rig.path("data"));
    rig.create("meta", &options, SIZE);
    let (file, data) = (rig.file("meta", OPTIONS), rig.file("data", OPTIONS));
    let node = rig.open_on(file, Some(data), None, Tuning::default());
    let node = node.expect("image");
    write_here(&rig, &node);
    compare(&rig, &node, "meta", "data file");
}
