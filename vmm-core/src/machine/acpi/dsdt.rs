//! The DSDT: the devices that cannot be found by looking, in AML.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package,
    PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{AcpiSpec, OEM, OEM_REVISION, OEM_TABLE, SerialPort, cpus, dimms};
use crate::memory::layout::{ECAM, PCI32};

/// `_OSC` for PCI host bridges (PCI Firmware Specification 3.3, 4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the operating system may take over: native hotplug, PME, AER, the capability structure.
const OSC_GRANTED: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;

/// The configuration ports of the host bridge lie in the middle of the I/O window.
const CONFIG_PORTS: u16 = 0xcf8;
const LPC_ADDRESS: u32 = 0x001f_0000;
const SLOTS: u32 = 32;
const RTC_PORT: u16 = 0x70;
const RTC_IRQ: u8 = 8;
/// `_STA`: present, enabled, shown, working.
pub(super) const PRESENT: u8 = 0xf;
/// `_STA`: the same, without being shown to people.
const HIDDEN: u8 = 0xb;
const FW_CFG_PORTS: u8 = 12;
/// Every function of a slot.
const ANY_FUNCTION: u32 = 0xffff;

pub(super) fn build(spec: &AcpiSpec) -> Vec<u8> {
    let mut aml = Vec::new();
    sleep(spec).to_aml_bytes(&mut aml);
    system_bus(spec, &mut aml);
    cpus::event(spec, &mut aml);
    dimms::event(spec, &mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

/// `_S5`: the values that power off.
fn sleep(spec: &AcpiSpec) -> Name {
    let package = Package::new(vec![&spec.s5_type, &spec.s5_type, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &package)
}

fn system_bus(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    let mut inside = Vec::new();
    host_bridge(spec, &mut inside);
    reserved(&mut inside);
    fw_cfg(spec, &mut inside);
    cpus::build(spec, &mut inside);
    dimms::build(spec, &mut inside);
    aml.extend(Scope::raw("_SB_".into(), inside));
}

/// The store of files, by the id that its drivers know.
fn fw_cfg(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    Device::new(
        "FWCF".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0002"),
            &Name::new("_STA".into(), &HIDDEN),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(spec.fw_cfg, spec.fw_cfg, 1, FW_CFG_PORTS)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// The ECAM window belongs to nobody else; Linux uses it only if it is reserved.
fn reserved(aml: &mut Vec<u8>) {
    Device::new(
        "MRES".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    low(ECAM.start),
                    low(ECAM.end - ECAM.start),
                )]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn host_bridge(spec: &AcpiSpec, aml: &mut Vec<u8>) {
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_ADR".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &windows(spec),
            &interrupts(spec),
            &Raw(control_method()),
            &Raw(lpc(spec)),
        ],
    )
    .to_aml_bytes(aml);
}

/// `_CRS`: the bus numbers, ports and memory that BARs and bridges may use.
fn windows(spec: &AcpiSpec) -> Name {
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let buses = AddressSpace::new_bus_number(0u16, u16::from(spec.last_bus));
    let ports = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, 8);
    let below = AddressSpace::new_io(0u16, CONFIG_PORTS - 1, None);
    let above = AddressSpace::new_io(CONFIG_PORTS + 8, 0xffff, None);
    let memory =
        AddressSpace::new_memory(cacheable, true, low(PCI32.start), low(PCI32.end - 1), None);
    let mut resources: Vec<&dyn Aml> = vec![&buses, &ports, &below, &above, &memory];
    let high = &spec.layout.pci64;
    let last = high.end.saturating_sub(1);
    let memory64 = AddressSpace::new_memory(cacheable, true, high.start, last, None);
    if !high.is_empty() {
        resources.push(&memory64);
    }
    Name::new("_CRS".into(), &ResourceTemplate::new(resources))
}

/// `_PRT`: pin `p` of slot `d` is on wire `(d + p) & 3`.
fn interrupts(spec: &AcpiSpec) -> Name {
    let mut table = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..4u32 {
            let [a, b, c, d] = spec.intx;
            let gsi = match (slot + pin) & 3 {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            };
            let address = slot << 16 | ANY_FUNCTION;
            table.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    Name::new("_PRT".into(), &table)
}

/// `_OSC`: hands the PCIe features we emulate to the operating system, keeps the others.
fn control_method() -> Vec<u8> {
    let (status, control, buffer) = (Path::new("CDW1"), Path::new("CDW3"), Arg(3));
    let ours = Uuid::new(OSC_UUID);
    let complain = |bit| Or::new(&status, &status, bit);
    let mut aml = Vec::new();
    Method::new(
        "_OSC".into(),
        4,
        false,
        vec![
            &CreateDWordField::new(&status, &buffer, &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &ours),
                vec![
                    &CreateDWordField::new(&control, &buffer, &8u8),
                    &And::new(&Local(0), &control, &OSC_GRANTED),
                    &If::new(
                        &NotEqual::new(&Arg(1), &ONE),
                        vec![&complain(&OSC_UNKNOWN_REVISION)],
                    ),
                    &If::new(
                        &NotEqual::new(&control, &Local(0)),
                        vec![&complain(&OSC_MASKED)],
                    ),
                    &Store::new(&control, &Local(0)),
                ],
            ),
            &Else::new(vec![&complain(&OSC_UNKNOWN_UUID)]),
            &Return::new(&buffer),
        ],
    )
    .to_aml_bytes(&mut aml);
    aml
}

/// The LPC bridge and what is behind it.
fn lpc(spec: &AcpiSpec) -> Vec<u8> {
    let mut inside = Vec::new();
    Name::new("_ADR".into(), &LPC_ADDRESS).to_aml_bytes(&mut inside);
    for port in &spec.serials {
        serial(port, &mut inside);
    }
    if spec.rtc {
        Device::new(
            "RTC_".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &IO::new(RTC_PORT, RTC_PORT, 1, 8),
                        &isa_interrupt(RTC_IRQ),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(&mut inside);
    }
    if let Some(port) = spec.pvpanic {
        Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_STA".into(), &PRESENT),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)]),
                ),
            ],
        )
        .to_aml_bytes(&mut inside);
    }
    let mut aml = Vec::new();
    Device::new("ISA_".into(), vec![&Raw(inside)]).to_aml_bytes(&mut aml);
    aml
}

fn serial(port: &SerialPort, aml: &mut Vec<u8>) {
    let name = format!("COM{:X}", port.index.saturating_add(1) & 0xf);
    Device::new(
        Path::new(&name),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &port.index),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port.port, port.port, 1, 8),
                    &isa_interrupt(port.irq),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// An ISA interrupt: edge, active high, not shared.
fn isa_interrupt(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, u32::from(irq))
}

/// AML that is finished already.
pub(super) struct Raw(pub(super) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The low half of an address that lies below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
