//! virtio-blk driven as a guest drives it: rings in memory, doorbells, interrupts.

mod broken;
mod driver;
mod limits;
mod nodes;
mod queues;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use block::Drain;
use block::job::{ErrorAction, OnError, Trouble};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use self::driver::Piece::{In, Out};
use self::driver::{DATA, Rig, spec};
use self::nodes::{Probe, ProbeNode, file_node};
use super::{VirtioBlk, VirtioBlkSpec, VirtioDevice};
use crate::geometry::Geometry;
use crate::notice::{Notice, NoticeSink};
use crate::state::{AnyStateful, trial};

// virtio 1.2, 5.2.6
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn fill(driver: &Rig, address: u64, bytes: &[u8]) {
    driver
        .view()
        .write_slice(bytes, GuestAddress(address))
        .expect("inside");
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn written_bytes_are_in_the_file_and_read_back_through_other_cuts() {
    let (node, file) = file_node(64 << 10);
    let (rig, pattern) = (
        Rig::new(node, 1),
        (0..16u8)
            .flat_map(|page| (0..=255u8).map(move |i| i ^ page))
            .collect::<Vec<_>>(),
    );
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    fill(&rig, DATA, &pattern);
    let cuts = [Out(DATA, 1), Out(DATA + 1, 1023), Out(DATA + 1024, 3072)];
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 8, &cuts), OK);
    let mut on_disk = vec![0; 4096];
    file.as_file()
        .read_exact_at(&mut on_disk, 4096)
        .expect("file");
    assert_eq!(on_disk, pattern);
    let cuts = [In(DATA + 0x10000, 3000), In(DATA + 0x20000, 1096)];
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 8, &cuts), OK);
    assert_eq!(rig.bytes(DATA + 0x10000, 3000), pattern[..3000]);
    assert_eq!(rig.bytes(DATA + 0x20000, 1096), pattern[3000..]);
    assert_eq!(driver.used_len(0), 1);
    assert_eq!(driver.used_len(1), 4097);
}

#[test]
fn header_in_pieces_and_status_behind_data_in_one_descriptor_are_understood() {
    let (node, file) = file_node(8192);
    file.as_file().write_all_at(&[7; 512], 512).expect("file");
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    let (header, _) = driver.prepare(VIRTIO_BLK_T_IN, 1);
    driver.offer_pieces(&[Out(header, 3), Out(header + 3, 13), In(DATA, 513)]);
    driver.kick();
    driver.wait();
    assert_eq!(rig.bytes(DATA, 512), [7; 512]);
    assert_eq!(rig.bytes(DATA + 512, 1), [OK]);
}

#[test]
fn read_marks_its_pages_dirty_and_a_write_does_not() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 4096)]), OK);
    assert!(!rig.is_dirty(DATA));
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, &[In(DATA, 8192)]), OK);
    assert!(rig.is_dirty(DATA) && rig.is_dirty(DATA + 4096));
    assert!(!rig.is_dirty(DATA + 8192));
}

#[test]
fn identify_gives_the_serial_padded_with_zeros() {
    let (node, _file) = file_node(512);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    fill(&rig, DATA, &[0xff; 32]);
    assert_eq!(driver.request(VIRTIO_BLK_T_GET_ID, 0, &[In(DATA, 20)]), OK);
    assert_eq!(rig.bytes(DATA, 21), b"serial-0\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    assert_eq!(driver.request(VIRTIO_BLK_T_GET_ID, 0, &[In(DATA, 3)]), OK);
    assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeros_and_their_neighbours_stay() {
    let (node, file) = file_node(64 << 10);
    file.as_file()
        .write_all_at(&[9; 64 << 10], 0)
        .expect("file");
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    fill(&rig, DATA, &[range(8, 8, 1), range(32, 1, 0)].concat());
    assert_eq!(
        driver.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Out(DATA, 32)]),
        OK
    );
    fill(&rig, DATA, &range(64, 8, 0));
    assert_eq!(
        driver.request(VIRTIO_BLK_T_DISCARD, 0, &[Out(DATA, 16)]),
        OK
    );
    let mut bytes = vec![0; 64 << 10];
    file.as_file().read_exact_at(&mut bytes, 0).expect("file");
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let gone = (8..16).contains(&sector) || sector == 32 || (64..72).contains(&sector);
        assert_eq!(
            bytes,
            if gone { [0; 512] } else { [9; 512] },
            "sector {sector}"
        );
    }
}

