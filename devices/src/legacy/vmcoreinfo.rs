//! Where a guest's kernel leaves the address of its VMCOREINFO note (QEMU's
//! `docs/specs/vmcoreinfo`): a file of fw_cfg that it writes, for those who read a dump of it.

use serde::{Deserialize, Serialize};

use super::fw_cfg::FwCfgLive;
use super::fw_cfg::written::Written;
use crate::lifecycle::Lifecycle;
use crate::state::{SavedState, StateError, Stateful};

/// The file's name.
pub const FILE: &str = "etc/vmcoreinfo";
/// Its length: the host's format and the guest's, the note's length and address, little-endian.
const LEN: usize = 16;
/// The note is ELF's; in the host's place: that is what the host understands.
const FORMAT_ELF: u16 = 1;

/// Where the note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its address in guest memory.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
}

/// What a snapshot keeps: the file as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmcoreinfoState {
    bytes: [u8; LEN],
}

impl SavedState for VmcoreinfoState {
    const KIND: &'static str = "vmcoreinfo";
    const VERSION: u32 = 1;
}

impl Default for VmcoreinfoState {
    /// Nobody has written yet.
    fn default() -> Self {
        let mut bytes = [0; LEN];
        let [first, second, ..] = &mut bytes;
        [*first, *second] = FORMAT_ELF.to_le_bytes();
        Self { bytes }
    }
}

/// The file.
#[derive(Debug)]
pub struct Vmcoreinfo(Written<LEN>);

impl Default for Vmcoreinfo {
    fn default() -> Self {
        Self(Written::new(VmcoreinfoState::default().bytes))
    }
}

impl Vmcoreinfo {
    /// The note that the guest has told of, if it has.
    #[must_use]
    pub fn note(&self) -> Option<Note> {
        let [_, _, low, high, a, b, c, d, address @ ..] = self.save().bytes;
        let note = Note {
            address: u64::from_le_bytes(address),
            len: u32::from_le_bytes([a, b, c, d]),
        };
        (u16::from_le_bytes([low, high]) == FORMAT_ELF && note.len > 0).then_some(note)
    }
}

impl FwCfgLive for Vmcoreinfo {
    fn len(&self) -> u32 {
        self.0.len()
    }

    fn read(&self, offset: u32, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u32, data: &[u8]) -> bool {
        self.0.write(offset, data);
        true
    }
}

impl Stateful for Vmcoreinfo {
    type State = VmcoreinfoState;

    fn save(&self) -> VmcoreinfoState {
        VmcoreinfoState {
            bytes: self.0.bytes(),
        }
    }

    fn load(&self, state: VmcoreinfoState) -> Result<(), StateError> {
        self.0.set(state.bytes);
        Ok(())
    }
}

impl Lifecycle for Vmcoreinfo {
    fn reset(&self) {
        self.0.set(VmcoreinfoState::default().bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_where_the_guest_says_until_a_reset() {
        let file = Vmcoreinfo::default();
        let mut read = [0xff; LEN];
        file.read(0, &mut read);
        assert_eq!(read[..4], [1, 0, 0, 0]);
        assert_eq!(file.note(), None);
        assert!(file.write(2, &[1, 0, 0x24, 0x10, 0, 0]));
        assert!(file.write(8, &0x1_2345_6000_u64.to_le_bytes()));
        let note = Note {
            address: 0x1_2345_6000,
            len: 0x1024,
        };
        assert_eq!(file.note(), Some(note));
        let saved = file.save();
        file.reset();
        assert_eq!(file.note(), None);
        file.load(saved).unwrap();
        assert_eq!(file.note(), Some(note));
    }

    #[test]
    fn a_format_that_nobody_knows_is_no_note() {
        let file = Vmcoreinfo::default();
        assert!(file.write(2, &[2, 0, 1, 0, 0, 0]));
        assert_eq!(file.note(), None);
    }
}
