//! Plain MSI with one vector (PCI Local Bus 3.0, 6.8.1), for functions whose interrupts are rare.

use super::config::ConfigSpace;
use super::regs;
use crate::irq::MsiMessage;

const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const ADDRESS_HIGH: u16 = 8;
const MESSAGE: u16 = 12;

const ENABLE: u16 = 1;
const WIDE: u16 = 1 << 7;

/// Where the capability stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi(pub(super) u16);

impl Msi {
    /// Adds the capability: one vector, 64-bit address, no masking. `None` without room.
    pub fn add(config: &mut ConfigSpace) -> Option<Self> {
        let mut body = [0; 12];
        let mut mask = [0; 12];
        // The multiple-message field is writable as a whole: with one vector its value is moot.
        let fields: [(u16, &[u8]); 4] = [
            (CONTROL, &[0x71, 0]),
            (ADDRESS, &[0xfc, 0xff, 0xff, 0xff]),
            (ADDRESS_HIGH, &[0xff; 4]),
            (MESSAGE, &[0xff; 2]),
        ];
        for (offset, bits) in fields {
            let at = usize::from(offset - CONTROL);
            for (to, &from) in mask.iter_mut().skip(at).zip(bits) {
                *to = from;
            }
        }
        body[..2].copy_from_slice(&WIDE.to_le_bytes());
        config.add_capability(regs::CAP_MSI, &body, &mask).map(Self)
    }

    /// The message to send, while the guest has enabled MSI.
    #[must_use]
    pub fn message(self, config: &ConfigSpace) -> Option<MsiMessage> {
        let Self(at) = self;
        (config.load16(at + CONTROL) & ENABLE != 0).then(|| MsiMessage {
            address: u64::from(config.load32(at + ADDRESS_HIGH)) << 32
                | u64::from(config.load32(at + ADDRESS)),
            data: u32::from(config.load16(at + MESSAGE)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_what_the_guest_programmed_while_enabled() {
        let mut config = ConfigSpace::new();
        let msi = Msi::add(&mut config).unwrap();
        config.write(msi.0 + ADDRESS, &0xfee0_1003_u32.to_le_bytes());
        config.write(msi.0 + MESSAGE, &[0x41, 0]);
        assert_eq!(msi.message(&config), None);
        config.write(msi.0 + CONTROL, &[1, 0]);
        let message = msi.message(&config).unwrap();
        assert_eq!((message.address, message.data), (0xfee0_1000, 0x41));
    }
}
