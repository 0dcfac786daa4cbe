use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::registers::{
    ALARM, BINARY, DAY, HOURS, HOURS_24, HOURS_ALARM, INTERRUPT, MINUTES, MINUTES_ALARM, MONTH,
    PERIOD_ENDED, REG_A, REG_B, REG_C, REG_D, SECONDS, SECONDS_ALARM, SET, UPDATE_ENDED,
    UPDATE_IN_PROGRESS, VALID, WEEKDAY, YEAR,
};
use super::*;
use crate::state::{AnyStateful, trial};
use crate::vm_clock::TestedClock;

/// 2026-11-20 19:05:07 UTC, a Friday.
const MOMENT: u64 = 1_795_201_507;
const SECOND: u64 = 1_000_000_000;
const PM: u8 = 0x80;

#[derive(Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::Relaxed);
    }
}

/// A clock of the guest's time, moved by hand.
struct Bench {
    tested: Arc<TestedClock>,
    line: Arc<Line>,
    rtc: Arc<Rtc>,
}

impl Bench {
    fn new(offset: i64) -> Self {
        let (tested, line) = (TestedClock::new(), Arc::<Line>::default());
        let moved = Arc::clone(&tested);
        let clock = Clock::new(move || Duration::from_secs(MOMENT) + moved.moved());
        let spec = RtcSpec {
            offset,
            drive: RtcDrive::Vm,
            ram_below_4g: 512 << 20,
            ram_above_4g: 1 << 30,
        };
        let host = RtcHost {
            reactor: Reactor::new(),
            clock: VmClock::Tested(Arc::clone(&tested)),
            line: Arc::clone(&line) as _,
        };
        let rtc = Rtc::driven(&spec, host, clock);
        rtc.resume();
        Self { tested, line, rtc }
    }

    fn step(&self, nanoseconds: u64) {
        let to = self.tested.moved() + Duration::from_nanos(nanoseconds);
        self.tested.advance(to);
    }

    fn read(&self, index: u8) -> u8 {
        let mut value = [0];
        self.rtc.write(0, &[index]);
        self.rtc.read(1, &mut value);
        value[0]
    }

    fn write(&self, index: u8, value: u8) {
        self.rtc.write(0, &[index]);
        self.rtc.write(1, &[value]);
    }

    fn is_high(&self) -> bool {
        self.line.0.load(Ordering::Relaxed)
    }

    /// Steps to the next timer; how long that was.
    fn next(&self) -> u64 {
        let before = self.tested.moved();
        let next = self.tested.next_deadline().unwrap();
        self.tested.advance(next);
        u64::try_from((next - before).as_nanos()).unwrap()
    }
}

#[test]
fn the_time_is_the_clocks_in_bcd_and_24_hours() {
    let bench = Bench::new(0);
    let registers = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
    let values = registers.map(|index| bench.read(index));
    assert_eq!(values, [0x20, 0x26, 0x11, 0x20, 6, 0x19, 0x05, 0x07]);
    assert_eq!(bench.read(REG_D), VALID);
}

#[test]
fn binary_and_twelve_hours_are_understood() {
    let bench = Bench::new(3600);
    bench.write(REG_B, BINARY);
    assert_eq!(bench.read(HOURS), 8 | PM);
    bench.write(HOURS, 12);
    assert_eq!(bench.read(HOURS), 12);
    bench.write(REG_B, BINARY | HOURS_24);
    assert_eq!(bench.read(HOURS), 0);
}

#[test]
fn setting_the_clock_moves_the_offset_once_set_is_cleared() {
    let bench = Bench::new(0);
    bench.write(REG_B, SET | HOURS_24);
    for (index, value) in [(YEAR, 0x30), (MONTH, 0x02), (DAY, 0x28), (HOURS, 0x00)] {
        bench.write(index, value);
    }
    bench.step(10 * SECOND);
    assert_eq!(bench.read(SECONDS), 0x07);
    bench.write(REG_B, HOURS_24);
    bench.step(SECOND);
    assert_eq!((bench.read(YEAR), bench.read(MONTH)), (0x30, 0x02));
    assert_eq!(bench.read(SECONDS), 0x08);
    assert!(bench.rtc.offset() > 0);
}

#[test]
fn the_first_second_after_the_divider_was_held_is_half_as_long() {
    let bench = Bench::new(0);
    bench.write(REG_A, 0x76);
    bench.write(SECONDS, 0x58);
    bench.step(3 * SECOND);
    assert_eq!(bench.read(SECONDS), 0x58);
    bench.write(REG_A, 0x26);
    bench.step(SECOND / 2 - 1);
    assert_eq!(bench.read(SECONDS), 0x58);
    bench.step(1);
    assert_eq!(bench.read(SECONDS), 0x59);
}

#[test]
fn update_flags_follow_the_second_and_are_announced() {
    let bench = Bench::new(0);
    bench.write(REG_A, 0x20);
    bench.read(REG_C);
    assert_eq!(bench.read(REG_C), 0);
    bench.step(SECOND - 244_141);
    assert_eq!(bench.read(REG_A) & UPDATE_IN_PROGRESS, 0);
    bench.step(1);
    assert_ne!(bench.read(REG_A) & UPDATE_IN_PROGRESS, 0);
    bench.step(244_140);
    assert_eq!(bench.read(REG_A) & UPDATE_IN_PROGRESS, 0);
    assert_eq!(bench.read(REG_C), UPDATE_ENDED);
    assert_eq!(bench.read(REG_C), 0);
    assert!(!bench.is_high());
}

