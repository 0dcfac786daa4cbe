//! The watchdog's registers and its counter; what time it is, others tell.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::state::SavedState;
use crate::watchdog::{Countdown, Expiry};

/// Offsets in the block: the counter, two bytes for messages, two registers of status and two of
/// control, bytes for whoever wants them, and what the counter begins with.
const RELOAD: u64 = 0x00;
const DATA_IN: u64 = 0x02;
const STATUS1: u64 = 0x04;
const STATUS2: u64 = 0x06;
const CONTROL1: u64 = 0x08;
const CONTROL2: u64 = 0x0a;
const MESSAGE: u64 = 0x0c;
const WATCHDOG_CONTROL: u64 = 0x0e;
const SOFTWARE_IRQ: u64 = 0x10;
const TIMER: u64 = 0x12;

/// Bits of STATUS1: software wrote to one of the two bytes for messages, the counter came to its end.
const MESSAGE_IN: u16 = 1 << 1;
const MESSAGE_OUT: u16 = 1 << 2;
const TIMEOUT: u16 = 1 << 3;
/// Bits of STATUS2: it came to its end twice, and before the guest ran again.
const SECOND_TIMEOUT: u16 = 1 << 1;
const BOOT: u16 = 1 << 2;
/// Bits of CONTROL1: an NMI becomes an SMI, the counter stands still, and what stays until a reset.
const NMI_TO_SMI: u16 = 1 << 9;
const HALT: u16 = 1 << 11;
const LOCK: u16 = 1 << 12;
const CONTROL1_BITS: u16 = NMI_TO_SMI | HALT | LOCK;
const CONTROL2_BITS: u16 = 0x3f;
/// The counter has ten bits; 0 and 1 are no lengths.
const COUNT_BITS: u16 = 0x3ff;
const SHORTEST: u16 = 2;

/// How long the counter takes for one step.
pub(super) const TICK: Duration = Duration::from_millis(600);

/// The registers, and what a snapshot keeps of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcoState {
    messages: [u8; 2],
    status: [u16; 2],
    control: [u16; 2],
    scratch: [u8; 4],
    timer: u16,
    /// What the counter stands at while it stands still; 0 before it was loaded.
    count: u16,
    /// Whether it came to its end since it was loaded.
    ended_once: bool,
    /// Whether the end of it is to lead to nothing, as software says.
    no_reboot: bool,
    /// While the counter runs.
    #[serde(flatten)]
    countdown: Countdown,
}

impl SavedState for TcoState {
    const KIND: &'static str = "tco";
    const VERSION: u32 = 1;
}

impl Default for TcoState {
    fn default() -> Self {
        Self {
            messages: [0; 2],
            status: [0; 2],
            control: [0, 8],
            scratch: [0, 0, 0, 3],
            timer: 4,
            count: 0,
            ended_once: false,
            no_reboot: false,
            countdown: Countdown::default(),
        }
    }
}

impl TcoState {
    pub(super) const fn countdown(&mut self) -> &mut Countdown {
        &mut self.countdown
    }

    /// Whether software has switched the action off.
    pub(super) const fn no_reboot(&self) -> bool {
        self.no_reboot
    }

    pub(super) const fn set_no_reboot(&mut self, off: bool) {
        self.no_reboot = off;
    }

    /// Back to power-on, but for what tells a driver that this watchdog was the cause.
    pub(super) fn reset(&mut self) {
        let [_, cause] = self.status;
        *self = Self {
            status: [0, cause & (SECOND_TIMEOUT | BOOT)],
            ..Self::default()
        };
    }

    /// The counter is at its end. Whether that leads to anything, `armed` says.
    pub(super) fn run_out(&mut self, now: Instant, armed: bool) -> Expiry {
        self.status[0] |= TIMEOUT;
        let is_second = self.ended_once;
        self.ended_once = !is_second;
        if is_second {
            self.status[1] |= SECOND_TIMEOUT | BOOT;
            if armed {
                self.count = 0;
                self.countdown.stop();
                return Expiry::Action;
            }
        }
        self.run(self.timer, now);
        Expiry::Nothing
    }

