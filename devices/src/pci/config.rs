//! The registers of one function: bytes, and for each bit whether the guest may write it.
//!
//! Three kinds of bits cover everything the specifications ask for: read-only (the default),
//! read-write, and write-one-to-clear. What a write *does* beyond changing bits is the function's
//! affair: it compares before and after.

use serde::{Deserialize, Serialize};

use super::regs;
use crate::state::{SavedState, StateError};

/// Size of the conventional configuration space, in bytes.
pub const CONVENTIONAL: usize = 256;
/// Size of the PCI Express configuration space, in bytes.
pub const EXTENDED: usize = 4096;

/// Where the first capability is placed: right behind the header.
const FIRST_CAPABILITY: usize = 0x40;

/// What a snapshot keeps of a configuration space: all of its bytes, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    registers: String,
}

impl SavedState for ConfigState {
    const KIND: &'static str = "pci-config";
    const VERSION: u32 = 1;
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    clear_by_one: Vec<u8>,
    /// The first free byte for a capability, and the last one in the list.
    free: usize,
    last: Option<u16>,
}

impl Default for ConfigSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl ConfigSpace {
    /// An all-zero, all-read-only space of 256 bytes. The extended space behind it reads as
    /// zeros: no function here has extended capabilities.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CONVENTIONAL],
            writable: vec![0; CONVENTIONAL],
            clear_by_one: vec![0; CONVENTIONAL],
            free: FIRST_CAPABILITY,
            last: None,
        }
    }

    /// What the guest reads: any offset, any length; zero where there is no register.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self
                .bytes
                .get(usize::from(offset).saturating_add(index))
                .copied()
                .unwrap_or(0);
        }
    }

    /// What the guest writes: any offset, any length; only bits it may write change.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (index, &new) in data.iter().enumerate() {
            let at = usize::from(offset).saturating_add(index);
            let (Some(byte), Some(&writable), Some(&clear)) = (
                self.bytes.get_mut(at),
                self.writable.get(at),
                self.clear_by_one.get(at),
            ) else {
                return;
            };
            *byte = (*byte & !writable) | (new & writable);
            *byte &= !(new & clear);
        }
    }

    /// The byte at `offset`, as the device sees it.
    #[must_use]
    pub fn load8(&self, offset: u16) -> u8 {
        let [byte] = self.fetch(offset);
        byte
    }

    /// The 16-bit register at `offset`.
    #[must_use]
    pub fn load16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.fetch(offset))
    }

    /// The 32-bit register at `offset`.
    #[must_use]
    pub fn load32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.fetch(offset))
    }

    fn fetch<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    /// The device sets bytes, whatever the guest may write there.
    pub fn store(&mut self, offset: u16, data: &[u8]) {
        copy_at(&mut self.bytes, offset, data);
    }

    /// The device sets a 16-bit register.
    pub fn store16(&mut self, offset: u16, value: u16) {
        self.store(offset, &value.to_le_bytes());
    }

    /// The device sets a 32-bit register.
    pub fn store32(&mut self, offset: u16, value: u32) {
        self.store(offset, &value.to_le_bytes());
    }

    /// What a snapshot keeps.
    #[must_use]
    pub fn save(&self) -> ConfigState {
        let digits = |byte: &u8| format!("{byte:02x}");
        ConfigState {
            registers: self.bytes.iter().map(digits).collect(),
        }
    }

    /// Takes what a guest has written, of a function with the same registers. What the device says
    /// in them (that a card is there, that a link is up) is the device's to say again.
    ///
    /// # Errors
    /// It is not the space of such a function; nothing has changed.
    pub fn load(&mut self, state: &ConfigState) -> Result<(), StateError> {
        let saved = bytes_of(&state.registers).filter(|saved| saved.len() == self.bytes.len());
        let Some(saved) = saved else {
            return Err(ConfigState::refused(format!(
                "registers: wanted {CONVENTIONAL} bytes in hexadecimal digits"
            )));
        };
        for (at, what) in regs::FIXED {
            let (ours, theirs) = (self.bytes.get(at.clone()), saved.get(at.clone()));
            if ours != theirs {
                return Err(ConfigState::refused(format!(
                    "registers: {what} {theirs:02x?}, and this function has {ours:02x?}"
                )));
            }
        }
        for (index, byte) in saved.into_iter().enumerate() {
            let mask = |masks: &[u8]| masks.get(index).copied().unwrap_or(0);
            let guests = mask(&self.writable) | mask(&self.clear_by_one);
            if let Some(own) = self.bytes.get_mut(index) {
                *own = (*own & !guests) | (byte & guests);
            }
        }
        Ok(())
    }

    /// Which bits at `offset` the guest may write.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        copy_at(&mut self.writable, offset, mask);
    }

    /// Which bits at `offset` the guest clears by writing ones.
    pub fn allow_clear(&mut self, offset: u16, mask: &[u8]) {
        copy_at(&mut self.clear_by_one, offset, mask);
    }

    /// Appends a capability: `body` is what follows the two bytes of id and next pointer, `mask`
    /// says which of its bits the guest may write. Returns the capability's offset, or `None`
    /// when the 256 bytes are full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], mask: &[u8]) -> Option<u16> {
        let end = self.free.checked_add(2)?.checked_add(body.len())?;
        if end > CONVENTIONAL {
            return None;
        }
        let here = u16::try_from(self.free).ok()?;
        let here_byte = u8::try_from(self.free).ok()?;
        self.store(here, &[id, 0]);
        self.store(here + 2, body);
        self.allow(here + 2, mask);
        let link = self.last.map_or(regs::CAPABILITIES, |last| last + 1);
        self.store(link, &[here_byte]);
        let status = self.load16(regs::STATUS) | regs::STATUS_CAPABILITIES;
        self.store16(regs::STATUS, status);
        self.last = Some(here);
        self.free = end.next_multiple_of(4);
        Some(here)
    }

    /// Takes the capability at `at` out of the list, and its `len` registers away. Those of the
    /// others stay where they are.
    pub fn remove_capability(&mut self, at: u16, len: usize) {
        let mut link = regs::CAPABILITIES;
        // The list is ours and ends; more than fit into the space there are not.
        for _ in 0..CONVENTIONAL {
            let next = u16::from(self.load8(link));
            if next == 0 {
                return;
            }
            if next == at {
                let behind = self.load8(at + 1);
                self.store(link, &[behind]);
                if self.last == Some(at) {
                    self.last = (link != regs::CAPABILITIES).then(|| link - 1);
                }
                break;
            }
            link = next + 1;
        }
        for space in [&mut self.bytes, &mut self.writable, &mut self.clear_by_one] {
            for byte in space.iter_mut().skip(usize::from(at)).take(len) {
                *byte = 0;
            }
        }
    }
}

