//! The registers through which a guest's ACPI code learns of memory modules that come and go (QEMU's
//! `docs/specs/acpi_mem_hotplug`).
//!
//! ```text
//!   plug(n) ───────────► inserting ─┬─► GPE 3 ─► SCI ─► guest: looks at each place
//!   request_unplug(n) ─► removing ──┘                     │ clears the event, notifies the module
//!                                                         ▼
//!   Notice::MemoryEjected ◄── eject bit ◄── _EJ0     Notice::OspmStatus ◄── _OST
//! ```
//!
//! | offset | read | written |
//! |---|---|---|
//! | 0 | the module's address, 8 bytes | the selector, 4 bytes: all that follows is about that place |
//! | 4 | | the event of an `_OST`, 4 bytes |
//! | 8 | its length, 8 bytes | the status of an `_OST`, 4 bytes, which ends it |
//! | 16 | its NUMA node, 4 bytes | |
//! | 20 | status: 0 enabled, 1 inserting, 2 removing | control: 1 and 2 clear events, 3 ejects |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::AcpiPm;
use super::hotplug_events::HotplugEvents;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink, OspmSlot};
use crate::state::{SavedState, StateError, Stateful};

/// Where the registers are.
pub const BASE: u64 = 0xa00;
/// How many ports they take.
pub const LEN: u64 = 24;
/// The general-purpose event that tells of changes.
pub const GPE: u8 = 3;

const SELECTOR: u64 = 0;
const OST_EVENT: u64 = 4;
const OST_STATUS: u64 = 8;
const FLAGS: u64 = 20;

/// A memory module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DimmSpec {
    /// Where it is in guest memory.
    pub address: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its NUMA node.
    pub node: u32,
}

/// A place for a module, and what a snapshot keeps of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DimmPlaceState {
    module: Option<DimmSpec>,
    #[serde(flatten)]
    events: HotplugEvents,
}

/// The registers, and what a snapshot keeps of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHotplugState {
    places: Vec<DimmPlaceState>,
    selector: u32,
}

impl SavedState for MemoryHotplugState {
    const KIND: &'static str = "acpi-memory-hotplug";
    const VERSION: u32 = 1;
}

impl MemoryHotplugState {
    fn selected_mut(&mut self) -> Option<&mut DimmPlaceState> {
        self.places.get_mut(usize::try_from(self.selector).ok()?)
    }

    /// All that is read of the selected place; a place that is not there has nothing.
    fn registers(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let selected = usize::try_from(self.selector).ok();
        let Some(place) = selected.and_then(|at| self.places.get(at)) else {
            return bytes;
        };
        let [address, size, rest @ ..] = bytes.as_chunks_mut::<8>().0 else {
            return bytes;
        };
        if let Some(module) = place.module {
            *address = module.address.to_le_bytes();
            *size = module.size.to_le_bytes();
        }
        if let [[a, b, c, d, flags, ..]] = rest {
            let node = place.module.map_or(0, |module| module.node);
            [*a, *b, *c, *d] = node.to_le_bytes();
            *flags = place.events.flags(place.module.is_some());
        }
        bytes
    }
}

/// The registers.
pub struct MemoryHotplug {
    /// Leaf lock: nothing is called with it.
    state: Mutex<MemoryHotplugState>,
    pm: Arc<AcpiPm>,
    notices: NoticeSink,
}

impl MemoryHotplug {
    /// So many places for modules, all empty.
    #[must_use]
    pub fn new(places: u32, pm: Arc<AcpiPm>, notices: NoticeSink) -> Self {
        Self {
            state: Mutex::new(MemoryHotplugState {
                places: vec![DimmPlaceState::default(); places as usize],
                ..MemoryHotplugState::default()
            }),
            pm,
            notices,
        }
    }

    /// How many places there are.
    #[must_use]
    pub fn places(&self) -> u32 {
        u32::try_from(self.lock().places.len()).unwrap_or(u32::MAX)
    }

    /// The module is in the place `slot`; with `tell` the guest hears of it.
    pub fn plug(&self, slot: u32, module: DimmSpec, tell: bool) {
        if let Some(place) = self.lock().places.get_mut(slot as usize) {
            place.module = Some(module);
            place.events.come(tell);
        }
        if tell {
            self.pm.raise_gpe(GPE);
        }
    }

