//! A PCI Express root port: a bridge to one slot, with native hot-plug.
//!
//! The registers are in [`super::express`], the slot's states in [`super::slot`]. Here is what
//! moves: bus numbers, windows, the card itself, and the interrupt.
//!
//! ```text
//!   main: plugged / request_unplug ─┐                      ┌─► MSI or INTx ─► guest
//!                                   ├─► phase, registers ──┤
//!   vCPU: config_write ─────────────┘                      └─► eject ─► Notice::Unplugged
//! ```

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::address::SlotAddress;
use super::bridge::{self, Bridge, BusNumbers};
use super::bus::{BusKind, PciBus};
use super::core::{Identity, PciCore};
use super::error::PciError;
use super::express::{self, INDICATOR_BLINK, INDICATOR_OFF};
use super::function::{Attachment, PciFunction};
use super::host::eject_all;
use super::inspect::{FunctionView, WindowView};
use super::msi::Msi;
use super::regs;
use super::slot::{Event, Phase, SlotRegisters};
use crate::irq::{IrqLine, MsiController, drive};
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::state::{Parts, SavedState, StateError, Stateful};

/// The ids of a generic root port, as drivers and tools know it.
pub const VENDOR: u16 = 0x1b36;
/// The device id of a generic root port.
pub const DEVICE: u16 = 0x000c;

/// What of bridge control can be written: parity and SERR forwarding, secondary bus reset.
const CONTROL: u16 = 0x43;

/// What a root port needs.
pub struct RootPortSpec {
    /// The device's id, and the name of the bus behind it.
    pub id: String,
    /// The link's port number.
    pub port: u8,
    /// The physical slot number that guests show, 13 bits; unique in the machine.
    pub slot: u16,
    /// Whether functions 1 to 7 of its device may be used, too.
    pub multifunction: bool,
    /// Sends its interrupts.
    pub msi: Arc<dyn MsiController>,
    /// Where finished unplugs are reported.
    pub notices: NoticeSink,
}

/// What a snapshot keeps beside configuration space. The card is its own to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPortState {
    /// Where the slot stands.
    pub phase: Phase,
    /// Whether an event waits that the guest was interrupted for.
    pub interrupt: bool,
}

impl SavedState for RootPortState {
    const KIND: &'static str = "pcie-root-port";
    const VERSION: u32 = 1;
}

/// The port.
pub struct RootPort {
    core: PciCore,
    bus: Arc<PciBus>,
    msi: Msi,
    registers: SlotRegisters,
    controller: Arc<dyn MsiController>,
    notices: NoticeSink,
    line: OnceLock<Arc<dyn IrqLine>>,
    phase: Mutex<Phase>,
    /// The last state of the interrupt. Taken before the registers' lock.
    asserted: Mutex<bool>,
    /// The bus numbers, for lookups without a lock.
    numbers: AtomicU32,
}

