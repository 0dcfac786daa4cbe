//! Where a function sits: device and function on a bus, and the bus number in front of it.

use std::fmt;
use std::str::FromStr;

/// Device and function on one bus: what `addr=04.0` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotAddress {
    device: u8,
    function: u8,
}

impl SlotAddress {
    /// `None` unless `device` is below 32 and `function` below 8.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self { device, function })
        } else {
            None
        }
    }

    /// The address in a configuration access: device in bits 7..3, function in bits 2..0.
    #[must_use]
    pub const fn from_devfn(devfn: u8) -> Self {
        Self {
            device: devfn >> 3,
            function: devfn & 7,
        }
    }

    /// Function 0 of the device `device & 31`.
    #[must_use]
    pub const fn slot(device: u8) -> Self {
        Self {
            device: device & 31,
            function: 0,
        }
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Device in bits 7..3, function in bits 2..0.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }
}

impl fmt::Display for SlotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device, self.function)
    }
}

/// A text that is no slot address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is no PCI address: wanted SLOT or SLOT.FUNCTION in hexadecimal, as 4 or 0x1f.0x2, up to 1f.7"
)]
pub struct AddressError {
    text: String,
}

impl FromStr for SlotAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError {
            text: text.chars().take(32).collect(),
        };
        let (device, function) = text.split_once('.').unwrap_or((text, "0"));
        let device = hex(device).ok_or_else(wrong)?;
        let function = hex(function).ok_or_else(wrong)?;
        Self::new(device, function).ok_or_else(wrong)
    }
}

fn hex(text: &str) -> Option<u8> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    // from_str_radix would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// A function's full address: bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// The bus number as the bridges are programmed now.
    pub bus: u8,
    /// Device and function on that bus.
    pub slot: SlotAddress,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{}", self.bus, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_an_address_is_read() {
        for (text, device, function) in [
            ("4", 4, 0),
            ("04.0", 4, 0),
            ("0x4.0", 4, 0),
            ("0x1f.0x2", 0x1f, 2),
            ("1F.7", 0x1f, 7),
        ] {
            let address: SlotAddress = text.parse().unwrap();
            assert_eq!((address.device(), address.function()), (device, function));
            assert_eq!(SlotAddress::from_devfn(address.devfn()), address);
        }
    }

    #[test]
    fn a_text_that_is_no_address_is_named_in_the_error() {
        for text in [
            "", ".", "20.0", "4.8", "-1", "+4", "4.0.0", "pci", "0x", "100",
        ] {
            let error = text.parse::<SlotAddress>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }
}
