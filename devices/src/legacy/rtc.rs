//! The real-time clock and its 128 bytes of CMOS memory (MC146818A, ports 0x70 and 0x71).
//!
//! Time is not counted here: it is the host's clock plus an offset, and setting the clock changes
//! the offset. The update flags follow from that. Alarm and periodic flags have registers but no
//! interrupt: guests with an HPET, a TSC deadline or KVM's clock want none.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::state::{SavedState, StateError, Stateful};

/// Where the ports are.
pub const BASE: u64 = 0x70;
/// How many.
pub const LEN: u64 = 2;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
/// The FADT's century register.
pub const CENTURY: u8 = 0x32;

const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const UPDATE_ENDED: u8 = 1 << 4;
const VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;

/// The update cycle starts this long before the second, in microseconds (MC146818A, table 6).
const UPDATE_MICROSECONDS: u32 = 244;
const DAY_SECONDS: i64 = 86_400;

/// How many bytes of memory there are, registers included.
const MEMORY: usize = 128;

/// What the clock starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtcSpec {
    /// Guest time minus the clock's time, in seconds: zero for UTC, the time zone's offset for
    /// local time, a difference for a given start.
    pub offset: i64,
    /// RAM below 4 GiB in bytes, for firmware and tests that ask the CMOS.
    pub ram_below_4g: u64,
    /// RAM from 4 GiB on in bytes.
    pub ram_above_4g: u64,
}

/// What a snapshot keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    offset: i64,
    index: u8,
    memory: Vec<u8>,
    /// Time written while SET stops the clock, as seconds since 1970.
    stopped: Option<i64>,
    /// The last second that register C has told of.
    told: i64,
}

impl SavedState for RtcState {
    const KIND: &'static str = "rtc";
    const VERSION: u32 = 1;
}

/// The clock and its memory.
pub struct Rtc {
    state: Mutex<RtcState>,
    clock: Clock,
}

/// A civil date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    /// 1 Sunday to 7 Saturday.
    weekday: u8,
}

impl Rtc {
    /// A clock that follows `clock` (UTC since 1970).
    #[must_use]
    pub fn new(spec: RtcSpec, clock: Clock) -> Self {
        let mut memory = vec![0; MEMORY];
        describe_memory(&mut memory, spec.ram_below_4g, spec.ram_above_4g);
        set(&mut memory, REG_A, 0x26);
        set(&mut memory, REG_B, HOURS_24);
        Self {
            state: Mutex::new(RtcState {
                offset: spec.offset,
                index: 0,
                memory,
                stopped: None,
                told: 0,
            }),
            clock,
        }
    }

    /// Guest time minus the clock's time, in seconds (for `RTC_CHANGE` and the snapshot).
    #[must_use]
    pub fn offset(&self) -> i64 {
        self.lock().offset
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RtcState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's seconds, and the microseconds since the last one.
    fn host_time(&self) -> (i64, u32) {
        let now = self.clock.now();
        (
            i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            now.subsec_micros(),
        )
    }

    fn read_register(&self, state: &mut RtcState) -> u8 {
        let (host, microseconds) = self.host_time();
        let now = state.now(host);
        match state.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                state.time_register(now)
            }
            REG_A => {
                let updating =
                    state.stopped.is_none() && microseconds >= 1_000_000 - UPDATE_MICROSECONDS;
                state.byte(REG_A) & !UPDATE_IN_PROGRESS
                    | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            REG_C => {
                let ended = state.stopped.is_none() && now != state.told;
                state.told = now;
                if ended { UPDATE_ENDED } else { 0 }
            }
            REG_D => VALID,
            index => state.byte(index),
        }
    }

    fn write_register(&self, state: &mut RtcState, value: u8) {
        let (host, _) = self.host_time();
        match state.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                state.set_time_register(host, value);
            }
            REG_A => set(&mut state.memory, REG_A, value & !UPDATE_IN_PROGRESS),
            REG_B => {
                if value & SET != 0 {
                    let now = state.now(host);
                    state.stopped.get_or_insert(now);
                } else if let Some(time) = state.stopped.take() {
                    state.offset = time.saturating_sub(host);
                }
                set(&mut state.memory, REG_B, value);
            }
            REG_C | REG_D => {}
            index => set(&mut state.memory, index, value),
        }
    }
}

