//! The processors in AML, and how they come and go: the guest's side of
//! [`devices::legacy::cpu_hotplug`] (ACPI 6.5, 8.4 and 6.3).
//!
//! ```text
//!   \_GPE._E02 ─► \_SB.CPUS.SCAN ─ next with an event? ─► Notify (CPUS.Cnnn, 1 or 3)
//!   Cnnn._STA ─► STAT       Cnnn._EJ0 ─► EJCT       Cnnn._OST ─► TELL      one at a time: LOCK
//! ```
//!
//! A machine whose CPUs are all there from the start has the processors only.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Arg, BufferData, Device, EISAName, Else, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Local, Method, MethodCall, Mutex, Name, Notify, ONE,
    OpRegion, OpRegionSpace, Path, Release, ResourceTemplate, Return, Scope, Store, While, ZERO,
};
use devices::legacy::cpu_hotplug::{BASE, GPE, LEN};

use super::AcpiSpec;
use super::dsdt::{PRESENT, Raw};
use super::tables::local_apic;

/// `Notify`: look whether the device is there.
pub(super) const DEVICE_CHECK: u8 = 1;
/// `Notify`: the device is to be ejected.
pub(super) const EJECT_REQUEST: u8 = 3;
/// Wait for a mutex for ever.
pub(super) const FOR_EVER: u16 = 0xffff;
/// Commands of the registers.
const NEXT_WITH_EVENT: u8 = 0;
const OST_EVENT: u8 = 1;
const OST_STATUS: u8 = 2;

/// The processors, inside `\_SB`.
pub(super) fn build(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    if !spec.cpu_hotplug {
        for uid in 0..spec.cpus.len() {
            plain(uid, aml);
        }
        return;
    }
    let mut inside = Vec::new();
    registers(&mut inside);
    methods(spec, &mut inside);
    for (uid, cpu) in spec.cpus.iter().enumerate() {
        pluggable(uid, cpu.apic_id, &mut inside);
    }
    Device::new(
        "CPUS".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0010"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A05")),
            &Raw(inside),
        ],
    )
    .to_aml_bytes(aml);
    // Nobody else gets the ports.
    let ports = IO::new(low(BASE), low(BASE), 1, u8::try_from(LEN).unwrap_or(0));
    Device::new(
        "CPUR".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A06")),
            &Name::new("_UID".into(), &"CPU hotplug registers"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(aml);
}

/// What is called when a CPU comes or is to go, inside `\_GPE`.
pub(super) fn event(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    if !spec.cpu_hotplug {
        return;
    }
    let name = format!("_E{GPE:02X}");
    let scan = MethodCall::new(Path::new("\\_SB_.CPUS.SCAN"), Vec::new());
    Scope::new(
        "\\_GPE".into(),
        vec![&Method::new(Path::new(&name), 0, false, vec![&scan])],
    )
    .to_aml_bytes(aml);
}

fn name_of(uid: usize) -> String {
    format!("C{uid:03X}")
}

fn plain(uid: usize, aml: &mut Vec<u8>) {
    Device::new(
        Path::new(&name_of(uid)),
        vec![
            &Name::new("_HID".into(), &"ACPI0007"),
            &Name::new("_UID".into(), &uid),
        ],
    )
    .to_aml_bytes(aml);
}

fn pluggable(uid: usize, apic_id: u32, aml: &mut Vec<u8>) {
    let call = |method: &str, args| MethodCall::new(Path::new(method), args);
    let own = Name::new("_HID".into(), &"ACPI0007");
    let number = Name::new("_UID".into(), &uid);
    let status = call("STAT", vec![&uid]);
    let status = Return::new(&status);
    let status = Method::new("_STA".into(), 0, true, vec![&status]);
    // An operating system takes the APIC id of a new CPU from here, and only from an entry that
    // says enabled.
    let entry = BufferData::new(local_apic(uid, apic_id, true));
    let entry = Name::new("_MAT".into(), &entry);
    let eject = call("EJCT", vec![&uid]);
    let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
    let (event, outcome) = (Arg(0), Arg(1));
    let tell = call("TELL", vec![&uid, &event, &outcome]);
    let tell = Method::new("_OST".into(), 3, true, vec![&tell]);
    let mut parts: Vec<&dyn Aml> = vec![&own, &number, &status, &entry, &tell];
    // The first one boots and stays.
    if uid != 0 {
        parts.push(&eject);
    }
    Device::new(Path::new(&name_of(uid)), parts).to_aml_bytes(aml);
}

fn registers(aml: &mut Vec<u8>) {
    let (base, len) = (low(BASE), low(LEN));
    Mutex::new("LOCK".into(), 0).to_aml_bytes(aml);
    OpRegion::new("REGS".into(), OpRegionSpace::SystemIO, &base, &len).to_aml_bytes(aml);
    // Writing a bit must not write the others: 1 clears or ejects.
    Field::new(
        "REGS".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Reserved(32),
            FieldEntry::Named(*b"ENAB", 1),
            FieldEntry::Named(*b"INSE", 1),
            FieldEntry::Named(*b"REMO", 1),
            FieldEntry::Named(*b"EJEC", 1),
            FieldEntry::Reserved(4),
            FieldEntry::Named(*b"CMND", 8),
        ],
    )
    .to_aml_bytes(aml);
    Field::new(
        "REGS".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        vec![
            FieldEntry::Named(*b"SELE", 32),
            FieldEntry::Reserved(32),
            FieldEntry::Named(*b"CDAT", 32),
        ],
    )
    .to_aml_bytes(aml);
}

