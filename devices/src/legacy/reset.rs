//! The ways in which software resets a PC: port 0xcf9 and port 0x92. A third is the keyboard
//! controller's, [`super::i8042`].

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::state::{SavedState, StateError, Stateful};

/// The chipset's reset control register. It lies inside the PCI configuration ports, which hand
/// its accesses on.
#[derive(Debug)]
pub struct ResetControl {
    value: AtomicU8,
    notices: NoticeSink,
}

impl ResetControl {
    /// Where the register is.
    pub const PORT: u64 = 0xcf9;
    /// Writing this bit as a one after a zero resets.
    pub const RESET_CPU: u8 = 1 << 2;

    /// A register that reports to `notices`.
    #[must_use]
    pub const fn new(notices: NoticeSink) -> Self {
        Self {
            value: AtomicU8::new(0),
            notices,
        }
    }
}

/// What a snapshot keeps of a register of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    value: u8,
}

impl SavedState for ResetControlState {
    const KIND: &'static str = "reset-control";
    const VERSION: u32 = 1;
}

impl Stateful for ResetControl {
    type State = ResetControlState;

    fn save(&self) -> ResetControlState {
        let value = self.value.load(Ordering::Acquire);
        ResetControlState { value }
    }

    fn load(&self, state: ResetControlState) -> Result<(), StateError> {
        let value = state.value & !Self::RESET_CPU;
        self.value.store(value, Ordering::Release);
        Ok(())
    }
}

impl Lifecycle for ResetControl {
    fn reset(&self) {
        self.value.store(0, Ordering::Release);
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.value.load(Ordering::Acquire);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let before = self.value.swap(value & !Self::RESET_CPU, Ordering::AcqRel);
        if value & !before & Self::RESET_CPU != 0 {
            self.notices.send(Notice::Reset);
        }
    }
}

/// System control port A: A20, and a bit that resets.
#[derive(Debug)]
pub struct FastReset {
    value: AtomicU8,
    notices: NoticeSink,
}

impl FastReset {
    /// Where the port is.
    pub const PORT: u64 = 0x92;
    const RESET: u8 = 1 << 0;
    const A20: u8 = 1 << 1;

    /// A port that reports to `notices`. A20 is on, as firmware leaves it.
    #[must_use]
    pub const fn new(notices: NoticeSink) -> Self {
        Self {
            value: AtomicU8::new(Self::A20),
            notices,
        }
    }
}

/// What a snapshot keeps of port 0x92.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastResetState {
    value: u8,
}

impl SavedState for FastResetState {
    const KIND: &'static str = "fast-reset";
    const VERSION: u32 = 1;
}

impl Stateful for FastReset {
    type State = FastResetState;

    fn save(&self) -> FastResetState {
        let value = self.value.load(Ordering::Acquire);
        FastResetState { value }
    }

    fn load(&self, state: FastResetState) -> Result<(), StateError> {
        let value = state.value & !Self::RESET;
        self.value.store(value, Ordering::Release);
        Ok(())
    }
}

impl Lifecycle for FastReset {
    fn reset(&self) {
        self.value.store(Self::A20, Ordering::Release);
    }
}

impl BusDevice for FastReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.value.load(Ordering::Acquire);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        self.value.store(value & !Self::RESET, Ordering::Release);
        if value & Self::RESET != 0 {
            self.notices.send(Notice::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn counting() -> (Arc<AtomicUsize>, NoticeSink) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let sink = NoticeSink::new(move |notice| {
            assert_eq!(notice, Notice::Reset);
            counted.fetch_add(1, Ordering::Relaxed);
        });
        (count, sink)
    }

    #[test]
    fn a_rising_reset_bit_at_0xcf9_resets() {
        let (count, sink) = counting();
        let register = ResetControl::new(sink);
        register.write(0, &[0x02]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        register.write(0, &[0x06]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let mut value = [0];
        register.read(0, &mut value);
        assert_eq!(value, [0x02]);
    }

    #[test]
    fn port_0x92_resets_and_keeps_a20() {
        let (count, sink) = counting();
        let port = FastReset::new(sink);
        port.write(0, &[0x03]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let mut value = [0];
        port.read(0, &mut value);
        assert_eq!(value, [0x02]);
    }
}