impl RtcState {
    fn byte(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn now(&self, host: i64) -> i64 {
        self.stopped
            .unwrap_or_else(|| host.saturating_add(self.offset))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.byte(REG_B) & BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.byte(REG_B) & BINARY != 0 {
            value
        } else {
            (value >> 4).wrapping_mul(10).wrapping_add(value & 0x0f)
        }
    }

    fn time_register(&self, now: i64) -> u8 {
        let civil = Civil::from_seconds(now);
        let two_digits = |value: i64| u8::try_from(value.rem_euclid(100)).unwrap_or(0);
        match self.index {
            SECONDS => self.encode(civil.second),
            MINUTES => self.encode(civil.minute),
            HOURS if self.byte(REG_B) & HOURS_24 != 0 => self.encode(civil.hour),
            HOURS => {
                let hour = (civil.hour + 11) % 12 + 1;
                self.encode(hour) | if civil.hour >= 12 { PM } else { 0 }
            }
            WEEKDAY => self.encode(civil.weekday),
            DAY => self.encode(civil.day),
            MONTH => self.encode(civil.month),
            YEAR => self.encode(two_digits(civil.year)),
            _ => self.encode(two_digits(civil.year.div_euclid(100))),
        }
    }

    fn set_time_register(&mut self, host: i64, raw: u8) {
        let value = self.decode(raw);
        let mut civil = Civil::from_seconds(self.now(host));
        match self.index {
            SECONDS => civil.second = value.min(59),
            MINUTES => civil.minute = value.min(59),
            HOURS if self.byte(REG_B) & HOURS_24 != 0 => civil.hour = value.min(23),
            HOURS => {
                let hour = self.decode(raw & !PM).min(12) % 12;
                civil.hour = hour + if raw & PM != 0 { 12 } else { 0 };
            }
            // The weekday follows from the date.
            WEEKDAY => {}
            DAY => civil.day = value.clamp(1, 31),
            MONTH => civil.month = value.clamp(1, 12),
            YEAR => civil.year = civil.year.div_euclid(100) * 100 + i64::from(value.min(99)),
            _ => civil.year = i64::from(value.min(99)) * 100 + civil.year.rem_euclid(100),
        }
        let time = civil.to_seconds();
        if self.stopped.is_some() {
            self.stopped = Some(time);
        } else {
            self.offset = time.saturating_sub(host);
        }
    }
}

impl Civil {
    /// The proleptic Gregorian date of seconds since 1970, by counting 400-year eras from the
    /// first of March of year 0, so that leap days come last.
    fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY_SECONDS);
        let rest = seconds.rem_euclid(DAY_SECONDS);
        let from_march = days.saturating_add(719_468);
        let era = from_march.div_euclid(146_097);
        let day_of_era = from_march.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let small = |value: i64| u8::try_from(value).unwrap_or(0);
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: small(month),
            day: small(day),
            hour: small(rest / 3600),
            minute: small(rest / 60 % 60),
            second: small(rest % 60),
            weekday: small((days + 4).rem_euclid(7) + 1),
        }
    }

    fn to_seconds(self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = self.year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY_SECONDS
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

/// The memory sizes as PC firmware has always left them in CMOS.
fn describe_memory(memory: &mut [u8], below: u64, above: u64) {
    let mut word = |at: u8, value: u64| {
        let [low, high, ..] = value.min(0xffff).to_le_bytes();
        set(memory, at, low);
        set(memory, at + 1, high);
    };
    // 640 KiB of base memory; KiB from 1 MiB on, twice; 64 KiB units from 16 MiB on.
    word(0x15, 640);
    let extended = (below >> 10).saturating_sub(1024);
    word(0x17, extended);
    word(0x30, extended);
    word(0x34, below.saturating_sub(16 << 20) >> 16);
    // 64 KiB units from 4 GiB on, 24 bits.
    let [low, middle, high, ..] = (above >> 16).min(0x00ff_ffff).to_le_bytes();
    for (at, value) in (0x5b..).zip([low, middle, high]) {
        set(memory, at, value);
    }
}

fn set(memory: &mut [u8], index: u8, value: u8) {
    if let Some(byte) = memory.get_mut(usize::from(index)) {
        *byte = value;
    }
}

impl Stateful for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        self.lock().clone()
    }

    fn load(&self, state: RtcState) -> Result<(), StateError> {
        if state.memory.len() != MEMORY {
            return Err(RtcState::refused(format!(
                "memory: {} bytes, and there are {MEMORY}",
                state.memory.len()
            )));
        }
        *self.lock() = state;
        Ok(())
    }
}

