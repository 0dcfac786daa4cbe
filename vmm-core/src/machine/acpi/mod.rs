//! The ACPI tables: how an operating system learns what this machine is made of.
//!
//! ```text
//!   RSDP ─► XSDT ─┬─► FADT ─┬─► DSDT   PCI0, LPC with COMs and RTC, pvpanic, CPUs, _S5
//!                 │         └─► FACS
//!                 ├─► MADT   local APICs, IOAPIC, ISA overrides
//!                 ├─► MCFG   the ECAM window
//!                 ├─► SRAT, SLIT, HMAT   NUMA nodes, where there are some
//!                 ├─► SSDT   the VM generation id, if there is one
//!                 └─► TPM2, SSDT   the TPM, if there is one
//! ```
//!
//! Without firmware all lie in one piece of the ROM area, where the search of the BIOS era finds
//! the RSDP too ([`build`]). Firmware puts them where it likes ([`build_linked`]): in place of
//! addresses they then have offsets, and a script says which numbers these are.
//! Source: ACPI 6.5; PCI Firmware Specification 3.3 for `_OSC` and MCFG.
//!
//! Read next: [`dsdt`] (the devices), [`cpus`] and `dimms` (what comes and goes), [`tables`] (the fixed
//! tables), [`linker`] (the script).

pub mod cpus;
mod dimms;
pub mod dsdt;
pub mod linker;
mod numa;
mod places;
pub mod tables;
pub mod tpm;
pub mod vmgenid;

use acpi_tables::{Aml, facs::FACS, mcfg::MCFG, rsdp::Rsdp, xsdt::XSDT};
use devices::legacy::vmgenid::{FILE as PLACE_FILE, LEN as PLACE_LEN};

use super::numa::NumaSpec;
use crate::memory::Layout;
use crate::memory::layout::{ACPI_TABLES, ECAM, GENERATION};

use self::linker::{Linker, Zone};

/// The names that firmware knows of the tables, of the RSDP, and of the script.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// See [`TABLES_FILE`].
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// See [`TABLES_FILE`].
pub const SCRIPT_FILE: &str = "etc/table-loader";
/// The page with the VM generation id, as a file.
pub const GENERATION_FILE: &str = "etc/vmgenid_guid";

/// What a table begins at a multiple of; the FACS must.
const TABLE_ALIGN: usize = 64;
/// Where a table's checksum is.
const CHECKSUM: usize = 9;
/// The RSDP's length, where it names the XSDT, and its two checksums with what they cover.
const RSDP_LEN: usize = 36;
const RSDP_XSDT: u32 = 24;
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, RSDP_LEN)];

const OEM: [u8; 6] = *b"SESAME";
const OEM_TABLE: [u8; 8] = *b"SESAME35";
const OEM_REVISION: u32 = 1;

/// A 16550 as the DSDT names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Its number, from 0 for COM1.
    pub index: u8,
    /// Its first port.
    pub port: u16,
    /// Its ISA interrupt.
    pub irq: u8,
}

/// A place for a vCPU as the tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuEntry {
    /// Its APIC id.
    pub apic_id: u32,
    /// Whether the vCPU is there.
    pub present: bool,
}

/// What the tables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Each place for a vCPU, the boot CPU's first.
    pub cpus: Vec<CpuEntry>,
    /// Whether vCPUs come and go.
    pub cpu_hotplug: bool,
    /// How many places for memory modules there are.
    pub dimm_slots: u32,
    /// The NUMA nodes, if there are some.
    pub numa: Option<NumaSpec>,
    /// Where the PCI windows lie.
    pub layout: Layout,
    /// The highest PCI bus there is. Linux probes every slot of every bus up to the last one that
    /// the MCFG names, 64 exits for an empty bus: naming all 256 costs more exits than the rest
    /// of its boot.
    pub last_bus: u8,
    /// The GSIs of the root bus' wires INTA to INTD.
    pub intx: [u32; 4],
    /// The first port of the power management block.
    pub pm_base: u16,
    /// The system control interrupt's GSI.
    pub sci: u8,
    /// The value of SLP_TYP that powers the machine off.
    pub s5_type: u8,
    /// The port that resets the machine, and the value that does.
    pub reset: (u16, u8),
    /// The serial ports that exist.
    pub serials: Vec<SerialPort>,
    /// Whether there is a CMOS clock.
    pub rtc: bool,
    /// The panic notifier's port, if there is one.
    pub pvpanic: Option<u16>,
    /// The first port of fw_cfg.
    pub fw_cfg: u16,
    /// Whether the machine has a generation id.
    pub generation: bool,
    /// Where the TPM is, if there is one.
    pub tpm: Option<tpm::TpmPlace>,
}

/// The finished tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// The RSDP's address; all tables begin here.
    pub rsdp: u64,
    /// The tables, to be written from there on.
    pub bytes: Vec<u8>,
}

