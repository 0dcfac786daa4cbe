//! The tables of a TPM 2.0 with a command response buffer (TCG ACPI Specification 1.3, section 8):
//! `TPM2`, and an SSDT with the device that drivers are bound to.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, Memory32Fixed, Name, ONE, ResourceTemplate, Scope};
use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_REVISION, OEM_TABLE};

/// A client's platform.
const CLIENT: u16 = 0;
/// Commands are started by the buffer's own register.
const START_BY_BUFFER: u32 = 7;
/// `_STA`: present, enabled, shown, working.
const PRESENT: u8 = 0xf;

/// Where the chip is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TpmPlace {
    /// Its first address, below 4 GiB.
    pub base: u32,
    /// Its length in bytes.
    pub len: u32,
    /// Where its control area begins.
    pub control_area: u64,
}

pub(super) fn tpm2(place: TpmPlace) -> Vec<u8> {
    let mut table = Sdt::new(*b"TPM2", 36, 4, OEM, OEM_TABLE, OEM_REVISION);
    table.append(CLIENT);
    table.append(0u16);
    table.append(place.control_area);
    table.append(START_BY_BUFFER);
    // The start method's parameters, and a log of events: firmware would keep one.
    table.append_slice(&[0; 12 + 4 + 8]);
    table.update_checksum();
    table.as_slice().to_vec()
}

pub(super) fn ssdt(place: TpmPlace) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, place.base, place.len);
    let resources = ResourceTemplate::new(vec![&registers]);
    let names = [
        Name::new("_HID".into(), &"MSFT0101"),
        Name::new("_STR".into(), &"TPM 2.0 Device"),
        Name::new("_UID".into(), &ONE),
        Name::new("_STA".into(), &PRESENT),
        Name::new("_CRS".into(), &resources),
    ];
    let inside = names.iter().map(|name| name as &dyn Aml).collect();
    let device = Device::new("TPM_".into(), inside);
    let mut aml = Vec::new();
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(&mut aml);
    let mut ssdt = Sdt::new(*b"SSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    ssdt.append_slice(&aml);
    ssdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_leads_to_the_control_area() {
        let table = tpm2(TpmPlace {
            base: 0xfed4_0000,
            len: 0x1000,
            control_area: 0xfed4_0040,
        });
        assert_eq!(table.len(), 76);
        assert_eq!(table[40..48], 0xfed4_0040_u64.to_le_bytes());
        assert_eq!(table[48..52], [7, 0, 0, 0]);
    }
}