    /// Fills `data` from the block.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], now: Instant) {
        for (at, byte) in (offset..).zip(data) {
            let [low, high] = self.register(at & !1, now).to_le_bytes();
            *byte = if at & 1 == 0 { low } else { high };
        }
    }

    fn register(&self, offset: u64, now: Instant) -> u16 {
        let [control, high_control] = self.control;
        let [status, high_status] = self.status;
        let [message, high_message, watchdog, irq] = self.scratch;
        match offset {
            RELOAD => self.count(now),
            DATA_IN => u16::from_le_bytes(self.messages),
            STATUS1 => status,
            STATUS2 => high_status,
            CONTROL1 => control,
            CONTROL2 => high_control,
            MESSAGE => u16::from_le_bytes([message, high_message]),
            WATCHDOG_CONTROL => watchdog.into(),
            SOFTWARE_IRQ => irq.into(),
            TIMER => self.timer,
            _ => 0,
        }
    }

    /// Takes a guest's write to the block, register by register.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], now: Instant) {
        let mut rest = data;
        let mut at = offset;
        while let Some((&first, after)) = rest.split_first() {
            let register = at & !1;
            let (value, mask) = match after.split_first() {
                Some((&second, _)) if at == register => ([first, second], 0xffff),
                _ if at == register => ([first, 0], 0x00ff),
                _ => ([0, first], 0xff00),
            };
            self.set_register(register, u16::from_le_bytes(value), mask, now);
            let taken = if mask == 0xffff { 2 } else { 1 };
            at += taken as u64;
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    /// Gives the bits of `mask` in a register the values they have in `value`.
    fn set_register(&mut self, offset: u64, value: u16, mask: u16, now: Instant) {
        let merged = |old: u16| old & !mask | value & mask;
        match offset {
            RELOAD => {
                self.ended_once = false;
                self.stand_still(now);
                self.run(self.timer, now);
            }
            DATA_IN => {
                self.messages = merged(u16::from_le_bytes(self.messages)).to_le_bytes();
                for (byte, bit) in [(0x00ff, MESSAGE_IN), (0xff00, MESSAGE_OUT)] {
                    if mask & byte != 0 {
                        self.status[0] |= bit;
                    }
                }
            }
            STATUS1 => self.status[0] &= !(value & mask),
            STATUS2 => self.status[1] &= !(value & mask),
            CONTROL1 => {
                let locked = self.control[0] & LOCK;
                self.stand_still(now);
                self.control[0] = merged(self.control[0]) & CONTROL1_BITS | locked;
                self.run(self.count, now);
            }
            CONTROL2 => self.control[1] = merged(self.control[1]) & CONTROL2_BITS,
            MESSAGE => {
                let [low, high, ..] = self.scratch;
                let [low, high] = merged(u16::from_le_bytes([low, high])).to_le_bytes();
                (self.scratch[0], self.scratch[1]) = (low, high);
            }
            WATCHDOG_CONTROL if mask & 0xff != 0 => self.scratch[2] = value.to_le_bytes()[0],
            SOFTWARE_IRQ if mask & 0xff != 0 => self.scratch[3] = value.to_le_bytes()[0] & 3,
            TIMER => {
                let length = merged(self.timer) & COUNT_BITS;
                if length >= SHORTEST {
                    self.timer = length;
                }
            }
            _ => {}
        }
    }

    /// What the counter stands at: whole steps that are left.
    fn count(&self, now: Instant) -> u16 {
        let Some(left) = self.countdown.left(now) else {
            return self.count;
        };
        let ticks = left.as_millis() / TICK.as_millis();
        u16::try_from(ticks).unwrap_or(COUNT_BITS).min(COUNT_BITS)
    }

    fn stand_still(&mut self, now: Instant) {
        self.count = self.count(now);
        self.countdown.stop();
    }

    /// Lets the counter run from `count` on, unless it is to stand still.
    fn run(&mut self, count: u16, now: Instant) {
        self.count = count;
        if self.control[0] & HALT == 0 && count > 0 {
            self.countdown.start(TICK * u32::from(count), now);
        }
    }
}
