//! The controller against a driver of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use block::format::blkdebug::rules::RequestKind;
use block::job::{OnError, Trouble};
use block::{IoThread, IoThreadSpec};
use virtio_queue::QueueState;

use super::*;
use crate::notice::NoticeSink;
use crate::reactor::Reactor;
use crate::scsi::tests::failing_once;
use crate::scsi::{Kind, ScsiUnit, ScsiUnitSpec};
use crate::state::trial;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE, guest_memory};

const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: usize = 2;
const SENSE: usize = 12;

/// Where a disk is plugged, and what writes its block 3.
const AT: Address = Address { target: 1, lun: 0 };
const WRITE_BLOCK: [u8; 10] = [0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0];

/// A command for unit 0 of a target.
fn header(target: u8, cdb: &[u8]) -> Vec<u8> {
    let mut header = vec![1, target, 0, 0, 0, 0, 0, 0];
    header.resize(19, 0);
    header.extend(cdb);
    header.resize(51, 0);
    header
}

/// Task management of unit 0 of a target.
fn manage(kind: u8, target: u8) -> Vec<u8> {
    let mut header = vec![0, 0, 0, 0, kind, 0, 0, 0, 1, target, 0, 0];
    header.resize(24, 0);
    header
}

struct Bench {
    scsi: Arc<VirtioScsi>,
    notified: Arc<Notified>,
    queues: [DriverQueue; 3],
}

fn spec() -> ScsiUnitSpec {
    ScsiUnitSpec {
        id: "cd".to_owned(),
        kind: Kind::Cd,
        vendor: "SESAME".to_owned(),
        product: "CD-ROM".to_owned(),
        version: "1.0".to_owned(),
        serial: String::new(),
        device_id: None,
        wwn: None,
        port_wwn: None,
        port_index: None,
        scsi_version: 5,
        rotation_rate: 0,
        geometry: None,
        removable: true,
        logical_block_size: 2048,
        physical_block_size: 2048,
        write_cache: true,
        on_error: [OnError::Report; 2],
        notices: NoticeSink::new(drop),
    }
}

fn unit() -> Arc<ScsiUnit> {
    Arc::new(ScsiUnit::new(spec(), None).unwrap())
}

/// A disk whose first write fails, which stops the machine.
fn failing_disk() -> Arc<ScsiUnit> {
    let spec = ScsiUnitSpec {
        id: "hd".to_owned(),
        kind: Kind::Disk,
        logical_block_size: 512,
        physical_block_size: 512,
        on_error: [OnError::Stop; 2],
        ..spec()
    };
    let medium = failing_once(RequestKind::Write, libc::ENOSPC);
    Arc::new(ScsiUnit::new(spec, Some(medium)).unwrap())
}

fn bench() -> Bench {
    let id = "scsi0".to_owned();
    let spec = VirtioScsiSpec {
        id: id.clone(),
        queues: 1,
        queue_size: 16,
        max_sectors: 65535,
        cmd_per_lun: 128,
        hotplug: true,
        param_change: true,
        iothread: IoThread::start(IoThreadSpec { id }).unwrap(),
    };
    let scsi = VirtioScsi::new(spec, Reactor::new()).unwrap();
    let notified = Arc::new(Notified::default());
    scsi.attach(Arc::clone(&notified) as _);
    scsi.set_features(scsi.features() & 0xff);
    let memory = guest_memory();
    let queues = [0, 1, 2].map(|place| DriverQueue::new(&memory, place));
    for (index, queue) in queues.iter().enumerate() {
        queue.start(&*scsi, index);
    }
    Bench {
        scsi,
        notified,
        queues,
    }
}

impl Bench {
    /// Offers a header, with room for a response in the same page, and waits for what was written.
    fn ask(&mut self, queue: usize, header: &[u8], room: u32) -> Vec<u8> {
        let queue = &mut self.queues[queue];
        let at = queue.buffer(15);
        queue.put(at, header);
        let len = u32::try_from(header.len()).unwrap();
        let answer = queue.buffer(14);
        queue.offer(&[(at, len, NEXT), (answer, room, WRITE)]);
        let written = queue.used_length();
        queue.get(answer, written)
    }

