//! Port 0x80: progress codes of firmware, and what guests write to it to waste a microsecond.

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::state::{Empty, NothingToSave, StateError, Stateful};

/// Where the port is.
pub const BASE: u64 = 0x80;

/// Swallows what is written.
#[derive(Debug, Default)]
pub struct PostCode;

impl NothingToSave for PostCode {
    const KIND: &'static str = "post-code";
}

impl Stateful for PostCode {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl Lifecycle for PostCode {}

impl BusDevice for PostCode {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
