//! The keyboard controller (i8042), with a keyboard on which nobody types.
//!
//! ```text
//!   0x64 command ──► controller ── answer ──────────────┐
//!                        ▲ parameter                    ├─► 0x60 data, 0x64 status
//!   0x60 data ───────────┴──► keyboard ── ACK, answers ─┘
//!                                          reset line ──► Notice::Reset
//! ```
//!
//! A guest resets through it. The keyboard is there for the firmware, which takes one for granted:
//! it waits a second for each answer that does not come, several times in each boot. What is typed
//! reaches a guest by virtio-input; so the keyboard sends no interrupt, the tables do not claim it
//! (no system asks for it then), and the mouse's port is dead.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::state::{SavedState, StateError, Stateful};

/// How many bytes the keyboard keeps for a guest that does not read them.
const ROOM: usize = 16;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// The set of scan codes after power-on.
const FIRST_SET: u8 = 2;

/// In the command byte: scan codes are told as those of set 1.
const TRANSLATE: u8 = 1 << 6;

/// A keyboard controller.
#[derive(Debug)]
pub struct Keyboard {
    state: Mutex<KeyboardState>,
    notices: NoticeSink,
}

/// What the controller remembers between two accesses, and what a snapshot keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardState {
    /// The command byte (controller configuration).
    config: u8,
    /// The output port: bit 0 low resets, bit 1 is A20.
    output: u8,
    /// The controller's byte that waits to be read.
    answer: Option<u8>,
    /// The controller's command that waits for its data byte.
    wants: Option<u8>,
    /// The keyboard's bytes that wait to be read.
    said: VecDeque<u8>,
    /// The keyboard's command that waits for its data byte.
    asked: Option<u8>,
    /// The keyboard's set of scan codes, 1 to 3.
    set: u8,
}

impl KeyboardState {
    fn power_on() -> Self {
        Self {
            // Both ports disabled, translation on.
            config: 0x70,
            output: 0x03,
            answer: None,
            wants: None,
            said: VecDeque::with_capacity(ROOM),
            asked: None,
            set: FIRST_SET,
        }
    }

    /// The keyboard's answer; one that does not read gets no more than there is room for.
    fn say(&mut self, bytes: &[u8]) {
        let room = ROOM.saturating_sub(self.said.len());
        self.said.extend(bytes.iter().take(room));
    }

    /// What a scan code reads as.
    fn translated(&self, code: u8) -> u8 {
        match code {
            _ if self.config & TRANSLATE == 0 => code,
            1 => 0x43,
            2 => 0x41,
            3 => 0x3f,
            0x83 => 0x41,
            other => other,
        }
    }