/// Builds all tables; `None` if they do not fit their place (hundreds of vCPUs).
#[must_use]
pub fn build(spec: &AcpiSpec) -> Option<AcpiTables> {
    let mut blob = Blob::new(ACPI_TABLES.start);
    // The RSDP comes first, but names the XSDT's address: its place is kept.
    let place = blob.add(&[0; RSDP_LEN]);
    let xsdt = fill(spec, &mut blob, u32::try_from(GENERATION.start).ok()?);
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    blob.bytes.get_mut(..rsdp.len())?.copy_from_slice(&rsdp);
    let room = ACPI_TABLES.end - ACPI_TABLES.start;
    (blob.bytes.len() as u64 <= room).then_some(AcpiTables {
        rsdp: place,
        bytes: blob.bytes,
    })
}

/// The tables for firmware, as files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkedTables {
    /// [`TABLES_FILE`].
    pub tables: Vec<u8>,
    /// [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// [`SCRIPT_FILE`].
    pub script: Vec<u8>,
}

/// Builds all tables, to be put together by firmware.
#[must_use]
pub fn build_linked(spec: &AcpiSpec) -> LinkedTables {
    let mut blob = Blob::new(0);
    let xsdt = fill(spec, &mut blob, 0);
    let mut rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    let mut script = Linker::default();
    script.allocate(RSDP_FILE, 16, Zone::Anchors);
    script.allocate(TABLES_FILE, short(TABLE_ALIGN), Zone::High);
    if spec.generation {
        script.allocate(GENERATION_FILE, 4096, Zone::High);
    }
    for &(at, size, to) in &blob.pointers {
        script.add_pointer(TABLES_FILE, short(at), size, to);
    }
    script.add_pointer(RSDP_FILE, RSDP_XSDT, 8, TABLES_FILE);
    for &(start, len) in &blob.linked {
        clear(&mut blob.bytes, start + CHECKSUM);
        let at = short(start + CHECKSUM);
        script.add_checksum(TABLES_FILE, at, short(start), short(len));
    }
    for (at, len) in RSDP_CHECKSUMS {
        clear(&mut rsdp, at);
        script.add_checksum(RSDP_FILE, short(at), 0, short(len));
    }
    if spec.generation {
        let of = vmgenid::OFFSET.into();
        script.write_pointer(PLACE_FILE, 0, PLACE_LEN, GENERATION_FILE, of);
    }
    LinkedTables {
        tables: blob.bytes,
        rsdp,
        script: script.bytes().to_vec(),
    }
}

fn clear(bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = 0;
    }
}

fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Adds every table but the RSDP, with the VM generation id in the page at `page`; returns the
/// XSDT's address.
fn fill(spec: &AcpiSpec, blob: &mut Blob, page: u32) -> u64 {
    let facs = blob.add(&bytes_of(&FACS::new()));
    let dsdt = blob.add(&dsdt::build(spec));
    let fadt = blob.add_linked(&tables::fadt(spec, facs, dsdt), tables::FADT_POINTERS);
    let madt = blob.add(&tables::madt(spec));
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, spec.last_bus);
    let mcfg = blob.add(&bytes_of(&mcfg));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    let mut entries = vec![fadt, madt, mcfg];
    for table in numa::build(spec) {
        entries.push(blob.add(&table));
    }
    if spec.generation {
        let (ssdt, at) = vmgenid::build(page);
        entries.push(blob.add_linked(&ssdt, &[(at, 4)]));
        if let Some((.., to)) = blob.pointers.last_mut() {
            *to = GENERATION_FILE;
        }
    }
    if let Some(place) = spec.tpm {
        entries.push(blob.add(&tpm::tpm2(place)));
        entries.push(blob.add(&tpm::ssdt(place)));
    }
    for table in &entries {
        xsdt.add_entry(*table);
    }
    let places = (tables::HEADER..).step_by(8).zip(&entries);
    let places: Vec<_> = places.map(|(at, _)| (at, 8)).collect();
    blob.add_linked(&bytes_of(&xsdt), &places)
}

/// Tables one after the other, each at a multiple of [`TABLE_ALIGN`].
struct Blob {
    start: u64,
    bytes: Vec<u8>,
    /// Where tables have addresses, how many bytes each takes, and into which file it points.
    pointers: Vec<(usize, u8, &'static str)>,
    /// The tables that have some: where each begins, and its length.
    linked: Vec<(usize, usize)>,
}

impl Blob {
    fn new(start: u64) -> Self {
        Self {
            start,
            bytes: Vec::new(),
            pointers: Vec::new(),
            linked: Vec::new(),
        }
    }

    /// Adds a table and returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let end = self.bytes.len().next_multiple_of(TABLE_ALIGN);
        self.bytes.resize(end, 0);
        let address = self.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }

