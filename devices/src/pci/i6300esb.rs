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
use std::sync::Arc;

pub use self::registers::I6300esbState;
use super::bar::{BarKind, BarSpec};
use super::core::{Identity, PciCore};
use super::function::{Attachment, PciFunction};
use super::inspect::FunctionView;
use super::regs;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::state::{Parts, StateError, Stateful};
use crate::watchdog::{Watchdog, WatchdogHost};

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

/// The function.
pub struct I6300esb {
    core: PciCore,
    chip: Arc<Chip>,
}

type Chip = Watchdog<I6300esbState>;

impl I6300esb {
    /// A watchdog that is off, not plugged yet.
    ///
    /// # Errors
    /// The thread of its timer cannot start.
    pub fn new(id: &str, host: WatchdogHost, multifunction: bool) -> std::io::Result<Arc<Self>> {
        let chip = Watchdog::new(I6300esbState::default(), host)?;
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

impl BusDevice for Chip {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.look(|state, _| state.read(offset, data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.change(|state, now| state.write(offset, data, now));
    }
}

impl Stateful for I6300esb {
    type State = I6300esbState;

    fn save(&self) -> I6300esbState {
        self.chip.look(|state, _| *state)
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
        self.chip.pause();
    }

    fn resume(&self) {
        self.chip.resume();
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

#[cfg(test)]
mod tests;
