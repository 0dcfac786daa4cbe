//! The chip's registers and stages; what time it is, others tell.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::watchdog::{Countdown, Expiry, Registers};

/// The bytes behind the BAR.
pub const LEN: u64 = 16;

/// Offsets behind the BAR: how long each stage is, whether stage 1 has run out, and the ping.
const TIMER1: u64 = 0x0;
const TIMER2: u64 = 0x4;
const INTERRUPT: u64 = 0x8;
const RELOAD: u64 = 0xc;
/// Bits of RELOAD; and what must be written there before anything else is.
const PING: u32 = 1 << 8;
const TIMED_OUT: u32 = 1 << 9;
const UNLOCK: [u32; 2] = [0x80, 0x86];
/// A stage's length has 20 bits.
const LONGEST: u32 = 0xf_ffff;

/// Bits of the configuration: stage 1 interrupts nobody, one unit is 1 µs and not 1 ms, stage 2
/// does nothing.
const NO_INTERRUPT: u16 = 3;
const MICROSECONDS: u16 = 1 << 2;
const NO_ACTION: u16 = 1 << 5;
const CONFIG_BITS: u16 = NO_INTERRUPT | MICROSECONDS | NO_ACTION;
/// Bits of the lock: nothing of it changes any more, it runs, it begins again by itself.
const LOCKED: u8 = 1 << 0;
const ENABLED: u8 = 1 << 1;
const FREE_RUNNING: u8 = 1 << 2;
const LOCK_BITS: u8 = LOCKED | ENABLED | FREE_RUNNING;

/// The chip counts PCI's clock, 30 ns, in units of so many.
const TICK_NANOSECONDS: u64 = 30;
const SHIFT_MILLISECOND: u32 = 15;
const SHIFT_MICROSECOND: u32 = 5;
/// No stage is shorter: the thread on which it ends is everybody's.
const SHORTEST: Duration = Duration::from_millis(1);

/// A stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    First,
    Second,
}

/// The registers, and what a snapshot keeps of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I6300esbState {
    timers: [u32; 2],
    config: u16,
    lock: u8,
    /// How much of [`UNLOCK`] has been written.
    unlocked: u8,
    interrupt: bool,
    timed_out: bool,
    stage: Option<Stage>,
    /// While there is a stage.
    #[serde(flatten)]
    countdown: Countdown,
}

impl crate::state::SavedState for I6300esbState {
    const KIND: &'static str = "i6300esb";
    const VERSION: u32 = 1;
}

impl Default for I6300esbState {
    fn default() -> Self {
        Self {
            timers: [LONGEST; 2],
            config: 0,
            lock: 0,
            unlocked: 0,
            interrupt: false,
            timed_out: false,
            stage: None,
            countdown: Countdown::default(),
        }
    }
}

impl Registers for I6300esbState {
    fn countdown(&mut self) -> &mut Countdown {
        &mut self.countdown
    }

    /// A stage is over.
    fn run_out(&mut self, now: Instant) -> Expiry {
        if self.stage == Some(Stage::First) {
            self.interrupt = self.config & NO_INTERRUPT != NO_INTERRUPT;
            self.begin(Stage::Second, now);
            return Expiry::Nothing;
        }
        if self.config & NO_ACTION == 0 {
            self.timed_out = true;
            self.reset();
            return Expiry::Action;
        }
        if self.lock & FREE_RUNNING == 0 {
            self.end();
        } else {
            self.begin(Stage::First, now);
        }
        Expiry::Nothing
    }
}

impl I6300esbState {
    /// Back to power-on, but for what tells a driver that this watchdog was the cause.
    pub(super) fn reset(&mut self) {
        *self = Self {
            timed_out: self.timed_out,
            ..Self::default()
        };
    }

    /// Fills `data` from the registers behind the BAR.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let [first, second] = self.timers;
        let value = match offset {
            TIMER1 => first,
            TIMER2 => second,
            INTERRUPT => u32::from(self.interrupt),
            RELOAD if self.timed_out => TIMED_OUT,
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Takes a guest's write behind the BAR.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], now: Instant) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        if offset == INTERRUPT {
            self.interrupt &= value & 1 == 0;
            return;
        }
        let [first_key, second_key] = UNLOCK;
        match (offset, self.unlocked) {
            (RELOAD, _) if value == first_key => self.unlocked = 1,
            (RELOAD, 1) if value == second_key => self.unlocked = 2,
            (TIMER1 | TIMER2 | RELOAD, 2) => {
                self.unlocked = 0;
                self.write_unlocked(offset, value, now);
            }
            _ => {}
        }
    }

    fn write_unlocked(&mut self, offset: u64, value: u32, now: Instant) {
        let [first, second] = &mut self.timers;
        match offset {
            TIMER1 => *first = value & LONGEST,
            TIMER2 => *second = value & LONGEST,
            _ => {
                self.timed_out &= value & TIMED_OUT == 0;
                if value & PING != 0 && self.stage.is_some() {
                    self.begin(Stage::First, now);
                }
            }
        }
    }

    /// A byte of the configuration, 0 or 1.
    pub(super) const fn config_byte(&self, index: u16) -> u8 {
        let [low, high] = self.config.to_le_bytes();
        if index == 0 { low } else { high }
    }

    /// Sets a byte of the configuration; what it says of time holds from the next stage on.
    pub(super) const fn set_config_byte(&mut self, index: u16, value: u8) {
        let [low, high] = self.config.to_le_bytes();
        let bytes = if index == 0 {
            [value, high]
        } else {
            [low, value]
        };
        self.config = u16::from_le_bytes(bytes) & CONFIG_BITS;
    }

    /// The lock.
    pub(super) const fn lock_byte(&self) -> u8 {
        self.lock
    }

    /// Starts it, stops it, or locks it until the next reset.
    pub(super) fn set_lock_byte(&mut self, value: u8, now: Instant) {
        if self.lock & LOCKED != 0 {
            return;
        }
        let was_enabled = self.lock & ENABLED != 0;
        self.lock = value & LOCK_BITS;
        match (was_enabled, self.lock & ENABLED != 0) {
            (false, true) => self.begin(Stage::First, now),
            (true, false) => self.end(),
            _ => {}
        }
    }

    fn begin(&mut self, stage: Stage, now: Instant) {
        let [first, second] = self.timers;
        let units = match stage {
            Stage::First => first,
            Stage::Second => second,
        };
        let shift = if self.config & MICROSECONDS == 0 {
            SHIFT_MILLISECOND
        } else {
            SHIFT_MICROSECOND
        };
        let length = Duration::from_nanos((u64::from(units) << shift) * TICK_NANOSECONDS);
        self.stage = Some(stage);
        self.countdown.start(length.max(SHORTEST), now);
    }

    fn end(&mut self) {
        self.stage = None;
        self.countdown.stop();
    }
}