    /// Nothing is in the place `slot` after all, and nobody was told.
    pub fn withdraw(&self, slot: u32) {
        if let Some(place) = self.lock().places.get_mut(slot as usize) {
            *place = DimmPlaceState::default();
        }
    }

    /// Asks the guest to let the module in the place `slot` go.
    pub fn request_unplug(&self, slot: u32) {
        if let Some(place) = self.lock().places.get_mut(slot as usize) {
            place.events.ask_to_go(place.module.is_some());
        }
        self.pm.raise_gpe(GPE);
    }

    /// What the guest last said of each place: event and status of its `_OST`.
    #[must_use]
    pub fn ospm_status(&self) -> Vec<(u32, u32)> {
        let state = self.lock();
        let places = state.places.iter();
        places.map(|dimm| dimm.events.ost()).collect()
    }

    /// Takes what the guest wrote to the flags; the news, if there is some.
    fn control(state: &mut MemoryHotplugState, flags: u8) -> Option<Notice> {
        let slot = state.selector;
        let place = state.selected_mut()?;
        if !place.events.control(flags) {
            return None;
        }
        place.module.take()?;
        place.events.ejected();
        Some(Notice::MemoryEjected { slot })
    }

    fn lock(&self) -> MutexGuard<'_, MemoryHotplugState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stateful for MemoryHotplug {
    type State = MemoryHotplugState;

    fn save(&self) -> MemoryHotplugState {
        self.lock().clone()
    }

    fn load(&self, state: MemoryHotplugState) -> Result<(), StateError> {
        let mut own = self.lock();
        let (here, there) = (own.places.len(), state.places.len());
        if here != there {
            return Err(MemoryHotplugState::refused(format!(
                "places: {there}, and this machine has {here} (slots= of -m)"
            )));
        }
        *own = state;
        Ok(())
    }
}

impl Lifecycle for MemoryHotplug {
    fn pause(&self) {}

    fn resume(&self) {}

    /// A guest that begins anew finds the modules that are there; one that was to go is in nobody's
    /// use any more, and goes.
    fn reset(&self) {
        let mut gone = Vec::new();
        {
            let mut state = self.lock();
            for (slot, place) in (0..).zip(&mut state.places) {
                if place.events.reset() && place.module.take().is_some() {
                    gone.push(slot);
                }
            }
            state.selector = 0;
        }
        for slot in gone {
            self.notices.send(Notice::MemoryEjected { slot });
        }
    }
}

