//! The registers through which a guest's ACPI code learns of CPUs that come and go (QEMU's
//! `docs/specs/acpi_cpu_hotplug`, the modern interface; it answers from the start).
//!
//! ```text
//!   plug(n) ───────────► inserting ─┬─► GPE 2 ─► SCI ─► guest: which CPU? (command 0)
//!   request_unplug(n) ─► removing ──┘                     │ clears the event, notifies the CPU
//!                                                         ▼
//!   Notice::CpuEjected ◄── eject bit ◄── _EJ0     Notice::OspmStatus ◄── _OST (commands 1, 2)
//! ```
//!
//! | offset | read | written |
//! |---|---|---|
//! | 0 | the high half of an APIC id: 0 | the selector: all that follows is about that CPU |
//! | 4 | status: 0 enabled, 1 inserting, 2 removing | control: 1 and 2 clear events, 3 ejects |
//! | 5 | 0 | the command |
//! | 8 | what the command tells | what the command takes |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::AcpiPm;
use super::hotplug_events::HotplugEvents;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink, OspmSlot};
use crate::state::{SavedState, StateError, Stateful};

/// Where the registers are on a machine with an ICH9.
pub const BASE: u64 = 0xcd8;
/// How many ports they take.
pub const LEN: u64 = 12;
/// The general-purpose event that tells of changes.
pub const GPE: u8 = 2;

const SELECTOR: u64 = 0;
const FLAGS: u64 = 4;
const COMMAND: u64 = 5;
const DATA: u64 = 8;

/// Selects the next CPU with an event, and tells which that is.
const NEXT_WITH_EVENT: u8 = 0;
/// What is written next is the event of an `_OST`.
const OST_EVENT: u8 = 1;
/// What is written next is the status of an `_OST`, which ends it.
const OST_STATUS: u8 = 2;
/// Tells the APIC id.
const ARCH_ID: u8 = 3;

/// A place for a CPU, and what a snapshot keeps of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuPlaceState {
    apic_id: u32,
    present: bool,
    #[serde(flatten)]
    events: HotplugEvents,
}

/// The registers, and what a snapshot keeps of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuHotplugState {
    places: Vec<CpuPlaceState>,
    selector: u32,
    command: u8,
}

impl SavedState for CpuHotplugState {
    const KIND: &'static str = "acpi-cpu-hotplug";
    const VERSION: u32 = 1;
}

impl CpuHotplugState {
    fn selected(&self) -> Option<&CpuPlaceState> {
        self.places.get(usize::try_from(self.selector).ok()?)
    }

    fn selected_mut(&mut self) -> Option<&mut CpuPlaceState> {
        self.places.get_mut(usize::try_from(self.selector).ok()?)
    }

    /// Selects the first CPU with an event, from the selected one on and round to it again.
    fn select_event(&mut self) {
        let count = u32::try_from(self.places.len()).unwrap_or(0);
        if self.selector >= count {
            return;
        }
        let has_event = |index: u32| {
            let place = usize::try_from(index)
                .ok()
                .and_then(|at| self.places.get(at));
            place.is_some_and(|cpu| cpu.events.has_event())
        };
        let mut round = (self.selector..count).chain(0..self.selector);
        if let Some(found) = round.find(|index| has_event(*index)) {
            self.selector = found;
        }
    }

    fn byte(&self, offset: u64) -> u8 {
        let Some(place) = self.selected() else {
            return 0;
        };
        match offset {
            FLAGS => place.events.flags(place.present),
            DATA.. => {
                let word = match self.command {
                    NEXT_WITH_EVENT => self.selector,
                    ARCH_ID => place.apic_id,
                    _ => 0,
                };
                byte_of(word, offset - DATA)
            }
            _ => 0,
        }
    }
}

fn byte_of(word: u32, index: u64) -> u8 {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    word.to_le_bytes().get(at).copied().unwrap_or(0)
}

/// The registers.
pub struct CpuHotplug {
    /// Leaf lock: nothing is called with it.
    state: Mutex<CpuHotplugState>,
    pm: Arc<AcpiPm>,
    notices: NoticeSink,
}

impl CpuHotplug {
    /// Places for CPUs with these APIC ids, all empty.
    #[must_use]
    pub fn new(apic_ids: Vec<u32>, pm: Arc<AcpiPm>, notices: NoticeSink) -> Self {
        let places = apic_ids.into_iter().map(|apic_id| CpuPlaceState {
            apic_id,
            ..CpuPlaceState::default()
        });
        Self {
            state: Mutex::new(CpuHotplugState {
                places: places.collect(),
                ..CpuHotplugState::default()
            }),
            pm,
            notices,
        }
    }

