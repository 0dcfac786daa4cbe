//! Several io-threads on one image, and what they share.

use std::sync::mpsc;

use super::{Rig, Tuning};
use crate::engine::{IoThread, IoThreadSpec, Segments};
use crate::node::{Extent, Intent, WriteFlags};
use crate::toy::OPTIONS;

const MIB: u64 = 1 << 20;

#[test]
fn threads_that_write_side_by_side_lose_nothing() {
    let rig = Rig::new();
    for layout in ["cluster_size=4096", "", "extended_l2=on"] {
        rig.create("disk", layout, 8 * MIB);
        let tuning = Tuning {
            l2_cache: 1 << 14,
            l2_slice: 512,
            ..Tuning::default()
        };
        let node = rig.open_on(rig.file("disk", OPTIONS), None, None, tuning);
        let node = node.expect("image");
        let threads: Vec<IoThread> = (0..3)
            .map(|number| {
                let id = format!("t{number}");
                IoThread::start(IoThreadSpec { id }).expect("io-thread")
            })
            .collect();
        let (tell, told) = mpsc::channel();
        // Twelve tasks, each with every twelfth sector: neighbours share clusters all the time.
        for task in 0..12_u64 {
            let (node, tell) = (node.clone(), tell.clone());
            let thread = &threads[usize::try_from(task % 3).expect("small")];
            thread.spawn(move |io| async move {
                let sector = Segments::owned(512, 4096).expect("memory");
                let byte = u8::try_from(task + 1).expect("small");
                sector.all().copy_from(&[byte; 512]);
                for round in 0..280 {
                    let at = (round * 12 + task) * 512 * 4;
                    let flags = WriteFlags {
                        durable: round % 64 == 63,
                        ..WriteFlags::default()
                    };
                    node.write(&io, at, sector.all(), flags)
                        .await
                        .expect("write");
                    if round % 32 == task {
                        // Of nobody's: what is behind all that is written.
                        node.discard(&io, 7 * MIB + task * 65536, 65536)
                            .await
                            .expect("discard");
                    }
                }
                tell.send(()).expect("listener");
            });
        }
        drop(tell);
        assert_eq!(told.iter().count(), 12, "all came to their end");
        let mut wanted = vec![0; 8 << 20];
        for number in 0..280 * 12_usize {
            let byte = u8::try_from(number % 12 + 1).expect("small");
            wanted[number * 2048..number * 2048 + 512].fill(byte);
        }
        assert!(rig.read(&node, 0, 8 << 20) == wanted, "{layout}");
        rig.settle(&node);
        rig.check("disk");
        assert!(rig.as_qemu_reads("disk") == wanted, "{layout}: QEMU");
    }
}

#[test]
fn allocated_clusters_are_one_extent_of_the_file_and_a_held_one_is_not_used_again() {
    let rig = Rig::new();
    rig.create("disk", "", 8 * MIB);
    let node = rig.open("disk");
    rig.write(&node, 0, vec![1; 2 << 20]);
    let extent = node.extent(4096, MIB, Intent::Write);
    let Extent::At {
        offset, len, guard, ..
    } = extent
    else {
        panic!("{extent:?}");
    };
    assert_eq!(len, MIB, "sixteen clusters that follow each other");
    // Discarded and flushed while somebody still uses the place: it stays out of use.
    rig.discard(&node, 0, 2 * MIB);
    for _ in 0..3 {
        rig.flush(&node);
    }
    rig.write(&node, 4 * MIB, vec![2; 2 << 20]);
    let place = |at| match node.extent(at, MIB, Intent::Read) {
        Extent::At { offset, len, .. } => offset..offset + len,
        other => panic!("{other:?}"),
    };
    let new = place(4 * MIB);
    assert!(new.end <= offset || offset + len <= new.start, "used twice");
    drop(guard);
    for _ in 0..3 {
        rig.flush(&node);
    }
    rig.write(&node, 6 * MIB, vec![3; 2 << 20]);
    let new = place(6 * MIB);
    assert!(new.start < offset + MIB, "free again");
    rig.settle(&node);
    rig.check("disk");
    assert!(matches!(
        node.extent(0, MIB, Intent::Read),
        Extent::Zero { .. }
    ));
}
