//! SMBIOS 3.0: who made the machine, its UUID, CPUs and memory, for `dmidecode` and for guests
//! that read their identity from it.
//!
//! ```text
//!   "_SM3_" anchor ─► 0 firmware, 1 system, 3 chassis, 4 CPU…, 16 array, 17 device…, 19 range…,
//!                     32 boot, 127 end
//! ```
//!
//! Source: DMTF DSP0134, SMBIOS Reference Specification 3.6.

use crate::memory::layout::SMBIOS_TABLES;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A memory device of 32 GiB or more does not fit the old size member (7.18.5).
const SIZE_IN_EXTENDED: u64 = 0x7fff;
const ANCHOR: usize = 32;

/// What the tables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosSpec {
    /// The machine's UUID, most significant byte first; all zero if none was given.
    pub uuid: [u8; 16],
    /// The product's name, such as the machine type.
    pub product: String,
    /// How many sockets, and cores and threads in each.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a socket.
    pub threads: u32,
    /// CPUID leaf 1: EAX and EDX.
    pub cpu: (u32, u32),
    /// RAM as (address, bytes), lowest first.
    pub ram: Vec<(u64, u64)>,
}

/// The finished tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbiosTables {
    /// Where they belong; the anchor comes first.
    pub address: u64,
    /// The anchor and the structures.
    pub bytes: Vec<u8>,
}

/// Builds anchor and structures; `None` if they do not fit their place.
#[must_use]
pub fn build(spec: &SmbiosSpec) -> Option<SmbiosTables> {
    let structures = structures(spec);
    let address = SMBIOS_TABLES.start;
    let mut bytes = anchor(address + ANCHOR as u64, &structures);
    bytes.resize(ANCHOR, 0);
    bytes.extend_from_slice(&structures);
    let room = SMBIOS_TABLES.end - SMBIOS_TABLES.start;
    (bytes.len() as u64 <= room).then_some(SmbiosTables { address, bytes })
}

/// The structures one after the other.
#[must_use]
pub fn structures(spec: &SmbiosSpec) -> Vec<u8> {
    let mut table = Table::default();
    firmware(&mut table);
    system(spec, &mut table);
    chassis(&mut table);
    for socket in 0..spec.sockets.min(64) {
        processor(spec, socket, &mut table);
    }
    memory(spec, &mut table);
    table.add(32, 0x2000, &[0; 7], &[]);
    table.add(127, 0x7f00, &[], &[]);
    table.0
}

