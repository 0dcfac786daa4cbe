use std::sync::Mutex;
use std::time::Duration;

use super::super::address::SlotAddress;
use super::super::bus::BusKind;
use super::super::function::Spaces;
use super::super::intx::Wires;
use super::super::mock::Level;
use super::*;
use crate::irq::IrqLine;
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::vm_clock::{TestedClock, VmClock};

const BAR: u64 = 0xe000_0000;

/// A plugged watchdog on a tester's clock, with what it has reported.
struct Bench {
    watchdog: Arc<I6300esb>,
    spaces: Spaces,
    clock: Arc<TestedClock>,
    barks: Arc<Mutex<usize>>,
}

impl Bench {
    fn new() -> Self {
        let barks = Arc::new(Mutex::new(0));
        let heard = Arc::clone(&barks);
        let clock = TestedClock::new();
        let host = WatchdogHost {
            reactor: Reactor::new(),
            clock: VmClock::Tested(Arc::clone(&clock)),
            notices: NoticeSink::new(move |notice| {
                assert_eq!(notice, Notice::Watchdog);
                *heard.lock().unwrap() += 1;
            }),
        };
        let watchdog = I6300esb::new("dog", host, false).unwrap();
        let spaces = Spaces::default();
        let lines: [Arc<dyn IrqLine>; 4] = std::array::from_fn(|_| Arc::new(Level::default()) as _);
        watchdog.attach(Attachment {
            spaces: spaces.clone(),
            address: SlotAddress::slot(4),
            wires: Wires::new(lines),
            bus: BusKind::Root,
        });
        let bench = Self {
            watchdog,
            spaces,
            clock,
            barks,
        };
        bench.place();
        bench
    }

    /// What firmware does.
    fn place(&self) {
        self.watchdog
            .config_write(0x10, &0xe000_0000_u32.to_le_bytes());
        self.watchdog.config_write(0x04, &[2, 0]);
    }

    fn write(&self, offset: u64, value: u32) {
        self.spaces.memory.write(BAR + offset, &value.to_le_bytes());
    }

    fn unlocked(&self, offset: u64, value: u32) {
        self.spaces.memory.write(BAR + 0xc, &[0x80, 0]);
        self.spaces.memory.write(BAR + 0xc, &[0x86, 0]);
        self.write(offset, value);
    }

    /// Linux's `i6300esb` driver: its probe, `heartbeat` in seconds, its start.
    fn start(&self, heartbeat: u32, lock: u8) {
        self.watchdog.config_write(0x60, &[3, 0]);
        self.watchdog.config_write(0x68, &[0]);
        self.unlocked(0x0, heartbeat << 9);
        self.unlocked(0x4, heartbeat << 9);
        self.ping();
        self.watchdog.config_write(0x68, &[lock]);
    }

    fn ping(&self) {
        self.unlocked(0xc, 0x100);
    }

    fn wait(&self, time: Duration) {
        self.clock.advance(self.clock.moved() + time);
    }

    fn barks(&self) -> usize {
        *self.barks.lock().unwrap()
    }

    fn timed_out(&self) -> bool {
        let mut reload = [0; 2];
        self.spaces.memory.read(BAR + 0xc, &mut reload);
        u16::from_le_bytes(reload) & 0x200 != 0
    }
}

#[test]
fn it_barks_once_when_nobody_pings_it_for_both_stages() {
    let bench = Bench::new();
    bench.start(30, 0b10);
    for _ in 0..4 {
        bench.wait(Duration::from_secs(25));
        bench.ping();
    }
    assert_eq!(bench.barks(), 0);
    // Linux takes 1024 units of 2^15 ticks for a second, which are a little more.
    bench.wait(Duration::from_secs(30));
    assert_eq!(bench.barks(), 0);
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.barks(), 1);
    assert!(bench.timed_out());
    bench.wait(Duration::from_secs(300));
    assert_eq!(bench.barks(), 1, "it is off until somebody starts it");
    bench.watchdog.reset();
    bench.place();
    assert!(bench.timed_out(), "a driver asks after the reset");
    bench.unlocked(0xc, 0x300);
    assert!(!bench.timed_out());
}

#[test]
fn without_the_two_keys_no_register_takes_a_write() {
    let bench = Bench::new();
    bench.start(2, 0b10);
    bench.wait(Duration::from_millis(1900));
    bench.write(0xc, 0x100);
    bench.write(0xc, 0x86);
    bench.write(0xc, 0x100);
    bench.wait(Duration::from_millis(200));
    assert_eq!(bench.barks(), 1);
}

#[test]
fn a_locked_one_stops_at_a_reset_only() {
    let bench = Bench::new();
    bench.start(1, 0b11);
    bench.watchdog.config_write(0x68, &[0]);
    let mut lock = [0];
    bench.watchdog.config_read(0x68, &mut lock);
    assert_eq!(lock, [0b11]);
    bench.watchdog.reset();
    bench.wait(Duration::from_secs(9));
    assert_eq!(bench.barks(), 0);
    bench.place();
    bench.start(1, 0b10);
    bench.watchdog.config_write(0x68, &[0]);
    bench.wait(Duration::from_secs(9));
    assert_eq!(bench.barks(), 0, "its driver has stopped it");
}

#[test]
fn time_in_which_the_machine_is_paused_does_not_count() {
    let bench = Bench::new();
    bench.start(10, 0b10);
    bench.wait(Duration::from_secs(9));
    bench.watchdog.pause();
    bench.wait(Duration::from_secs(100));
    assert_eq!(bench.barks(), 0);
    let saved = bench.watchdog.save();
    let other = Bench::new();
    other.watchdog.pause();
    other.watchdog.load(saved).unwrap();
    for bench in [bench, other] {
        bench.watchdog.resume();
        bench.wait(Duration::from_millis(900));
        assert_eq!(bench.barks(), 0);
        bench.wait(Duration::from_millis(300));
        assert_eq!(bench.barks(), 1);
    }
}

#[test]
fn told_to_do_nothing_it_ends_or_begins_again() {
    for (lock, runs) in [(0b010, false), (0b110, true)] {
        let bench = Bench::new();
        bench.start(1, 0);
        bench.watchdog.config_write(0x60, &[0x20, 0]);
        bench.watchdog.config_write(0x68, &[lock]);
        bench.wait(Duration::from_secs(3));
        let mut interrupt = [0; 4];
        bench.spaces.memory.read(BAR + 0x8, &mut interrupt);
        assert_eq!(interrupt, [1, 0, 0, 0], "stage 1 has run out");
        bench.write(0x8, 1);
        assert_eq!(bench.clock.next_deadline().is_some(), runs);
        assert_eq!((bench.barks(), bench.timed_out()), (0, false));
    }
}

#[test]
fn no_stage_is_too_short_for_the_thread_that_it_ends_on() {
    let bench = Bench::new();
    bench.watchdog.config_write(0x60, &[0x24, 0]);
    bench.unlocked(0x0, 0);
    bench.unlocked(0x4, 0);
    bench.watchdog.config_write(0x68, &[0b110]);
    let next = bench.clock.next_deadline().unwrap();
    assert_eq!(next, Duration::from_millis(1));
}

#[test]
fn what_was_unplugged_does_not_bark() {
    let bench = Bench::new();
    bench.start(1, 0b11);
    bench.watchdog.detach();
    bench.wait(Duration::from_secs(9));
    assert_eq!(bench.barks(), 0);
}
