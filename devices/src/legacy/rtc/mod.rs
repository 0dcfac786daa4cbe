//! The real-time clock and its 128 bytes of CMOS memory (MC146818A, ports 0x70 and 0x71), with its
//! interrupt: alarms, updates and periods.
//!
//! ```text
//!   guest ─ 0x70, 0x71 ─► registers ◄─ time ─ Clock: the host's, or one that stands with the guest
//!                            │   ▲
//!                 deadline ──┘   └── timer: the guest wants to hear of something
//!                            └─────► IRQ 8
//! ```
//!
//! A guest that wants no interrupt costs no timer. While the guest stands still nothing is told; what
//! came meanwhile is told when it goes on.
//!
//! Read next: [`registers`], which has no clock; [`calendar`].

mod calendar;
pub mod registers;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use self::registers::RtcState;
use super::clock::Clock;
use crate::bus::BusDevice;
use crate::irq::{IrqLine, drive};
use crate::lifecycle::Lifecycle;
use crate::reactor::{Reactor, Readiness, Ready};
use crate::state::{SavedState, StateError, Stateful};
use crate::vm_clock::{VmClock, VmTimer};

/// Where the ports are.
pub const BASE: u64 = 0x70;
/// How many.
pub const LEN: u64 = 2;
/// Its interrupt.
pub const IRQ: u8 = 8;
/// The FADT's century register.
pub const CENTURY: u8 = 0x32;

/// What drives the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtcDrive {
    /// The host's time of day: what is corrected there is corrected in the guest.
    #[default]
    Host,
    /// Time as it goes by on the host, whatever its clock is set to.
    Rt,
    /// Time as it goes by in the guest: the clock stands while the guest does.
    Vm,
}

/// What the clock starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtcSpec {
    /// Guest time minus the host's, in seconds: zero for UTC, the time zone's offset for local time,
    /// a difference for a given start.
    pub offset: i64,
    /// What drives it from then on.
    pub drive: RtcDrive,
    /// RAM below 4 GiB in bytes, for firmware and tests that ask the CMOS.
    pub ram_below_4g: u64,
    /// RAM from 4 GiB on in bytes.
    pub ram_above_4g: u64,
}

/// What the clock needs of the host.
pub struct RtcHost {
    /// Where its timer runs.
    pub reactor: Reactor,
    /// The time in which the guest's devices live.
    pub clock: VmClock,
    /// Its interrupt.
    pub line: Arc<dyn IrqLine>,
}

/// The clock and its memory.
pub struct Rtc {
    me: Weak<Self>,
    state: Mutex<RtcState>,
    clock: Clock,
    /// Whether it stands while the guest does.
    halts: bool,
    /// Since when the guest has been standing, by the clock. Leaf lock.
    paused: Mutex<Option<u64>>,
    reactor: Reactor,
    timers: VmClock,
    /// Made when the guest first wants an interrupt. Armed with `state`, so that the last deadline is
    /// that of the last change; neither calls back.
    timer: Mutex<Option<VmTimer>>,
    line: Arc<dyn IrqLine>,
}

impl Rtc {
    /// A clock that goes on once the guest does.
    #[must_use]
    pub fn new(spec: &RtcSpec, host: RtcHost) -> Arc<Self> {
        let start = Clock::wall().now();
        let since = |clock: Clock| Clock::new(move || start.saturating_add(clock.now()));
        let clock = match spec.drive {
            RtcDrive::Host => Clock::wall(),
            RtcDrive::Rt => since(Clock::monotonic()),
            RtcDrive::Vm => since(host.clock.since_now()),
        };
        Self::driven(spec, host, clock)
    }

    fn driven(spec: &RtcSpec, host: RtcHost, clock: Clock) -> Arc<Self> {
        let now = nanoseconds(&clock);
        let halts = spec.drive == RtcDrive::Vm;
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            state: Mutex::new(RtcState::new(spec, now)),
            clock,
            halts,
            paused: Mutex::new(Some(now)),
            reactor: host.reactor,
            timers: if halts { host.clock } else { VmClock::Host },
            timer: Mutex::default(),
            line: host.line,
        })
    }

    /// Guest time minus the clock's time, in seconds.
    #[must_use]
    pub fn offset(&self) -> i64 {
        lock(&self.state).offset()
    }

    /// Does something with the registers, brought up to now, and has timer and interrupt follow them.
    fn with<T>(&self, act: impl FnOnce(&mut RtcState, u64) -> T) -> T {
        let now = nanoseconds(&self.clock);
        let done = {
            let mut state = lock(&self.state);
            state.catch_up(now);
            let done = act(&mut state, now);
            if let Some(after) = state.deadline(now) {
                self.wait(Duration::from_nanos(after));
            }
            done
        };
        drive(self.line.as_ref(), || lock(&self.state).interrupt());
        done
    }

    fn wait(&self, after: Duration) {
        let mut timer = lock(&self.timer);
        if timer.is_none() {
            let ready = Arc::new(RunsOut(Weak::clone(&self.me)));
            match self.timers.timer(&self.reactor, ready) {
                Ok(made) => *timer = Some(made),
                Err(error) => tracing::error!(%error, "the real-time clock has no timer"),
            }
        }
        if let Some(timer) = &*timer {
            timer.arm(after);
        }
    }

    /// The timer says that there may be something.
    fn run_out(&self) {
        if lock(&self.paused).is_none() {
            self.with(|_, _| ());
        }
    }
}

struct RunsOut(Weak<Rtc>);

impl Ready for RunsOut {
    fn ready(&self, _readiness: Readiness) {
        if let Some(rtc) = self.0.upgrade() {
            rtc.run_out();
        }
    }
}

fn nanoseconds(clock: &Clock) -> u64 {
    u64::try_from(clock.now().as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stateful for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        lock(&self.state).clone()
    }

    fn load(&self, state: RtcState) -> Result<(), StateError> {
        if let Some(fault) = state.fault() {
            return Err(RtcState::refused(fault));
        }
        *lock(&self.state) = state;
        Ok(())
    }
}

impl Lifecycle for Rtc {
    fn pause(&self) {
        lock(&self.paused).get_or_insert_with(|| nanoseconds(&self.clock));
    }

    fn resume(&self) {
        let since = lock(&self.paused).take();
        if let Some(since) = since.filter(|_| self.halts) {
            let now = nanoseconds(&self.clock);
            lock(&self.state).stand_still(now, now.saturating_sub(since));
        }
        self.with(|_, _| ());
    }

    fn reset(&self) {
        self.with(|state, _| state.reset());
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 1
            && let Some(first) = data.first_mut()
        {
            *first = self.with(RtcState::read);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        if offset == 0 {
            // Bit 7 masks the NMI and is not part of the index. Nothing happens to the time: no timer
            // is armed for it.
            lock(&self.state).index = value & 0x7f;
        } else {
            self.with(|state, now| state.write(now, value));
        }
    }
}
