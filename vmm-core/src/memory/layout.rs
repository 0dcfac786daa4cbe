//! The guest's physical address space, as a q35 machine has it.
//!
//! ```text
//!   0x0_0000_0000  RAM (the last KiB below 640 KiB and 0xa0000..0x100000 are not for the kernel)
//!   low_end        a hole, from 2 GiB or 0xb000_0000
//!   0x0_b000_0000  ECAM, 256 MiB: PCI configuration space
//!   0x0_c000_0000  32-bit PCI window, to
//!   0x0_fec0_0000  IOAPIC; 0xfee0_0000 LAPIC; 0xfeff_c000 KVM's own pages; 0xff00_0000 firmware
//!   0x1_0000_0000  the rest of RAM
//!   devices        room for memory devices, from the next GiB, where there is some
//!   pci64          64-bit PCI window, from the next GiB
//! ```
//!
//! As in QEMU, RAM that would reach the ECAM is cut at 2 GiB already, so that what lies below
//! 4 GiB is a round number.

use std::ops::Range;

/// PCI configuration space of 256 buses.
pub const ECAM: Range<u64> = 0xb000_0000..0xc000_0000;
/// Where 32-bit BARs go.
pub const PCI32: Range<u64> = 0xc000_0000..0xfec0_0000;
/// The IOAPIC's page.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs' page.
pub const LAPIC: u64 = 0xfee0_0000;
/// KVM's identity map and task state pages, and the page before the flash window's end.
pub const KVM_PAGES: Range<u64> = 0xfeff_c000..0xff00_0000;
/// Where a machine with firmware has it.
pub const FLASH: Range<u64> = 0xff00_0000..0x1_0000_0000;
/// The end of RAM that programs of the real mode may use; the EBDA begins.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ROM area: nothing for the kernel to allocate from; firmware tables lie here.
pub const ROM: Range<u64> = 0xa_0000..0x10_0000;
/// ACPI tables.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// SMBIOS: anchor and table.
pub const SMBIOS_TABLES: Range<u64> = 0xf_0000..0xf_f000;
/// The page with the VM generation id.
pub const GENERATION: Range<u64> = 0xf_f000..0x10_0000;
/// One mebibyte: kernels are loaded from here up.
pub const HIGH_RAM: u64 = 0x10_0000;

const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 * GIB;
const SPLIT_AT: u64 = 0x8000_0000;
const PCI64_SIZE: u64 = 256 * GIB;

/// Where RAM and the windows of one machine lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// RAM from address 0, in bytes.
    pub low: u64,
    /// RAM from 4 GiB, in bytes.
    pub high: u64,
    /// Where memory devices go; empty on a machine that takes none.
    pub devices: Range<u64>,
    /// Where 64-bit BARs go; empty if the CPU's addresses end before.
    pub pci64: Range<u64>,
}

impl Layout {
    /// The layout for `ram` bytes of RAM on a CPU with `physical_bits` of address; `None` if the
    /// RAM does not fit.
    #[must_use]
    pub fn new(ram: u64, physical_bits: u32) -> Option<Self> {
        Self::with_devices(ram, 0, physical_bits)
    }

    /// The same with `room` bytes for memory devices.
    #[must_use]
    pub fn with_devices(ram: u64, room: u64, physical_bits: u32) -> Option<Self> {
        let limit = 1u64.checked_shl(physical_bits.min(52))?;
        let low = if ram >= ECAM.start { SPLIT_AT } else { ram };
        let high = ram - low;
        let high_end = FOUR_GIB.checked_add(high).filter(|&end| {
            // Without high RAM the CPU need not reach beyond 4 GiB.
            high == 0 || end <= limit
        })?;
        let start = high_end.checked_next_multiple_of(GIB)?;
        let room_end = start.checked_add(room).filter(|&end| {
            // Without room the CPU need not reach it.
            room == 0 || end <= limit
        })?;
        let devices = start..room_end;
        let start = room_end.checked_next_multiple_of(GIB)?.min(limit);
        let end = start.saturating_add(PCI64_SIZE).min(limit);
        Some(Self {
            low,
            high,
            devices,
            pci64: start..end.max(start),
        })
    }

    /// RAM as (address, length), lowest first.
    #[must_use]
    pub fn ram(&self) -> Vec<(u64, u64)> {
        [(0, self.low), (FOUR_GIB, self.high)]
            .into_iter()
            .filter(|&(_, len)| len > 0)
            .collect()
    }

