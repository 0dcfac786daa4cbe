//! A bridge from PCI Express to conventional PCI: 32 slots for cards that are there from the start.
//!
//! There is no hot-plug controller behind it, neither SHPC nor ACPI's: nobody could tell a guest of
//! a card that comes, so none does once the guest has given the bus a number; and nobody can ask it
//! for one, so a card that is to go leaves at the next reset, when nothing is in use.
//!
//! ```text
//!   main: request_unplug(slot) ─► leaving ─► reset ─► eject ─► Notice::Unplugged
//!   vCPU: config_write ─► numbers, windows, secondary bus reset
//!   a card's INTx ─► wire (slot + pin) & 3 ─► the same wire in front
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::address::SlotAddress;
use super::bridge::{self, Bridge, BusNumbers};
use super::bus::{BusKind, PciBus};
use super::core::{Identity, PciCore};
use super::error::PciError;
use super::express;
use super::function::{Attachment, PciFunction};
use super::host::{eject_all, eject_device};
use super::inspect::{FunctionView, WindowView};
use super::regs;
use super::root_port::VENDOR;
use crate::lifecycle::Lifecycle;
use crate::notice::NoticeSink;
use crate::state::{Parts, SavedState, StateError, Stateful};

/// The device id of a bridge from PCI Express to PCI, as drivers and tools know it.
pub const DEVICE: u16 = 0x000e;

/// What of bridge control can be written: parity and SERR forwarding, how aborts are reported,
/// secondary bus reset (PCI-to-PCI Bridge 1.2, 3.2.5.18).
const CONTROL: u16 = 0x63;

/// The bridge.
pub struct PciePciBridge {
    core: PciCore,
    bus: Arc<PciBus>,
    notices: NoticeSink,
    /// The bus numbers, for lookups without a lock.
    numbers: AtomicU32,
    /// The slots whose cards are to go with the next reset, a bit each.
    leaving: AtomicU32,
}

impl PciePciBridge {
    /// A bridge called `id`, as is the bus behind it; finished unplugs are reported to `notices`.
    /// `multifunction`: whether functions 1 to 7 of its device may be used, too.
    ///
    /// # Errors
    /// The capability does not fit (never with this one; the builder says so).
    pub fn new(id: &str, multifunction: bool, notices: NoticeSink) -> Result<Arc<Self>, PciError> {
        let multifunction = if multifunction {
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
            // It only hands on the interrupts of others.
            pin: 0,
        };
        let core = PciCore::new(id, identity, Vec::new(), Box::new(|_, _| {}), |config| {
            bridge::describe(config, CONTROL);
            express::add_bridge(config)
                .map(drop)
                .ok_or_else(|| PciError::NoRoom { id: id.to_owned() })
        })?;
        Ok(Arc::new(Self {
            core,
            bus: PciBus::new(id.to_owned(), BusKind::Conventional),
            notices,
            numbers: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
        }))
    }

    /// The slots with cards, a bit each.
    fn taken(&self) -> u32 {
        let functions = self.bus.functions();
        functions
            .iter()
            .fold(0, |taken, (address, _)| taken | bit(address.device()))
    }

    fn remember_numbers(&self) {
        let numbers = self.core.config().load32(regs::PRIMARY_BUS);
        self.numbers.store(numbers, Ordering::Release);
    }
}

/// The bit of a slot in [`PciePciBridge::leaving`].
const fn bit(device: u8) -> u32 {
    1 << (device & 31)
}

/// What a snapshot keeps beside configuration space. The cards are their own to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciePciBridgeState {
    /// The slots whose cards are to go with the next reset, a bit each.
    pub leaving: u32,
}

impl SavedState for PciePciBridgeState {
    const KIND: &'static str = "pcie-pci-bridge";
    const VERSION: u32 = 1;
}

impl Stateful for PciePciBridge {
    type State = PciePciBridgeState;

    fn save(&self) -> PciePciBridgeState {
        let leaving = self.leaving.load(Ordering::Relaxed);
        PciePciBridgeState { leaving }
    }

    fn load(&self, state: PciePciBridgeState) -> Result<(), StateError> {
        let empty = state.leaving & !self.taken();
        if empty != 0 {
            return Err(PciePciBridgeState::refused(format!(
                "leaving: slots {empty:#x}, and no card is in them"
            )));
        }
        self.leaving.store(state.leaving, Ordering::Relaxed);
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        vec![("config", &self.core)]
    }

    fn settle(&self) {
        self.remember_numbers();
    }
}

impl Lifecycle for PciePciBridge {
    /// What is to go goes now: nothing is in use.
    fn reset(&self) {
        let leaving = self.leaving.swap(0, Ordering::Relaxed);
        for device in (0..32).filter(|&device| leaving & bit(device) != 0) {
            eject_device(&self.bus, device, &self.notices);
        }
        self.core.reset();
        self.remember_numbers();
    }
}

impl PciFunction for PciePciBridge {
    fn id(&self) -> &str {
        self.core.id()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.core.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let before = self.core.config().load16(regs::BRIDGE_CONTROL);
        self.core.write(offset, data);
        self.remember_numbers();
        let rises = self.core.config().load16(regs::BRIDGE_CONTROL) & !before;
        if rises & regs::BRIDGE_CONTROL_RESET != 0 {
            bridge::reset_secondary(&self.bus);
        }
    }

    fn attach(&self, attachment: Attachment) {
        self.core.attach(&attachment);
    }

    /// What is behind the bridge goes with it, and first.
    fn detach(&self) {
        self.leaving.store(0, Ordering::Relaxed);
        eject_all(&self.bus, &self.notices);
        self.core.detach();
    }

    fn bridge(&self) -> Option<&dyn Bridge> {
        Some(self)
    }

    fn inspect(&self) -> FunctionView {
        self.core.inspect()
    }
}

impl Bridge for PciePciBridge {
    fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }

    fn numbers(&self) -> BusNumbers {
        BusNumbers::of(self.numbers.load(Ordering::Acquire))
    }

    fn windows(&self) -> (WindowView, WindowView) {
        bridge::windows(&self.core.config())
    }

    /// Only before the guest has come here: nobody is there to be told.
    fn plugged(&self, _running: bool) {}

    /// The guest cannot be asked; the card goes with the next reset.
    fn request_unplug(&self, address: SlotAddress, id: &str) -> Result<(), PciError> {
        let slot = bit(address.device());
        if self.leaving.fetch_or(slot, Ordering::Relaxed) & slot != 0 {
            return Err(PciError::UnplugPending { id: id.to_owned() });
        }
        Ok(())
    }

    fn eject(&self, address: SlotAddress) {
        let slot = bit(address.device());
        self.leaving.fetch_and(!slot, Ordering::Relaxed);
        eject_device(&self.bus, address.device(), &self.notices);
    }

    fn withdrawn(&self, _running: bool) {
        self.leaving.fetch_and(self.taken(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
