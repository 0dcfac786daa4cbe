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

use std::io;
use std::sync::Arc;
use std::time::Instant;

pub use self::registers::TcoState;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::state::{StateError, Stateful};
use crate::watchdog::{Countdown, Expiry, Registers, Watchdog, WatchdogHost};

/// The length of its block of ports.
pub const LEN: u64 = 0x20;
/// The length of the chipset's registers.
pub const CHIPSET_LEN: u64 = 0x4000;
/// "General control and status" among them, and its bit that says: no reboot.
const GENERAL_CONTROL: u64 = 0x3410;
const NO_REBOOT: u8 = 1 << 5;

/// The watchdog.
pub struct Tco(Arc<Watchdog<Wired>>);

/// Its registers, and how the board has it wired.
struct Wired {
    state: TcoState,
    /// Whether the wiring says that there is no reboot, whatever software says.
    strapped: bool,
}

impl Registers for Wired {
    fn countdown(&mut self) -> &mut Countdown {
        self.state.countdown()
    }

    fn run_out(&mut self, now: Instant) -> Expiry {
        let armed = !self.strapped && !self.state.no_reboot();
        self.state.run_out(now, armed)
    }
}

impl Tco {
    /// A watchdog that stands still. `strapped` has it never do anything.
    ///
    /// # Errors
    /// The thread of its timer cannot start.
    pub fn new(host: WatchdogHost, strapped: bool) -> io::Result<Arc<Self>> {
        let state = TcoState::default();
        let watchdog = Watchdog::new(Wired { state, strapped }, host)?;
        Ok(Arc::new(Self(watchdog)))
    }

    fn change(&self, act: impl FnOnce(&mut TcoState, Instant)) {
        self.0.change(|wired, now| act(&mut wired.state, now));
    }
}

impl BusDevice for Tco {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0
            .look(|wired, now| wired.state.read(offset, data, now));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.change(|state, now| state.write(offset, data, now));
    }
}

/// The chipset's registers, of which there is the one that speaks of the watchdog; all others are 0.
pub struct ChipsetRegisters(pub Arc<Tco>);

impl BusDevice for ChipsetRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let watchdog = &self.0.0;
        let off = watchdog.look(|wired, _| wired.strapped || wired.state.no_reboot());
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
        self.0.look(|wired, _| wired.state)
    }

    fn load(&self, state: TcoState) -> Result<(), StateError> {
        self.change(|own, _| *own = state);
        Ok(())
    }
}

impl Lifecycle for Tco {
    fn pause(&self) {
        self.0.pause();
    }

    fn resume(&self) {
        self.0.resume();
    }

    fn reset(&self) {
        self.change(|state, _| state.reset());
    }
}