/// The bytes that `digits` stand for.
fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    pairs.iter().map(byte).collect()
}

fn copy_at(space: &mut [u8], offset: u16, data: &[u8]) {
    for (to, &from) in space.iter_mut().skip(usize::from(offset)).zip(data) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn capabilities_form_a_list_that_a_guest_can_walk() {
        let mut config = ConfigSpace::new();
        let first = config.add_capability(0x10, &[0; 3], &[]).unwrap();
        let second = config.add_capability(0x05, &[1, 2], &[0xff, 0]).unwrap();
        assert_eq!(u16::from(config.load8(regs::CAPABILITIES)), first);
        assert_eq!(u16::from(config.load8(first + 1)), second);
        assert_eq!(config.load8(second), 0x05);
        assert_eq!(config.load8(second + 1), 0);
        assert_eq!(second % 4, 0);
        assert_ne!(config.load16(regs::STATUS) & regs::STATUS_CAPABILITIES, 0);
        assert_eq!(config.add_capability(0x09, &[0; 200], &[]), None);
    }

    #[test]
    fn a_capability_that_is_taken_out_leaves_the_others_in_the_list() {
        for gone in 0..3 {
            let mut config = ConfigSpace::new();
            let places = [0x09, 0x11, 0x10]
                .map(|id| config.add_capability(id, &[0x5a; 6], &[0xff; 6]).unwrap());
            config.remove_capability(places[gone], 8);
            let mut left = Vec::new();
            let mut at = u16::from(config.load8(regs::CAPABILITIES));
            while at != 0 {
                left.push(at);
                at = u16::from(config.load8(at + 1));
            }
            let wanted: Vec<u16> = places
                .into_iter()
                .filter(|&at| at != places[gone])
                .collect();
            assert_eq!(left, wanted);
            config.write(places[gone] + 2, &[0xff; 6]);
            assert_eq!(config.load32(places[gone] + 2), 0);
            let next = config.add_capability(0x05, &[0; 2], &[]).unwrap();
            assert_eq!(u16::from(config.load8(left[1] + 1)), next);
        }
    }

    proptest! {
        /// The model is one bit at a time: what a write may change, and how.
        #[test]
        fn each_bit_follows_its_kind(
            initial in any::<u32>(),
            writable in any::<u32>(),
            clear in any::<u32>(),
            writes in prop::collection::vec((0u16..8, prop::collection::vec(any::<u8>(), 1..9)), 0..8),
        ) {
            let clear = clear & !writable;
            let mut config = ConfigSpace::new();
            config.store32(4, initial);
            config.allow(4, &writable.to_le_bytes());
            config.allow_clear(4, &clear.to_le_bytes());
            let mut model = initial;
            for (offset, data) in writes {
                config.write(offset, &data);
                for (index, byte) in data.iter().enumerate() {
                    let at = usize::from(offset) + index;
                    for bit in 0..8 {
                        let Some(position) = at.checked_sub(4).map(|at| at * 8 + bit) else { continue };
                        if position >= 32 { continue }
                        let mask = 1u32 << position;
                        let one = byte >> bit & 1 == 1;
                        if writable & mask != 0 {
                            model = if one { model | mask } else { model & !mask };
                        } else if clear & mask != 0 && one {
                            model &= !mask;
                        }
                    }
                }
                prop_assert_eq!(config.load32(4), model);
            }
        }

        #[test]
        fn no_access_reaches_outside(offset in any::<u16>(), data in prop::collection::vec(any::<u8>(), 0..16)) {
            let mut config = ConfigSpace::new();
            config.write(offset, &data);
            let mut back = data.clone();
            config.read(offset, &mut back);
            prop_assert!(back.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_saved_space_gives_the_guests_bits_to_the_same_function_only() {
        let function = |device: u16| {
            let mut config = ConfigSpace::new();
            config.store16(regs::VENDOR, 0x1af4);
            config.store16(regs::DEVICE, device);
            config.store(0x40, &[0xf0]);
            config.allow(0x40, &[0x0f]);
            config
        };
        let mut from = function(7);
        from.write(0x40, &[0x05]);
        let saved = from.save();
        let mut to = function(7);
        to.store(0x40, &[0x30]);
        to.load(&saved).unwrap();
        assert_eq!(to.load8(0x40), 0x35, "the device's bits are its own");
        let refused = function(8).load(&saved).unwrap_err().to_string();
        assert!(refused.contains("vendor and device"), "{refused}");
        for registers in ["", "0", "zz", &"00".repeat(255), &"é".repeat(256)] {
            let registers = registers.to_owned();
            assert!(to.load(&ConfigState { registers }).is_err());
        }
    }
}
