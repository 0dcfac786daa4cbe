//! One event, and the numbers of those that are used here.
//!
//! Source: virtio 1.2, 5.8.6; Linux `include/uapi/linux/input-event-codes.h`.

use serde::{Deserialize, Serialize};

/// How many bytes an event has in a queue.
pub const EVENT_SIZE: usize = 8;

/// Something that has happened to a key, an axis or a lamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputEvent {
    /// What kind of thing.
    pub kind: u16,
    /// Which one.
    pub code: u16,
    /// What it is now, or by how much it moved.
    pub value: u32,
}

impl InputEvent {
    /// The end of a report: what came before happened at the same time.
    pub const END: Self = Self {
        kind: codes::EV_SYN,
        code: 0,
        value: 0,
    };

    /// A key or button, pressed or let go.
    #[must_use]
    pub fn key(code: u16, down: bool) -> Self {
        Self {
            kind: codes::EV_KEY,
            code,
            value: down.into(),
        }
    }

    /// A movement by so much.
    #[must_use]
    pub fn moved(code: u16, by: i32) -> Self {
        Self {
            kind: codes::EV_REL,
            code,
            value: by.cast_unsigned(),
        }
    }

    /// A movement to a place.
    #[must_use]
    pub fn placed(code: u16, at: u32) -> Self {
        Self {
            kind: codes::EV_ABS,
            code,
            value: at,
        }
    }

    /// As it stands in a queue.
    #[must_use]
    pub fn to_bytes(self) -> [u8; EVENT_SIZE] {
        let [a, b] = self.kind.to_le_bytes();
        let [c, d] = self.code.to_le_bytes();
        let [e, f, g, h] = self.value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// From how it stands in a queue.
    #[must_use]
    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; EVENT_SIZE]) -> Self {
        Self {
            kind: u16::from_le_bytes([a, b]),
            code: u16::from_le_bytes([c, d]),
            value: u32::from_le_bytes([e, f, g, h]),
        }
    }
}

/// The numbers of events.
#[expect(
    missing_docs,
    reason = "Linux' names, each a number that the guest knows"
)]
pub mod codes {
    pub const EV_SYN: u16 = 0x00;
    pub const EV_KEY: u16 = 0x01;
    pub const EV_REL: u16 = 0x02;
    pub const EV_ABS: u16 = 0x03;
    pub const EV_LED: u16 = 0x11;
    pub const EV_REP: u16 = 0x14;

    pub const REL_X: u16 = 0x00;
    pub const REL_Y: u16 = 0x01;
    pub const REL_HWHEEL: u16 = 0x06;
    pub const REL_WHEEL: u16 = 0x08;

    pub const ABS_X: u16 = 0x00;
    pub const ABS_Y: u16 = 0x01;

    pub const LED_NUML: u16 = 0x00;
    pub const LED_CAPSL: u16 = 0x01;
    pub const LED_SCROLLL: u16 = 0x02;

    pub const BTN_LEFT: u16 = 0x110;
    pub const BTN_RIGHT: u16 = 0x111;
    pub const BTN_MIDDLE: u16 = 0x112;
    pub const BTN_SIDE: u16 = 0x113;
    pub const BTN_EXTRA: u16 = 0x114;
    pub const BTN_TOUCH: u16 = 0x14a;

    pub const KEY_MAX: u16 = 0x2ff;
}
