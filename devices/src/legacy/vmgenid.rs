//! Where firmware has put the VM generation id (QEMU's `docs/specs/vmgenid`): a file of fw_cfg that
//! it writes, for those who change the number while the guest runs.

use serde::{Deserialize, Serialize};

use super::fw_cfg::FwCfgLive;
use super::fw_cfg::written::Written;
use crate::lifecycle::Lifecycle;
use crate::state::{SavedState, StateError, Stateful};

/// The file's name.
pub const FILE: &str = "etc/vmgenid_addr";
/// Its length: an address, little-endian.
pub const LEN: u8 = 8;

const NOWHERE: [u8; LEN as usize] = [0; LEN as usize];

/// What a snapshot keeps: the number's address; 0 if nobody has told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationState {
    address: u64,
}

impl SavedState for GenerationState {
    const KIND: &'static str = "vmgenid";
    const VERSION: u32 = 1;
}

/// The file.
#[derive(Debug)]
pub struct GenerationPlace(Written<{ LEN as usize }>);

impl Default for GenerationPlace {
    fn default() -> Self {
        Self(Written::new(NOWHERE))
    }
}

impl GenerationPlace {
    /// The number's address in guest memory, if firmware has told it since the last reset. It may
    /// be any.
    #[must_use]
    pub fn address(&self) -> Option<u64> {
        Some(self.save().address).filter(|&address| address != 0)
    }
}

impl FwCfgLive for GenerationPlace {
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

impl Stateful for GenerationPlace {
    type State = GenerationState;

    fn save(&self) -> GenerationState {
        GenerationState {
            address: u64::from_le_bytes(self.0.bytes()),
        }
    }

    fn load(&self, state: GenerationState) -> Result<(), StateError> {
        self.0.set(state.address.to_le_bytes());
        Ok(())
    }
}

impl Lifecycle for GenerationPlace {
    fn reset(&self) {
        self.0.set(NOWHERE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_where_firmware_says_until_a_reset() {
        let place = GenerationPlace::default();
        assert_eq!((place.len(), place.address()), (8, None));
        assert!(place.write(0, &0x7f00_0028_u64.to_le_bytes()));
        assert_eq!(place.address(), Some(0x7f00_0028));
        let mut read = [0xee; 8];
        place.read(0, &mut read);
        assert_eq!(u64::from_le_bytes(read), 0x7f00_0028);
        let saved = place.save();
        place.reset();
        assert_eq!(place.address(), None);
        place.load(saved).unwrap();
        assert_eq!(place.address(), Some(0x7f00_0028));
    }
}