    fn command(&mut self, target: u8, lun: u8, cdb: &[u8], room: u32) -> Vec<u8> {
        let mut header = header(target, cdb);
        header[3] = lun;
        self.ask(REQUESTS, &header, 108 + room)
    }

    /// A bench with that disk, whose write has failed: its queues are stopped, as the machine is.
    fn stopped() -> (Self, Arc<ScsiUnit>, Vec<Option<QueueState>>) {
        let (mut bench, disk) = (bench(), failing_disk());
        bench.scsi.plug(AT, Arc::clone(&disk));
        bench.command(1, 0, &[0], 0);
        bench.offer(REQUESTS, &header(1, &WRITE_BLOCK), &[7; 512], 108);
        let begun = Instant::now();
        while disk.failures().trouble().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the write has not failed");
            std::thread::yield_now();
        }
        let states = bench.stop();
        assert_eq!(disk.failures().trouble(), Some(Trouble::NoSpace));
        (bench, disk, states)
    }

    fn stop(&self) -> Vec<Option<QueueState>> {
        (0..3).map(|index| self.scsi.stop_queue(index)).collect()
    }

    /// Has the queues go on where they stood.
    fn go_on(&self, states: &[Option<QueueState>]) {
        for (index, state) in states.iter().enumerate() {
            self.queues[index].resume(&*self.scsi, index, state.unwrap());
        }
    }

    fn waiting(&self) -> usize {
        self.scsi.controller.waiting.save().len()
    }

    /// Offers a header and data, with room for a response in the page before; where that is.
    fn offer(&mut self, queue: usize, header: &[u8], data: &[u8], room: u32) -> u64 {
        let queue = &mut self.queues[queue];
        let (at, answer) = (queue.buffer(13), queue.buffer(12));
        queue.put(at, header);
        queue.put(at + header.len() as u64, data);
        let len = u32::try_from(header.len() + data.len()).unwrap();
        queue.offer(&[(at, len, NEXT), (answer, room, WRITE)]);
        answer
    }

    /// Waits for what was written of such an answer.
    fn answer(&mut self, queue: usize, at: u64) -> Vec<u8> {
        let written = self.queues[queue].used_length();
        self.queues[queue].get(at, written)
    }

    fn wait_for_reset(&self) {
        let begun = Instant::now();
        while self.notified.resets.load(Ordering::SeqCst) == 0 {
            assert!(
                begun.elapsed() < PATIENCE,
                "the driver's fault went unnoticed"
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_unit_answers_at_its_place_and_its_target_for_the_others() {
    let mut bench = bench();
    let at = bench.scsi.place(Some(3), None).unwrap();
    bench.scsi.plug(at, unit());
    assert_eq!(
        bench.scsi.place(Some(3), Some(0)),
        Err(PlugError::Taken(at))
    );
    assert_eq!(bench.scsi.place(Some(3), None).unwrap().lun, 1);
    let nobody = bench.command(9, 0, &[0], 0);
    assert_eq!(nobody[11], 3, "BAD_TARGET");
    let told = bench.command(3, 0, &[0], 0);
    assert_eq!((told[10], told[11]), (2, 0), "CHECK CONDITION");
    assert_eq!(
        (told[SENSE], told[SENSE + 2], told[SENSE + 12]),
        (0x70, 6, 0x29)
    );
    let luns = bench.command(3, 7, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 255], 255);
    assert_eq!(luns.len(), 108 + 16);
    let absent = bench.command(3, 7, &[0x12, 0, 0, 0, 36], 36);
    assert_eq!((absent[10], absent[108]), (0, 0x7f));
    let inquiry = bench.command(3, 0, &[0x12, 0, 0, 0, 36], 36);
    assert_eq!((inquiry[108], &inquiry[116..122]), (5, &b"SESAME"[..]));
    let refused = bench.command(3, 7, &[0], 0);
    assert_eq!(refused[SENSE + 12], 0x25, "no such unit");
}

#[test]
fn events_wait_for_buffers_and_tell_of_what_was_missed() {
    let mut bench = bench();
    let unit = unit();
    let at = Address {
        target: 1,
        lun: 300,
    };
    bench.queues[EVENTS].give_room(16);
    bench.scsi.plug(at, Arc::clone(&unit));
    let event = bench.queues[EVENTS].used();
    assert_eq!(
        event,
        [1, 0, 0, 0, 1, 1, 0x41, 0x2c, 0, 0, 0, 0, 1, 0, 0, 0]
    );
    bench.scsi.unplug(&unit);
    bench.queues[EVENTS].give_room(16);
    let event = bench.queues[EVENTS].used();
    assert_eq!(event[..4], [0, 0, 0, 0x80], "NO_EVENT, some were missed");
}

#[test]
fn a_reset_of_a_unit_is_told_by_its_next_answer() {
    let mut bench = bench();
    let at = Address { target: 1, lun: 0 };
    bench.scsi.plug(at, unit());
    bench.command(1, 0, &[0], 0);
    let sense = bench.command(1, 0, &[0], 0);
    assert_eq!(sense[SENSE + 12], 0x3a, "no medium");
    assert_eq!(bench.ask(CONTROL, &manage(5, 1), 1), [0]);
    let sense = bench.command(1, 0, &[0], 0);
    assert_eq!(sense[SENSE + 12], 0x29);
    assert_eq!(bench.ask(CONTROL, &manage(5, 2), 1), [3]);
    assert_eq!(bench.ask(CONTROL, &manage(99, 1), 1), [11]);
    let mut wanted = vec![2, 0, 0, 0, 1, 1, 0, 0];
    wanted.resize(16, 0);
    assert_eq!(bench.ask(CONTROL, &wanted, 5), [0; 5]);
}

#[test]
fn the_driver_sets_the_sizes_within_reason_and_a_reset_takes_them_back() {
    let bench = bench();
    let scsi = &bench.scsi;
    let words = || {
        let mut config = [0; 36];
        scsi.config_read(0, &mut config);
        [config[20], config[21], config[24]]
    };
    assert_eq!(words(), [96, 0, 32]);
    scsi.config_write(20, &18_u32.to_le_bytes());
    scsi.config_write(24, &16_u32.to_le_bytes());
    scsi.config_write(20, &u32::MAX.to_le_bytes());
    scsi.config_write(24, &0_u32.to_le_bytes());
    scsi.config_write(0, &[9; 4]);
    scsi.config_write(20, &[9; 3]);
    assert_eq!(words(), [18, 0, 16]);
    for index in 0..3 {
        assert!(scsi.stop_queue(index).is_some());
        assert_eq!(scsi.stop_queue(index), None);
    }
    scsi.reset();
    assert_eq!(words(), [96, 0, 32]);
}

#[test]
fn chains_that_cannot_be_answered_break_the_queue() {
    for bad in 0..3 {
        for index in [CONTROL, REQUESTS] {
            let mut bench = bench();
            let queue = &mut bench.queues[index];
            let at = queue.buffer(15);
            match bad {
                // A loop, no room for a response, and what is not memory.
                0 => queue.offer(&[(at, 4, NEXT)]),
                1 => queue.offer(&[(at, 64, 0)]),
                _ => queue.offer(&[(u64::MAX - 7, 64, NEXT), (at, 200, WRITE)]),
            }
            bench.wait_for_reset();
            assert!(bench.scsi.stop_queue(index).is_some());
        }
    }
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let Bench { scsi, .. } = bench();
    let refused = |change: fn(&mut VirtioScsiSpec)| {
        let mut spec = scsi.spec().clone();
        change(&mut spec);
        VirtioScsi::new(spec, Reactor::new())
            .unwrap_err()
            .to_string()
    };
    assert!(refused(|spec| spec.queues = 0).contains("num_queues"));
    assert!(refused(|spec| spec.queue_size = 12).contains("virtqueue_size"));
    assert!(refused(|spec| spec.cmd_per_lun = 0).contains("cmd_per_lun"));
}

#[test]
fn a_controller_and_a_unit_go_on_where_a_snapshot_was_taken() {
    let from = bench();
    from.scsi.config_write(20, &18_u32.to_le_bytes());
    let (cd, other) = (unit(), unit());
    assert!(cd.move_tray(true));
    cd.request_eject();
    let to = bench();
    let tree = trial::carry(&*from.scsi, &*to.scsi);
    assert_eq!(tree.state["sense_size"], 18);
    let state = trial::carry(&*cd, &*other);
    assert!(other.is_open());
    assert!(trial::offend(&*to.scsi, &tree, || to.scsi.reset()) > 10);
    assert!(trial::offend(&*other, &state, || other.power_on()) > 10);
}

#[test]
fn a_write_that_stops_the_machine_is_done_when_it_goes_on() {
    let (mut bench, disk, states) = Bench::stopped();
    assert_eq!((bench.waiting(), disk.totals().writes.failed), (1, 1));
    bench.go_on(&states);
    let answer = bench.queues[REQUESTS].buffer(12);
    let told = bench.answer(REQUESTS, answer);
    assert_eq!((told[10], told[11]), (0, 0), "it was done");
    assert_eq!((bench.waiting(), disk.totals().writes.done), (0, 1));
}

#[test]
fn what_waits_is_forgotten_at_a_reset() {
    let (bench, disk, states) = Bench::stopped();
    bench.scsi.reset();
    bench.go_on(&states);
    bench.stop();
    assert_eq!((bench.waiting(), disk.totals().writes.done), (0, 0));
}

#[test]
fn what_waits_for_a_unit_that_was_unplugged_is_not_done_by_the_next_one_there() {
    let (mut bench, disk, states) = Bench::stopped();
    bench.scsi.unplug(&disk);
    let other = failing_disk();
    bench.scsi.plug(AT, Arc::clone(&other));
    bench.go_on(&states);
    let answer = bench.queues[REQUESTS].buffer(12);
    assert_eq!(bench.answer(REQUESTS, answer)[11], 3, "BAD_TARGET");
    let asked = [&disk, &other].map(|disk| disk.totals().writes.done);
    assert_eq!(asked, [0, 0]);
}

#[test]
fn who_aborts_what_waits_waits_with_it() {
    let (mut bench, disk, states) = Bench::stopped();
    bench.go_on(&states[..1]);
    let answer = bench.offer(CONTROL, &manage(0, 1), &[], 1);
    let asked = bench.ask(CONTROL, &manage(7, 1), 1);
    assert_eq!(asked, [10], "there is a task");
    let control = bench.scsi.stop_queue(CONTROL);
    assert_eq!(bench.waiting(), 2);
    bench.go_on(&[control, states[1], states[2]]);
    assert_eq!(bench.answer(CONTROL, answer), [0]);
    assert_eq!((bench.waiting(), disk.totals().writes.done), (0, 1));
}

#[test]
fn a_snapshot_keeps_what_waits_and_a_lie_about_it_is_survived() {
    let (from, _, states) = Bench::stopped();
    let (to, disk) = (bench(), failing_disk());
    to.scsi.plug(AT, Arc::clone(&disk));
    to.stop();
    let tree = trial::carry(&*from.scsi, &*to.scsi);
    assert_eq!(
        (to.waiting(), tree.state["waiting"][0]["queue"].as_u64()),
        (1, Some(2))
    );
    let go_on = || {
        to.go_on(&states);
        to.stop();
    };
    assert!(trial::offend(&*to.scsi, &tree, go_on) > 20);
}
