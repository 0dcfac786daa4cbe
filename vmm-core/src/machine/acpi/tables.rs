//! The tables with fixed members: FADT (ACPI 6.5, 5.2.9) and MADT (5.2.12).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::{AcpiSpec, OEM, OEM_REVISION, OEM_TABLE, bytes_of};
use crate::memory::layout::{IOAPIC, LAPIC};

/// Devices on the LPC bus, no VGA; and, by the bits that are not set: no i8042 (whose probe costs
/// a kernel's boot milliseconds), MSI works, and there is a CMOS clock.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2;
const BOOT_ARCH_NO_RTC: u16 = 1 << 5;
/// Latencies above these mean that the CPU has no C2 and C3.
const NO_C2: u16 = 0xfff;
const NO_C3: u16 = 0xfff;
/// Where the clock keeps the century.
const CENTURY: u8 = 0x32;

/// Offsets and lengths inside the ICH9's power management block (Intel 82801 I/O Controller Hub
/// 9 datasheet, 13.8.3).
const PM1_EVENT: (u16, u8) = (0, 4);
const PM1_CONTROL: (u16, u8) = (4, 2);
const PM_TIMER: (u16, u8) = (8, 4);
const GPE0: (u16, u8) = (0x20, 16);

/// The length of every table's header.
pub(super) const HEADER: usize = 36;
/// Where the FADT names the FACS and, twice, the DSDT (5.2.9), and in how many bytes.
pub(super) const FADT_POINTERS: &[(usize, u8)] = &[(36, 4), (40, 4), (140, 8)];

pub(super) fn fadt(spec: &AcpiSpec, facs: u64, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .dsdt_64(dsdt);
    // Both addresses are below 4 GiB, and some readers know only the short members.
    fadt.dsdt = low(dsdt).into();
    fadt.firmware_ctrl = low(facs).into();
    fadt.sci_int = u16::from(spec.sci).into();
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = if spec.rtc { CENTURY } else { 0 };
    fadt.iapc_boot_arch = if spec.rtc {
        BOOT_ARCH
    } else {
        BOOT_ARCH | BOOT_ARCH_NO_RTC
    }
    .into();
    let port = |(offset, len): (u16, u8)| {
        let port = spec.pm_base + offset;
        let gas = GAS::new(
            AddressSpace::SystemIo,
            len * 8,
            0,
            AccessSize::Undefined,
            u64::from(port),
        );
        (u32::from(port).into(), len, gas)
    };
    (fadt.pm1a_evt_blk, fadt.pm1_evt_len, fadt.x_pm1a_evt_blk) = port(PM1_EVENT);
    (fadt.pm1a_cnt_blk, fadt.pm1_cnt_len, fadt.x_pm1a_cnt_blk) = port(PM1_CONTROL);
    (fadt.pm_tmr_blk, fadt.pm_tmr_len, fadt.x_pm_tmr_blk) = port(PM_TIMER);
    if spec.cpu_hotplug || spec.dimm_slots > 0 {
        (fadt.gpe0_blk, fadt.gpe0_blk_len, fadt.x_gpe0_blk) = port(GPE0);
    }
    let (reset_port, reset_value) = spec.reset;
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(reset_port),
    );
    fadt.reset_value = reset_value;
    bytes_of(&fadt.finalize())
}

/// There are two 8259s beside the IOAPIC.
const PCAT_COMPATIBLE: u32 = 1;
/// MPS INTI flags: active high and level, as KVM's lines are.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
const AS_THE_BUS: u16 = 0;
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 1;
/// All processors' LINT1 is wired to the NMI.
const ALL_PROCESSORS: u8 = 0xff;
const LINT1: u8 = 1;

/// The entry for a processor: one that is not there may come.
pub(super) fn local_apic(uid: usize, id: u32, present: bool) -> Vec<u8> {
    let flags = if present { ENABLED } else { ONLINE_CAPABLE }.to_le_bytes();
    match (u8::try_from(uid), u8::try_from(id)) {
        (Ok(uid), Ok(id)) if id < u8::MAX => [&[0, 8, uid, id], &flags[..]].concat(),
        _ => {
            let uid = u32::try_from(uid).unwrap_or(u32::MAX).to_le_bytes();
            let id = id.to_le_bytes();
            [&[9, 16, 0, 0], &id[..], &flags[..], &uid[..]].concat()
        }
    }
}

pub(super) fn madt(spec: &AcpiSpec) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append(low(LAPIC));
    madt.append(PCAT_COMPATIBLE);
    for (uid, cpu) in spec.cpus.iter().enumerate() {
        madt.append_slice(&local_apic(uid, cpu.apic_id, cpu.present));
    }
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append(low(IOAPIC));
    madt.append(0u32);
    // The timer is on pin 2 (as the GSI table of KvmIrqs wires it), the SCI is level-triggered.
    for (source, gsi, flags) in [
        (0, 2, AS_THE_BUS),
        (spec.sci, u32::from(spec.sci), ACTIVE_HIGH_LEVEL),
    ] {
        madt.append_slice(&[2, 10, 0, source]);
        madt.append(gsi);
        madt.append(flags);
    }
    madt.append_slice(&[4, 6, ALL_PROCESSORS]);
    madt.append(AS_THE_BUS);
    madt.append(LINT1);
    madt.update_checksum();
    madt.as_slice().to_vec()
}

/// The low half of an address that lies below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}