    /// The CPU `index` is there; with `tell` the guest hears of it.
    pub fn plug(&self, index: usize, tell: bool) {
        if let Some(place) = self.lock().places.get_mut(index) {
            place.present = true;
            place.events.come(tell);
        }
        if tell {
            self.pm.raise_gpe(GPE);
        }
    }

    /// Asks the guest to let the CPU `index` go.
    pub fn request_unplug(&self, index: usize) {
        if let Some(place) = self.lock().places.get_mut(index) {
            place.events.ask_to_go(place.present);
        }
        self.pm.raise_gpe(GPE);
    }

    /// Which places have a CPU, as the guest sees it.
    #[must_use]
    pub fn present(&self) -> Vec<bool> {
        let state = self.lock();
        state.places.iter().map(|place| place.present).collect()
    }

    /// What the guest last said of each place: event and status of its `_OST`.
    #[must_use]
    pub fn ospm_status(&self) -> Vec<(u32, u32)> {
        let state = self.lock();
        let places = state.places.iter();
        places.map(|cpu| cpu.events.ost()).collect()
    }

    /// Takes what the guest wrote to `flags`; the news, if there is some.
    fn control(state: &mut CpuHotplugState, flags: u8) -> Option<Notice> {
        let index = state.selector;
        let place = state.selected_mut()?;
        // The first CPU stays: it is the one that boots.
        if !place.events.control(flags) || !place.present || index == 0 {
            return None;
        }
        place.present = false;
        place.events.ejected();
        Some(Notice::CpuEjected { index })
    }

