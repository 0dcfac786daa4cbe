//! The vendor capabilities that tell a driver where the regions are (virtio 1.2, 4.1.4), and the
//! one through which it reaches them without a BAR (4.1.4.9).

use super::layout::{COMMON, DEVICE, ISR, NOTIFY, NOTIFY_STRIDE, REGION_LEN, REGISTERS_BAR};
use crate::pci::config::ConfigSpace;
use crate::pci::regs;

const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;

/// Offsets in the capability.
const BAR: u16 = 4;
const OFFSET: u16 = 8;
const LENGTH: u16 = 12;
const WINDOW: u16 = 16;

/// Adds all five; returns the window's, or `None` without room.
pub fn add_all(config: &mut ConfigSpace) -> Option<Window> {
    for (kind, offset) in [
        (TYPE_COMMON, COMMON),
        (TYPE_ISR, ISR),
        (TYPE_DEVICE, DEVICE),
    ] {
        config.add_capability(regs::CAP_VENDOR, &body(kind, offset, &[])?, &[])?;
    }
    let notify = body(TYPE_NOTIFY, NOTIFY, &NOTIFY_STRIDE.to_le_bytes())?;
    config.add_capability(regs::CAP_VENDOR, &notify, &[])?;
    let mut window = body(TYPE_WINDOW, 0, &[0; 4])?;
    // BAR, offset and length are the driver's to choose; a length of zero is none.
    for byte in window.iter_mut().skip(usize::from(LENGTH) - 2) {
        *byte = 0;
    }
    let mut mask = vec![0xff; window.len()];
    for byte in mask.iter_mut().take(usize::from(BAR) - 2) {
        *byte = 0;
    }
    config
        .add_capability(regs::CAP_VENDOR, &window, &mask)
        .map(Window)
}

/// What follows id and next pointer: length, type, BAR, id and padding, offset, length, extra.
fn body(kind: u8, offset: u64, extra: &[u8]) -> Option<Vec<u8>> {
    let bar = u8::try_from(REGISTERS_BAR).ok()?;
    let offset = u32::try_from(offset).ok()?;
    let region = u32::try_from(REGION_LEN).ok()?;
    let total = u8::try_from(usize::from(WINDOW) + extra.len()).ok()?;
    let mut body = vec![total, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(region.to_le_bytes());
    body.extend(extra);
    Some(body)
}

/// The capability that is a window into a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u16);

impl Window {
    /// Whether a configuration access at `offset` of `len` bytes touches the window's data.
    #[must_use]
    pub fn touches(self, offset: u16, len: usize) -> bool {
        let start = usize::from(self.0 + WINDOW);
        let offset = usize::from(offset);
        offset < start + 4 && offset + len > start
    }

    /// BAR, offset in it and length (1, 2 or 4) that the driver has chosen; `None` for others.
    #[must_use]
    pub fn target(self, config: &ConfigSpace) -> Option<(usize, u64, usize)> {
        let bar = usize::from(config.load8(self.0 + BAR));
        let offset = u64::from(config.load32(self.0 + OFFSET));
        let length = match config.load32(self.0 + LENGTH) {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => return None,
        };
        // Aligned to the length (4.1.4.9.2).
        (offset % u64::from(config.load32(self.0 + LENGTH)) == 0).then_some((bar, offset, length))
    }

    /// The data bytes.
    #[must_use]
    pub fn value(self, config: &ConfigSpace) -> [u8; 4] {
        config.load32(self.0 + WINDOW).to_le_bytes()
    }

    /// Shows what was read.
    pub fn show(self, config: &mut ConfigSpace, value: [u8; 4]) {
        config.store(self.0 + WINDOW, &value);
    }
}