    /// RAM dealt out to owners of so many bytes each, one after the other: each one's pieces, as
    /// (address, length).
    #[must_use]
    pub fn deal(&self, sizes: &[u64]) -> Vec<Vec<(u64, u64)>> {
        let mut pieces = self.ram().into_iter();
        let mut piece = pieces.next();
        let mut dealt = Vec::new();
        for size in sizes {
            let mut left = *size;
            let mut own = Vec::new();
            while let Some((start, len)) = piece.filter(|_| left > 0) {
                let taken = left.min(len);
                own.push((start, taken));
                left -= taken;
                piece = if taken == len {
                    pieces.next()
                } else {
                    Some((start.saturating_add(taken), len - taken))
                };
            }
            dealt.push(own);
        }
        dealt
    }

    /// The map that the boot loader hands to the kernel, lowest first.
    #[must_use]
    pub fn e820(&self) -> Vec<E820Entry> {
        let entry = |range: Range<u64>, kind| E820Entry {
            start: range.start,
            len: range.end.saturating_sub(range.start),
            kind,
        };
        let mut map = vec![
            entry(0..self.low.min(LOW_RAM_END), E820Kind::Ram),
            entry(LOW_RAM_END..ROM.start, E820Kind::Reserved),
            entry(ROM.start + 0x4_0000..ROM.end, E820Kind::Reserved),
            entry(HIGH_RAM..self.low, E820Kind::Ram),
            entry(ECAM, E820Kind::Reserved),
            entry(KVM_PAGES, E820Kind::Reserved),
            entry(FOUR_GIB..FOUR_GIB + self.high, E820Kind::Ram),
        ];
        map.retain(|entry| entry.len > 0);
        map
    }
}

/// One range of the memory map (ACPI 6.5, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// The first address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is for.
    pub kind: E820Kind,
}

impl E820Entry {
    /// The length of [`to_bytes`](Self::to_bytes).
    pub const LEN: usize = 20;

    /// As boot loaders and fw_cfg hand it over.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (start, rest) = bytes.split_at_mut(8);
        let (len, kind) = rest.split_at_mut(8);
        start.copy_from_slice(&self.start.to_le_bytes());
        len.copy_from_slice(&self.len.to_le_bytes());
        kind.copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }
}

/// What a range is for; the numbers are e820's, which PVH shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ram_that_would_reach_the_ecam_is_cut_at_two_gibibytes() {
        let below = Layout::new(0xb000_0000 - 0x1000, 40).unwrap();
        assert_eq!((below.low, below.high), (0xafff_f000, 0));
        let at = Layout::new(0xb000_0000, 40).unwrap();
        assert_eq!((at.low, at.high), (0x8000_0000, 0x3000_0000));
        assert_eq!(at.pci64.start, 0x1_4000_0000);
        assert_eq!(at.ram(), [(0, 0x8000_0000), (FOUR_GIB, 0x3000_0000)]);
    }

    #[test]
    fn room_for_memory_devices_lies_between_ram_and_the_window_for_bars() {
        let layout = Layout::with_devices(3 * GIB + 4096, 5 * GIB / 2, 40).unwrap();
        assert_eq!(layout.devices, 6 * GIB..6 * GIB + 5 * GIB / 2);
        assert_eq!(layout.pci64.start, 9 * GIB);
        assert!(Layout::new(GIB, 40).unwrap().devices.is_empty());
        assert_eq!(Layout::with_devices(GIB, 1 << 40, 40), None);
        assert_eq!(Layout::with_devices(GIB, u64::MAX, 52), None);
    }

    #[test]
    fn ram_beyond_the_cpus_addresses_is_refused() {
        assert_eq!(Layout::new(1 << 36, 36), None);
        assert!(Layout::new(1 << 30, 32).is_some_and(|layout| layout.pci64.is_empty()));
    }

    #[test]
    fn the_memory_map_of_a_small_machine() {
        let map = Layout::new(512 << 20, 40).unwrap().e820();
        let ram: Vec<_> = map.iter().filter(|e| e.kind == E820Kind::Ram).collect();
        assert_eq!(ram.len(), 2);
        assert_eq!((ram[0].start, ram[0].len), (0, LOW_RAM_END));
        assert_eq!((ram[1].start, ram[1].len), (HIGH_RAM, (511 << 20)));
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_all_ram_is_there(pages in 0x400u64..(1 << 28), bits in 36u32..53) {
            let ram = pages << 12;
            let Some(layout) = Layout::new(ram, bits) else {
                prop_assert!(ram > (1 << bits) - FOUR_GIB);
                return Ok(());
            };
            prop_assert_eq!(layout.low + layout.high, ram);
            prop_assert!(layout.low <= ECAM.start);
            prop_assert!(layout.pci64.start >= FOUR_GIB + layout.high || layout.pci64.is_empty());
            prop_assert!(layout.pci64.end <= 1 << bits);
            let map = layout.e820();
            for pair in map.windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            let usable: u64 = map.iter().filter(|e| e.kind == E820Kind::Ram).map(|e| e.len).sum();
            prop_assert_eq!(usable, ram - (HIGH_RAM - LOW_RAM_END));
        }
    }
}