impl RootPort {
    /// A port with an empty slot.
    ///
    /// # Errors
    /// The capabilities do not fit (never with this set; the builder says so).
    pub fn new(spec: RootPortSpec) -> Result<Arc<Self>, PciError> {
        let multifunction = if spec.multifunction {
            regs::HEADER_MULTIFUNCTION
        } else {
            0
        };
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE,
            revision: 0,
            class: [0x06, 0x04, 0x00],
            subsystem: (0, 0),
            header: regs::HEADER_BRIDGE | multifunction,
            pin: 1,
        };
        let mut placed = None;
        let core = PciCore::new(
            &spec.id,
            identity,
            Vec::new(),
            Box::new(|_, _| {}),
            |config| {
                bridge::describe(config, CONTROL);
                let express = express::add_root_port(config, spec.port, spec.slot);
                placed = express.zip(Msi::add(config));
                placed.map(|_| ()).ok_or_else(|| PciError::NoRoom {
                    id: spec.id.clone(),
                })
            },
        )?;
        let Some((express, msi)) = placed else {
            return Err(PciError::NoRoom { id: spec.id });
        };
        Ok(Arc::new(Self {
            core,
            bus: PciBus::new(spec.id, BusKind::Port),
            msi,
            registers: SlotRegisters(express),
            controller: spec.msi,
            notices: spec.notices,
            line: OnceLock::new(),
            phase: Mutex::new(Phase::Empty),
            asserted: Mutex::new(false),
            numbers: AtomicU32::new(0),
        }))
    }

    /// Where the slot stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the slot on; returns the phase before and after.
    fn step(&self, event: Event) -> (Phase, Phase) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *phase;
        *phase = before.next(event);
        (before, *phase)
    }

    /// Brings the interrupt in line with the registers. MSI is sent when it rises, so "see what
    /// the registers say, then remember it" is one step.
    fn settle_interrupt(&self) {
        let message = {
            let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
            let config = self.core.config();
            let wanted = self.registers.interrupt(&config);
            let rises = wanted && !*asserted;
            *asserted = wanted;
            self.msi.message(&config).filter(|_| rises)
        };
        if let Some(line) = self.line.get() {
            drive(line.as_ref(), || self.line_wanted());
        }
        if let Some(message) = message {
            self.controller.send(message);
        }
    }

    /// Without MSI, the line is high while an event waits.
    fn line_wanted(&self) -> bool {
        let config = self.core.config();
        self.registers.interrupt(&config)
            && self.msi.message(&config).is_none()
            && config.load16(regs::COMMAND) & regs::COMMAND_INTX_DISABLE == 0
    }

    /// Shows whether there is a card, and tells the guest with `tell`.
    fn show(&self, tell: bool) {
        let present = !self.bus.is_empty();
        self.registers.show(&mut self.core.config(), present, tell);
        self.settle_interrupt();
    }

    /// Shows the slot as firmware leaves it: no event, the indicator on over a card.
    fn show_cold(&self) {
        let present = !self.bus.is_empty();
        {
            let mut config = self.core.config();
            self.registers.show(&mut config, present, false);
            self.registers.light(&mut config, present);
        }
        self.settle_interrupt();
    }

    /// The guest keeps the card, with all its functions.
    fn tell_refusal(&self) {
        for (_, function) in self.bus.functions() {
            let id = function.id().to_owned();
            self.notices.send(Notice::UnplugRefused { id });
        }
    }

    /// Takes the card out, whatever was before.
    fn empty(&self) {
        self.step(Event::Pull);
        eject_all(&self.bus, &self.notices);
        self.show_cold();
    }

    fn remember_numbers(&self) {
        let numbers = self.core.config().load32(regs::PRIMARY_BUS);
        self.numbers.store(numbers, Ordering::Release);
    }
}

impl Stateful for RootPort {
    type State = RootPortState;

    fn save(&self) -> RootPortState {
        RootPortState {
            interrupt: *self.asserted.lock().unwrap_or_else(PoisonError::into_inner),
            phase: self.phase(),
        }
    }

    fn load(&self, state: RootPortState) -> Result<(), StateError> {
        let is_empty = self.bus.is_empty();
        if is_empty != (state.phase == Phase::Empty) {
            let holds = if is_empty { "no card" } else { "a card" };
            return Err(RootPortState::refused(format!(
                "phase: {:?}, and the slot '{}' holds {holds}",
                state.phase,
                self.core.id()
            )));
        }
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = state.phase;
        *self.asserted.lock().unwrap_or_else(PoisonError::into_inner) = state.interrupt;
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        vec![("config", &self.core)]
    }

    fn settle(&self) {
        self.remember_numbers();
        self.show(false);
    }
}

impl Lifecycle for RootPort {
    /// A request that the guest has left unanswered is fulfilled now: nothing is in use.
    fn reset(&self) {
        if matches!(self.phase(), Phase::Wanted | Phase::Asked) {
            self.empty();
        }
        self.core.reset();
        self.remember_numbers();
        self.step(Event::Reset);
        self.show_cold();
    }
}

