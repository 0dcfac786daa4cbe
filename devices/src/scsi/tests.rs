//! Units against a tester, over files that are written and null nodes that are only read.

use std::sync::{Arc, Mutex};

use block::format::blkdebug::limits::RequestLimits;
use block::format::blkdebug::rules::{ErrorRule, RequestKind, RuleEvent, Rules};
use block::job::{ErrorAction, OnError, Trouble};
use block::spec::{
    BlkdebugSpec, CacheSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec,
    NodeOptions, NodeSpec, NullSpec,
};
use block::{BlockGraph, IoThread, IoThreadSpec, Root, Segments};
use fdset::{Door, FdRegistry, FdsetId, Handover, Origin, Scope};

use super::*;
use crate::geometry::Geometry;
use crate::notice::{Notice, NoticeSink};

struct Bench {
    iothread: IoThread,
    unit: Arc<ScsiUnit>,
    heard: Arc<Mutex<Vec<Notice>>>,
}

fn medium(len: u64, read_only: bool) -> Root {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    let passed = Handover::new(file.into(), Origin::CommandLine);
    door.registry().add(passed, FdsetId::new(0).ok(), None);
    let spec = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("disk".to_owned()),
        options: NodeOptions {
            read_only,
            auto_read_only: false,
            discard: DiscardMode::Unmap,
            detect_zeroes: DetectZeroes::Off,
            cache: CacheSpec {
                direct: false,
                no_flush: false,
            },
        },
        driver: if read_only {
            DriverSpec::NullCo(NullSpec {
                size: len,
                read_zeroes: true,
            })
        } else {
            DriverSpec::File(FileSpec {
                filename: "/dev/fdset/0".to_owned(),
                role: fdset::Role::Image,
                locking: block::spec::Locking::Auto,
            })
        },
    };
    BlockGraph::new().add(&door, spec).unwrap().into()
}

/// A medium of 1 MiB of zeroes whose next request of this kind fails, and none after it.
pub(crate) fn failing_once(kind: RequestKind, errno: i32) -> Root {
    let node = |name: &str, driver| NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some(name.to_owned()),
        options: NodeOptions {
            read_only: false,
            auto_read_only: false,
            discard: DiscardMode::Unmap,
            detect_zeroes: DetectZeroes::Off,
            cache: CacheSpec {
                direct: false,
                no_flush: false,
            },
        },
        driver,
    };
    let zeroes = NullSpec {
        size: MIB,
        read_zeroes: true,
    };
    let rule = ErrorRule {
        event: RuleEvent::None,
        state: None,
        kind: Some(kind),
        errno,
        sector: None,
        once: true,
    };
    let driver = DriverSpec::Blkdebug(BlkdebugSpec {
        image: ChildSpec::Inline(Box::new(node("below", DriverSpec::NullCo(zeroes)))),
        config: None,
        rules: Rules::new(vec![rule], Vec::new()),
        limits: RequestLimits::default(),
    });
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let mut graph = BlockGraph::new();
    graph.add(&door, node("failing", driver)).unwrap().into()
}

fn bench(kind: Kind, medium: Option<Root>) -> Bench {
    bench_with(kind, medium, |_| ())
}

fn bench_with(kind: Kind, medium: Option<Root>, change: impl FnOnce(&mut ScsiUnitSpec)) -> Bench {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let block = if kind == Kind::Cd {
        unit::CD_BLOCK
    } else {
        512
    };
    let mut spec = ScsiUnitSpec {
        id: "unit".to_owned(),
        kind,
        vendor: "SESAME".to_owned(),
        product: "HARDDISK".to_owned(),
        version: "1.0".to_owned(),
        serial: "abc".to_owned(),
        device_id: None,
        wwn: None,
        port_wwn: None,
        port_index: None,
        scsi_version: 5,
        rotation_rate: 0,
        geometry: None,
        removable: kind == Kind::Cd,
        logical_block_size: block,
        physical_block_size: block,
        write_cache: true,
        on_error: [OnError::Report; 2],
        notices: NoticeSink::new(move |notice| sink.lock().unwrap().push(notice)),
    };
    change(&mut spec);
    Bench {
        iothread: IoThread::start(IoThreadSpec {
            id: "scsi".to_owned(),
        })
        .unwrap(),
        unit: Arc::new(ScsiUnit::new(spec, medium).unwrap()),
        heard,
    }
}

