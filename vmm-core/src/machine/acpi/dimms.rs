//! Memory modules in AML, and how they come and go: the guest's side of
//! [`devices::legacy::memory_hotplug`] (ACPI 6.5, 9.11 and 6.3).
//!
//! ```text
//!   \_GPE._E03 ─► \_SB.MHPC.SCAN ─ each place: an event? ─► Notify (MHPC.Mnnn, 1 or 3)
//!   Mnnn._STA ─► STAT   _CRS ─► RANG   _PXM ─► NODE   _EJ0 ─► EJCT   _OST ─► TELL   one at a time: LOCK
//! ```
//!
//! A machine without places for modules has none of this.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Add, AddressSpace, AddressSpaceCacheable, Arg, CreateQWordField, Device, EISAName,
    Else, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    LessThan, Local, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion, OpRegionSpace, Path,
    Release, ResourceTemplate, Return, Scope, Store, Subtract, While, ZERO,
};
use devices::legacy::memory_hotplug::{BASE, GPE, LEN};

use super::AcpiSpec;
use super::cpus::{DEVICE_CHECK, EJECT_REQUEST, FOR_EVER, low};
use super::dsdt::{PRESENT, Raw};

/// Where a descriptor of 64-bit addresses has its first address, its last one, and its length.
const FIRST: u8 = 14;
const LAST: u8 = 22;
const LENGTH: u8 = 38;

/// The modules, inside `\_SB`.
pub(super) fn build(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    if spec.dimm_slots == 0 {
        return;
    }
    let mut inside = Vec::new();
    registers(&mut inside);
    methods(&mut inside);
    inside.extend(range());
    inside.extend(scan(spec));
    for slot in 0..spec.dimm_slots {
        module(slot, &mut inside);
    }
    let ports = IO::new(low(BASE), low(BASE), 1, u8::try_from(LEN).unwrap_or(0));
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
    let name = format!("_E{GPE:02X}");
    let scan = MethodCall::new(Path::new("\\_SB_.MHPC.SCAN"), Vec::new());
    Scope::new(
        "\\_GPE".into(),
        vec![&Method::new(Path::new(&name), 0, false, vec![&scan])],
    )
    .to_aml_bytes(aml);
}

fn name_of(slot: u32) -> String {
    format!("M{slot:03X}")
}

fn module(slot: u32, aml: &mut Vec<u8>) {
    let call = |method: &str, args| MethodCall::new(Path::new(method), args);
    let own = Name::new("_HID".into(), &EISAName::new("PNP0C80"));
    let number = Name::new("_UID".into(), &slot);
    let asks = |name: &str, method: &str| {
        let value = call(method, vec![&slot]);
        let mut aml = Vec::new();
        let body = Return::new(&value);
        Method::new(Path::new(name), 0, true, vec![&body]).to_aml_bytes(&mut aml);
        Raw(aml)
    };
    let eject = call("EJCT", vec![&slot]);
    let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
    let (event, outcome) = (Arg(0), Arg(1));
    let tell = call("TELL", vec![&slot, &event, &outcome]);
    let tell = Method::new("_OST".into(), 3, true, vec![&tell]);
    let (status, range, node) = (
        asks("_STA", "STAT"),
        asks("_CRS", "RANG"),
        asks("_PXM", "NODE"),
    );
    let parts: Vec<&dyn Aml> = vec![&own, &number, &status, &range, &node, &eject, &tell];
    Device::new(Path::new(&name_of(slot)), parts).to_aml_bytes(aml);
}

fn registers(aml: &mut Vec<u8>) {
    let (base, len) = (low(BASE), low(LEN));
    Mutex::new("LOCK".into(), 0).to_aml_bytes(aml);
    OpRegion::new("REGS".into(), OpRegionSpace::SystemIO, &base, &len).to_aml_bytes(aml);
    // What is read, and what is written, at the same ports.
    let words = |entries| {
        let (access, lock) = (FieldAccessType::DWord, FieldLockRule::NoLock);
        Field::new(
            "REGS".into(),
            access,
            lock,
            FieldUpdateRule::Preserve,
            entries,
        )
    };
    words(vec![
        FieldEntry::Named(*b"ADDR", 64),
        FieldEntry::Named(*b"SIZE", 64),
        FieldEntry::Named(*b"PROX", 32),
    ])
    .to_aml_bytes(aml);
    words(vec![
        FieldEntry::Named(*b"SELE", 32),
        FieldEntry::Named(*b"EVNT", 32),
        FieldEntry::Named(*b"OUTC", 32),
    ])
    .to_aml_bytes(aml);
    // Writing a bit must not write the others: 1 clears or ejects.
    Field::new(
        "REGS".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Reserved(160),
            FieldEntry::Named(*b"ENAB", 1),
            FieldEntry::Named(*b"INSE", 1),
            FieldEntry::Named(*b"REMO", 1),
            FieldEntry::Named(*b"EJEC", 1),
        ],
    )
    .to_aml_bytes(aml);
}

