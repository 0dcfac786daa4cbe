//! The SSDT of the VM generation id (Microsoft, *Virtual Machine Generation ID*): a device whose
//! `ADDR` says where the number is in guest memory.
//!
//! ```text
//!   VGEN._CID "VM_Gen_Counter"      ADDR ─► { low, high } of VGIA + 40 ─► the GUID
//! ```
//!
//! The place is named at one point of the table, so that a firmware that chooses it can fill it in.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Add, Device, Equal, If, Index, Local, Method, Name, Package, Path, Return, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::tables::HEADER;
use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::uuid::Uuid;

/// Where the number is in its page, as QEMU has it: firmware keeps the beginning to itself.
pub const OFFSET: u8 = 40;
/// Where the page's address is: behind `NameOp`, a name of four letters and `DWordPrefix`.
const PAGE_IN_AML: usize = 6;
/// `_STA`: present, enabled, shown, working.
const PRESENT: u8 = 0xf;

/// The table, for a number in the page at `page`, below 4 GiB; and where `page` is in it, in four
/// bytes.
pub(super) fn build(page: u32) -> (Vec<u8>, usize) {
    let mut aml = Vec::new();
    // A number of four bytes, whatever its value: it may be filled in later.
    aml.extend([0x08]);
    aml.extend(*b"VGIA");
    aml.extend([0x0c]);
    aml.extend(page.to_le_bytes());
    let place = Path::new("VGIA");
    let names: [Name; 3] = [
        Name::new("_HID".into(), &"QEMUVGID"),
        Name::new("_CID".into(), &"VM_Gen_Counter"),
        Name::new("_DDN".into(), &"VM_Gen_Counter"),
    ];
    let (absent, empty) = (Return::new(&ZERO), Equal::new(&place, &ZERO));
    let (present, unless) = (Return::new(&PRESENT), If::new(&empty, vec![&absent]));
    let status = Method::new("_STA".into(), 0, false, vec![&unless, &present]);
    let (parts, low) = (
        Package::new(vec![&ZERO, &ZERO]),
        Index::new(&ZERO, &Local(0), &ZERO),
    );
    let (make, add) = (
        Store::new(&Local(0), &parts),
        Add::new(&low, &place, &OFFSET),
    );
    let answer = Return::new(&Local(0));
    let address = Method::new("ADDR".into(), 0, false, vec![&make, &add, &answer]);
    let mut inside: Vec<&dyn Aml> = names.iter().map(|name| name as &dyn Aml).collect();
    inside.extend([&status as &dyn Aml, &address]);
    let device = Device::new("VGEN".into(), inside);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(&mut aml);
    let mut ssdt = Sdt::new(*b"SSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    ssdt.append_slice(&aml);
    (ssdt.as_slice().to_vec(), HEADER + PAGE_IN_AML)
}

/// A number as the guest finds it: the first three groups little-endian.
#[must_use]
pub const fn guest_order(uuid: Uuid) -> Uuid {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = uuid;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_its_place_at_one_point() {
        let (table, place) = build(0xf_f000);
        let at = table.windows(4).position(|four| four == b"VGIA").unwrap();
        assert_eq!(table[at + 4..at + 9], [0x0c, 0x00, 0xf0, 0x0f, 0x00]);
        assert_eq!(place, at + 5);
        let (empty, _) = build(0);
        let differ = (0..table.len()).filter(|&i| table[i] != empty[i]);
        // The sum differs as well.
        assert_eq!(differ.collect::<Vec<_>>(), [9, at + 6, at + 7]);
    }

    #[test]
    fn the_guest_finds_the_first_groups_turned_round() {
        let uuid: Uuid = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let turned = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(guest_order(uuid), turned);
    }
}
