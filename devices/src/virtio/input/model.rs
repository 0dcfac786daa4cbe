//! What each kind of device tells its driver of itself.
//!
//! The driver writes what it wants to know into `select` and `subsel`, and reads the answer's size and
//! the answer (virtio 1.2, 5.8.5). Bits are numbered as in `input-event-codes.h`.

use super::event::codes;

/// How long an answer can be.
pub const ANSWER: usize = 128;

/// What the driver may ask for.
const ID_NAME: u8 = 0x01;
const ID_SERIAL: u8 = 0x02;
const ID_DEVIDS: u8 = 0x03;
const EV_BITS: u8 = 0x11;
const ABS_INFO: u8 = 0x12;

/// `BUS_VIRTUAL`; vendor and version are those of no device.
const BUS: u16 = 0x06;
const VENDOR: u16 = 0x1af4;
const VERSION: u16 = 1;

/// The last place of an axis of a tablet; the first is 0.
pub const AXIS_MAX: u32 = 0x7fff;

/// Keys that a keyboard has: all that a PC's has and those of media keyboards, without buttons.
const KEYS: std::ops::Range<u16> = 1..0x100;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputModel {
    /// Keys, and lamps.
    Keyboard,
    /// Buttons, a wheel, and movements.
    Mouse,
    /// Buttons, a wheel, and places.
    Tablet,
}

impl InputModel {
    /// Whether it has that key, button or axis.
    #[must_use]
    pub fn has(self, kind: u16, code: u16) -> bool {
        match (self, kind) {
            (Self::Keyboard, codes::EV_KEY) => KEYS.contains(&code),
            _ => self.list(kind).contains(&code),
        }
    }

    /// The few that it has of a kind.
    fn list(self, kind: u16) -> &'static [u16] {
        const BUTTONS: &[u16] = &[
            codes::BTN_LEFT,
            codes::BTN_RIGHT,
            codes::BTN_MIDDLE,
            codes::BTN_SIDE,
            codes::BTN_EXTRA,
        ];
        match (self, kind) {
            (Self::Keyboard, codes::EV_LED) => {
                &[codes::LED_NUML, codes::LED_CAPSL, codes::LED_SCROLLL]
            }
            // That keys repeat; a kernel does it by itself, and asks for no code.
            (Self::Keyboard, codes::EV_REP) => &[0],
            (Self::Mouse | Self::Tablet, codes::EV_KEY) => BUTTONS,
            (Self::Mouse, codes::EV_REL) => &[
                codes::REL_X,
                codes::REL_Y,
                codes::REL_HWHEEL,
                codes::REL_WHEEL,
            ],
            (Self::Tablet, codes::EV_REL) => &[codes::REL_HWHEEL, codes::REL_WHEEL],
            (Self::Tablet, codes::EV_ABS) => &[codes::ABS_X, codes::ABS_Y],
            _ => &[],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "Sesame Virtio Keyboard",
            Self::Mouse => "Sesame Virtio Mouse",
            Self::Tablet => "Sesame Virtio Tablet",
        }
    }

    fn product(self) -> u16 {
        match self {
            Self::Keyboard => 1,
            Self::Mouse => 2,
            Self::Tablet => 3,
        }
    }

    /// The answer to a question; empty where there is none.
    #[must_use]
    pub(super) fn answer(self, serial: &str, select: u8, subsel: u8) -> Answer {
        let mut answer = Answer::default();
        let code = u16::from(subsel);
        match (select, subsel) {
            (ID_NAME, 0) => answer.put(self.name().as_bytes()),
            (ID_SERIAL, 0) => answer.put(serial.as_bytes()),
            (ID_DEVIDS, 0) => {
                for id in [BUS, VENDOR, self.product(), VERSION] {
                    answer.put(&id.to_le_bytes());
                }
            }
            (EV_BITS, _) => {
                let all = 0..=codes::KEY_MAX;
                all.filter(|bit| self.has(code, *bit))
                    .for_each(|bit| answer.set(bit));
            }
            (ABS_INFO, _) if self.has(codes::EV_ABS, code) => {
                // First, last, noise, what counts as still, per millimetre.
                for number in [0, AXIS_MAX, 0, 0, 0] {
                    answer.put(&number.to_le_bytes());
                }
            }
            _ => {}
        }
        answer
    }
}

/// An answer and its size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    bytes: [u8; ANSWER],
    size: u8,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            bytes: [0; ANSWER],
            size: 0,
        }
    }
}

impl Answer {
    /// Adds bytes, as far as there is room.
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(place) = self.bytes.get_mut(usize::from(self.size)) {
                *place = *byte;
                self.size += 1;
            }
        }
    }

    /// Sets a bit; the answer is as long as its last byte that is not zero.
    fn set(&mut self, bit: u16) {
        let at = bit / 8;
        if let Some(byte) = self.bytes.get_mut(usize::from(at)) {
            *byte |= 1 << (bit % 8);
            let end = u8::try_from(at + 1).unwrap_or(u8::MAX);
            self.size = self.size.max(end);
        }
    }

    /// How long it is.
    pub(super) fn size(&self) -> u8 {
        self.size
    }

    /// All of it, with the zeros behind.
    pub(super) fn bytes(&self) -> &[u8; ANSWER] {
        &self.bytes
    }
}