    /// A byte for the keyboard: a command, or what belongs to the one before.
    fn keyboard(&mut self, byte: u8) {
        match (self.asked.take(), byte) {
            (Some(0xf0), 0) => {
                let set = self.translated(self.set);
                self.say(&[ACK, set]);
            }
            (Some(0xf0), 1..=3) => {
                self.set = byte;
                self.say(&[ACK]);
            }
            // The lamps, and how fast a key repeats: nobody sees them.
            (Some(0xed | 0xf3), _) => self.say(&[ACK]),
            (_, 0xed | 0xf0 | 0xf3) => {
                self.asked = Some(byte);
                self.say(&[ACK]);
            }
            (_, 0xee) => self.say(&[0xee]),
            (_, 0xf2) => {
                let kind = self.translated(0x83);
                self.say(&[ACK, 0xab, kind]);
            }
            // On, off, and the defaults.
            (_, 0xf4) => self.say(&[ACK]),
            (_, 0xf5 | 0xf6) => {
                self.set = FIRST_SET;
                self.say(&[ACK]);
            }
            (_, 0xff) => {
                self.said.clear();
                self.set = FIRST_SET;
                self.say(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.say(&[RESEND]),
        }
    }

    /// A command for the controller; whether it resets.
    fn command(&mut self, command: u8) -> bool {
        self.wants = None;
        match command {
            0x20 => self.answer = Some(self.config),
            0x60 | 0xd1..=0xd4 => self.wants = Some(command),
            0xa7 => self.config |= 0x20,
            0xa8 => self.config &= !0x20,
            // Test of the second port: "clock line stuck low"; of the first: nothing wrong.
            0xa9 => self.answer = Some(0x01),
            0xaa => self.answer = Some(0x55),
            0xab => self.answer = Some(0x00),
            0xad => self.config |= 0x10,
            0xae => self.config &= !0x10,
            0xd0 => self.answer = Some(self.output),
            // Pulse output lines: bit 0 low is the reset line.
            0xf0..=0xff => return command & 1 == 0,
            _ => {}
        }
        false
    }

    /// A byte at the data port; whether it resets.
    fn data(&mut self, byte: u8) -> bool {
        match self.wants.take() {
            Some(0x60) => self.config = byte,
            Some(0xd1) => {
                self.output = byte | 1;
                return byte & 1 == 0;
            }
            Some(0xd2 | 0xd3) => self.answer = Some(byte),
            // For a mouse that is not there.
            Some(_) => {}
            None => self.keyboard(byte),
        }
        false
    }
}

impl Keyboard {
    /// The data port.
    pub const DATA: u64 = 0x60;
    /// The status and command port.
    pub const COMMAND: u64 = 0x64;

    const STATUS_ANSWER: u8 = 1 << 0;
    const STATUS_SELF_TEST: u8 = 1 << 2;
    const STATUS_UNLOCKED: u8 = 1 << 4;

    /// A controller that reports to `notices`. Map it twice, at [`DATA`](Self::DATA) and, through
    /// [`KeyboardCommand`], at [`COMMAND`](Self::COMMAND).
    #[must_use]
    pub fn new(notices: NoticeSink) -> Self {
        Self {
            state: Mutex::new(KeyboardState::power_on()),
            notices,
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut KeyboardState) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn status(&self) -> u8 {
        let waits = self.with(|state| state.answer.is_some() || !state.said.is_empty());
        let answer = u8::from(waits) * Self::STATUS_ANSWER;
        Self::STATUS_UNLOCKED | Self::STATUS_SELF_TEST | answer
    }

    fn tell(&self, reset: bool) {
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
        self.with(|state| state.clone())
    }

    fn load(&self, state: KeyboardState) -> Result<(), StateError> {
        if state.said.len() > ROOM || !(1..=3).contains(&state.set) {
            return Err(KeyboardState::refused(format!(
                "said: {} bytes, of at most {ROOM}; set: {}, of 1 to 3",
                state.said.len(),
                state.set
            )));
        }
        self.with(|own| *own = state);
        Ok(())
    }
}

impl Lifecycle for Keyboard {
    fn reset(&self) {
        self.with(|state| *state = KeyboardState::power_on());
    }
}

/// The data port.
impl BusDevice for Keyboard {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let byte = self.with(|state| state.answer.take().or_else(|| state.said.pop_front()));
        if let Some(first) = data.first_mut() {
            *first = byte.unwrap_or(0);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&byte) = data.first() {
            self.tell(self.with(|state| state.data(byte)));
        }
    }
}

/// The status and command port of a [`Keyboard`].
#[derive(Debug)]
pub struct KeyboardCommand(pub Arc<Keyboard>);

impl BusDevice for KeyboardCommand {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.0.status();
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&command) = data.first() {
            self.0.tell(self.0.with(|state| state.command(command)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::state::{AnyStateful, trial};

    struct Bench {
        keyboard: Arc<Keyboard>,
        command: KeyboardCommand,
        resets: Arc<AtomicUsize>,
    }

    impl Bench {
        fn new() -> Self {
            let resets = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&resets);
            let keyboard = Arc::new(Keyboard::new(NoticeSink::new(move |notice| {
                assert_eq!(notice, Notice::Reset);
                counted.fetch_add(1, Ordering::Relaxed);
            })));
            Self {
                command: KeyboardCommand(Arc::clone(&keyboard)),
                keyboard,
                resets,
            }
        }

        fn read(&self) -> Option<u8> {
            let (mut status, mut byte) = ([0], [0]);
            self.command.read(0, &mut status);
            (status[0] & 1 != 0).then(|| {
                self.keyboard.read(0, &mut byte);
                byte[0]
            })
        }

        fn all(&self) -> Vec<u8> {
            std::iter::from_fn(|| self.read()).collect()
        }

        fn command(&self, byte: u8) -> Vec<u8> {
            self.command.write(0, &[byte]);
            self.all()
        }

        fn data(&self, byte: u8) -> Vec<u8> {
            self.keyboard.write(0, &[byte]);
            self.all()
        }
    }

    #[test]
    fn the_controller_passes_its_test_has_a_keyboard_and_resets() {
        let bench = Bench::new();
        assert_eq!(bench.command(0xaa), [0x55]);
        assert_eq!(
            (bench.command(0xab), bench.command(0xa9)),
            (vec![0], vec![1])
        );
        assert!(bench.command(0x60).is_empty());
        assert!(bench.data(0x42).is_empty());
        assert_eq!(bench.command(0x20), [0x42]);
        assert_eq!(bench.resets.load(Ordering::Relaxed), 0);
        bench.command(0xfe);
        assert_eq!(bench.resets.load(Ordering::Relaxed), 1);
        bench.command(0xd1);
        bench.data(0x02);
        assert_eq!(bench.resets.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_keyboard_answers_what_firmware_and_drivers_ask() {
        let bench = Bench::new();
        assert_eq!(bench.data(0xff), [0xfa, 0xaa]);
        assert_eq!(bench.data(0xf4), [0xfa]);
        assert_eq!(bench.data(0xee), [0xee]);
        assert_eq!(bench.data(0xf2), [0xfa, 0xab, 0x41], "translated");
        assert_eq!((bench.data(0xf0), bench.data(1)), (vec![0xfa], vec![0xfa]));
        assert_eq!(
            (bench.data(0xf0), bench.data(0)),
            (vec![0xfa], vec![0xfa, 0x43])
        );
        bench.command(0x60);
        bench.data(0);
        assert_eq!(
            (bench.data(0xf0), bench.data(0)),
            (vec![0xfa], vec![0xfa, 1])
        );
        assert_eq!((bench.data(0xed), bench.data(7)), (vec![0xfa], vec![0xfa]));
        assert_eq!(bench.data(0x12), [0xfe]);
        bench.command(0xd4);
        assert!(bench.data(0xff).is_empty(), "there is no mouse");
    }

    #[test]
    fn a_controller_goes_on_where_a_snapshot_was_taken() {
        let (from, to) = (Bench::new(), Bench::new());
        from.keyboard.write(0, &[0xf2]);
        from.keyboard.write(0, &[0xf0]);
        let mut tree = trial::carry(&*from.keyboard, &*to.keyboard);
        assert_eq!(to.all(), [0xfa, 0xab, 0x41, 0xfa]);
        assert_eq!(to.data(3), [0xfa]);
        tree.state["set"] = 9.into();
        assert!(to.keyboard.restore(&tree).is_err());
    }

    proptest! {
        #[test]
        fn no_access_makes_it_keep_more_than_there_is_room_for(
            writes in prop::collection::vec((any::<bool>(), any::<u8>()), 0..200)
        ) {
            let bench = Bench::new();
            for (is_command, byte) in writes {
                if is_command {
                    bench.command.write(0, &[byte]);
                } else {
                    bench.keyboard.write(0, &[byte]);
                }
            }
            prop_assert!(bench.all().len() <= ROOM + 1);
        }
    }
}
