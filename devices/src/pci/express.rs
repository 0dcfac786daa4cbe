//! The PCI Express capability (PCI Express Base 5.0, 7.5.3): offsets, bits, and the bodies for an
//! endpoint, for a root port and for a bridge to conventional PCI.

use super::config::ConfigSpace;
use super::regs;

/// PCI Express capabilities, 16 bits.
pub const CAPABILITIES: u16 = 0x02;
/// Link control, 16 bits.
pub const LINK_CONTROL: u16 = 0x10;
/// Link status, 16 bits.
pub const LINK_STATUS: u16 = 0x12;
/// Slot control, 16 bits.
pub const SLOT_CONTROL: u16 = 0x18;
/// Slot status, 16 bits.
pub const SLOT_STATUS: u16 = 0x1a;

/// Link control: the link is disabled.
pub const LINK_DISABLE: u16 = 1 << 4;
/// Link status: the link works.
pub const LINK_ACTIVE: u16 = 1 << 13;

/// The slot has an attention button.
pub const CAP_ATTENTION_BUTTON: u32 = 1 << 0;
/// The slot has a power indicator.
pub const CAP_POWER_INDICATOR: u32 = 1 << 4;
/// The slot is hot-plug capable.
pub const CAP_HOT_PLUG: u32 = 1 << 6;
/// Commands complete at once, without telling.
pub const CAP_NO_COMMAND_COMPLETED: u32 = 1 << 18;

/// Slot control and status: attention button pressed.
pub const BUTTON_PRESSED: u16 = 1 << 0;
/// Slot control and status: presence detect changed.
pub const PRESENCE_CHANGED: u16 = 1 << 3;
/// Slot control: hot-plug interrupts are enabled.
pub const HOT_PLUG_INTERRUPT: u16 = 1 << 5;
/// Slot control: the power indicator.
pub const POWER_INDICATOR: u16 = 3 << 8;
/// Power indicator: on.
pub const INDICATOR_ON: u16 = 1 << 8;
/// Power indicator: blinking.
pub const INDICATOR_BLINK: u16 = 2 << 8;
/// Power indicator: off.
pub const INDICATOR_OFF: u16 = 3 << 8;
/// Slot control: tell of link changes.
pub const LINK_CHANGED_ENABLE: u16 = 1 << 12;
/// Slot status: a card is present.
pub const PRESENT: u16 = 1 << 6;
/// Slot status: the link went up or down.
pub const LINK_CHANGED: u16 = 1 << 8;

/// Speed and width of every link: 16 GT/s, 16 lanes. Nothing is slowed down to it; some guests
/// print it.
const SPEED: u16 = 4;
const WIDTH: u16 = 16;
/// Link status of a trained link, without [`LINK_ACTIVE`].
pub const LINK_TRAINED: u16 = SPEED | WIDTH << 4;
const LINK_CAP: u32 = SPEED as u32 | (WIDTH as u32) << 4;
const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
const SPEEDS_UP_TO_16: u32 = 0x1e;

const VERSION: u16 = 2;
const TYPE_ENDPOINT: u16 = 0 << 4;
const TYPE_ROOT_PORT: u16 = 4 << 4;
const TYPE_TO_CONVENTIONAL: u16 = 7 << 4;
const TYPE_INTEGRATED: u16 = 9 << 4;
const SLOT_IMPLEMENTED: u16 = 1 << 8;
const ROLE_BASED_ERRORS: u32 = 1 << 15;

/// How long the capability's body is: what follows id and next pointer.
const LENGTH: usize = 0x3a;

/// The capability's body under construction; offsets are the capability's.
struct Body {
    bytes: [u8; LENGTH],
    mask: [u8; LENGTH],
}

impl Body {
    fn set(&mut self, offset: u16, value: &[u8], mask: &[u8]) {
        let at = usize::from(offset.saturating_sub(2));
        for (to, &from) in self.bytes.iter_mut().skip(at).zip(value) {
            *to = from;
        }
        for (to, &from) in self.mask.iter_mut().skip(at).zip(mask) {
            *to = from;
        }
    }