/// A method that has the registers for itself.
fn locked(name: &str, args: u8, body: &[&dyn Aml], returns: Option<&dyn Aml>) -> Vec<u8> {
    let (acquire, release) = (
        Acquire::new("LOCK".into(), FOR_EVER),
        Release::new("LOCK".into()),
    );
    let mut steps: Vec<&dyn Aml> = vec![&acquire];
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

fn methods(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    let field = |name: &str| Path::new(name);
    let (select, command, data) = (field("SELE"), field("CMND"), field("CDAT"));
    let (enabled, eject) = (field("ENAB"), field("EJEC"));
    let choose = Store::new(&select, &Arg(0));
    aml.extend(locked(
        "STAT",
        1,
        &[
            &choose,
            &Store::new(&Local(0), &ZERO),
            &If::new(
                &Equal::new(&enabled, &ONE),
                vec![&Store::new(&Local(0), &PRESENT)],
            ),
        ],
        Some(&Local(0)),
    ));
    aml.extend(locked(
        "EJCT",
        1,
        &[&choose, &Store::new(&eject, &ONE)],
        None,
    ));
    aml.extend(locked(
        "TELL",
        3,
        &[
            &choose,
            &Store::new(&command, &OST_EVENT),
            &Store::new(&data, &Arg(1)),
            &Store::new(&command, &OST_STATUS),
            &Store::new(&data, &Arg(2)),
        ],
        None,
    ));
    aml.extend(notify(spec));
    aml.extend(scan());
}

/// `NOTI`: notifies the processor with the number Arg0 of Arg1.
fn notify(spec: &AcpiSpec) -> Vec<u8> {
    let mut cases = Vec::new();
    for uid in 0..spec.cpus.len() {
        If::new(
            &Equal::new(&Arg(0), &uid),
            vec![&Notify::new(&Path::new(&name_of(uid)), &Arg(1))],
        )
        .to_aml_bytes(&mut cases);
    }
    let mut aml = Vec::new();
    Method::new("NOTI".into(), 2, true, vec![&Raw(cases)]).to_aml_bytes(&mut aml);
    aml
}

/// `SCAN`: clears the events one by one and notifies their processors.
fn scan() -> Vec<u8> {
    let (select, command, data) = (Path::new("SELE"), Path::new("CMND"), Path::new("CDAT"));
    let (inserting, removing) = (Path::new("INSE"), Path::new("REMO"));
    let found = Local(0);
    let comes = MethodCall::new(Path::new("NOTI"), vec![&data, &DEVICE_CHECK]);
    let goes = MethodCall::new(Path::new("NOTI"), vec![&data, &EJECT_REQUEST]);
    locked(
        "SCAN",
        0,
        &[
            &Store::new(&select, &ZERO),
            &Store::new(&found, &ONE),
            &While::new(
                &Equal::new(&found, &ONE),
                vec![
                    &Store::new(&found, &ZERO),
                    &Store::new(&command, &NEXT_WITH_EVENT),
                    &If::new(
                        &Equal::new(&inserting, &ONE),
                        vec![
                            &comes,
                            &Store::new(&inserting, &ONE),
                            &Store::new(&found, &ONE),
                        ],
                    ),
                    &Else::new(vec![&If::new(
                        &Equal::new(&removing, &ONE),
                        vec![
                            &goes,
                            &Store::new(&removing, &ONE),
                            &Store::new(&found, &ONE),
                        ],
                    )]),
                ],
            ),
        ],
        None,
    )
}

/// A port number.
pub(super) fn low(port: u64) -> u16 {
    u16::try_from(port).unwrap_or(u16::MAX)
}
