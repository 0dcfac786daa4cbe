//! Images that we made, and lengths that we changed.

use super::{Rig, Tuning, run};
use crate::BlockError;
use crate::format::qcow2::{Compression, ImageError, NewImage, Preallocation, create};
use crate::node::NodeRef;
use crate::toy::OPTIONS;

const MIB: u64 = 1 << 20;

fn make(rig: &Rig, name: &str, new: &NewImage) -> Result<(), ImageError> {
    std::fs::write(rig.path(name), b"what was here before").expect("file");
    let file = rig.file(name, OPTIONS);
    let data = new.data_file.as_ref().map(|_| {
        std::fs::write(rig.path("data"), b"").expect("file");
        rig.file("data", OPTIONS)
    });
    let new = new.clone();
    rig.on_thread(move |io| async move { create(&io, &file, data.as_ref(), &new).await })
}

fn resize(rig: &Rig, node: &NodeRef, len: u64) -> Result<(), BlockError> {
    let node = node.clone();
    rig.on_thread(move |io| async move { node.resize(&io, len).await })
}

fn variants() -> Vec<NewImage> {
    let plain = NewImage::new(5 * MIB + 512);
    let mut list = vec![plain.clone()];
    for (cluster_size, refcount_bits) in [(512, 1), (1024, 64), (4096, 8), (2 << 20, 16)] {
        list.push(NewImage {
            cluster_size,
            refcount_bits,
            ..plain.clone()
        });
    }
    list.push(NewImage {
        version: 2,
        ..plain.clone()
    });
    list.push(NewImage {
        lazy_refcounts: true,
        compression: Compression::Zstd,
        ..plain.clone()
    });
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for extended_l2 in [false, true] {
            list.push(NewImage {
                preallocation,
                extended_l2,
                ..plain.clone()
            });
        }
    }
    list.push(NewImage {
        size: 300 << 30,
        cluster_size: 4096,
        ..plain
    });
    list
}

#[test]
fn image_that_we_made_is_what_was_asked_for_and_sound() {
    let rig = Rig::new();
    for new in variants() {
        make(&rig, "new", &new).expect("made");
        rig.check("new");
        let told = run("qemu-img", &["info", "--output=json", &rig.path("new")]);
        let has = |text: String| assert!(told.contains(&text), "{text} of {new:?} in {told}");
        has(format!("\"virtual-size\": {}", new.size));
        has(format!("\"cluster-size\": {}", new.cluster_size));
        has(format!("\"refcount-bits\": {}", new.refcount_bits));
        has(format!(
            "\"compression-type\": \"{}\"",
            new.compression.as_str()
        ));
        if new.version == 3 {
            has(format!("\"lazy-refcounts\": {}", new.lazy_refcounts));
            has(format!("\"extended-l2\": {}", new.extended_l2));
        }
        let node = rig.open("new");
        rig.write(&node, 4096, vec![7; 70000 / 512 * 512]);
        rig.settle(&node);
        rig.check("new");
        if new.size < 1 << 30 {
            let mut wanted = vec![0; usize::try_from(new.size).expect("small")];
            wanted[4096..4096 + 70000 / 512 * 512].fill(7);
            assert!(rig.as_qemu_reads("new") == wanted, "{new:?}");
        }
    }
}

#[test]
fn places_made_beforehand_are_allocated_as_qemu_sees_them() {
    let rig = Rig::new();
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        let new = NewImage {
            preallocation,
            ..NewImage::new(4 * MIB)
        };
        make(&rig, "new", &new).expect("made");
        let map = run("qemu-img", &["map", "--output=json", &rig.path("new")]);
        assert_eq!(map.matches("\"start\"").count(), 1, "one piece: {map}");
        assert!(map.contains("\"offset\""), "{map}");
        let on_disk = std::fs::metadata(rig.path("new")).expect("file");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&on_disk) * 512;
        if preallocation == Preallocation::Metadata {
            assert!(blocks < MIB, "{blocks} bytes");
        } else {
            assert!(blocks >= 4 * MIB, "{blocks} bytes");
        }
    }
}