    fn new(kind: u16) -> Self {
        let mut body = Self {
            bytes: [0; LENGTH],
            mask: [0; LENGTH],
        };
        body.set(CAPABILITIES, &(VERSION | kind).to_le_bytes(), &[]);
        body.set(0x04, &ROLE_BASED_ERRORS.to_le_bytes(), &[]);
        // Device control: error reporting, relaxed order, payload and read request sizes.
        body.set(0x08, &0x2810_u16.to_le_bytes(), &0x78ff_u16.to_le_bytes());
        body
    }

    fn link(&mut self, capabilities: u32) {
        self.set(0x0c, &capabilities.to_le_bytes(), &[]);
        // Link control: ASPM, link disable, common clock, extended synch.
        self.set(LINK_CONTROL, &[], &0x00d3_u16.to_le_bytes());
        self.set(LINK_STATUS, &LINK_TRAINED.to_le_bytes(), &[]);
        self.set(0x2c, &SPEEDS_UP_TO_16.to_le_bytes(), &[]);
        self.set(0x30, &SPEED.to_le_bytes(), &[0x0f]);
    }

    fn add(self, config: &mut ConfigSpace) -> Option<u16> {
        config.add_capability(regs::CAP_EXPRESS, &self.bytes, &self.mask)
    }
}

/// Adds the capability of an endpoint. On the root bus it is later amended by [`integrate`].
pub fn add_endpoint(config: &mut ConfigSpace) -> Option<u16> {
    let mut body = Body::new(TYPE_ENDPOINT);
    body.link(LINK_CAP);
    body.add(config)
}

/// Turns the endpoint's capability at `at` into that of a root complex integrated endpoint, which
/// has no link.
pub fn integrate(config: &mut ConfigSpace, at: u16) {
    config.store16(at + CAPABILITIES, VERSION | TYPE_INTEGRATED);
    for register in [0x0c, LINK_CONTROL, 0x2c, 0x30] {
        config.store32(at + register, 0);
        config.allow(at + register, &[0; 4]);
    }
}

/// Takes the endpoint's capability at `at` away: on a conventional bus there is no PCI Express.
pub fn withdraw(config: &mut ConfigSpace, at: u16) {
    config.remove_capability(at, 2 + LENGTH);
}

/// Adds the capability of a bridge to conventional PCI.
pub fn add_bridge(config: &mut ConfigSpace) -> Option<u16> {
    let mut body = Body::new(TYPE_TO_CONVENTIONAL);
    body.link(LINK_CAP);
    // Device control as an endpoint has it, and whether a configuration request may be retried.
    body.set(0x08, &[], &0xf8ff_u16.to_le_bytes());
    body.add(config)
}

/// Adds the capability of a root port with a hot-plug slot: `port` is its link's number, `slot`
/// the physical slot number (13 bits) that guests show to their users.
pub fn add_root_port(config: &mut ConfigSpace, port: u8, slot: u16) -> Option<u16> {
    let mut body = Body::new(TYPE_ROOT_PORT | SLOT_IMPLEMENTED);
    body.link(LINK_CAP | LINK_ACTIVE_REPORTING | u32::from(port) << 24);
    let slot = CAP_ATTENTION_BUTTON
        | CAP_POWER_INDICATOR
        | CAP_HOT_PLUG
        | CAP_NO_COMMAND_COMPLETED
        | u32::from(slot & 0x1fff) << 19;
    body.set(0x14, &slot.to_le_bytes(), &[]);
    let control = BUTTON_PRESSED
        | PRESENCE_CHANGED
        | HOT_PLUG_INTERRUPT
        | POWER_INDICATOR
        | LINK_CHANGED_ENABLE;
    body.set(
        SLOT_CONTROL,
        &INDICATOR_OFF.to_le_bytes(),
        &control.to_le_bytes(),
    );
    // Root control: error and PME reporting, none of which ever happens.
    body.set(0x1c, &[], &[0x0f, 0]);
    let at = body.add(config)?;
    let events = BUTTON_PRESSED | PRESENCE_CHANGED | LINK_CHANGED;
    config.allow_clear(at + SLOT_STATUS, &events.to_le_bytes());
    Some(at)
}
