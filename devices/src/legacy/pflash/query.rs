//! What a driver can ask a chip: who made it, and the query structure of the Common Flash Interface.

use super::{BLOCK, BUFFER};

/// Maker and device.
const IDS: [u8; 2] = [0x89, 0x18];

/// A byte of the identifiers; they come again every 256 bytes.
pub(super) fn id(offset: u64) -> u8 {
    let place = usize::try_from(offset & 0xff).unwrap_or(usize::MAX);
    IDS.get(place).copied().unwrap_or(0)
}

/// A byte of the query structure (JESD68.01, 2): Intel's command set, one kind of block.
pub(super) fn byte(len: u64, offset: u64) -> u8 {
    let blocks = (len / BLOCK).saturating_sub(1).to_le_bytes();
    let pages = (BLOCK / 256).to_le_bytes();
    match offset & 0xff {
        0x10 => b'Q',
        0x11 => b'R',
        0x12 => b'Y',
        // Intel's extended command set, and where its table is.
        0x13 => 1,
        0x15 => 0x31,
        // From 4.5 V to 5.5 V.
        0x1b => 0x45,
        0x1c => 0x55,
        // How long a byte, a buffer and a block take, at most.
        0x1f | 0x20 => 7,
        0x21 => 10,
        0x23..=0x25 => 4,
        0x27 => u8::try_from(len.max(1).ilog2()).unwrap_or(0),
        0x2a => u8::try_from(BUFFER.ilog2()).unwrap_or(0),
        // One region: blocks less one, and their size in units of 256 bytes.
        0x2c => 1,
        0x2d => blocks[0],
        0x2e => blocks[1],
        0x2f => pages[0],
        0x30 => pages[1],
        0x31 => b'P',
        0x32 => b'R',
        0x33 => b'I',
        0x34 => b'1',
        0x35 => b'0',
        _ => 0,
    }
}
