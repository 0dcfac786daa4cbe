//! ICH9's watchdog: the timer of its TCO block (ICH9 datasheet, 13.9), and the bit among the
//! chipset's registers that keeps it from doing anything (10.1.75).
//!
//! ```text
//!   RELOAD, not halted ─► counter ── 0 ─► TIMEOUT, counter again ── 0 ─► SECOND_TIMEOUT
//!            ▲               │                                    │
//!            └─── RELOAD ────┘          no reboot: counter again ◄┴► Notice::Watchdog, and it stops
//! ```
//!
//! The counter takes 0.6 s for a step. There is no system management mode: where the chip would
//! interrupt into it, nothing happens. Like the board without it, the watchdog stands still until a
//! driver loads it.
//!
//! Read next: [`registers`], which has no clock.

pub mod registers;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use self::registers::Expiry;
pub use self::registers::TcoState;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::state::{StateError, Stateful};
use crate::vm_clock::{VmClock, VmTimer};

/// The length of its block of ports.
pub const LEN: u64 = 0x20;
/// The length of the chipset's registers.
pub const CHIPSET_LEN: u64 = 0x4000;
/// "General control and status" among them, and its bit that says: no reboot.
const GENERAL_CONTROL: u64 = 0x3410;
const NO_REBOOT: u8 = 1 << 5;

/// What the watchdog needs of the host.
pub struct TcoHost {
    /// Where its timer runs.
    pub reactor: Reactor,
    /// The time that it counts.
    pub clock: VmClock,
    /// Who is told that it has run out.
    pub notices: NoticeSink,
}

/// The watchdog.
pub struct Tco {
    state: Mutex<TcoState>,
    /// The timer, made with the watchdog. Armed with `state`, so that the last deadline is that of
    /// the last change; neither calls back.
    timer: Mutex<Option<VmTimer>>,
    clock: VmClock,
    notices: NoticeSink,
    /// Whether the board's wiring says that there is no reboot, whatever software says.
    strapped: bool,
}

impl Tco {
    /// A watchdog that stands still. `strapped` has it never do anything.
    ///
    /// # Errors
    /// The thread of its timer cannot start.
    pub fn new(host: TcoHost, strapped: bool) -> std::io::Result<Arc<Self>> {
        let tco = Arc::new(Self {
            state: Mutex::default(),
            timer: Mutex::new(None),
            clock: host.clock,
            notices: host.notices,
            strapped,
        });
        let ready = Arc::new(RunsOut(Arc::downgrade(&tco)));
        *lock(&tco.timer) = Some(tco.clock.timer(&host.reactor, ready)?);
        Ok(tco)
    }

    /// Changes the state and has the timer follow it.
    fn change(&self, act: impl FnOnce(&mut TcoState, Instant)) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let before = state.deadline();
        act(&mut state, now);
        let deadline = state.deadline();
        if deadline != before
            && let (Some(at), Some(timer)) = (deadline, &*lock(&self.timer))
        {
            timer.arm(at.saturating_duration_since(now));
        }
    }

    fn run_out(&self) {
        let mut expiry = Expiry::Nothing;
        self.change(|state, now| {
            let armed = !self.strapped && !state.no_reboot();
            expiry = state.run_out(now, armed);
        });
        if expiry == Expiry::Action {
            self.notices.send(Notice::Watchdog);
        }
    }
}

/// What the timer calls; it does not keep the watchdog.
struct RunsOut(Weak<Tco>);

impl Ready for RunsOut {
    fn ready(&self, _readiness: Readiness) {
        if let Some(tco) = self.0.upgrade() {
            tco.run_out();
        }
    }
}

impl BusDevice for Tco {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now();
        lock(&self.state).read(offset, data, now);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.change(|state, now| state.write(offset, data, now));
    }
}

/// The chipset's registers, of which there is the one that speaks of the watchdog; all others are 0.
pub struct ChipsetRegisters(pub Arc<Tco>);

impl BusDevice for ChipsetRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let off = self.0.strapped || lock(&self.0.state).no_reboot();
        for (at, byte) in (offset..).zip(data) {
            *byte = if at == GENERAL_CONTROL && off {
                NO_REBOOT
            } else {
                0
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let at = GENERAL_CONTROL.checked_sub(offset);
        let byte = at.and_then(|at| data.get(usize::try_from(at).ok()?));
        if let Some(byte) = byte {
            self.0
                .change(|state, _| state.set_no_reboot(byte & NO_REBOOT != 0));
        }
    }
}

impl Stateful for Tco {
    type State = TcoState;

    fn save(&self) -> TcoState {
        *lock(&self.state)
    }

    fn load(&self, state: TcoState) -> Result<(), StateError> {
        self.change(|own, _| *own = state);
        Ok(())
    }
}

impl Lifecycle for Tco {
    fn pause(&self) {
        self.change(TcoState::pause);
    }

    fn resume(&self) {
        self.change(TcoState::resume);
    }

    fn reset(&self) {
        self.change(|state, _| state.reset());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