impl PciFunction for RootPort {
    fn id(&self) -> &str {
        self.core.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let (indicator, control) = {
            let config = self.core.config();
            let control = config.load16(regs::BRIDGE_CONTROL);
            (self.registers.indicator(&config), control)
        };
        self.core.write(offset, data);
        self.remember_numbers();
        let (step, reset) = {
            let mut config = self.core.config();
            self.registers.settle_link(&mut config, true);
            let rises = config.load16(regs::BRIDGE_CONTROL) & !control;
            let event = SlotRegisters::event(indicator, self.registers.indicator(&config));
            // Under the lock of the registers, so that no request comes between the two.
            let step = event.map(|event| self.step(event));
            if let Some((Phase::Wanted, Phase::Asked)) = step {
                self.registers.press(&mut config);
            }
            (step, rises & regs::BRIDGE_CONTROL_RESET != 0)
        };
        if reset {
            bridge::reset_secondary(&self.bus);
        }
        match step {
            Some((before, Phase::Empty)) if before != Phase::Empty => {
                eject_all(&self.bus, &self.notices);
                self.show(true);
            }
            Some((Phase::Asked, Phase::On)) => {
                self.tell_refusal();
                self.settle_interrupt();
            }
            _ => self.settle_interrupt(),
        }
    }

    fn attach(&self, attachment: Attachment) {
        let device = attachment.address.device();
        // A port is plugged once in its life; a second source would only be unused.
        self.line
            .get_or_init(|| attachment.wires.inta(device).source());
        self.core.attach(&attachment);
    }

    /// What is behind the port goes with it, and first.
    fn detach(&self) {
        self.empty();
        if let Some(line) = self.line.get() {
            line.set(false);
        }
        self.core.detach();
    }

    fn bridge(&self) -> Option<&dyn Bridge> {
        Some(self)
    }

    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}

impl Bridge for RootPort {
    fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }

    fn numbers(&self) -> BusNumbers {
        BusNumbers::of(self.numbers.load(Ordering::Acquire))
    }

    fn windows(&self) -> (WindowView, WindowView) {
        bridge::windows(&self.core.config())
    }

    fn plugged(&self, running: bool) {
        if running {
            self.step(Event::HotPlug);
            // Also over a card that is only just leaving: the guest hears of each change.
            self.registers.show(&mut self.core.config(), false, true);
            self.show(true);
        } else {
            self.step(Event::ColdPlug);
            self.show_cold();
        }
    }

    fn request_unplug(&self, _address: SlotAddress, id: &str) -> Result<(), PciError> {
        let after = {
            let mut config = self.core.config();
            let indicator = self.registers.indicator(&config);
            let phase = self.phase();
            let is_busy = match phase {
                // A driver that is turning the card on, or just has.
                Phase::Idle => indicator != INDICATOR_OFF,
                _ => indicator == INDICATOR_BLINK,
            };
            if phase == Phase::Wanted || phase == Phase::Asked && is_busy {
                let id = id.to_owned();
                return Err(PciError::UnplugPending { id });
            }
            // Asked and no blinking: nobody has seen the button (a driver clears it when it
            // starts), so it is pressed again.
            let ask = if is_busy { Event::AskLater } else { Event::Ask };
            let (_, after) = self.step(ask);
            if after == Phase::Asked {
                self.registers.press(&mut config);
            }
            after
        };
        if after == Phase::Empty {
            eject_all(&self.bus, &self.notices);
            self.show(true);
        } else {
            self.settle_interrupt();
        }
        Ok(())
    }

    /// The only slot is 0.
    fn eject(&self, _address: SlotAddress) {
        self.empty();
    }

    fn withdrawn(&self, running: bool) {
        if self.bus.is_empty() {
            self.step(Event::Pull);
        }
        if running {
            self.show(true);
        } else {
            self.show_cold();
        }
    }
}

#[cfg(test)]
mod tests;