    /// Takes what the guest wrote for the command.
    fn take(state: &mut CpuHotplugState, value: u32) -> Option<Notice> {
        let (index, command) = (state.selector, state.command);
        let place = state.selected_mut()?;
        match command {
            OST_EVENT => {
                place.events.set_event(value);
                None
            }
            OST_STATUS => {
                let (event, status) = place.events.set_status(value);
                let slot = OspmSlot::Cpu(index);
                Some(Notice::OspmStatus {
                    slot,
                    event,
                    status,
                })
            }
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, CpuHotplugState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stateful for CpuHotplug {
    type State = CpuHotplugState;

    fn save(&self) -> CpuHotplugState {
        self.lock().clone()
    }

    fn load(&self, state: CpuHotplugState) -> Result<(), StateError> {
        let mut own = self.lock();
        let apic_ids = |state: &CpuHotplugState| {
            let places = state.places.iter();
            places.map(|place| place.apic_id).collect::<Vec<_>>()
        };
        let (here, there) = (apic_ids(&own), apic_ids(&state));
        if here != there {
            return Err(CpuHotplugState::refused(format!(
                "places: CPUs with APIC ids {there:?}, and this machine has places for {here:?}"
            )));
        }
        *own = state;
        Ok(())
    }
}

impl Lifecycle for CpuHotplug {
    /// A guest that begins anew finds the CPUs that are there in its tables; one that was to go
    /// is in nobody's use any more, and goes.
    fn reset(&self) {
        let mut gone = Vec::new();
        {
            let mut state = self.lock();
            for (index, place) in (0..).zip(&mut state.places) {
                if place.events.reset() && index != 0 {
                    place.present = false;
                    gone.push(index);
                }
            }
            (state.selector, state.command) = (0, NEXT_WITH_EVENT);
        }
        for index in gone {
            self.notices.send(Notice::CpuEjected { index });
        }
    }
}

impl BusDevice for CpuHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = state.byte(at);
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
            match offset {
                SELECTOR => {
                    state.selector = value;
                    None
                }
                FLAGS => Self::control(&mut state, first),
                COMMAND => {
                    state.command = first;
                    if first == NEXT_WITH_EVENT {
                        state.select_event();
                    }
                    None
                }
                DATA => Self::take(&mut state, value),
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

    fn registers() -> (CpuHotplug, Arc<Mutex<Vec<Notice>>>, Arc<AcpiPm>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let notices = NoticeSink::new(move |notice| sink.lock().unwrap().push(notice));
        let pm = AcpiPm::new(Clock::wall(), Arc::new(Nowhere), notices.clone());
        let registers = CpuHotplug::new(vec![0, 1, 4, 5], Arc::clone(&pm), notices);
        registers.plug(0, false);
        (registers, heard, pm)
    }

    fn word(registers: &CpuHotplug, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        registers.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn flags(registers: &CpuHotplug) -> u8 {
        let mut byte = [0];
        registers.read(FLAGS, &mut byte);
        byte[0]
    }

    fn select(registers: &CpuHotplug, index: u32) {
        registers.write(SELECTOR, &index.to_le_bytes());
    }

    #[test]
    fn a_cpu_that_comes_is_found_and_its_event_cleared() {
        let (registers, _, pm) = registers();
        registers.plug(2, true);
        let mut status = [0];
        pm.read(0x20, &mut status);
        assert_eq!(status, [1 << GPE]);
        select(&registers, 0);
        registers.write(COMMAND, &[NEXT_WITH_EVENT]);
        assert_eq!(word(&registers, DATA), 2);
        assert_eq!(flags(&registers), ENABLED | INSERTING);
        registers.write(FLAGS, &[INSERTING]);
        assert_eq!(flags(&registers), ENABLED);
        registers.write(COMMAND, &[ARCH_ID]);
        assert_eq!((word(&registers, DATA), word(&registers, 0)), (4, 0));
    }

    #[test]
    fn a_cpu_goes_once_and_the_first_never() {
        let (registers, heard, _) = registers();
        registers.plug(1, false);
        registers.request_unplug(1);
        registers.write(COMMAND, &[NEXT_WITH_EVENT]);
        assert_eq!(flags(&registers), ENABLED | REMOVING);
        registers.write(FLAGS, &[REMOVING]);
        for _ in 0..2 {
            registers.write(FLAGS, &[EJECT]);
        }
        select(&registers, 0);
        registers.write(FLAGS, &[EJECT]);
        assert_eq!(*heard.lock().unwrap(), [Notice::CpuEjected { index: 1 }]);
        assert_eq!(registers.present(), [true, false, false, false]);
    }

    #[test]
    fn what_the_guest_says_of_an_event_is_told_and_kept() {
        let (registers, heard, _) = registers();
        registers.plug(3, true);
        select(&registers, 3);
        for (command, value) in [(OST_EVENT, 1_u32), (OST_STATUS, 0x81)] {
            registers.write(COMMAND, &[command]);
            registers.write(DATA, &value.to_le_bytes());
        }
        let told = Notice::OspmStatus {
            slot: OspmSlot::Cpu(3),
            event: 1,
            status: 0x81,
        };
        assert_eq!(*heard.lock().unwrap(), [told]);
        assert_eq!(registers.ospm_status()[3], (1, 0x81));
    }

    #[test]
    fn a_place_that_is_not_there_has_no_registers() {
        let (registers, heard, _) = registers();
        for index in [4, u32::MAX] {
            select(&registers, index);
            for command in 0..=255 {
                registers.write(COMMAND, &[command]);
                registers.write(FLAGS, &[0xff]);
                registers.write(DATA, &[0xff; 4]);
                let mut all = [0xff; 12];
                registers.read(0, &mut all);
                assert_eq!(all, [0; 12]);
            }
        }
        assert!(heard.lock().unwrap().is_empty());
    }

    #[test]
    fn a_reset_ends_what_is_pending() {
        let (registers, heard, _) = registers();
        registers.plug(1, true);
        registers.plug(2, true);
        registers.request_unplug(2);
        registers.reset();
        assert_eq!(*heard.lock().unwrap(), [Notice::CpuEjected { index: 2 }]);
        assert_eq!(registers.present(), [true, true, false, false]);
        registers.write(COMMAND, &[NEXT_WITH_EVENT]);
        assert_eq!(word(&registers, DATA), 0);
        let saved = registers.save();
        registers.plug(3, true);
        registers.load(saved.clone()).unwrap();
        assert_eq!(registers.save(), saved);
    }

    #[test]
    fn no_state_breaks_the_registers() {
        let (registers, _, _) = registers();
        let tree = registers.tree().unwrap();
        let alive = || {
            for command in 0..=u8::MAX {
                registers.write(COMMAND, &[command]);
                registers.write(DATA, &[0xff; 4]);
                registers.write(FLAGS, &[0xff]);
                let _ = (
                    word(&registers, DATA),
                    word(&registers, 0),
                    flags(&registers),
                );
            }
        };
        assert!(trial::offend(&registers, &tree, alive) > 10);
    }
}