#[test]
fn ranges_beyond_the_limits_are_refused_before_any_is_done() {
    let (node, file) = file_node(64 << 10);
    file.as_file()
        .write_all_at(&[9; 64 << 10], 0)
        .expect("file");
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    let mut refused = |kind, bytes: &[u8]| {
        fill(&rig, DATA, bytes);
        driver.request(
            kind,
            0,
            &[Out(DATA, u32::try_from(bytes.len()).expect("small"))],
        )
    };
    let good = range(0, 8, 0);
    let beyond = range(127, 2, 0);
    let huge = range(0, u32::MAX, 0);
    let overflow = range(u64::MAX, 1, 0);
    for bad in [&beyond, &huge, &overflow] {
        let both = [&good[..], bad].concat();
        assert_eq!(refused(VIRTIO_BLK_T_WRITE_ZEROES, &both), IOERR);
        assert_eq!(refused(VIRTIO_BLK_T_DISCARD, &both), IOERR);
    }
    assert_eq!(
        refused(VIRTIO_BLK_T_DISCARD, &range(0, 8, 1)),
        UNSUPP,
        "discard knows no flag"
    );
    assert_eq!(
        refused(VIRTIO_BLK_T_WRITE_ZEROES, &range(0, 8, 2)),
        UNSUPP,
        "unknown flag"
    );
    let mut bytes = vec![0; 64 << 10];
    file.as_file().read_exact_at(&mut bytes, 0).expect("file");
    assert!(bytes.iter().all(|byte| *byte == 9));
}

#[test]
fn too_many_or_cut_ranges_are_refused() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(
        driver.request(VIRTIO_BLK_T_DISCARD, 0, &[Out(DATA, 16 * 17)]),
        UNSUPP
    );
    assert_eq!(
        driver.request(VIRTIO_BLK_T_DISCARD, 0, &[Out(DATA, 15)]),
        IOERR
    );
    assert_eq!(driver.request(VIRTIO_BLK_T_DISCARD, 0, &[]), IOERR);
}

#[test]
fn sectors_off_the_disk_and_lengths_off_its_blocks_fail_without_news() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    for (sector, len) in [
        (128, 512),
        (127, 1024),
        (u64::MAX, 512),
        (1 << 55, 512),
        (0, 511),
    ] {
        let status = driver.request(VIRTIO_BLK_T_IN, sector, &[In(DATA, len)]);
        assert_eq!(status, IOERR, "sector {sector}, {len} bytes");
    }
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 127, &[In(DATA, 512)]), OK);
    assert!(
        rig.notices.try_recv().is_err(),
        "the host did nothing wrong"
    );
}

#[test]
fn each_request_is_counted_by_what_became_of_it() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node.clone(), 2);
    let view = rig.view();
    assert_eq!(rig.disk.totals(), block::Totals::default());
    let mut driver = rig.start(1, &view);
    driver.request(VIRTIO_BLK_T_OUT, 8, &[Out(DATA, 1024)]);
    driver.request(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512), In(DATA, 512)]);
    driver.request(VIRTIO_BLK_T_IN, 128, &[In(DATA, 512)]);
    driver.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    driver.request(VIRTIO_BLK_T_GET_ID, 0, &[In(DATA, 20)]);
    fill(&rig, DATA, &[range(4, 2, 0), range(16, 4, 0)].concat());
    driver.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Out(DATA, 32)]);
    driver.request(VIRTIO_BLK_T_DISCARD, 0, &[Out(DATA, 32)]);
    driver.stop();
    let totals = rig.disk.totals();
    let (reads, writes) = (totals.reads, totals.writes);
    assert_eq!((reads.done, reads.bytes, reads.invalid), (1, 1024, 1));
    assert_eq!(
        (writes.done, writes.bytes, writes.failed),
        (2, 1024 + 6 * 512, 0)
    );
    assert_eq!((totals.flushes.done, totals.unmaps.bytes), (1, 6 * 512));
    assert!(reads.nanoseconds > 0 && writes.nanoseconds > 0);
    assert!(totals.idle().is_some());
    let node = node.totals();
    // The invalid read never reached it, and each range is a request of its own there.
    assert_eq!(
        (node.reads.done, node.writes.done, node.unmaps.done),
        (1, 3, 2)
    );
    assert_eq!((node.highest, node.idle()), (20 * 512, None));
}

#[test]
fn unknown_type_is_unsupported_and_a_cut_header_an_error() {
    let (node, _file) = file_node(512);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(driver.request(0x7777, 0, &[]), UNSUPP);
    let (header, status) = driver.prepare(VIRTIO_BLK_T_IN, 0);
    driver.offer_pieces(&[Out(header, 15), In(status, 1)]);
    driver.kick();
    driver.wait();
    assert_eq!(driver.status(1), IOERR);
    assert_eq!(rig.told.broken.load(Ordering::SeqCst), 0);
}

