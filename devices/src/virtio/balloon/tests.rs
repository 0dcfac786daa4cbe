//! The balloon against a driver of its own.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::memory::{GuestMem, Reclaim};
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::state::{AnyStateful, Stateful, trial};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE, guest_memory};
use crate::vm_clock::{TestedClock, VmClock};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

/// Writes down what it takes.
#[derive(Default)]
struct Taken(Mutex<Vec<(u64, u64)>>);

impl Taken {
    fn all(&self) -> Vec<(u64, u64)> {
        self.0.lock().unwrap().clone()
    }
}

impl Reclaim for Taken {
    fn reclaim(&self, start: u64, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().push((start, len));
        Ok(())
    }
}

struct Bench {
    balloon: Arc<VirtioBalloon>,
    taken: Arc<Taken>,
    heard: Arc<Mutex<Vec<Notice>>>,
    notified: Arc<Notified>,
    clock: Arc<TestedClock>,
    memory: GuestMem,
}

fn bench() -> Bench {
    let taken = Arc::new(Taken::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let clock = TestedClock::new();
    let spec = BalloonSpec {
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    let balloon = VirtioBalloon::new(
        spec,
        BalloonHost {
            reclaim: Arc::clone(&taken) as _,
            reactor: Reactor::new(),
            clock: VmClock::Tested(Arc::clone(&clock)),
            notices: NoticeSink::new(move |notice| sink.lock().unwrap().push(notice)),
        },
    );
    let notified = Arc::new(Notified::default());
    balloon.attach(Arc::clone(&notified) as _);
    Bench {
        balloon,
        taken,
        heard,
        notified,
        clock,
        memory: guest_memory(),
    }
}

impl Bench {
    fn queue(&self, index: usize) -> DriverQueue {
        let queue = DriverQueue::new(&self.memory, u64::try_from(index).unwrap());
        queue.start(&*self.balloon, index);
        queue
    }
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn stat(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn inflated_pages_are_taken_in_ranges_and_deflated_ones_are_left_alone() {
    let bench = bench();
    let mut inflate = bench.queue(INFLATE);
    let mut deflate = bench.queue(DEFLATE);
    inflate.give(&numbers(&[16, 17, 18, 33]));
    assert_eq!(inflate.used(), b"");
    deflate.give(&numbers(&[16]));
    assert_eq!(deflate.used(), b"");
    assert_eq!(bench.taken.all(), [(0x10000, 0x3000), (0x21000, 0x1000)]);
}

#[test]
fn half_a_page_number_names_no_page() {
    let bench = bench();
    let mut inflate = bench.queue(INFLATE);
    inflate.give(&[1, 0, 0, 0, 9, 9]);
    inflate.used();
    assert_eq!(bench.taken.all(), [(0x1000, 0x1000)]);
}

#[test]
fn reported_ranges_are_taken_as_they_are() {
    let bench = bench();
    let mut reporting = bench.queue(REPORTING);
    reporting.offer(&[
        (0x10_0000, 0x20_0000, WRITE | NEXT),
        (0x3f_0000, 0x1000, WRITE),
    ]);
    reporting.used();
    let taken = [(0x10_0000, 0x20_0000), (0x3f_0000, 0x1000)];
    assert_eq!(bench.taken.all(), taken);
}

#[test]
fn statistics_are_asked_for_by_the_clock_and_the_buffer_outlives_a_pause() {
    let bench = bench();
    let mut queue = bench.queue(STATISTICS);
    queue.give(&stat(4, 7));
    wait_for("no statistics", || {
        bench.balloon.guest_stats().values[4] == 7
    });
    assert_eq!(queue.used_already(), None, "nobody has asked for more");
    bench.balloon.set_polling_interval(10).unwrap();
    bench.clock.advance(Duration::from_secs(9));
    assert_eq!(queue.used_already(), None);
    bench.clock.advance(Duration::from_secs(10));
    assert_eq!(queue.used(), b"");
    queue.give(&stat(4, 8));
    wait_for("no answer", || bench.balloon.guest_stats().values[4] == 8);
    let state = bench.balloon.stop_queue(STATISTICS).unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    queue.resume(&*bench.balloon, STATISTICS, state);
    bench.balloon.set_polling_interval(0).unwrap();
    bench.clock.advance(Duration::from_secs(40));
    assert_eq!(queue.used_already(), None, "nobody asks any more");
}

#[test]
fn the_drivers_half_of_the_configuration_is_told_once_for_each_change() {
    let bench = bench();
    let balloon = &bench.balloon;
    balloon.set_target(512);
    let mut config = [0xff; 12];
    balloon.config_read(0, &mut config);
    assert_eq!(config, [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for write in [256_u32, 256, 512] {
        balloon.config_write(4, &write.to_le_bytes());
    }
    balloon.config_write(0, &[9; 4]);
    balloon.config_write(u64::MAX, &[9; 8]);
    balloon.config_write(6, &[1, 2, 3, 4]);
    assert_eq!(balloon.actual(), 512 | 1 << 16 | 2 << 24);
    let changes: Vec<_> = [256, 512, 512 | 1 << 16 | 2 << 24]
        .map(|pages| Notice::BalloonChange { pages })
        .into();
    assert_eq!(*bench.heard.lock().unwrap(), changes);
    balloon.config_read(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}

#[test]
fn a_reset_empties_the_balloon_and_keeps_what_is_wanted_of_it() {
    let bench = bench();
    bench.balloon.set_target(3);
    bench.balloon.config_write(4, &[3, 0, 0, 0]);
    bench.balloon.set_polling_interval(5).unwrap();
    let saved = bench.balloon.save();
    bench.balloon.reset();
    assert_eq!(bench.balloon.actual(), 0);
    assert_eq!(bench.balloon.save().target, 3);
    assert_eq!(bench.balloon.polling_interval(), 5);
    bench.balloon.load(saved).unwrap();
    assert_eq!(bench.balloon.save(), saved);
}

#[test]
fn a_loop_in_any_queue_asks_for_a_reset() {
    for index in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        let bench = bench();
        let mut queue = bench.queue(index);
        let address = queue.buffer(0);
        let direction = if index == REPORTING { WRITE } else { 0 };
        queue.offer(&[(address, 4, NEXT | direction)]);
        wait_for("the loop went unnoticed", || {
            bench.notified.resets.load(Ordering::SeqCst) == 1
        });
        assert!(bench.balloon.stop_queue(index).is_some());
        assert_eq!(bench.balloon.stop_queue(index), None);
    }
}

#[test]
fn without_reports_there_is_no_queue_for_them() {
    let spec = BalloonSpec {
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    let Bench { balloon, .. } = bench();
    let plain = VirtioBalloon::new(
        spec,
        BalloonHost {
            reclaim: Arc::new(Taken::default()),
            reactor: Reactor::new(),
            clock: VmClock::Host,
            notices: NoticeSink::new(drop),
        },
    );
    assert_eq!(balloon.queue_sizes().len(), 4);
    assert_eq!(plain.queue_sizes().len(), 3);
    assert_eq!(balloon.features() & !plain.features(), 1 << 2 | 1 << 5);
    assert_eq!(plain.stop_queue(REPORTING), None);
}

#[test]
fn no_state_breaks_a_balloon() {
    let bench = bench();
    let tree = bench.balloon.tree().unwrap();
    let alive = || bench.balloon.config_read(0, &mut [0; 16]);
    assert!(trial::offend(&*bench.balloon, &tree, alive) > 5);
}
