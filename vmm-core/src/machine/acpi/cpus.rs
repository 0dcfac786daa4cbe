//! The processors in AML, and how they come and go: the guest's side of
//! [`devices::legacy::cpu_hotplug`] (ACPI 6.5, 8.4 and 6.3).
//!
//! [`super::places`] draws how. The registers find the next CPU with an event, so that no guest looks
//! at each.
//!
//! A machine whose CPUs are all there from the start has the processors only.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, BufferData, Device, EISAName, Equal, FieldEntry, Local, Name, ONE, Path, ResourceTemplate,
    Store, While, ZERO,
};
use devices::legacy::cpu_hotplug::{BASE, GPE, LEN};

use super::dsdt::Raw;
use super::tables::local_apic;
use super::{AcpiSpec, places};

/// Commands of the registers.
const NEXT_WITH_EVENT: u8 = 0;
const OST_EVENT: u8 = 1;
const OST_STATUS: u8 = 2;
/// Where their flags are, in bits.
const FLAGS_AT: usize = 32;

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
    let ports = places::ports(BASE, LEN);
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
    places::event(GPE, "\\_SB_.CPUS.SCAN").to_aml_bytes(aml);
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
    let own = Name::new("_HID".into(), &"ACPI0007");
    let number = Name::new("_UID".into(), &uid);
    // An operating system takes the APIC id of a new CPU from here, and only from an entry that
    // says enabled.
    let entry = BufferData::new(local_apic(uid, apic_id, true));
    let entry = Name::new("_MAT".into(), &entry);
    let status = places::answer("_STA", "STAT", uid);
    let (outcome, eject) = (places::outcome(uid), places::eject(uid));
    let mut parts: Vec<&dyn Aml> = vec![&own, &number, &status, &entry, &outcome];
    // The first one boots and stays.
    if uid != 0 {
        parts.push(&eject);
    }
    Device::new(Path::new(&name_of(uid)), parts).to_aml_bytes(aml);
}

fn registers(aml: &mut Vec<u8>) {
    places::registers(BASE, LEN, aml);
    let command = FieldEntry::Named(*b"CMND", 8);
    places::flags(FLAGS_AT, Some(command)).to_aml_bytes(aml);
    places::words(vec![
        FieldEntry::Named(*b"SELE", 32),
        FieldEntry::Reserved(32),
        FieldEntry::Named(*b"CDAT", 32),
    ])
    .to_aml_bytes(aml);
}

fn methods(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    places::stat().to_aml_bytes(aml);
    places::ejct().to_aml_bytes(aml);
    let (command, data) = (Path::new("CMND"), Path::new("CDAT"));
    let tell: [&dyn Aml; 4] = [
        &Store::new(&command, &OST_EVENT),
        &Store::new(&data, &Arg(1)),
        &Store::new(&command, &OST_STATUS),
        &Store::new(&data, &Arg(2)),
    ];
    places::locked("TELL", 3, &tell, None).to_aml_bytes(aml);
    places::noti((0..spec.cpus.len()).map(name_of)).to_aml_bytes(aml);
    scan().to_aml_bytes(aml);
}

/// `SCAN`: clears the events one by one and notifies their processors.
fn scan() -> Raw {
    let (select, command, data) = (Path::new("SELE"), Path::new("CMND"), Path::new("CDAT"));
    let found = Local(0);
    let again = Store::new(&found, &ONE);
    places::locked(
        "SCAN",
        0,
        &[
            &Store::new(&select, &ZERO),
            &again,
            &While::new(
                &Equal::new(&found, &ONE),
                vec![
                    &Store::new(&found, &ZERO),
                    &Store::new(&command, &NEXT_WITH_EVENT),
                    &places::notify_of_event(&data, Some(&again)),
                ],
            ),
        ],
        None,
    )
}
