//! The registers, with the time as an argument (MC146818A data sheet; Motorola, 1988).
//!
//! ```text
//!            SET, or the divider is held
//!   running ─────────────────────────────► stopped
//!           ◄─────────────────────────────
//!            neither; after the divider the first second is half as long
//! ```
//!
//! Nothing is counted: the time is that of a clock plus a difference, and which seconds, alarms and
//! periods have gone by is worked out when somebody looks. [`RtcState::deadline`] is when somebody
//! should.

use serde::{Deserialize, Serialize};

use super::calendar::Civil;
use super::{CENTURY, RtcSpec};
use crate::state::SavedState;

pub(super) const SECONDS: u8 = 0x00;
pub(super) const SECONDS_ALARM: u8 = 0x01;
pub(super) const MINUTES: u8 = 0x02;
pub(super) const MINUTES_ALARM: u8 = 0x03;
pub(super) const HOURS: u8 = 0x04;
pub(super) const HOURS_ALARM: u8 = 0x05;
pub(super) const WEEKDAY: u8 = 0x06;
pub(super) const DAY: u8 = 0x07;
pub(super) const MONTH: u8 = 0x08;
pub(super) const YEAR: u8 = 0x09;
pub(super) const REG_A: u8 = 0x0a;
pub(super) const REG_B: u8 = 0x0b;
pub(super) const REG_C: u8 = 0x0c;
pub(super) const REG_D: u8 = 0x0d;

/// In register A: an update is about to be. Below it the divider's state, and the rate of periods.
pub(super) const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const DIVIDER: u8 = 7 << 4;
/// Beyond this the divider is held.
const DIVIDER_RUNS: u8 = 2 << 4;
const RATE: u8 = 0xf;

/// In register B.
pub(super) const SET: u8 = 1 << 7;
pub(super) const BINARY: u8 = 1 << 2;
pub(super) const HOURS_24: u8 = 1 << 1;
const DAYLIGHT: u8 = 1 << 0;
/// What survives a reset of register B: not the interrupts.
pub(super) const LASTING: u8 = SET | BINARY | HOURS_24 | DAYLIGHT;

/// In register C, and what enables their interrupts in register B.
pub(super) const PERIOD_ENDED: u8 = 1 << 6;
pub(super) const ALARM: u8 = 1 << 5;
pub(super) const UPDATE_ENDED: u8 = 1 << 4;
const FLAGS: u8 = PERIOD_ENDED | ALARM | UPDATE_ENDED;
/// In register C: one of them is enabled and there.
pub(super) const INTERRUPT: u8 = 1 << 7;

pub(super) const VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;
/// An alarm register with these bits matches whatever the time.
const ANY: u8 = 0xc0;

/// Nanoseconds of a second, and of the first one after the divider was held.
const SECOND: i128 = 1_000_000_000;
const FIRST_SECOND: i128 = SECOND / 2;
/// An update is announced so long before: eight periods of the oscillator.
const UPDATE: i128 = 8 * SECOND / OSCILLATOR;
const OSCILLATOR: i128 = 32_768;
const DAY_SECONDS: i64 = 86_400;

/// How many bytes of memory there are, registers included.
const MEMORY: usize = 128;

/// What a snapshot keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Guest time minus the clock's time: whole seconds, and nanoseconds.
    offset: i64,
    fraction: u32,
    pub(super) index: u8,
    memory: Vec<u8>,
    /// The time while it stands, as seconds since 1970.
    stopped: Option<i64>,
    /// The second up to which updates and alarms are known.
    told: i64,
    /// When the last period ended, by the clock.
    ticked: u64,
    /// What has happened and was not read: bits of register C.
    flags: u8,
}

impl SavedState for RtcState {
    const KIND: &'static str = "rtc";
    const VERSION: u32 = 1;
}

impl RtcState {
    pub(super) fn new(spec: &RtcSpec, clock: u64) -> Self {
        let mut memory = vec![0; MEMORY];
        describe_memory(&mut memory, spec.ram_below_4g, spec.ram_above_4g);
        set(&mut memory, REG_A, 0x26);
        set(&mut memory, REG_B, HOURS_24);
        let mut state = Self {
            offset: spec.offset,
            fraction: 0,
            index: 0,
            memory,
            stopped: None,
            told: 0,
            ticked: clock,
            flags: 0,
        };
        state.told = state.now(clock);
        state
    }