/// A method that has the registers for itself, about the place Arg0.
fn locked(name: &str, args: u8, body: &[&dyn Aml], returns: Option<&dyn Aml>) -> Vec<u8> {
    let (acquire, release) = (
        Acquire::new("LOCK".into(), FOR_EVER),
        Release::new("LOCK".into()),
    );
    let select = Path::new("SELE");
    let choose = Store::new(&select, &Arg(0));
    let mut steps: Vec<&dyn Aml> = vec![&acquire];
    if args > 0 {
        steps.push(&choose);
    }
    steps.extend_from_slice(body);
    steps.push(&release);
    let value = returns.map(Return::new);
    if let Some(value) = &value {
        steps.push(value);
    }
    let mut aml = Vec::new();
    Method::new(Path::new(name), args, true, steps).to_aml_bytes(&mut aml);
    aml
}

fn methods(aml: &mut Vec<u8>) {
    let field = |name: &str| Path::new(name);
    aml.extend(locked(
        "STAT",
        1,
        &[
            &Store::new(&Local(0), &ZERO),
            &If::new(
                &Equal::new(&field("ENAB"), &ONE),
                vec![&Store::new(&Local(0), &PRESENT)],
            ),
        ],
        Some(&Local(0)),
    ));
    let (node, eject) = (field("PROX"), field("EJEC"));
    let node = Store::new(&Local(0), &node);
    aml.extend(locked("NODE", 1, &[&node], Some(&Local(0))));
    aml.extend(locked("EJCT", 1, &[&Store::new(&eject, &ONE)], None));
    aml.extend(locked(
        "TELL",
        3,
        &[
            &Store::new(&field("EVNT"), &Arg(1)),
            &Store::new(&field("OUTC"), &Arg(2)),
        ],
        None,
    ));
}

/// `RANG`: the addresses of the module, as a resource.
fn range() -> Vec<u8> {
    let cacheable = AddressSpaceCacheable::Cacheable;
    let empty = AddressSpace::new_memory(cacheable, true, 0u64, 0xffff_fffeu64, None);
    let template = Path::new("BUFF");
    let (first, last, length) = (Path::new("MINI"), Path::new("MAXI"), Path::new("LENG"));
    locked(
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
fn scan(spec: &AcpiSpec) -> Vec<u8> {
    let mut cases = Vec::new();
    for slot in 0..spec.dimm_slots {
        If::new(
            &Equal::new(&Arg(0), &slot),
            vec![&Notify::new(&Path::new(&name_of(slot)), &Arg(1))],
        )
        .to_aml_bytes(&mut cases);
    }
    let mut aml = Vec::new();
    Method::new("NOTI".into(), 2, true, vec![&Raw(cases)]).to_aml_bytes(&mut aml);
    let (select, inserting, removing) = (Path::new("SELE"), Path::new("INSE"), Path::new("REMO"));
    let slot = Local(0);
    let comes = MethodCall::new(Path::new("NOTI"), vec![&slot, &DEVICE_CHECK]);
    let goes = MethodCall::new(Path::new("NOTI"), vec![&slot, &EJECT_REQUEST]);
    aml.extend(locked(
        "SCAN",
        0,
        &[
            &Store::new(&slot, &ZERO),
            &While::new(
                &LessThan::new(&slot, &spec.dimm_slots),
                vec![
                    &Store::new(&select, &slot),
                    &If::new(
                        &Equal::new(&inserting, &ONE),
                        vec![&comes, &Store::new(&inserting, &ONE)],
                    ),
                    &Else::new(vec![&If::new(
                        &Equal::new(&removing, &ONE),
                        vec![&goes, &Store::new(&removing, &ONE)],
                    )]),
                    &Add::new(&slot, &slot, &ONE),
                ],
            ),
        ],
        None,
    ));
    aml
}
