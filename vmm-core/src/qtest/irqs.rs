//! Interrupts of a machine that a tester drives. Nobody takes an interrupt there: the tester looks
//! for messages in guest memory, and may ask to be told of the interrupt controller's pins.
//!
//! ```text
//!   device ─ MSI-X vector ─► address in RAM? ─┬─ yes: the data is written there, as by a device
//!                                             └─ no: to the chips, as ever
//!   device ─ line ─► intercepted? ─┬─ yes: "IRQ raise N", "IRQ lower N" to the tester
//!                                  └─ no: to the chips
//! ```

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::irq::{Interrupt, IrqError, IrqLine, MsiController, MsiMessage, MsiVector};
use devices::memory::GuestMem;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// How many pins the interrupt controller has.
const PINS: u32 = 24;

/// Gives the chips' end of a pin.
pub type LineOf = Box<dyn Fn(u32) -> Arc<dyn IrqLine> + Send + Sync>;

/// The interrupts of a machine that a tester drives.
pub struct TestedIrqs {
    memory: GuestMem,
    /// The chips' pins.
    line: LineOf,
    /// The chips' messages.
    msi: Arc<dyn MsiController>,
    /// Leaf lock.
    state: Mutex<State>,
    /// Calls the tester's server when there is news.
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct State {
    intercepts: bool,
    /// Pins that are high, while they are intercepted.
    high: BTreeSet<u32>,
    /// What the tester has not been told: a pin and its new level.
    news: Vec<(u32, bool)>,
}

impl TestedIrqs {
    /// Interrupts in front of the chips' pins and messages.
    #[must_use]
    pub fn new(memory: GuestMem, line: LineOf, msi: Arc<dyn MsiController>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            line,
            msi,
            state: Mutex::default(),
            wake: OnceLock::new(),
        })
    }

    /// The line of one pin.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u32) -> Arc<dyn IrqLine> {
        Arc::new(TestedLine {
            irqs: Arc::clone(self),
            pin,
            below: (self.line)(pin),
        })
    }

    /// Has `wake` called, from any thread, when a pin that is intercepted has changed.
    pub(super) fn on_news(&self, wake: impl Fn() + Send + Sync + 'static) {
        // There is one tester, so nobody else was to be told.
        let _ = self.wake.set(Box::new(wake));
    }

    /// From now on the tester is told of the pins, and the chips are not.
    pub(super) fn intercept(&self) {
        self.state().intercepts = true;
    }

    /// Drives a pin in the place of its device; `false` if there is no such pin.
    pub(super) fn drive(&self, pin: u32, high: bool) -> bool {
        if pin < PINS {
            (self.line)(pin).set(high);
        }
        pin < PINS
    }

    /// What the tester has not been told: a pin and its new level.
    pub(super) fn take_news(&self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.state().news)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the chips are not to hear of it.
    fn caught(&self, pin: u32, high: bool) -> bool {
        let changed = {
            let mut state = self.state();
            if !state.intercepts {
                return false;
            }
            let changed = if high {
                state.high.insert(pin)
            } else {
                state.high.remove(&pin)
            };
            if changed {
                state.news.push((pin, high));
            }
            changed
        };
        if let Some(wake) = self.wake.get().filter(|_| changed) {
            wake();
        }
        true
    }

    fn deliver(&self, message: MsiMessage) {
        let place = GuestAddress(message.address);
        let memory = self.memory.memory();
        if memory
            .write_slice(&message.data.to_le_bytes(), place)
            .is_err()
        {
            self.msi.send(message);
        }
    }
}

/// Message-signalled interrupts that a tester finds in RAM.
pub struct TestedMsi(pub Arc<TestedIrqs>);

impl MsiController for TestedMsi {
    fn vector(&self) -> Result<Box<dyn MsiVector>, IrqError> {
        Ok(Box::new(TestedVector {
            irqs: Arc::clone(&self.0),
            message: Mutex::new(None),
        }))
    }

    fn send(&self, message: MsiMessage) {
        self.0.deliver(message);
    }
}

struct TestedVector {
    irqs: Arc<TestedIrqs>,
    /// `None` while masked. Leaf lock.
    message: Mutex<Option<MsiMessage>>,
}

impl TestedVector {
    fn message(&self) -> MutexGuard<'_, Option<MsiMessage>> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for TestedVector {
    fn trigger(&self) {
        let message = *self.message();
        if let Some(message) = message {
            self.irqs.deliver(message);
        }
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl MsiVector for TestedVector {
    fn route(&self, message: Option<MsiMessage>) -> Result<(), IrqError> {
        *self.message() = message;
        Ok(())
    }
}

struct TestedLine {
    irqs: Arc<TestedIrqs>,
    pin: u32,
    below: Arc<dyn IrqLine>,
}

impl IrqLine for TestedLine {
    fn set(&self, high: bool) {
        if !self.irqs.caught(self.pin, high) {
            self.below.set(high);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// Chips that keep what they heard.
    #[derive(Default)]
    pub(crate) struct Chips {
        lines: Mutex<Vec<(u32, bool)>>,
        messages: Mutex<Vec<MsiMessage>>,
    }

    struct Pin(Arc<Chips>, u32);

    impl IrqLine for Pin {
        fn set(&self, high: bool) {
            self.0.lines.lock().unwrap().push((self.1, high));
        }
    }

    impl MsiController for Chips {
        fn vector(&self) -> Result<Box<dyn MsiVector>, IrqError> {
            unreachable!("a tester's vectors are its own")
        }

        fn send(&self, message: MsiMessage) {
            self.messages.lock().unwrap().push(message);
        }
    }

    pub(crate) fn irqs() -> (Arc<TestedIrqs>, Arc<Chips>) {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let chips = Arc::new(Chips::default());
        let pins = Arc::clone(&chips);
        let line: LineOf = Box::new(move |pin| Arc::new(Pin(Arc::clone(&pins), pin)));
        let irqs = TestedIrqs::new(GuestMem::new(ram), line, Arc::clone(&chips) as _);
        (irqs, chips)
    }

    #[test]
    fn a_message_to_ram_is_found_there_and_any_other_by_the_chips() {
        let (irqs, chips) = irqs();
        let vector = TestedMsi(Arc::clone(&irqs)).vector().unwrap();
        vector.trigger();
        let message = |address| MsiMessage {
            address,
            data: 0x1234_5678,
        };
        vector.route(Some(message(0x100))).unwrap();
        vector.trigger();
        let found: u32 = irqs.memory.memory().read_obj(GuestAddress(0x100)).unwrap();
        assert_eq!(found, 0x1234_5678);
        let lapic = message(0xfee0_0000);
        vector.route(Some(lapic)).unwrap();
        vector.trigger();
        vector.route(None).unwrap();
        vector.trigger();
        assert_eq!(*chips.messages.lock().unwrap(), [lapic]);
    }

    #[test]
    fn a_pin_is_told_to_the_chips_until_it_is_intercepted() {
        let (irqs, chips) = irqs();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        irqs.on_news(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let line = irqs.line(4);
        line.set(true);
        irqs.intercept();
        for high in [true, true, false, false] {
            line.set(high);
        }
        assert_eq!(irqs.take_news(), [(4, true), (4, false)]);
        assert!(irqs.take_news().is_empty());
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert!(irqs.drive(5, true));
        assert!(!irqs.drive(PINS, true));
        assert_eq!(*chips.lines.lock().unwrap(), [(4, true), (5, true)]);
    }
}