    /// What makes no sense in it.
    pub(super) fn fault(&self) -> Option<String> {
        let (bytes, fraction) = (self.memory.len(), self.fraction);
        let is_sound = bytes == MEMORY && i128::from(fraction) < SECOND && self.flags & !FLAGS == 0;
        (!is_sound).then(|| {
            format!(
                "memory: {bytes} bytes, and there are {MEMORY}; fraction: {fraction} ns of a \
                 second; flags: {:#04x}, of {FLAGS:#04x}",
                self.flags
            )
        })
    }

    pub(super) fn offset(&self) -> i64 {
        self.offset
    }

    pub(super) fn byte(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// The guest's time as it goes on, in nanoseconds since 1970.
    fn running(&self, clock: u64) -> i128 {
        i128::from(clock) + i128::from(self.offset) * SECOND + i128::from(self.fraction)
    }

    /// The guest's second.
    fn now(&self, clock: u64) -> i64 {
        let running = || i64::try_from(self.running(clock).div_euclid(SECOND));
        self.stopped
            .unwrap_or_else(|| running().unwrap_or(i64::MAX))
    }

    /// The guest's time is `time` from now on: nobody hears of the seconds between.
    fn set_running(&mut self, clock: u64, time: i128) {
        let offset = time - i128::from(clock);
        let seconds = offset.div_euclid(SECOND);
        self.offset =
            i64::try_from(seconds).unwrap_or(if seconds < 0 { i64::MIN } else { i64::MAX });
        self.fraction = u32::try_from(offset.rem_euclid(SECOND)).unwrap_or(0);
        self.told = self.now(clock);
    }

    /// The guest's second is `second` from now on, and begins and ends when it would have.
    fn set_second(&mut self, clock: u64, second: i64) {
        let within = self.running(clock).rem_euclid(SECOND);
        self.set_running(clock, i128::from(second) * SECOND + within);
    }

    /// Time did not go on for so long, in nanoseconds of the clock.
    pub(super) fn stand_still(&mut self, clock: u64, lost: u64) {
        let told = self.told;
        self.set_running(clock, self.running(clock) - i128::from(lost));
        self.told = told.min(self.told);
        self.ticked = self.ticked.saturating_add(lost);
    }

    fn divider_is_held(&self) -> bool {
        self.byte(REG_A) & DIVIDER > DIVIDER_RUNS
    }

    /// How long a period is, if there are any.
    fn period(&self) -> Option<u64> {
        let rate = match self.byte(REG_A) & RATE {
            0 => return None,
            // As two others, of half the frequency each (table 5).
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        let nanoseconds = (SECOND << (rate - 1)) / OSCILLATOR;
        u64::try_from(nanoseconds)
            .ok()
            .filter(|_| !self.divider_is_held())
    }

    /// Finds out what has happened.
    pub(super) fn catch_up(&mut self, clock: u64) {
        let now = self.now(clock);
        if now != self.told {
            self.flags |= UPDATE_ENDED;
            if self.next_alarm(self.told).is_some_and(|alarm| alarm <= now) {
                self.flags |= ALARM;
            }
            self.told = now;
        }
        if let Some(period) = self.period() {
            let gone = clock.saturating_sub(self.ticked) / period;
            if gone > 0 {
                self.flags |= PERIOD_ENDED;
                self.ticked += gone * period;
            }
        }
    }

    /// Whether the interrupt is asked for.
    pub(super) fn interrupt(&self) -> bool {
        self.flags & self.byte(REG_B) & FLAGS != 0
    }

    /// In how many nanoseconds the next interrupt is asked for, if the guest wants any; known up to
    /// now.
    pub(super) fn deadline(&self, clock: u64) -> Option<u64> {
        let waits = |flag: u8| self.byte(REG_B) & !self.flags & flag != 0;
        let runs = self.stopped.is_none();
        let until = |second: i64| i128::from(second) * SECOND - self.running(clock);
        let update = (runs && waits(UPDATE_ENDED)).then(|| until(self.told.saturating_add(1)));
        let alarm = self.next_alarm(self.told).map(until);
        let alarm = alarm.filter(|_| runs && waits(ALARM));
        let period = self.period().filter(|_| waits(PERIOD_ENDED));
        let period = period.map(|period| i128::from(self.ticked) + i128::from(period));
        let period = period.map(|end| end - i128::from(clock));
        let first = [update, alarm, period].into_iter().flatten().min()?;
        Some(u64::try_from(first.max(0)).unwrap_or(u64::MAX))
    }

    /// The first second after `second` at which the alarm is; `None` if it is at no time of day.
    fn next_alarm(&self, second: i64) -> Option<i64> {
        let of_day = second.rem_euclid(DAY_SECONDS);
        let midnight = second.saturating_sub(of_day);
        let today = self.alarm_from(of_day + 1);
        let tomorrow = || Some(self.alarm_from(0)? + DAY_SECONDS);
        Some(midnight.saturating_add(today.or_else(tomorrow)?))
    }

    /// The first alarm of a day that is not before `from`.
    fn alarm_from(&self, from: i64) -> Option<i64> {
        let is_on = |register, index, value: i64| {
            let alarm = self.byte(register);
            let shown = u8::try_from(value).map(|value| self.encoded(index, value));
            alarm & ANY == ANY || shown == Ok(alarm)
        };
        for hour in from / 3600..24 {
            if !is_on(HOURS_ALARM, HOURS, hour) {
                continue;
            }
            let begin = from - hour * 3600;
            for minute in begin.max(0) / 60..60 {
                if !is_on(MINUTES_ALARM, MINUTES, minute) {
                    continue;
                }
                let begin = begin - minute * 60;
                let mut seconds = begin.max(0)..60;
                if let Some(second) = seconds.find(|second| is_on(SECONDS_ALARM, SECONDS, *second))
                {
                    return Some((hour * 60 + minute) * 60 + second);
                }
            }
        }
        None
    }

    /// What the register in question reads as.
    pub(super) fn read(&mut self, clock: u64) -> u8 {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                self.time_register(clock)
            }
            REG_A => {
                let left = SECOND - self.running(clock).rem_euclid(SECOND);
                let updating = self.stopped.is_none() && left <= UPDATE;
                self.byte(REG_A) | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            REG_C => {
                let interrupt = if self.interrupt() { INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | interrupt
            }
            REG_D => VALID,
            index => self.byte(index),
        }
    }

    /// The guest writes the register in question.
    pub(super) fn write(&mut self, clock: u64, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                self.set_time_register(clock, value);
            }
            REG_A => {
                let was_held = self.divider_is_held();
                self.change(clock, REG_A, value & !UPDATE_IN_PROGRESS);
                if was_held && !self.divider_is_held() {
                    self.ticked = clock;
                    if self.stopped.is_none() {
                        let time = i128::from(self.told) * SECOND + FIRST_SECOND;
                        self.set_running(clock, time);
                    }
                }
            }
            // Who sets the clock hears of no update.
            REG_B if value & SET != 0 => self.change(clock, REG_B, value & !UPDATE_ENDED),
            REG_B => self.change(clock, REG_B, value),
            REG_C | REG_D => {}
            index => set(&mut self.memory, index, value),
        }
    }

