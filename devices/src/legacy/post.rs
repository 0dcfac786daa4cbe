//! Port 0x80: progress codes of firmware, and what guests write to it to waste a microsecond.

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;

/// Where the port is.
pub const BASE: u64 = 0x80;

/// Swallows what is written.
#[derive(Debug, Default)]
pub struct PostCode;

impl Lifecycle for PostCode {}

impl BusDevice for PostCode {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