impl BusDevice for MemoryHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let registers = self.lock().registers();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(registers.into_iter().skip(at)) {
            *to = from;
        }
    }

    /// The guest writes each register as a whole, with one access.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let [first, ..] = bytes;
        let value = u32::from_le_bytes(bytes);
        let notice = {
            let mut state = self.lock();
            let slot = state.selector;
            match offset {
                SELECTOR => {
                    state.selector = value;
                    None
                }
                OST_EVENT => {
                    if let Some(place) = state.selected_mut() {
                        place.events.set_event(value);
                    }
                    None
                }
                OST_STATUS => state.selected_mut().map(|place| {
                    let (event, status) = place.events.set_status(value);
                    let slot = OspmSlot::Dimm(slot);
                    Notice::OspmStatus {
                        slot,
                        event,
                        status,
                    }
                }),
                FLAGS => Self::control(&mut state, first),
                _ => None,
            }
        };
        if let Some(notice) = notice {
            self.notices.send(notice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::IrqLine;
    use crate::legacy::Clock;
    use crate::legacy::hotplug_events::{EJECT, ENABLED, INSERTING, REMOVING};
    use crate::state::{AnyStateful, trial};

    struct Nowhere;
    impl IrqLine for Nowhere {
        fn set(&self, _high: bool) {}
    }

    const MODULE: DimmSpec = DimmSpec {
        address: 0x1_2345_6000_0000,
        size: 0x2_0000_0000,
        node: 3,
    };

    fn registers() -> (MemoryHotplug, Arc<Mutex<Vec<Notice>>>, Arc<AcpiPm>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let notices = NoticeSink::new(move |notice| sink.lock().unwrap().push(notice));
        let pm = AcpiPm::new(Clock::wall(), Arc::new(Nowhere), notices.clone());
        let registers = MemoryHotplug::new(2, Arc::clone(&pm), notices);
        (registers, heard, pm)
    }

    fn long(registers: &MemoryHotplug, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        registers.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn flags(registers: &MemoryHotplug) -> u8 {
        let mut byte = [0];
        registers.read(FLAGS, &mut byte);
        byte[0]
    }

    #[test]
    fn a_module_that_comes_is_found_with_its_range_and_its_event_cleared() {
        let (registers, _, pm) = registers();
        registers.plug(1, MODULE, true);
        let mut status = [0];
        pm.read(0x20, &mut status);
        assert_eq!(status, [1 << GPE]);
        registers.write(SELECTOR, &1_u32.to_le_bytes());
        assert_eq!(long(&registers, 0), MODULE.address);
        assert_eq!(long(&registers, 8), MODULE.size);
        assert_eq!(long(&registers, 16) & 0xffff_ffff, u64::from(MODULE.node));
        assert_eq!(flags(&registers), ENABLED | INSERTING);
        registers.write(FLAGS, &[INSERTING]);
        assert_eq!(flags(&registers), ENABLED);
    }

    #[test]
    fn a_module_goes_once() {
        let (registers, heard, _) = registers();
        registers.plug(0, MODULE, false);
        registers.request_unplug(0);
        assert_eq!(flags(&registers), ENABLED | REMOVING);
        for _ in 0..2 {
            registers.write(FLAGS, &[EJECT]);
        }
        assert_eq!(*heard.lock().unwrap(), [Notice::MemoryEjected { slot: 0 }]);
        assert_eq!((flags(&registers), long(&registers, 0)), (0, 0));
    }

    #[test]
    fn what_the_guest_says_of_an_event_is_told_and_kept() {
        let (registers, heard, _) = registers();
        registers.write(SELECTOR, &1_u32.to_le_bytes());
        registers.write(OST_EVENT, &3_u32.to_le_bytes());
        registers.write(OST_STATUS, &0x82_u32.to_le_bytes());
        let told = Notice::OspmStatus {
            slot: OspmSlot::Dimm(1),
            event: 3,
            status: 0x82,
        };
        assert_eq!(*heard.lock().unwrap(), [told]);
        assert_eq!(registers.ospm_status(), [(0, 0), (3, 0x82)]);
    }

    #[test]
    fn a_place_that_is_not_there_has_no_registers() {
        let (registers, heard, _) = registers();
        for slot in [2, u32::MAX] {
            registers.write(SELECTOR, &slot.to_le_bytes());
            for offset in 4..LEN {
                registers.write(offset, &[0xff; 4]);
            }
            let mut all = [0xff; 24];
            registers.read(0, &mut all);
            assert_eq!(all, [0; 24]);
        }
        assert!(heard.lock().unwrap().is_empty());
    }

    #[test]
    fn a_reset_ends_what_is_pending() {
        let (registers, heard, _) = registers();
        registers.plug(0, MODULE, true);
        registers.plug(1, MODULE, false);
        registers.request_unplug(1);
        registers.reset();
        assert_eq!(*heard.lock().unwrap(), [Notice::MemoryEjected { slot: 1 }]);
        assert_eq!(flags(&registers), ENABLED);
        let saved = registers.save();
        registers.withdraw(0);
        assert_eq!(flags(&registers), 0);
        registers.load(saved.clone()).unwrap();
        assert_eq!(registers.save(), saved);
    }

    #[test]
    fn no_state_breaks_the_registers() {
        let (registers, _, _) = registers();
        registers.plug(0, MODULE, true);
        let tree = registers.tree().unwrap();
        let alive = || {
            for offset in 0..LEN {
                registers.write(offset, &[0xff; 4]);
                registers.read(offset, &mut [0; 8]);
            }
        };
        assert!(trial::offend(&registers, &tree, alive) > 10);
    }
}