#[test]
fn backing_and_data_files_stand_in_the_header_as_given() {
    let rig = Rig::new();
    std::fs::write(rig.path("base"), vec![9; 1 << 20]).expect("base");
    let new = NewImage {
        backing: Some((rig.path("base"), Some("raw".to_owned()))),
        ..NewImage::new(2 * MIB)
    };
    make(&rig, "over", &new).expect("made");
    rig.check("over");
    let mut wanted = vec![9; 1 << 20];
    wanted.resize(2 << 20, 0);
    assert!(rig.as_qemu_reads("over") == wanted);
    let node = rig.open("over");
    let named = rig.on_thread(move |io| async move {
        node.change_backing(&io, Some("elsewhere"), Some("qcow2"))
            .await?;
        std::io::Result::Ok(node.backing_name())
    });
    let elsewhere = ("elsewhere".to_owned(), Some("qcow2".to_owned()));
    assert_eq!(named.expect("changed"), Some(elsewhere));
    let told = run("qemu-img", &["info", &rig.path("over")]);
    assert!(told.contains("backing file: elsewhere"), "{told}");
    let new = NewImage {
        data_file: Some((rig.path("data"), true)),
        ..NewImage::new(2 * MIB)
    };
    make(&rig, "outside", &new).expect("made");
    rig.check("outside");
    assert_eq!(rig.as_qemu_reads("outside").len(), 2 << 20);
    assert_eq!(
        std::fs::metadata(rig.path("data")).expect("data").len(),
        2 * MIB
    );
}

#[test]
fn options_that_do_not_go_together_are_refused_as_qemu_does() {
    let rig = Rig::new();
    let refused = |new: NewImage| make(&rig, "no", &new).expect_err("refused").to_string();
    let plain = || NewImage::new(MIB);
    assert!(
        refused(NewImage {
            cluster_size: 1000,
            ..plain()
        })
        .contains("power of two")
    );
    assert!(
        refused(NewImage {
            refcount_bits: 24,
            ..plain()
        })
        .contains("64 bits")
    );
    let old = NewImage {
        version: 2,
        lazy_refcounts: true,
        ..plain()
    };
    assert!(refused(old).contains("version=v3"));
    let narrow = NewImage {
        extended_l2: true,
        cluster_size: 4096,
        ..plain()
    };
    assert!(refused(narrow).contains("16384"));
    assert!(
        refused(NewImage {
            size: 513,
            ..plain()
        })
        .contains("512")
    );
    let huge = NewImage {
        size: 1 << 40,
        cluster_size: 512,
        ..plain()
    };
    assert!(refused(huge).contains("L1 table"));
    let kept = std::fs::read(rig.path("no")).expect("file");
    assert_eq!(kept, b"what was here before", "nothing was touched");
}

#[test]
fn longer_disk_shows_zeros_and_shorter_one_lets_go_of_the_rest() {
    let rig = Rig::new();
    for layout in [
        "",
        "cluster_size=512",
        "extended_l2=on",
        "compat=0.10",
        "refcount_bits=1",
    ] {
        std::fs::write(rig.path("base"), vec![9; 8 << 20]).expect("base");
        let comma = if layout.is_empty() { "" } else { "," };
        let options = format!(
            "backing_file={},backing_fmt=raw{comma}{layout}",
            rig.path("base")
        );
        rig.create("disk", &options, 3 * MIB);
        let file = rig.file("disk", OPTIONS);
        let backing = rig.file("base", OPTIONS);
        let node = rig.open_on(file, None, Some(backing), Tuning::default());
        let node = node.expect("image");
        rig.write(&node, 2 * MIB, vec![1; 1 << 20]);
        // Longer: what is below does not show through what was added.
        resize(&rig, &node, 70 * MIB + 512).expect("longer");
        rig.write(&node, 70 * MIB, vec![2; 512]);
        let mut wanted = vec![9; 2 << 20];
        wanted.resize(3 << 20, 1);
        wanted.resize((70 << 20) + 512, 0);
        wanted[70 << 20..].fill(2);
        assert!(
            rig.read(&node, 0, (70 << 20) + 512) == wanted,
            "{layout}: longer"
        );
        rig.settle(&node);
        rig.check("disk");
        assert!(
            rig.as_qemu_reads("disk") == wanted,
            "{layout}: longer, QEMU"
        );
        resize(&rig, &node, 2 * MIB + 512).expect("shorter");
        wanted.truncate((2 << 20) + 512);
        rig.settle(&node);
        rig.check("disk");
        assert!(rig.as_qemu_reads("disk") == wanted, "{layout}: shorter");
        resize(&rig, &node, 3 * MIB).expect("longer again");
        wanted.resize(3 << 20, 0);
        rig.settle(&node);
        rig.check("disk");
        assert!(rig.read(&node, 0, 3 << 20) == wanted, "{layout}: again");
        assert!(rig.as_qemu_reads("disk") == wanted, "{layout}: again, QEMU");
    }
}