/// The 64-bit entry point (5.2.2) to `structures` at `address`; firmware that puts them elsewhere
/// makes its own.
#[must_use]
pub fn anchor(address: u64, structures: &[u8]) -> Vec<u8> {
    const LEN: u8 = 24;
    let mut bytes = b"_SM3_".to_vec();
    bytes.extend([0, LEN, 3, 0, 0, 1, 0]);
    let len = u32::try_from(structures.len()).unwrap_or(u32::MAX);
    bytes.extend(len.to_le_bytes());
    bytes.extend(address.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(5) {
        *checksum = sum.wrapping_neg();
    }
    bytes
}

/// Structures one after the other.
#[derive(Default)]
struct Table(Vec<u8>);

impl Table {
    /// Adds a structure: header, formatted part, strings (numbered from 1).
    fn add(&mut self, kind: u8, handle: u16, formatted: &[u8], strings: &[&str]) {
        let len = u8::try_from(formatted.len() + 4).unwrap_or(u8::MAX);
        self.0.extend([kind, len]);
        self.0.extend(handle.to_le_bytes());
        self.0.extend_from_slice(formatted);
        for string in strings {
            self.0.extend(string.bytes().filter(|&byte| byte != 0));
            self.0.push(0);
        }
        if strings.is_empty() {
            self.0.push(0);
        }
        self.0.push(0);
    }
}

/// Members of a formatted part, in order.
#[derive(Default)]
struct Members(Vec<u8>);

impl Members {
    fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn word(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn double(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn quad(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, values: &[u8]) -> Self {
        self.0.extend_from_slice(values);
        self
    }
}

fn firmware(table: &mut Table) {
    const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let members = Members::default()
        .bytes(&[1, 2])
        .word(0xe000)
        .bytes(&[3, 0])
        .quad(CHARACTERISTICS_NOT_SUPPORTED)
        .bytes(&[0, VIRTUAL_MACHINE])
        .bytes(&[0, 0, 0xff, 0xff]);
    let version = env!("CARGO_PKG_VERSION");
    table.add(0, 0, &members.0, &["Sesame", version, "01/01/2026"]);
}

fn system(spec: &SmbiosSpec, table: &mut Table) {
    const POWER_SWITCH: u8 = 6;
    let members = Members::default()
        .bytes(&[1, 2, 3, 0])
        .bytes(&wire_uuid(spec.uuid))
        .bytes(&[POWER_SWITCH, 0, 0]);
    let version = env!("CARGO_PKG_VERSION");
    table.add(1, 0x100, &members.0, &["Sesame", &spec.product, version]);
}

/// The first three fields of a UUID are little-endian here (7.2.1).
fn wire_uuid(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

fn chassis(table: &mut Table) {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const SECURITY_UNKNOWN: u8 = 2;
    let members = Members::default()
        .bytes(&[1, OTHER, 0, 0, 0])
        .bytes(&[SAFE, SAFE, SAFE, SECURITY_UNKNOWN])
        .double(0)
        .bytes(&[0, 0, 0, 0, 0]);
    table.add(3, 0x300, &members.0, &["Sesame"]);
}

fn processor(spec: &SmbiosSpec, socket: u32, table: &mut Table) {
    const CENTRAL: u8 = 3;
    const FAMILY_OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const UPGRADE_OTHER: u8 = 1;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    let count = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    let wide = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let (signature, features) = spec.cpu;
    let members = Members::default()
        .bytes(&[1, CENTRAL, FAMILY_OTHER, 2])
        .double(signature)
        .double(features)
        .byte(0)
        .byte(0)
        .word(0)
        .word(0)
        .word(0)
        .bytes(&[POPULATED_ENABLED, UPGRADE_OTHER])
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .bytes(&[0, 0, 0])
        .bytes(&[count(spec.cores), count(spec.cores), count(spec.threads)])
        .word(CAPABLE_64_BIT)
        .word(u16::from(FAMILY_OTHER))
        .word(wide(spec.cores))
        .word(wide(spec.cores))
        .word(wide(spec.threads));
    let handle = 0x400 + wide(socket);
    let name = format!("CPU {socket}");
    table.add(4, handle, &members.0, &[&name, "Sesame"]);
}

fn memory(spec: &SmbiosSpec, table: &mut Table) {
    const ARRAY: u16 = 0x1000;
    const NO_ERROR_HANDLE: u16 = 0xfffe;
    let total: u64 = spec.ram.iter().map(|&(_, bytes)| bytes).sum();
    let array = Members::default()
        // The system board's system memory, with multi-bit ECC.
        .bytes(&[3, 3, 6])
        .double(0x8000_0000)
        .word(NO_ERROR_HANDLE)
        .word(1)
        .quad(total);
    table.add(16, ARRAY, &array.0, &[]);
    device(total, ARRAY, table);
    for (handle, &(start, bytes)) in (0x1300u16..).zip(&spec.ram) {
        let range = Members::default()
            .double(u32::MAX)
            .double(u32::MAX)
            .word(ARRAY)
            .byte(1)
            .quad(start)
            .quad(start + bytes.saturating_sub(1));
        table.add(19, handle, &range.0, &[]);
    }
}

fn device(total: u64, array: u16, table: &mut Table) {
    const FORM_DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    const UNKNOWN_WIDTH: u16 = 0xffff;
    const NO_ERROR_HANDLE: u16 = 0xfffe;
    let mib = total / MIB;
    let (size, extended) = if total < MIB {
        // Bit 15: the unit is KiB.
        (0x8000 | u16::try_from(total / KIB).unwrap_or(0), 0)
    } else if mib < SIZE_IN_EXTENDED {
        (u16::try_from(mib).unwrap_or(0), 0)
    } else {
        (0x7fff, u32::try_from(mib).unwrap_or(0x7fff_ffff))
    };
    let members = Members::default()
        .word(array)
        .word(NO_ERROR_HANDLE)
        .word(UNKNOWN_WIDTH)
        .word(UNKNOWN_WIDTH)
        .word(size)
        .bytes(&[FORM_DIMM, 0, 1, 0, TYPE_RAM])
        .word(DETAIL_OTHER)
        .word(0)
        .bytes(&[2, 0, 0, 0, 0])
        .double(extended)
        .word(0)
        .word(0)
        .word(0)
        .word(0);
    table.add(17, 0x1100, &members.0, &["DIMM 0", "Sesame"]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn spec() -> SmbiosSpec {
        SmbiosSpec {
            uuid: [
                0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
                0xee, 0xff,
            ],
            product: "q35".into(),
            sockets: 2,
            cores: 2,
            threads: 4,
            cpu: (1, 2),
            ram: vec![(0, 2 << 30), (4 << 30, 62 << 30)],
        }
    }

    /// Formatted parts with their strings, by kind, walked as a kernel walks them.
    fn walk(bytes: &[u8]) -> BTreeMap<u8, Vec<Vec<u8>>> {
        let mut found = BTreeMap::<u8, Vec<Vec<u8>>>::new();
        let mut at = ANCHOR;
        while at < bytes.len() {
            let (kind, len) = (bytes[at], usize::from(bytes[at + 1]));
            let mut end = at + len;
            while bytes[end..end + 2] != [0, 0] {
                end += 1;
            }
            found
                .entry(kind)
                .or_default()
                .push(bytes[at..end + 2].to_vec());
            at = end + 2;
        }
        found
    }

    #[test]
    fn the_anchor_sums_to_zero_and_covers_the_structures() {
        let tables = build(&spec()).unwrap();
        let sum = tables.bytes[..24]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
        let len = u32::from_le_bytes(tables.bytes[12..16].try_into().unwrap());
        assert_eq!(len as usize, tables.bytes.len() - ANCHOR);
        assert_eq!(tables.address % 16, 0);
    }

    #[test]
    fn the_structures_are_whole_and_in_order() {
        let found = walk(&build(&spec()).unwrap().bytes);
        let counts: Vec<(u8, usize)> = found.iter().map(|(&k, v)| (k, v.len())).collect();
        assert_eq!(
            counts,
            [
                (0, 1),
                (1, 1),
                (3, 1),
                (4, 2),
                (16, 1),
                (17, 1),
                (19, 2),
                (32, 1),
                (127, 1)
            ]
        );
        // Lengths of the formatted parts as DSP0134 gives them for version 3.0.
        for (kind, len) in [
            (0, 24),
            (1, 27),
            (3, 22),
            (4, 48),
            (16, 23),
            (17, 40),
            (19, 31),
        ] {
            assert_eq!(found[&kind][0][1], len, "type {kind}");
        }
    }

    #[test]
    fn the_uuid_and_the_memory_are_told() {
        let found = walk(&build(&spec()).unwrap().bytes);
        let uuid = &found[&1][0][8..24];
        assert_eq!(uuid[..8], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(uuid[8], 0x88);
        let device = &found[&17][0];
        assert_eq!(device[0xc..0xe], [0xff, 0x7f]);
        assert_eq!(device[0x1c..0x20], u32::to_le_bytes(64 << 10));
    }
}