#[test]
fn host_error_becomes_a_status_and_a_notice() {
    let probe = Probe::default();
    probe.release();
    probe.fail_with(libc::ENOSPC);
    let rig = Rig::new(ProbeNode::node(&probe), 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(
        driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]),
        IOERR
    );
    let notice = rig.notices.recv().expect("news");
    let (device, node) = ("vda".to_owned(), "probe".to_owned());
    assert_eq!(
        notice,
        Notice::BlockError {
            device,
            node,
            write: true,
            errno: libc::ENOSPC,
            action: ErrorAction::Report,
        }
    );
    let writes = rig.disk.totals().writes;
    assert_eq!((writes.done, writes.failed, writes.bytes), (0, 1, 0));
    assert_eq!(rig.disk.node().totals().writes.failed, 1);
}

#[test]
fn request_that_stops_the_machine_waits_for_the_next_start_and_is_then_done() {
    let probe = Probe::default();
    probe.release();
    probe.fail_with(libc::ENOSPC);
    let rig = Rig::with_policy(ProbeNode::node(&probe), 1, OnError::Enospc);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    driver.offer(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]);
    driver.kick();
    let news = rig.notices.recv().expect("news");
    let stops = |notice: &Notice| {
        let action = ErrorAction::Stop;
        matches!(notice, Notice::BlockError { action: told, .. } if *told == action)
    };
    assert!(stops(&news), "{news:?}");
    assert_eq!(rig.disk.failures().trouble(), Some(Trouble::NoSpace));
    let queue = driver.stop();
    assert_eq!(driver.used(), 0, "the guest knows nothing");
    driver.restart(queue);
    assert!(stops(&rig.notices.recv().expect("once more")));
    let queue = driver.stop();
    probe.fail_with(0);
    rig.disk.failures().forget_trouble();
    driver.restart(queue);
    driver.wait();
    assert_eq!(driver.status(0), OK);
    assert_eq!(probe.events(), ["write"; 3]);
    probe.fail_with(libc::EIO);
    assert_eq!(
        driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]),
        IOERR,
        "only a full storage stops"
    );
    assert_eq!(rig.disk.failures().trouble(), None);
}

#[test]
fn ignored_error_is_told_and_a_reset_forgets_what_waits() {
    let probe = Probe::default();
    probe.release();
    probe.fail_with(libc::EIO);
    let rig = Rig::with_policy(ProbeNode::node(&probe), 1, OnError::Ignore);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]), OK);
    assert!(rig.notices.recv().is_ok());

    let rig = Rig::with_policy(ProbeNode::node(&probe), 1, OnError::Stop);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    driver.offer(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]);
    driver.kick();
    assert!(rig.notices.recv().is_ok());
    let queue = driver.stop();
    rig.disk.reset();
    probe.fail_with(0);
    let before = probe.events().len();
    driver.restart(queue);
    driver.stop();
    assert_eq!((driver.used(), probe.events().len()), (0, before));
}

#[test]
fn writes_are_durable_when_the_driver_switched_the_cache_off() {
    let probe = Probe::default();
    probe.release();
    let rig = Rig::new(ProbeNode::node(&probe), 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]), OK);
    rig.disk.config_write(32, &[0]);
    let mut writeback = [0xff];
    rig.disk.config_read(32, &mut writeback);
    assert_eq!(writeback, [0]);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]), OK);
    rig.disk.set_features(0);
    rig.disk.config_write(32, &[1]);
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]), OK);
    assert_eq!(probe.events(), ["write", "durable write", "durable write"]);
    rig.disk.reset();
    rig.disk.config_read(32, &mut writeback);
    assert_eq!(writeback, [1], "a reset brings the cache back");
}

#[test]
fn config_space_tells_the_geometry_of_a_disk_that_has_one() {
    let [plain, told] = [(0, 0, 0), (0x102, 16, 63)].map(|(cyls, heads, secs)| {
        let (node, _file) = file_node(1 << 20);
        let geometry = Geometry::new(cyls, heads, secs).expect("in range");
        let spec = VirtioBlkSpec {
            geometry,
            ..spec(node, 1, NoticeSink::new(drop))
        };
        let disk = VirtioBlk::new(spec).expect("disk");
        let mut field = [0xff; 4];
        disk.config_read(16, &mut field);
        (disk.features() & 1 << 4 != 0, field)
    });
    assert_eq!(plain, (false, [0; 4]));
    assert_eq!(told, (true, [2, 1, 16, 63]));
}