    /// The same with a table that has addresses of others at `pointers`, each with its width.
    fn add_linked(&mut self, table: &[u8], pointers: &[(usize, u8)]) -> u64 {
        let address = self.add(table);
        let start = self.bytes.len() - table.len();
        let places = pointers
            .iter()
            .map(|&(at, size)| (start + at, size, TABLES_FILE));
        self.pointers.extend(places);
        self.linked.push((start, table.len()));
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn spec() -> AcpiSpec {
        AcpiSpec {
            cpus: cpus(&[true, true]),
            cpu_hotplug: false,
            dimm_slots: 0,
            numa: None,
            layout: Layout::new(1 << 30, 40).unwrap(),
            last_bus: 3,
            intx: [16, 17, 18, 19],
            pm_base: 0x600,
            sci: 9,
            s5_type: 0,
            reset: (0xcf9, 6),
            serials: vec![SerialPort {
                index: 0,
                port: 0x3f8,
                irq: 4,
            }],
            rtc: true,
            pvpanic: Some(0x505),
            fw_cfg: 0x510,
            generation: false,
            tpm: None,
        }
    }

    fn cpus(present: &[bool]) -> Vec<CpuEntry> {
        let entry = |(apic_id, present): (u32, &bool)| CpuEntry {
            apic_id,
            present: *present,
        };
        (0..).zip(present).map(entry).collect()
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// All tables that the RSDP leads to, by signature.
    fn walk(tables: &AcpiTables) -> Vec<(String, Vec<u8>)> {
        let at = |address: u64| {
            let start = usize::try_from(address - tables.rsdp).unwrap();
            let len = word(&tables.bytes, start + 4) as usize;
            tables.bytes[start..start + len].to_vec()
        };
        let xsdt = at(long(&tables.bytes, 24));
        let mut found = vec![xsdt.clone()];
        for entry in xsdt[36..].chunks(8) {
            let table = at(u64::from_le_bytes(entry.try_into().unwrap()));
            if &table[..4] == b"FACP" {
                found.push(at(long(&table, 140)));
            }
            found.push(table);
        }
        found
            .into_iter()
            .map(|table| (String::from_utf8(table[..4].to_vec()).unwrap(), table))
            .collect()
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        let tables = build(&AcpiSpec {
            generation: true,
            tpm: Some(tpm::TpmPlace {
                base: 0xfed4_0000,
                len: 0x1000,
                control_area: 0xfed4_0040,
            }),
            ..spec()
        })
        .unwrap();
        assert_eq!(sum(&tables.bytes[..20]), 0);
        assert_eq!(sum(&tables.bytes[..36]), 0);
        let found = walk(&tables);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "XSDT", "DSDT", "FACP", "APIC", "MCFG", "SSDT", "TPM2", "SSDT"
            ]
        );
        for (name, table) in &found {
            assert_eq!(sum(table), 0, "{name}");
        }
    }

    #[test]
    fn a_machine_with_places_for_modules_has_events_and_the_registers_for_them() {
        let tables = build(&AcpiSpec {
            dimm_slots: 2,
            ..spec()
        });
        let found = walk(&tables.unwrap());
        let table = |wanted: &str| &found.iter().find(|(name, _)| name == wanted).unwrap().1;
        // GPE0_BLK and its length.
        let fadt = table("FACP");
        assert_eq!((word(fadt, 80), fadt[92]), (0x620, 16));
        let has = |name: &[u8]| table("DSDT").windows(4).any(|bytes| bytes == name);
        assert_eq!(
            [b"_E03", b"M000", b"M001", b"M002"].map(|name| has(name)),
            [true, true, true, false]
        );
    }

    #[test]
    fn the_tables_are_those_of_the_golden_dump() {
        let mut dump = String::new();
        for (name, table) in walk(&build(&spec()).unwrap()) {
            writeln!(dump, "{name}").unwrap();
            for line in table.chunks(32) {
                let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(dump, "  {hex}").unwrap();
            }
        }
        assert_eq!(
            dump,
            include_str!("golden.txt"),
            "if the change is meant, this is the new golden.txt:\n{dump}"
        );
    }

    /// Where firmware puts the page with the generation id.
    const PAGE: u64 = 0x1234_5000;