impl Bench {
    /// Does a command with bytes from the guest and room for so many; what it finds there.
    fn run(&self, cdb: &[u8], out: &[u8], room: usize) -> (Done, Vec<u8>) {
        let (unit, cdb, out) = (Arc::clone(&self.unit), cdb.to_vec(), out.to_vec());
        let done = self.iothread.run(move |io| async move {
            let buffer = |len| match len {
                0 => Segments::with_capacity(0),
                len => Segments::owned(len, 512).unwrap(),
            };
            let (given, wanted) = (buffer(out.len()), buffer(room));
            given.all().copy_from(&out);
            let done = unit.execute(&io, &cdb, &given, &wanted).await;
            let mut found = vec![0; room];
            wanted.all().copy_to(&mut found);
            (done, found)
        });
        done.unwrap()
    }

    fn sense(&self, cdb: &[u8]) -> Option<Sense> {
        self.run(cdb, &[], 0).0.sense
    }

    fn ready(self) -> Self {
        assert_eq!(self.sense(&[0; 6]), Some(Sense::POWER_ON));
        self
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn power_on_is_told_once_and_what_was_written_is_read() {
    let bench = bench(Kind::Disk, Some(medium(MIB, false))).ready();
    assert_eq!(bench.sense(&[0; 6]), None);
    let write = [0x2a, 0, 0, 0, 0, 3, 0, 0, 2, 0];
    let data = [7; 1024];
    let (done, _) = bench.run(&write, &data, 0);
    assert_eq!((done.sense, done.moved), (None, 1024));
    let (done, found) = bench.run(&[0x08, 0, 0, 3, 1, 0], &[], 2048);
    assert_eq!((done.sense, done.moved), (None, 512));
    assert_eq!((found[511], found[512]), (7, 0));
    assert_eq!(bench.sense(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    let totals = bench.unit.totals();
    assert_eq!(
        (totals.reads.done, totals.writes.done, totals.flushes.done),
        (1, 1, 1)
    );
}

#[test]
fn blocks_beyond_the_end_and_buffers_that_are_too_short_are_refused() {
    let bench = bench(Kind::Disk, Some(medium(MIB, false))).ready();
    let last = (MIB / 512 - 1).to_be_bytes();
    let mut read = [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0];
    read[2..10].copy_from_slice(&last);
    let (done, _) = bench.run(&read, &[], 1024);
    assert_eq!(done.sense, Some(Sense::OUT_OF_RANGE));
    read[2..10].fill(0xff);
    assert_eq!(bench.sense(&read), Some(Sense::OUT_OF_RANGE));
    let (done, _) = bench.run(&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[], 1023);
    assert!(done.overrun);
    assert_eq!(bench.sense(&[0xff; 6]), Some(Sense::INVALID_OPCODE));
}

#[test]
fn a_block_is_repeated_zeroed_and_given_back() {
    let bench = bench(Kind::Disk, Some(medium(MIB, false))).ready();
    let same = |options, blocks| [0x41, options, 0, 0, 0, 1, 0, 0, blocks, 0];
    let (done, _) = bench.run(&same(0, 200), &[9; 512], 0);
    assert_eq!((done.sense, done.moved), (None, 512));
    let byte = |block: u8| bench.run(&[8, 0, 0, block, 1, 0], &[], 512).1[0];
    assert_eq!([byte(0), byte(1), byte(200), byte(201)], [0, 9, 9, 0]);
    assert_eq!(bench.sense(&same(1, 2)), None);
    assert_eq!([byte(1), byte(2), byte(3)], [0, 0, 9]);
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(3_u64.to_be_bytes());
    list.extend(1_u32.to_be_bytes());
    list.extend([0; 4]);
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(bench.run(&unmap, &list, 0).0.sense, None);
    assert_eq!([byte(3), byte(4)], [0, 9]);
    list[8..16].fill(0xff);
    assert_eq!(
        bench.run(&unmap, &list, 0).0.sense,
        Some(Sense::OUT_OF_RANGE)
    );
    assert_eq!(
        bench.run(&unmap, &list[..20], 0).0.sense,
        Some(Sense::INVALID_PARAMETERS)
    );
    assert_eq!(
        bench.run(&unmap, &list[..5], 0).0.sense,
        Some(Sense::INVALID_PARAMETERS)
    );
}

#[test]
fn who_it_is_fits_the_room_that_was_given() {
    let bench = bench(Kind::Disk, Some(medium(MIB, true)));
    let (done, found) = bench.run(&[0x12, 0, 0, 0, 36, 0], &[], 96);
    assert_eq!((done.sense, done.moved), (None, 36));
    assert_eq!(&found[8..32], b"SESAME  HARDDISK        ");
    assert_eq!(bench.run(&[0x12, 0, 0, 0, 5, 0], &[], 96).0.moved, 5);
    let (_, pages) = bench.run(&[0x12, 1, 0, 0, 255, 0], &[], 255);
    assert_eq!(pages[..10], [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for page in pages[4..10].iter().copied() {
        let (done, found) = bench.run(&[0x12, 1, page, 0, 255, 0], &[], 255);
        assert_eq!(done.sense, None);
        assert_eq!((found[1], u64::from(found[3]) + 4), (page, done.moved));
    }
    assert_eq!(
        bench.sense(&[0x12, 1, 0x99, 0, 255, 0]),
        Some(Sense::INVALID_FIELD)
    );
    let bench = bench.ready();
    let (_, mode) = bench.run(&[0x1a, 0, 0x3f, 0, 255, 0], &[], 255);
    assert_eq!(
        (mode[2] & 0x80, mode[3]),
        (0x80, 8),
        "read-only, with a block descriptor"
    );
    assert_eq!(
        bench.sense(&[0x1a, 0, 0xff, 0, 255, 0]),
        Some(Sense::NOTHING_SAVED)
    );
    let (_, capacity) = bench.run(
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        &[],
        32,
    );
    assert_eq!(capacity[..12], [0, 0, 0, 0, 0, 0, 7, 0xff, 0, 0, 2, 0]);
    let (done, _) = bench.run(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512], 0);
    assert_eq!(done.sense, Some(Sense::WRITE_PROTECTED));
}

#[test]
fn its_names_are_designators_and_its_rotation_is_a_characteristic() {
    let bench = bench_with(Kind::Disk, Some(medium(MIB, true)), |spec| {
        spec.wwn = Some(0x5000_c500_0102_0304);
        spec.port_wwn = Some(0x5000_c500_0102_0305);
        (spec.port_index, spec.scsi_version, spec.rotation_rate) = (Some(2), 6, 7200);
    });
    let page = |page| bench.run(&[0x12, 1, page, 0, 255, 0], &[], 255).1;
    let mut names = vec![0, 0x83, 0, 39, 2, 0, 0, 3, b'a', b'b', b'c'];
    names.extend([1, 3, 0, 8, 0x50, 0, 0xc5, 0, 1, 2, 3, 4]);
    names.extend([0x61, 0x93, 0, 8, 0x50, 0, 0xc5, 0, 1, 2, 3, 5]);
    names.extend([0x61, 0x94, 0, 4, 0, 0, 0, 2]);
    assert_eq!(page(0x83)[..names.len()], names);
    assert_eq!(page(0xb1)[..6], [0, 0xb1, 0, 60, 0x1c, 0x20]);
    assert_eq!(bench.run(&[0x12, 0, 0, 0, 36, 0], &[], 36).1[2], 6);
}

#[test]
fn its_geometry_is_in_two_pages_of_its_mode_between_the_others() {
    let bench = bench_with(Kind::Disk, Some(medium(MIB, true)), |spec| {
        spec.geometry = Geometry::new(0x102, 16, 63).unwrap();
        spec.rotation_rate = 7200;
    })
    .ready();
    let (done, mode) = bench.run(&[0x1a, 8, 0x3f, 0, 255, 0], &[], 255);
    assert_eq!(u64::from(mode[0]) + 1, done.moved);
    assert_eq!([mode[4], mode[16], mode[40], mode[72]], [1, 4, 5, 8]);
    let (rigid, flexible) = (&mode[16..40], &mode[40..72]);
    assert_eq!(rigid[..6], [4, 22, 0, 1, 2, 16]);
    assert_eq!(rigid[20..22], [0x1c, 0x20]);
    assert_eq!(flexible[..10], [5, 30, 0, 0, 16, 63, 2, 0, 1, 2]);
    assert_eq!(flexible[28..30], [0x1c, 0x20]);
    let (_, changeable) = bench.run(&[0x1a, 8, 0x44, 0, 255, 0], &[], 255);
    assert_eq!(changeable[4..28], [&[4, 22][..], &[0; 22]].concat());
}

#[test]
fn a_guest_opens_its_tray_unless_it_keeps_the_medium_in() {
    let bench = bench(Kind::Cd, Some(medium(MIB, true))).ready();
    let (prevent, allow) = ([0x1e, 0, 0, 0, 1, 0], [0x1e, 0, 0, 0, 0, 0]);
    let (out, back) = ([0x1b, 0, 0, 0, 2, 0], [0x1b, 0, 0, 0, 3, 0]);
    assert_eq!(bench.sense(&prevent), None);
    assert_eq!(bench.sense(&out), Some(Sense::REMOVAL_PREVENTED));
    bench.unit.request_eject();
    let status = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    let (_, event) = bench.run(&status, &[], 8);
    assert_eq!(
        event,
        [0, 6, 4, 0x10, 1, 2, 0, 0],
        "the wish to take it out"
    );
    assert_eq!(bench.sense(&allow), None);
    assert_eq!(bench.sense(&out), None);
    assert_eq!(bench.sense(&[0; 6]), Some(Sense::TRAY_OPEN));
    assert_eq!(bench.sense(&back), None);
    assert_eq!(bench.sense(&[0; 6]), Some(Sense::MEDIUM_CHANGED));
    assert_eq!(bench.sense(&[0; 6]), None);
    let moved = |open| Notice::TrayMoved {
        id: "unit".to_owned(),
        open,
    };
    assert_eq!(*bench.heard.lock().unwrap(), [moved(true), moved(false)]);
    let (done, _) = bench.run(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 2048], 0);
    assert_eq!(done.sense, Some(Sense::WRITE_PROTECTED));
}

#[test]
fn an_empty_drive_has_no_medium_until_one_comes() {
    let bench = bench(Kind::Cd, None).ready();
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(bench.sense(&[0; 6]), Some(Sense::NO_MEDIUM));
    assert_eq!(bench.sense(&read), Some(Sense::NO_MEDIUM));
    assert!(bench.unit.move_tray(true));
    bench.unit.insert_medium(medium(MIB, true));
    assert_eq!(bench.sense(&read), Some(Sense::TRAY_OPEN));
    assert!(bench.unit.move_tray(false));
    assert!(!bench.unit.move_tray(false));
    assert_eq!(bench.sense(&read), Some(Sense::MEDIUM_CHANGED));
    assert_eq!(bench.run(&read, &[], 2048).0.moved, 2048);
    assert!(bench.unit.take_medium().is_some());
    assert_eq!(bench.sense(&read), Some(Sense::NO_MEDIUM));
}

#[test]
fn a_failure_is_told_ignored_or_has_the_request_wait_as_the_policy_says() {
    use ErrorAction::{Ignore, Report, Stop};
    let write = [0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0];
    let after = |policy, errno| {
        let medium = failing_once(RequestKind::Write, errno);
        let policies = |spec: &mut ScsiUnitSpec| spec.on_error = [OnError::Ignore, policy];
        let bench = bench_with(Kind::Disk, Some(medium), policies).ready();
        let (done, _) = bench.run(&write, &[7; 512], 0);
        let [Notice::BlockError { action, node, .. }] = &bench.heard.lock().unwrap()[..] else {
            panic!("one notice");
        };
        assert_eq!(node, "failing");
        (*action, done, bench.unit.failures().trouble())
    };
    let io_error = Done::refused(Sense::IO_ERROR);
    let waits = Done {
        waits: true,
        ..Done::default()
    };
    for (policy, errno, expected) in [
        (OnError::Report, libc::EIO, (Report, io_error, None)),
        (OnError::Ignore, libc::EIO, (Ignore, Done::moved(512), None)),
        (OnError::Enospc, libc::EIO, (Report, io_error, None)),
        (
            OnError::Enospc,
            libc::ENOSPC,
            (Stop, waits, Some(Trouble::NoSpace)),
        ),
        (
            OnError::Stop,
            libc::EIO,
            (Stop, waits, Some(Trouble::Failed)),
        ),
    ] {
        assert_eq!(after(policy, errno), expected, "{policy:?} {errno}");
    }
}

#[test]
fn reads_have_a_policy_of_their_own_and_a_flush_is_no_read() {
    for (kind, cdb, room) in [
        (RequestKind::Read, [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512),
        (RequestKind::Flush, [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),
    ] {
        let medium = failing_once(kind, libc::EIO);
        let policies = |spec: &mut ScsiUnitSpec| spec.on_error = [OnError::Stop, OnError::Report];
        let bench = bench_with(Kind::Disk, Some(medium), policies).ready();
        let (done, _) = bench.run(&cdb, &[], room);
        assert_eq!(done.waits, kind == RequestKind::Read);
        assert_eq!(bench.run(&cdb, &[], room).0, Done::moved(room as u64));
    }
}