    /// Writes register A or B, and stops or starts the time as they say.
    fn change(&mut self, clock: u64, index: u8, value: u8) {
        let now = self.now(clock);
        set(&mut self.memory, index, value);
        let stands = self.byte(REG_B) & SET != 0 || self.divider_is_held();
        if stands {
            self.stopped = Some(now);
        } else if self.stopped.take().is_some() {
            self.set_second(clock, now);
        }
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

    /// How a register shows a number: hours by 12 or 24.
    fn encoded(&self, index: u8, value: u8) -> u8 {
        if index != HOURS || self.byte(REG_B) & HOURS_24 != 0 {
            return self.encode(value);
        }
        let hour = self.encode((value + 11) % 12 + 1);
        if value >= 12 { hour | PM } else { hour }
    }

    fn time_register(&self, clock: u64) -> u8 {
        let civil = Civil::from_seconds(self.now(clock));
        let two_digits = |value: i64| u8::try_from(value.rem_euclid(100)).unwrap_or(0);
        let value = match self.index {
            SECONDS => civil.second,
            MINUTES => civil.minute,
            HOURS => civil.hour,
            WEEKDAY => civil.weekday,
            DAY => civil.day,
            MONTH => civil.month,
            YEAR => two_digits(civil.year),
            _ => two_digits(civil.year.div_euclid(100)),
        };
        self.encoded(self.index, value)
    }

    fn set_time_register(&mut self, clock: u64, raw: u8) {
        let value = self.decode(raw);
        let mut civil = Civil::from_seconds(self.now(clock));
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
        let second = civil.to_seconds();
        if let Some(stopped) = &mut self.stopped {
            *stopped = second;
            self.told = second;
        } else {
            self.set_second(clock, second);
        }
    }

    /// Time and memory survive a reset, as the battery has it; the interrupts do not.
    pub(super) fn reset(&mut self) {
        let kept = self.byte(REG_B) & LASTING;
        set(&mut self.memory, REG_B, kept);
        self.index = 0;
        self.flags = 0;
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