impl Lifecycle for Rtc {
    /// Time and memory survive a reset, as the battery has it; the interrupt enables do not.
    fn reset(&self) {
        let mut state = self.lock();
        let kept = state.byte(REG_B) & (SET | BINARY | HOURS_24 | 1);
        set(&mut state.memory, REG_B, kept);
        state.index = 0;
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 1 {
            let value = self.read_register(&mut self.lock());
            if let Some(first) = data.first_mut() {
                *first = value;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut state = self.lock();
        if offset == 0 {
            // Bit 7 masks the NMI and is not part of the index.
            state.index = value & 0x7f;
        } else {
            self.write_register(&mut state, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::state::{AnyStateful, trial};

    /// 2026-11-20 19:05:07 UTC, a Friday.
    const MOMENT: u64 = 1_795_201_507;

    fn rtc(offset: i64) -> (Arc<AtomicU64>, Rtc) {
        let micros = Arc::new(AtomicU64::new(MOMENT * 1_000_000));
        let read = Arc::clone(&micros);
        let clock = Clock::new(move || Duration::from_micros(read.load(Ordering::Relaxed)));
        let spec = RtcSpec {
            offset,
            ram_below_4g: 512 << 20,
            ram_above_4g: 1 << 30,
        };
        (micros, Rtc::new(spec, clock))
    }

    fn read(rtc: &Rtc, index: u8) -> u8 {
        let mut value = [0];
        rtc.write(0, &[index]);
        rtc.read(1, &mut value);
        value[0]
    }

    fn write(rtc: &Rtc, index: u8, value: u8) {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd_and_24_hours() {
        let (_, rtc) = rtc(0);
        let registers = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
        let values = registers.map(|index| read(&rtc, index));
        assert_eq!(values, [0x20, 0x26, 0x11, 0x20, 6, 0x19, 0x05, 0x07]);
        assert_eq!(read(&rtc, REG_D), VALID);
    }

    #[test]
    fn binary_and_twelve_hours_are_understood() {
        let (_, rtc) = rtc(3600);
        write(&rtc, REG_B, BINARY);
        assert_eq!(read(&rtc, HOURS), 8 | PM);
        write(&rtc, HOURS, 12);
        assert_eq!(read(&rtc, HOURS), 12);
        write(&rtc, REG_B, BINARY | HOURS_24);
        assert_eq!(read(&rtc, HOURS), 0);
    }

    #[test]
    fn setting_the_clock_moves_the_offset_once_set_is_cleared() {
        let (micros, rtc) = rtc(0);
        write(&rtc, REG_B, SET | HOURS_24);
        for (index, value) in [(YEAR, 0x30), (MONTH, 0x02), (DAY, 0x28), (HOURS, 0x00)] {
            write(&rtc, index, value);
        }
        micros.fetch_add(10_000_000, Ordering::Relaxed);
        assert_eq!(read(&rtc, SECONDS), 0x07);
        write(&rtc, REG_B, HOURS_24);
        micros.fetch_add(1_000_000, Ordering::Relaxed);
        assert_eq!((read(&rtc, YEAR), read(&rtc, MONTH)), (0x30, 0x02));
        assert_eq!(read(&rtc, SECONDS), 0x08);
        assert!(rtc.offset() > 0);
    }

    #[test]
    fn update_flags_follow_the_second() {
        let (micros, rtc) = rtc(0);
        read(&rtc, REG_C);
        assert_eq!(read(&rtc, REG_C), 0);
        assert_eq!(read(&rtc, REG_A) & UPDATE_IN_PROGRESS, 0);
        micros.fetch_add(999_800, Ordering::Relaxed);
        assert_ne!(read(&rtc, REG_A) & UPDATE_IN_PROGRESS, 0);
        micros.fetch_add(200, Ordering::Relaxed);
        assert_eq!(read(&rtc, REG_C), UPDATE_ENDED);
        assert_eq!(read(&rtc, REG_C), 0);
    }

    #[test]
    fn memory_sizes_and_user_bytes_are_kept() {
        let (_, rtc) = rtc(0);
        assert_eq!(
            u16::from_le_bytes([read(&rtc, 0x34), read(&rtc, 0x35)]),
            496 * 16
        );
        assert_eq!(read(&rtc, 0x5c), 0x40);
        write(&rtc, 0x0f, 0x0a);
        rtc.reset();
        assert_eq!(read(&rtc, 0x8f), 0x0a);
        let saved = rtc.save();
        write(&rtc, 0x0f, 0);
        rtc.load(saved).unwrap();
        assert_eq!(read(&rtc, 0x0f), 0x0a);
    }

    proptest! {
        #[test]
        fn dates_go_there_and_back(seconds in -1_000_000_000_000i64..1_000_000_000_000) {
            let civil = Civil::from_seconds(seconds);
            prop_assert!((1..=12).contains(&civil.month) && (1..=31).contains(&civil.day));
            prop_assert_eq!(civil.to_seconds(), seconds);
        }

        #[test]
        fn no_write_breaks_it(writes in prop::collection::vec((0u64..2, any::<u8>()), 0..64)) {
            let (_, rtc) = rtc(0);
            for (offset, value) in writes {
                rtc.write(offset, &[value]);
                let mut data = [0; 4];
                rtc.read(1, &mut data);
            }
        }
    }

    #[test]
    fn no_state_breaks_the_clock() {
        let (_, rtc) = rtc(0);
        let tree = rtc.tree().unwrap();
        let alive = || {
            for index in 0..=u8::MAX {
                let _ = read(&rtc, index);
                write(&rtc, index, 0x12);
            }
        };
        assert!(trial::offend(&rtc, &tree, alive) > 10);
    }
}
