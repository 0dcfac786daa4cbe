//! The watchdog of Intel's 6300ESB as a PCI function (Intel 6300ESB I/O Controller Hub datasheet,
//! section 16).
//!
//! ```text
//!   enabled ─► stage 1 ── TIMER1 runs out ─► stage 2 ── TIMER2 runs out ─► Notice::Watchdog
//!                 ▲                            │                              (once, then off)
//!                 └────── RELOAD.ping ─────────┘
//! ```
//!
//! The registers behind BAR 0 take a write only after 0x80 and 0x86 were written to RELOAD, so that
//! a kernel that writes at random does not keep its watchdog quiet. A driver can have stage 2 do
//! nothing, and then stage 1 begin again. The end of stage 1 is a bit and no interrupt: drivers have
//! it off.
//!
//! Read next: [`registers`], which has no clock.

pub mod registers;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use self::registers::Expiry;
pub use self::registers::I6300esbState;
use super::bar::{BarKind, BarSpec};
use super::core::{Identity, PciCore};
use super::function::{Attachment, PciFunction};
use super::inspect::FunctionView;
use super::regs;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::state::{Parts, StateError, Stateful};
use crate::vm_clock::{VmClock, VmTimer};

/// The ids that drivers know it by.
const VENDOR: u16 = 0x8086;
const DEVICE: u16 = 0x25ab;
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// A system peripheral of no other kind.
const CLASS: [u8; 3] = [0x08, 0x80, 0];
/// Registers of its own in configuration space: how it is configured (two bytes), and whether it
/// runs and can be stopped.
const CONFIG: u16 = 0x60;
const LOCK: u16 = 0x68;

/// What the watchdog needs of the host.
pub struct I6300esbHost {
    /// Where its timer runs.
    pub reactor: Reactor,
    /// The time that it counts.
    pub clock: VmClock,
    /// Who is told that it has run out.
    pub notices: NoticeSink,
}

/// The function.
pub struct I6300esb {
    core: PciCore,
    chip: Arc<Chip>,
}

/// What is behind the registers.
struct Chip {
    state: Mutex<I6300esbState>,
    /// The timer, made with the chip. Armed with `state`, so that the last deadline is that of the
    /// last change; neither calls back.
    timer: Mutex<Option<VmTimer>>,
    clock: VmClock,
    notices: NoticeSink,
}

impl I6300esb {
    /// A watchdog that is off, not plugged yet.
    ///
    /// # Errors
    /// The thread of its timer cannot start.
    pub fn new(id: &str, host: I6300esbHost, multifunction: bool) -> std::io::Result<Arc<Self>> {
        let chip = Arc::new(Chip {
            state: Mutex::default(),
            timer: Mutex::new(None),
            clock: host.clock,
            notices: host.notices,
        });
        let ready = Arc::new(RunsOut(Arc::downgrade(&chip)));
        *lock(&chip.timer) = Some(chip.clock.timer(&host.reactor, ready)?);
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 0,
            class: CLASS,
            subsystem: SUBSYSTEM,
            header: if multifunction {
                regs::HEADER_MULTIFUNCTION
            } else {
                0
            },
            pin: 0,
        };
        let bars = vec![BarSpec {
            index: 0,
            kind: BarKind::Memory32,
            size: registers::LEN,
            device: Arc::clone(&chip) as _,
        }];
        let built = PciCore::new(id, identity, bars, Box::new(|_, _| {}), |_| {
            Ok::<(), Infallible>(())
        });
        match built {
            Ok(core) => Ok(Arc::new(Self { core, chip })),
            Err(never) => match never {},
        }
    }
}

impl Chip {
    /// Changes the state and has the timer follow it.
    fn change(&self, act: impl FnOnce(&mut I6300esbState, Instant)) {
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

    /// The timer says that a stage is over; it may be an older one's.
    fn run_out(&self) {
        let mut expiry = Expiry::Nothing;
        self.change(|state, now| expiry = state.run_out(now));
        if expiry == Expiry::Action {
            self.notices.send(Notice::Watchdog);
        }
    }
}

/// What the timer calls; it does not keep the chip.
struct RunsOut(Weak<Chip>);

impl Ready for RunsOut {
    fn ready(&self, _readiness: Readiness) {
        if let Some(chip) = self.0.upgrade() {
            chip.run_out();
        }
    }
}

impl BusDevice for Chip {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.state).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.change(|state, now| state.write(offset, data, now));
    }
}

impl Stateful for I6300esb {
    type State = I6300esbState;

    fn save(&self) -> I6300esbState {
        *lock(&self.chip.state)
    }

    fn load(&self, state: I6300esbState) -> Result<(), StateError> {
        self.chip.change(|own, _| *own = state);
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        vec![("config", &self.core)]
    }
}

impl Lifecycle for I6300esb {
    fn pause(&self) {
        self.chip.change(I6300esbState::pause);
    }

    fn resume(&self) {
        self.chip.change(I6300esbState::resume);
    }

    fn reset(&self) {
        self.core.reset();
        self.chip.change(|state, _| state.reset());
    }
}

impl PciFunction for I6300esb {
    fn id(&self) -> &str {
        self.core.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.read(offset, data);
        let state = self.save();
        for (at, byte) in (offset..).zip(data) {
            match at.checked_sub(CONFIG) {
                Some(index @ 0..2) => *byte = state.config_byte(index),
                _ if at == LOCK => *byte = state.lock_byte(),
                _ => {}
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.write(offset, data);
        self.chip.change(|state, now| {
            for (at, &byte) in (offset..).zip(data) {
                match at.checked_sub(CONFIG) {
                    Some(index @ 0..2) => state.set_config_byte(index, byte),
                    _ if at == LOCK => state.set_lock_byte(byte, now),
                    _ => {}
                }
            }
        });
    }

    fn attach(&self, attachment: Attachment) {
        self.core.attach(&attachment);
    }

    fn detach(&self) {
        self.core.detach();
        self.chip.change(|state, _| state.reset());
    }

    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
