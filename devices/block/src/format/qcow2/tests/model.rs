//! Random requests against plain bytes, with QEMU as the judge of the file.

use proptest::prelude::*;

use super::{Rig, Tuning, stripe};
use crate::toy::OPTIONS;

/// Bytes of the disk: not a multiple of its clusters.
const SIZE: u64 = 3 * (1 << 20) + 5 * 512;

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        sectors: u64,
        byte: u8,
    },
    Zero {
        sector: u64,
        sectors: u64,
        unmap: bool,
    },
    Discard {
        sector: u64,
        sectors: u64,
    },
    Flush,
    Settle,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SIZE / 512, prop_oneof![1..9_u64, 100..900_u64]);
    let range = range.prop_map(|(sector, sectors)| (sector, sectors.min(SIZE / 512 - sector)));
    prop_oneof![
        6 => (range.clone(), any::<u8>())
            .prop_map(|((sector, sectors), byte)| Step::Write { sector, sectors, byte }),
        3 => (range.clone(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Step::Zero { sector, sectors, unmap }),
        2 => range.prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Settle),
        1 => Just(Step::Reopen),
    ]
}

fn layout() -> impl Strategy<Value = (&'static str, u64)> {
    prop::sample::select(vec![
        ("", 65536),
        ("cluster_size=512", 512),
        ("cluster_size=4096,refcount_bits=1", 4096),
        ("cluster_size=2M", 2 << 20),
        ("extended_l2=on,cluster_size=16k", 16384),
        ("extended_l2=on", 65536),
        ("compat=0.10,cluster_size=1024", 1024),
        ("lazy_refcounts=on,cluster_size=8k", 8192),
        ("preallocation=metadata", 65536),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn disk_reads_as_written_and_its_file_is_sound(
        (layout, cluster) in layout(),
        backed: bool,
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let rig = Rig::new();
        let size = usize::try_from(SIZE).expect("small");
        let backed = backed && !layout.contains("preallocation");
        let mut model = vec![0_u8; size];
        if backed {
            for (i, byte) in model.iter_mut().take(size / 2).enumerate() {
                *byte = stripe(i, 250);
            }
            std::fs::write(rig.path("base"), &model[..size / 2 / 512 * 512]).expect("base");
            model[size / 2 / 512 * 512..].fill(0);
        }
        let mut options = layout.to_owned();
        if backed {
            let comma = if layout.is_empty() { "" } else { "," };
            options += &format!("{comma}backing_file={},backing_fmt=raw", rig.path("base"));
        }
        rig.create("disk", &options, SIZE);
        let open = || {
            let backing = backed.then(|| rig.file("base", OPTIONS));
            let tuning = Tuning { l2_cache: 1 << 15, l2_slice: 512, ..Tuning::default() };
            rig.open_on(rig.file("disk", OPTIONS), None, backing, tuning).expect("image")
        };
        let mut node = open();
        for step in steps {
            let bytes = |sector: u64, sectors: u64| {
                let from = usize::try_from(sector * 512).expect("small");
                from..from + usize::try_from(sectors * 512).expect("small")
            };
            match step {
                Step::Write { sector, sectors, byte } => {
                    let range = bytes(sector, sectors);
                    rig.write(&node, sector * 512, vec![byte; range.len()]);
                    model[range].fill(byte);
                }
                Step::Zero { sector, sectors, unmap } => {
                    rig.zero(&node, sector * 512, sectors * 512, unmap);
                    model[bytes(sector, sectors)].fill(0);
                }
                Step::Discard { sector, sectors } => {
                    rig.discard(&node, sector * 512, sectors * 512);
                    let end = (sector + sectors) * 512;
                    let end = if end == SIZE { end } else { end / cluster * cluster };
                    let start = (sector * 512).next_multiple_of(cluster);
                    // Without zero flags, what is below would show through: nothing is discarded.
                    if start < end && !(backed && layout.contains("0.10")) {
                        model[bytes(start / 512, (end - start) / 512)].fill(0);
                    }
                }
                Step::Flush => rig.flush(&node),
                Step::Settle => rig.settle(&node),
                Step::Reopen => {
                    rig.settle(&node);
                    rig.check("disk");
                    node = open();
                }
            }
        }
        prop_assert!(rig.read(&node, 0, size) == model, "as we read");
        rig.settle(&node);
        rig.check("disk");
        prop_assert!(rig.as_qemu_reads("disk") == model, "as QEMU reads");
        prop_assert!(rig.read(&node, 0, size) == model, "as we read when settled");
    }
}
