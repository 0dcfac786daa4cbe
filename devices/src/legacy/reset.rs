//! The ways in which software resets a PC: port 0xcf9, the keyboard controller, port 0x92.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// A keyboard controller (i8042) without keyboard and mouse: it passes its self-test, answers
/// that both ports are dead, and pulses the reset line.
///
/// A guest that looks for it finds out quickly; one that resets through it gets its reset.
#[derive(Debug)]
pub struct Keyboard {
    state: Mutex<KeyboardState>,
    notices: NoticeSink,
}

/// What the controller remembers between two accesses, and what a snapshot keeps of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardState {
    /// The command byte (controller configuration).
    config: u8,
    /// The output port: bit 0 low resets, bit 1 is A20.
    output: u8,
    /// A byte that waits to be read.
    answer: Option<u8>,
    /// The command that waits for its data byte.
    wants: Option<u8>,
}

impl Keyboard {
    /// The data port.
    pub const DATA: u64 = 0x60;
    /// The status and command port.
    pub const COMMAND: u64 = 0x64;

    const STATUS_ANSWER: u8 = 1 << 0;
    const STATUS_SELF_TEST: u8 = 1 << 2;
    const STATUS_UNLOCKED: u8 = 1 << 4;
    const POWER_ON: KeyboardState = KeyboardState {
        // Both ports disabled, translation on.
        config: 0x70,
        output: 0x03,
        answer: None,
        wants: None,
    };

    /// A controller that reports to `notices`. Map it twice, at [`DATA`](Self::DATA) and, through
    /// [`KeyboardCommand`], at [`COMMAND`](Self::COMMAND).
    #[must_use]
    pub const fn new(notices: NoticeSink) -> Self {
        Self {
            state: Mutex::new(Self::POWER_ON),
            notices,
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut KeyboardState) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn status(&self) -> u8 {
        self.with(|state| {
            let answer = u8::from(state.answer.is_some()) * Self::STATUS_ANSWER;
            Self::STATUS_UNLOCKED | Self::STATUS_SELF_TEST | answer
        })
    }

    fn command(&self, command: u8) {
        let reset = self.with(|state| {
            state.wants = None;
            match command {
                0x20 => state.answer = Some(state.config),
                0x60 | 0xd1 | 0xd3 => state.wants = Some(command),
                0xaa => state.answer = Some(0x55),
                // Test of the second and first port: "clock line stuck low".
                0xa9 | 0xab => state.answer = Some(0x01),
                0xd0 => state.answer = Some(state.output),
                // Pulse output lines: bit 0 low is the reset line.
                0xf0..=0xff => return command & 1 == 0,
                _ => {}
            }
            false
        });
        if reset {
            self.notices.send(Notice::Reset);
        }
    }

    fn data(&self, value: u8) {
        let reset = self.with(|state| match state.wants.take() {
            Some(0x60) => {
                state.config = value;
                false
            }
            Some(0xd1) => {
                state.output = value | 1;
                value & 1 == 0
            }
            Some(0xd3) => {
                state.answer = Some(value);
                false
            }
            // For a keyboard that is not there.
            _ => false,
        });
        if reset {
            self.notices.send(Notice::Reset);
        }
    }
}

impl SavedState for KeyboardState {
    const KIND: &'static str = "i8042";
    const VERSION: u32 = 1;
}

impl Stateful for Keyboard {
    type State = KeyboardState;

    fn save(&self) -> KeyboardState {
        self.with(|state| *state)
    }

    fn load(&self, state: KeyboardState) -> Result<(), StateError> {
        self.with(|own| *own = state);
        Ok(())
    }
}

impl Lifecycle for Keyboard {
    fn reset(&self) {
        self.with(|state| *state = Self::POWER_ON);
    }
}

/// The data port.
impl BusDevice for Keyboard {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let answer = self.with(|state| state.answer.take());
        if let Some(first) = data.first_mut() {
            *first = answer.unwrap_or(0);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&value) = data.first() {
            self.data(value);
        }
    }
}

/// The status and command port of a [`Keyboard`].
#[derive(Debug)]
pub struct KeyboardCommand(pub std::sync::Arc<Keyboard>);

impl BusDevice for KeyboardCommand {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.0.status();
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&command) = data.first() {
            self.0.command(command);
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

    #[test]
    fn the_keyboard_controller_passes_its_test_and_has_dead_ports() {
        let (count, sink) = counting();
        let keyboard = Arc::new(Keyboard::new(sink));
        let command = KeyboardCommand(Arc::clone(&keyboard));
        let ask = |byte| {
            command.write(0, &[byte]);
            let (mut status, mut answer) = ([0], [0]);
            command.read(0, &mut status);
            assert_eq!(status[0] & 1, 1, "an answer to {byte:#x} waits");
            keyboard.read(0, &mut answer);
            command.read(0, &mut status);
            assert_eq!(status[0] & 3, 0);
            answer[0]
        };
        assert_eq!(ask(0xaa), 0x55);
        assert_eq!((ask(0xab), ask(0xa9)), (1, 1));
        command.write(0, &[0x60]);
        keyboard.write(0, &[0x42]);
        assert_eq!(ask(0x20), 0x42);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        command.write(0, &[0xfe]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        command.write(0, &[0xd1]);
        keyboard.write(0, &[0x02]);
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
