//! The registers with which a kernel is entered.
//!
//! Two protocols: Linux's 64-bit entry (`Documentation/arch/x86/boot.rst`, "64-bit boot
//! protocol") and PVH's 32-bit entry (`docs/misc/pvh.pandoc` of Xen). Both want flat segments
//! and interrupts off; the first also paging with an identity map, built here.

use devices::memory::GuestMemView;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Where the boot loader's tables lie: low RAM that no kernel is loaded over.
const GDT: u64 = 0x500;
const IDT: u64 = 0x520;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
/// Four directories of 512 entries of 2 MiB: the first 4 GiB.
const PD: u64 = 0xb000;
const DIRECTORIES: u64 = 4;

/// Segment descriptors: null, unused, code at 0x10, data at 0x18, TSS at 0x20 (boot.rst wants
/// code and data just there).
const GDT_64: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];
const GDT_32: [u64; 5] = [
    0,
    0,
    0x00cf_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
/// Bit 1 of the flags is always one.
const FLAGS: u64 = 2;

/// How the first vCPU enters what was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootEntry {
    /// Linux's 64-bit entry: `boot_params` in RSI.
    Linux64 {
        /// The first instruction.
        entry: u64,
        /// The address of `boot_params`.
        boot_params: u64,
    },
    /// PVH: 32-bit protected mode, `hvm_start_info` in EBX.
    Pvh {
        /// The first instruction.
        entry: u32,
        /// The address of `hvm_start_info`.
        start_info: u32,
    },
    /// The reset vector, 16 bytes below 4 GiB, in real mode: firmware's first instruction.
    ResetVector,
}

impl BootEntry {
    /// The general registers at the entry, from those after power-on.
    pub(super) fn regs(self, power_on: &kvm_regs) -> kvm_regs {
        match self {
            Self::Linux64 { entry, boot_params } => kvm_regs {
                rip: entry,
                rsi: boot_params,
                rflags: FLAGS,
                ..Default::default()
            },
            Self::Pvh { entry, start_info } => kvm_regs {
                rip: u64::from(entry),
                rbx: u64::from(start_info),
                rflags: FLAGS,
                ..Default::default()
            },
            Self::ResetVector => *power_on,
        }
    }

    /// The system registers at the entry, from those after power-on.
    pub(super) fn sregs(self, power_on: &kvm_sregs) -> kvm_sregs {
        let Some(gdt) = self.gdt() else {
            return *power_on;
        };
        let mut sregs = *power_on;
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 5 * 8 - 1;
        sregs.idt.base = IDT;
        sregs.idt.limit = 7;
        sregs.cs = segment(gdt, 2);
        let data = segment(gdt, 3);
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.fs, sregs.gs) = (data, data);
        sregs.tr = segment(gdt, 4);
        match self {
            Self::Linux64 { .. } => {
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.cr3 = PML4;
                sregs.cr4 = CR4_PAE;
                sregs.efer = EFER_LME | EFER_LMA;
            }
            Self::Pvh { .. } | Self::ResetVector => {
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr3 = 0;
                sregs.cr4 = 0;
                sregs.efer = 0;
            }
        }
        sregs
    }

    /// Writes the tables that the registers point to.
    ///
    /// # Errors
    /// Guest memory ends below 64 KiB.
    pub fn write_tables(self, memory: &GuestMemView) -> Result<(), GuestMemoryError> {
        let Some(gdt) = self.gdt() else {
            return Ok(());
        };
        for (address, &entry) in (GDT..).step_by(8).zip(gdt) {
            memory.write_obj(entry, GuestAddress(address))?;
        }
        memory.write_obj(0u64, GuestAddress(IDT))?;
        if matches!(self, Self::Pvh { .. }) {
            return Ok(());
        }
        memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
        for directory in 0..DIRECTORIES {
            let table = PD + directory * 0x1000;
            memory.write_obj(table | PRESENT_WRITABLE, GuestAddress(PDPT + directory * 8))?;
            let mut page = [0; 4096];
            for (slot, page) in (0..512).zip(page.chunks_exact_mut(8)) {
                let target = (directory << 30) | (slot << 21) | LARGE_PAGE | PRESENT_WRITABLE;
                page.copy_from_slice(&u64::to_le_bytes(target));
            }
            memory.write_slice(&page, GuestAddress(table))?;
        }
        Ok(())
    }

    /// The segments that the protocol wants, if there is one.
    fn gdt(self) -> Option<&'static [u64; 5]> {
        match self {
            Self::Linux64 { .. } => Some(&GDT_64),
            Self::Pvh { .. } => Some(&GDT_32),
            Self::ResetVector => None,
        }
    }
}

/// A descriptor as KVM wants it (Intel SDM volume 3, figure 3-8).
#[expect(
    clippy::cast_possible_truncation,
    reason = "bit fields taken apart: each is masked to its width"
)]
fn segment(gdt: &[u64; 5], index: u16) -> kvm_segment {
    let entry = gdt[usize::from(index)];
    let bits = |shift: u32, width: u32| (entry >> shift) & ((1 << width) - 1);
    let bit = |shift| bits(shift, 1) as u8;
    let limit = (bits(0, 16) | bits(48, 4) << 16) as u32;
    let granular = bit(55);
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if granular == 1 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        selector: index * 8,
        type_: bits(40, 4) as u8,
        s: bit(44),
        dpl: bits(45, 2) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: granular,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_64_bit_entry_has_long_code_and_flat_data() {
        let entry = BootEntry::Linux64 {
            entry: 0x10_0200,
            boot_params: 0x7000,
        };
        let sregs = entry.sregs(&kvm_sregs::default());
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!((sregs.ds.selector, sregs.ds.limit), (0x18, 0xffff_ffff));
        assert_eq!(sregs.tr.type_, 0xb);
        assert_eq!(entry.regs(&kvm_regs::default()).rsi, 0x7000);
    }

    #[test]
    fn the_pvh_entry_has_no_paging() {
        let entry = BootEntry::Pvh {
            entry: 0x10_0000,
            start_info: 0x6000,
        };
        let sregs = entry.sregs(&kvm_sregs::default());
        assert_eq!(sregs.cr0 & CR0_PG, 0);
        assert_eq!((sregs.cs.l, sregs.cs.db), (0, 1));
        assert_eq!(sregs.tr.limit, 0x67);
        assert_eq!(entry.regs(&kvm_regs::default()).rbx, 0x6000);
    }

    #[test]
    fn the_identity_map_covers_four_gibibytes() {
        let memory = GuestMemView::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let entry = BootEntry::Linux64 {
            entry: 0,
            boot_params: 0,
        };
        entry.write_tables(&memory).unwrap();
        let last: u64 = memory.read_obj(GuestAddress(PD + 4 * 0x1000 - 8)).unwrap();
        assert_eq!(last, 0xffe0_0000 | LARGE_PAGE | PRESENT_WRITABLE);
        let third: u64 = memory.read_obj(GuestAddress(PDPT + 16)).unwrap();
        assert_eq!(third, (PD + 0x2000) | PRESENT_WRITABLE);
    }
}
