use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::vm_clock::{TestedClock, VmClock};

/// Registers, as drivers know them.
const RELOAD: u64 = 0x0;
const STATUS1: u64 = 0x4;
const STATUS2: u64 = 0x6;
const CONTROL1: u64 = 0x8;
const TIMER: u64 = 0x12;
const HALT: u16 = 0x800;

/// A watchdog on a tester's clock, with what it has reported.
struct Bench {
    tco: Arc<Tco>,
    clock: Arc<TestedClock>,
    barks: Arc<Mutex<usize>>,
}

impl Bench {
    fn new(strapped: bool) -> Self {
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
        let tco = Tco::new(host, strapped).unwrap();
        Self { tco, clock, barks }
    }

    fn read(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.tco.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u16) {
        self.tco.write(offset, &value.to_le_bytes());
    }

    /// Linux's `iTCO_wdt` driver: its probe, its start. Of its heartbeat half is the counter's.
    fn start(&self, ticks: u16) {
        self.write(CONTROL1, HALT);
        self.write(STATUS1, 8);
        self.write(STATUS2, 2);
        self.write(STATUS2, 4);
        self.set_no_reboot(false);
        self.write(TIMER, ticks);
        self.write(RELOAD, 1);
        self.write(CONTROL1, 0);
    }

    fn set_no_reboot(&self, off: bool) {
        let registers = ChipsetRegisters(Arc::clone(&self.tco));
        registers.write(0x3410, &[u8::from(off) << 5, 0, 0, 0]);
    }

    fn says_no_reboot(&self) -> bool {
        let mut data = [0; 4];
        ChipsetRegisters(Arc::clone(&self.tco)).read(0x3410, &mut data);
        data == [0x20, 0, 0, 0]
    }

    fn wait(&self, ticks: u32) {
        self.clock
            .advance(self.clock.moved() + registers::TICK * ticks);
    }

    fn barks(&self) -> usize {
        *self.barks.lock().unwrap()
    }
}

#[test]
fn it_barks_once_when_nobody_loads_it_for_two_rounds() {
    let bench = Bench::new(false);
    bench.start(10);
    for _ in 0..4 {
        bench.wait(15);
        assert_eq!(bench.read(STATUS1), 8, "one round is over");
        bench.write(RELOAD, 1);
        bench.write(STATUS1, 8);
    }
    assert_eq!((bench.barks(), bench.read(STATUS2)), (0, 0));
    bench.wait(19);
    assert_eq!(bench.barks(), 0);
    bench.wait(1);
    assert_eq!(bench.barks(), 1);
    bench.wait(1000);
    assert_eq!(bench.barks(), 1, "it stands still until somebody loads it");
    bench.tco.reset();
    assert_eq!(bench.read(STATUS2), 6, "a driver asks after the reset");
    assert_eq!(bench.read(CONTROL1), 0);
}

#[test]
fn the_counter_counts_down_and_stands_still_while_it_is_halted_or_the_machine_paused() {
    let bench = Bench::new(false);
    assert_eq!(bench.read(RELOAD), 0);
    bench.wait(1000);
    assert_eq!(bench.read(STATUS1), 0, "nobody has loaded it");
    bench.start(100);
    bench.wait(30);
    assert_eq!(bench.read(RELOAD), 70);
    bench.write(CONTROL1, HALT);
    bench.wait(500);
    assert_eq!(bench.read(RELOAD), 70);
    bench.write(CONTROL1, 0);
    bench.wait(20);
    bench.tco.pause();
    let text = serde_json::to_string(&bench.tco.save()).unwrap();
    bench.wait(500);
    assert_eq!(bench.read(RELOAD), 50);
    let other = Bench::new(false);
    other
        .tco
        .load(serde_json::from_str(&text).unwrap())
        .unwrap();
    other.tco.resume();
    other.wait(49);
    assert_eq!((other.read(RELOAD), other.read(STATUS1)), (1, 0));
    other.wait(1);
    assert_eq!(other.read(STATUS1), 8);
}

#[test]
fn without_a_reboot_it_only_says_that_it_ran_out() {
    let bench = Bench::new(false);
    bench.start(4);
    bench.set_no_reboot(true);
    assert!(bench.says_no_reboot());
    bench.wait(8);
    assert_eq!((bench.read(STATUS1), bench.read(STATUS2)), (8, 6));
    assert_eq!(bench.barks(), 0);
    let strapped = Bench::new(true);
    strapped.start(4);
    assert!(strapped.says_no_reboot(), "software cannot change that");
    strapped.wait(100);
    assert_eq!(strapped.barks(), 0);
}

#[test]
fn registers_take_what_their_bits_take() {
    let bench = Bench::new(false);
    bench.write(CONTROL1, 0x1000);
    bench.write(CONTROL1, 0);
    assert_eq!(bench.read(CONTROL1), 0x1000, "the lock stays");
    bench.tco.write(0x2, &[1]);
    assert_eq!(bench.read(STATUS1), 2);
    bench.tco.write(0x3, &[2]);
    assert_eq!((bench.read(0x2), bench.read(STATUS1)), (0x0201, 6));
    bench.tco.write(STATUS1, &[2]);
    assert_eq!(bench.read(STATUS1), 4);
    for too_short in [0, 1] {
        bench.write(TIMER, too_short);
    }
    assert_eq!(bench.read(TIMER), 4);
    bench.write(TIMER, 0xffff);
    assert_eq!(bench.read(TIMER), 0x3ff);
    bench.tco.write(0xc, &[1, 2, 3, 0]);
    assert_eq!((bench.read(0xc), bench.read(0xe)), (0x0201, 3));
    let mut beyond = [0xff; 4];
    bench.tco.read(LEN - 2, &mut beyond);
    assert_eq!(beyond, [0; 4]);
    bench.tco.write(LEN - 1, &[0xff; 4]);
    assert!(Duration::from_millis(600) == registers::TICK);
}