#[test]
fn each_second_interrupts_who_wants_updates_until_he_has_read_of_it() {
    let bench = Bench::new(0);
    bench.write(REG_A, 0x20);
    bench.write(REG_B, HOURS_24 | UPDATE_ENDED);
    for _ in 0..3 {
        assert!(!bench.is_high());
        assert_eq!(bench.next(), SECOND);
        assert!(bench.is_high());
        assert_eq!(
            bench.tested.next_deadline(),
            None,
            "the line is high already"
        );
        assert_eq!(bench.read(REG_C), INTERRUPT | UPDATE_ENDED);
    }
}

#[test]
fn an_alarm_comes_at_its_time_of_day_and_again_a_day_later() {
    let bench = Bench::new(0);
    bench.write(REG_A, 0x20);
    for (index, value) in [
        (HOURS_ALARM, 0x19),
        (MINUTES_ALARM, 0x06),
        (SECONDS_ALARM, 0x07),
    ] {
        bench.write(index, value);
    }
    bench.write(REG_B, HOURS_24 | ALARM);
    assert_eq!(bench.next(), 60 * SECOND);
    assert_eq!(bench.read(REG_C), INTERRUPT | ALARM | UPDATE_ENDED);
    assert!(!bench.is_high());
    assert_eq!(bench.next(), 86_400 * SECOND);
    bench.read(REG_C);
    // Every minute at 7 seconds; by twelve hours; never.
    bench.write(HOURS_ALARM, 0xff);
    bench.write(MINUTES_ALARM, 0xc0);
    assert_eq!(bench.next(), 60 * SECOND);
    bench.read(REG_C);
    bench.write(REG_B, ALARM);
    bench.write(HOURS_ALARM, 0x08 | PM);
    bench.write(MINUTES_ALARM, 0x00);
    bench.write(SECONDS_ALARM, 0x00);
    assert_eq!(bench.next(), (52 * 60 + 53) * SECOND);
    assert_eq!((bench.read(HOURS), bench.read(MINUTES)), (0x08 | PM, 0));
    bench.read(REG_C);
    bench.write(HOURS_ALARM, 0x77);
    bench.step(3 * 86_400 * SECOND);
    assert!(!bench.is_high());
}

#[test]
fn periods_go_on_from_the_last_one_whatever_their_rate() {
    let bench = Bench::new(0);
    bench.write(REG_A, 0x2d);
    bench.write(REG_B, HOURS_24 | PERIOD_ENDED);
    for (rate, milliseconds) in [(0x2f, 125), (0x2d, 500), (0x2f, 125), (0x21, 500)] {
        assert_eq!(bench.next(), milliseconds * 1_000_000);
        bench.write(REG_A, rate);
        assert_eq!(bench.read(REG_C) & !UPDATE_ENDED, INTERRUPT | PERIOD_ENDED);
    }
    assert_eq!(bench.next(), 3_906_250);
    bench.read(REG_C);
    bench.write(REG_A, 0x20);
    assert_eq!(
        bench.tested.next_deadline().filter(|_| bench.is_high()),
        None
    );
}

#[test]
fn a_clock_of_the_guests_time_stands_while_the_guest_does_and_tells_nothing() {
    let bench = Bench::new(0);
    bench.write(REG_A, 0x20);
    bench.write(REG_B, HOURS_24 | UPDATE_ENDED);
    bench.step(SECOND / 4);
    bench.rtc.pause();
    bench.step(100 * SECOND);
    assert!(!bench.is_high());
    bench.rtc.resume();
    assert!(!bench.is_high());
    assert_eq!(bench.next(), 3 * SECOND / 4);
    assert!(bench.is_high());
    assert_eq!(bench.read(SECONDS), 0x08);
}

#[test]
fn memory_sizes_and_user_bytes_are_kept() {
    let bench = Bench::new(0);
    let below = u16::from_le_bytes([bench.read(0x34), bench.read(0x35)]);
    assert_eq!(below, 496 * 16);
    assert_eq!(bench.read(0x5c), 0x40);
    bench.write(0x0f, 0x0a);
    bench.write(REG_B, HOURS_24 | UPDATE_ENDED);
    bench.next();
    bench.rtc.reset();
    assert!(!bench.is_high());
    assert_eq!(bench.read(0x8f), 0x0a);
    let saved = bench.rtc.save();
    bench.write(0x0f, 0);
    bench.rtc.load(saved).unwrap();
    assert_eq!(bench.read(0x0f), 0x0a);
}

proptest! {
    #[test]
    fn no_write_breaks_it(
        writes in prop::collection::vec((0u64..2, any::<u8>(), 0..3 * SECOND), 0..64)
    ) {
        let bench = Bench::new(0);
        for (offset, value, step) in writes {
            bench.rtc.write(offset, &[value]);
            let mut data = [0; 4];
            bench.rtc.read(1, &mut data);
            // Not while there are thousands of periods in a second.
            if bench.tested.next_deadline().is_none_or(|_| bench.is_high()) {
                bench.step(step);
            }
        }
    }
}

#[test]
fn no_state_breaks_the_clock() {
    let bench = Bench::new(0);
    let tree = bench.rtc.tree().unwrap();
    let alive = || {
        for index in 0..=u8::MAX {
            let _ = bench.read(index);
            bench.write(index, 0x12);
        }
    };
    assert!(trial::offend(&*bench.rtc, &tree, alive) > 10);
}
