//! Why a command was not done (SPC-4, 4.5).

use serde::{Deserialize, Serialize};

/// The length of sense bytes in the fixed format.
pub const LEN: usize = 18;

/// A sense key with what qualifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    /// The additional sense code.
    pub code: u8,
    /// Its qualifier.
    pub qualifier: u8,
}

const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense {
        key,
        code,
        qualifier,
    }
}

impl Sense {
    /// Nothing to tell.
    pub const NONE: Self = sense(0, 0, 0);
    /// There is no medium, and the tray is closed.
    pub const NO_MEDIUM: Self = sense(2, 0x3a, 0x01);
    /// There is no medium, and the tray is open.
    pub const TRAY_OPEN: Self = sense(2, 0x3a, 0x02);
    /// Not a command of this unit.
    pub const INVALID_OPCODE: Self = sense(5, 0x20, 0);
    /// Blocks beyond the end.
    pub const OUT_OF_RANGE: Self = sense(5, 0x21, 0);
    /// Something in the command is wrong.
    pub const INVALID_FIELD: Self = sense(5, 0x24, 0);
    /// There is no such unit.
    pub const NO_SUCH_UNIT: Self = sense(5, 0x25, 0);
    /// Something in the data that came with the command is wrong.
    pub const INVALID_PARAMETERS: Self = sense(5, 0x26, 0);
    /// Nothing is kept over a power cycle.
    pub const NOTHING_SAVED: Self = sense(5, 0x39, 0);
    /// The guest itself keeps the medium in.
    pub const REMOVAL_PREVENTED: Self = sense(5, 0x53, 0x02);
    /// Another medium is in.
    pub const MEDIUM_CHANGED: Self = sense(6, 0x28, 0);
    /// The unit was switched on or reset.
    pub const POWER_ON: Self = sense(6, 0x29, 0);
    /// The medium has another length now.
    pub const CAPACITY_CHANGED: Self = sense(6, 0x2a, 0x09);
    /// The medium is read-only.
    pub const WRITE_PROTECTED: Self = sense(7, 0x27, 0);
    /// The host has no room for it.
    pub const NO_SPACE: Self = sense(7, 0x27, 0x07);
    /// The host failed.
    pub const IO_ERROR: Self = sense(0xb, 0, 0x06);

    /// What a failure of the host is to the guest.
    #[must_use]
    pub fn of(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC) => Self::NO_SPACE,
            Some(libc::EPERM) => Self::WRITE_PROTECTED,
            _ => Self::IO_ERROR,
        }
    }

    /// As bytes, in the fixed format of a current error.
    #[must_use]
    pub fn bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        (bytes[0], bytes[2], bytes[7]) = (0x70, self.key, 10);
        (bytes[12], bytes[13]) = (self.code, self.qualifier);
        bytes
    }
}
