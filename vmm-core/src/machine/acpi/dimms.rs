//! Memory modules in AML, and how they come and go: the guest's side of
//! [`devices::legacy::memory_hotplug`] (ACPI 6.5, 9.11 and 6.3).
//!
//! [`super::places`] draws how; a module also has addresses (`_CRS`, from `RANG`) and a node (`_PXM`,
//! from `NODE`). `SCAN` looks at each place.
//!
//! A machine without places for modules has none of this.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Add, AddressSpace, AddressSpaceCacheable, Arg, CreateQWordField, Device, EISAName, FieldEntry,
    LessThan, Local, Name, ONE, Path, ResourceTemplate, Store, Subtract, While, ZERO,
};
use devices::legacy::memory_hotplug::{BASE, GPE, LEN};

use super::dsdt::Raw;
use super::{AcpiSpec, places};

/// Where a descriptor of 64-bit addresses has its first address, its last one, and its length.
const FIRST: u8 = 14;
const LAST: u8 = 22;
const LENGTH: u8 = 38;
/// Where the flags of the registers are, in bits.
const FLAGS_AT: usize = 160;

/// The modules, inside `\_SB`.
pub(super) fn build(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    if spec.dimm_slots == 0 {
        return;
    }
    let mut inside = Vec::new();
    registers(&mut inside);
    methods(spec, &mut inside);
    for slot in slots(spec) {
        module(slot, &mut inside);
    }
    let ports = places::ports(BASE, LEN);
    Device::new(
        "MHPC".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
            &Name::new("_UID".into(), &"Memory hotplug registers"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
            &Raw(inside),
        ],
    )
    .to_aml_bytes(aml);
}

/// What is called when a module comes or is to go, inside `\_GPE`.
pub(super) fn event(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    if spec.dimm_slots == 0 {
        return;
    }
    places::event(GPE, "\\_SB_.MHPC.SCAN").to_aml_bytes(aml);
}

fn slots(spec: &AcpiSpec) -> std::ops::Range<usize> {
    0..usize::try_from(spec.dimm_slots).unwrap_or(0)
}

fn name_of(slot: usize) -> String {
    format!("M{slot:03X}")
}

fn module(slot: usize, aml: &mut Vec<u8>) {
    let own = Name::new("_HID".into(), &EISAName::new("PNP0C80"));
    let number = Name::new("_UID".into(), &slot);
    let status = places::answer("_STA", "STAT", slot);
    let range = places::answer("_CRS", "RANG", slot);
    let node = places::answer("_PXM", "NODE", slot);
    let (eject, outcome) = (places::eject(slot), places::outcome(slot));
    let parts: Vec<&dyn Aml> = vec![&own, &number, &status, &range, &node, &eject, &outcome];
    Device::new(Path::new(&name_of(slot)), parts).to_aml_bytes(aml);
}

fn registers(aml: &mut Vec<u8>) {
    places::registers(BASE, LEN, aml);
    // What is read, and what is written, at the same ports.
    places::words(vec![
        FieldEntry::Named(*b"ADDR", 64),
        FieldEntry::Named(*b"SIZE", 64),
        FieldEntry::Named(*b"PROX", 32),
    ])
    .to_aml_bytes(aml);
    places::words(vec![
        FieldEntry::Named(*b"SELE", 32),
        FieldEntry::Named(*b"EVNT", 32),
        FieldEntry::Named(*b"OUTC", 32),
    ])
    .to_aml_bytes(aml);
    places::flags(FLAGS_AT, None).to_aml_bytes(aml);
}

fn methods(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    places::stat().to_aml_bytes(aml);
    let node = Path::new("PROX");
    let node = Store::new(&Local(0), &node);
    places::locked("NODE", 1, &[&node], Some(&Local(0))).to_aml_bytes(aml);
    places::ejct().to_aml_bytes(aml);
    let (event, outcome) = (Path::new("EVNT"), Path::new("OUTC"));
    let tell: [&dyn Aml; 2] = [&Store::new(&event, &Arg(1)), &Store::new(&outcome, &Arg(2))];
    places::locked("TELL", 3, &tell, None).to_aml_bytes(aml);
    range().to_aml_bytes(aml);
    places::noti(slots(spec).map(name_of)).to_aml_bytes(aml);
    scan(spec).to_aml_bytes(aml);
}

/// `RANG`: the addresses of the module, as a resource.
fn range() -> Raw {
    let cacheable = AddressSpaceCacheable::Cacheable;
    let empty = AddressSpace::new_memory(cacheable, true, 0u64, 0xffff_fffeu64, None);
    let template = Path::new("BUFF");
    let (first, last, length) = (Path::new("MINI"), Path::new("MAXI"), Path::new("LENG"));
    places::locked(
        "RANG",
        1,
        &[
            &Name::new("BUFF".into(), &ResourceTemplate::new(vec![&empty])),
            &CreateQWordField::new(&first, &template, &FIRST),
            &CreateQWordField::new(&last, &template, &LAST),
            &CreateQWordField::new(&length, &template, &LENGTH),
            &Store::new(&first, &Path::new("ADDR")),
            &Store::new(&length, &Path::new("SIZE")),
            &Add::new(&Local(0), &first, &length),
            &Subtract::new(&last, &Local(0), &ONE),
        ],
        Some(&template),
    )
}

/// `SCAN`: clears the events one by one and notifies their modules.
fn scan(spec: &AcpiSpec) -> Raw {
    let (select, slot) = (Path::new("SELE"), Local(0));
    places::locked(
        "SCAN",
        0,
        &[
            &Store::new(&slot, &ZERO),
            &While::new(
                &LessThan::new(&slot, &spec.dimm_slots),
                vec![
                    &Store::new(&select, &slot),
                    &places::notify_of_event(&slot, None),
                    &Add::new(&slot, &slot, &ONE),
                ],
            ),
        ],
        None,
    )
}