#[test]
fn config_space_tells_the_disk() {
    let (node, _file) = file_node(1 << 20);
    let rig = Rig::new(node, 3);
    let field = |offset: u64| {
        let mut bytes = [0; 4];
        rig.disk.config_read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!(field(0), 2048, "capacity in sectors");
    assert_eq!(field(12), u32::from(driver::QUEUE_SIZE) - 2, "seg_max");
    assert_eq!(field(20), 512, "blk_size");
    assert_eq!(field(24) & 0xff, 3, "4096 = 512 << 3");
    assert_eq!(field(34) & 0xffff, 3, "num_queues");
    assert_eq!(field(60), 0, "beyond the end");
    rig.disk.capacity_changed();
    assert_eq!(rig.told.config_changes.load(Ordering::SeqCst), 1);
}

#[test]
fn disk_that_ends_within_a_sector_is_refused_with_the_fix_and_an_empty_one_is_not() {
    let (node, _file) = file_node(0);
    VirtioBlk::new(spec(node, 1, NoticeSink::new(|_| {}))).expect("an empty disk");
    let quiet = || NoticeSink::new(|_| {});
    for (len, fix) in [(1000, "1024"), (511, "512")] {
        let (node, mut file) = file_node(len);
        file.flush().expect("file");
        let error = VirtioBlk::new(spec(node, 1, quiet()))
            .expect_err("no disk")
            .to_string();
        assert!(
            error.contains(&format!("grow the image to {fix} bytes")),
            "{error}"
        );
    }
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let (node, _file) = file_node(512);
    let quiet = NoticeSink::new(|_| {});
    let good = spec(node, 1, quiet);
    let mut bad = good.clone();
    bad.queue_size = 100;
    assert!(
        VirtioBlk::new(bad)
            .expect_err("no")
            .to_string()
            .contains("queue-size")
    );
    let mut bad = good.clone();
    bad.queues = 0;
    assert!(
        VirtioBlk::new(bad)
            .expect_err("no")
            .to_string()
            .contains("num-queues")
    );
    let mut bad = good;
    bad.physical_block_size = 256;
    assert!(
        VirtioBlk::new(bad)
            .expect_err("no")
            .to_string()
            .contains("physical_block_size")
    );
}

#[test]
fn read_only_node_makes_a_read_only_disk() {
    let (node, _file) = nodes::read_only_file_node(8192);
    let rig = Rig::new(node, 1);
    assert_ne!(rig.disk.features() & (1 << 5), 0, "VIRTIO_BLK_F_RO");
    assert_eq!(rig.disk.features() & (1 << 13), 0, "no discard");
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    assert_eq!(
        driver.request(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]),
        IOERR
    );
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]), OK);
    assert_eq!(
        driver.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Out(DATA, 16)]),
        UNSUPP
    );
}

#[test]
fn dropped_disk_leaves_no_queue_behind() {
    let probe = Probe::default();
    probe.release();
    let rig = Rig::new(ProbeNode::node(&probe), 2);
    let view = rig.view();
    let driver = rig.start(0, &view);
    assert_eq!(driver.status(0), 0);
    drop(driver);
    let iothread = rig.disk.spec.iothreads[0].clone();
    let Rig { disk, .. } = rig;
    drop(disk);
    // The worker's task has ended, so the thread answers with an empty hand.
    iothread.run(|_| async {}).expect("answer");
    assert_eq!(probe.users(), 1, "only this test still holds the probe");
}

#[test]
fn what_waited_for_the_machine_is_done_by_the_disk_of_a_snapshot() {
    let probe = Probe::default();
    probe.release();
    probe.fail_with(libc::EIO);
    let rig = Rig::with_policy(ProbeNode::node(&probe), 1, OnError::Stop);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    driver.offer(VIRTIO_BLK_T_OUT, 0, &[Out(DATA, 512)]);
    driver.kick();
    assert!(rig.notices.recv().is_ok());
    let queue = driver.stop();
    let other = Rig::with_policy(ProbeNode::node(&probe), 1, OnError::Stop);
    let tree = trial::carry(&rig.disk, &other.disk);
    assert_eq!(tree.state["waiting"][0]["kind"], "write");
    rig.disk.reset();
    assert!(trial::offend(&rig.disk, &tree, || ()) > 20);
    // The same disk, so that it has the guest memory that the request is in.
    rig.disk.restore(&tree).unwrap();
    probe.fail_with(0);
    driver.restart(queue);
    driver.wait();
    driver.stop();
    assert_eq!(driver.used(), 1);
}