    /// What firmware does with the script: the tables at `base`, the RSDP's bytes.
    fn follow(linked: &LinkedTables, base: u64) -> AcpiTables {
        let (mut tables, mut rsdp) = (linked.tables.clone(), linked.rsdp.clone());
        let (mut page, mut place) = (vec![0; 4096], vec![0; 8]);
        let name = |entry: &[u8], at: usize| {
            let bytes = &entry[at..at + 56];
            let end = bytes.iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8(bytes[..end].to_vec()).unwrap()
        };
        let mut commands = Vec::new();
        for entry in linked.script.chunks(128) {
            assert_eq!(entry.len(), 128);
            let file = match name(entry, 4).as_str() {
                TABLES_FILE => &mut tables,
                RSDP_FILE => &mut rsdp,
                GENERATION_FILE => &mut page,
                PLACE_FILE => &mut place,
                other => panic!("{other}"),
            };
            commands.push(word(entry, 0));
            match word(entry, 0) {
                1 => {}
                2 => {
                    let base = match name(entry, 60).as_str() {
                        TABLES_FILE => base,
                        GENERATION_FILE => PAGE,
                        other => panic!("{other}"),
                    };
                    let (at, size) = (word(entry, 116) as usize, usize::from(entry[120]));
                    let mut number = [0; 8];
                    number[..size].copy_from_slice(&file[at..at + size]);
                    let address = u64::from_le_bytes(number) + base;
                    file[at..at + size].copy_from_slice(&address.to_le_bytes()[..size]);
                }
                3 => {
                    let [at, start, len] = [60, 64, 68].map(|at| word(entry, at) as usize);
                    file[at] = sum(&file[start..start + len]).wrapping_neg();
                }
                4 => {
                    assert_eq!(name(entry, 60), GENERATION_FILE);
                    let [at, of] = [116, 120].map(|at| word(entry, at));
                    let (at, size) = (at as usize, usize::from(entry[124]));
                    let address = (PAGE + u64::from(of)).to_le_bytes();
                    file[at..at + size].copy_from_slice(&address[..size]);
                }
                other => panic!("command {other}"),
            }
        }
        assert_eq!(commands[..2], [1, 1], "memory first");
        if commands.contains(&4) {
            assert_eq!(long(&place, 0), PAGE + u64::from(vmgenid::OFFSET));
        }
        rsdp.resize(64, 0);
        AcpiTables {
            rsdp: base - 64,
            bytes: [rsdp, tables].concat(),
        }
    }

    #[test]
    fn firmware_that_follows_the_script_has_the_same_tables() {
        let spec = AcpiSpec {
            generation: true,
            ..spec()
        };
        let linked = build_linked(&spec);
        let found = walk(&follow(&linked, 0x7f00_0000));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["XSDT", "DSDT", "FACP", "APIC", "MCFG", "SSDT"]);
        let (_, ssdt) = found.last().unwrap();
        let at = ssdt.windows(4).position(|four| four == b"VGIA").unwrap();
        assert_eq!(u64::from(word(ssdt, at + 5)), PAGE);
        assert!(
            linked
                .script
                .windows(PLACE_FILE.len())
                .any(|name| name == PLACE_FILE.as_bytes())
        );
        for (name, table) in &found {
            assert_eq!(sum(table), 0, "{name}");
        }
        let own = walk(&build(&spec).unwrap());
        let alike = |name: &str| ["DSDT", "APIC", "MCFG"].contains(&name);
        for (name, table) in own.iter().filter(|(name, _)| alike(name)) {
            assert!(found.contains(&(name.clone(), table.clone())), "{name}");
        }
        let rsdp = follow(&linked, 0x7f00_0000).bytes;
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0));
    }

    #[test]
    fn the_most_vcpus_a_machine_can_have_fit() {
        let spec = AcpiSpec {
            cpus: cpus(&[true; 255]),
            cpu_hotplug: true,
            ..spec()
        };
        assert!(build(&spec).is_some());
    }

    #[test]
    fn a_place_without_a_vcpu_is_told_as_one_that_may_come() {
        let spec = AcpiSpec {
            cpus: cpus(&[true, false]),
            cpu_hotplug: true,
            ..spec()
        };
        let found = walk(&build(&spec).unwrap());
        let table = |wanted: &str| &found.iter().find(|(name, _)| name == wanted).unwrap().1;
        let madt = table("APIC");
        assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!(madt[52..60], [0, 8, 1, 1, 2, 0, 0, 0]);
        let fadt = table("FACP");
        assert_eq!((word(fadt, 80), fadt[92]), (0x620, 16));
        let dsdt = table("DSDT");
        let has = |text: &[u8]| dsdt.windows(text.len()).any(|window| window == text);
        assert!(has(b"_E02") && has(b"C001") && has(b"_EJ0"));
        // The boot CPU cannot go.
        assert_eq!(
            dsdt.windows(4).filter(|window| window == b"_EJ0").count(),
            1
        );
    }

    #[test]
    fn without_an_i8042_the_fadt_does_not_claim_one() {
        let tables = walk(&build(&spec()).unwrap());
        let (_, fadt) = tables.iter().find(|(name, _)| name == "FACP").unwrap();
        let boot = u16::from_le_bytes([fadt[109], fadt[110]]);
        assert_eq!(boot & 0b10, 0);
        assert_eq!((fadt[128], long(fadt, 120)), (6, 0xcf9));
    }
}
