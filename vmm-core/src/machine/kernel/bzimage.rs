//! Linux bzImages by the 64-bit boot protocol (`Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`; the offsets below are theirs).
//!
//! ```text
//!   file:   | boot sector + setup code | protected-mode kernel …
//!             0x1f1 setup header         └─► RAM at its preferred address; entry at + 0x200
//!                    └─► copied into boot_params at 0x7000
//! ```

use std::os::fd::AsFd;

use devices::memory::GuestMemView;
use fdset::OpenFile;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, CMDLINE, Handover, number, read_at, unreadable};
use crate::kvm::BootEntry;
use crate::memory::layout::{E820Entry, HIGH_RAM};
use crate::memory::{Layout, load};

const BOOT_PARAMS: u64 = 0x7000;
const BOOT_PARAMS_LEN: usize = 4096;
const SECTOR: u64 = 512;
/// Where the 64-bit entry is behind the start of the protected-mode kernel.
const ENTRY_64: u64 = 0x200;

/// Offsets of the setup header, the same in the file and in `boot_params`.
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_LEN: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const HEADER_END: usize = 0x264;

/// Offsets that only `boot_params` has.
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;

const BOOT_FLAG_VALUE: u64 = 0xaa55;
const OLDEST: u64 = 0x20c;
const XLF_KERNEL_64: u64 = 1;
const LOADED_HIGH: u64 = 1;
/// "Undefined" loader, for those without a number of their own.
const LOADER: u8 = 0xff;

/// The checked headers of a bzImage.
#[derive(Debug, PartialEq, Eq)]
pub struct BzImage {
    /// Where the protected-mode kernel begins in the file.
    offset: u64,
    /// How long it is.
    len: u64,
    /// Where the setup header ends.
    header_end: usize,
    /// Where it wants to be.
    preferred: u64,
    /// How much memory it needs from there on before it knows the memory map.
    init_size: u64,
    relocatable: bool,
    alignment: u64,
    initrd_addr_max: u64,
    cmdline_size: usize,
}

impl BzImage {
    /// Reads the headers in `head`, the beginning of a file of `size` bytes; `None` if it is not
    /// a bzImage that can be entered in 64-bit mode.
    pub(super) fn parse(head: &[u8], size: u64) -> Result<Option<Self>, BootError> {
        let is_linux = head.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
            && number::<2>(head, BOOT_FLAG) == BOOT_FLAG_VALUE;
        if !is_linux
            || number::<2>(head, VERSION) < OLDEST
            || number::<2>(head, XLOADFLAGS) & XLF_KERNEL_64 == 0
            || number::<1>(head, LOADFLAGS) & LOADED_HIGH == 0
        {
            return Ok(None);
        }
        let sectors = match number::<1>(head, SETUP_SECTS) {
            0 => 4,
            sectors => sectors,
        };
        let offset = (sectors + 1) * SECTOR;
        let len = size.saturating_sub(offset);
        if len <= ENTRY_64 {
            return Err(damaged(format!(
                "the file ends at {size}, the kernel begins at {offset}"
            )));
        }
        let alignment = number::<4>(head, KERNEL_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(damaged(format!("its alignment is {alignment:#x}")));
        }
        let jump = usize::from(head.get(JUMP_LEN).copied().unwrap_or(0));
        Ok(Some(Self {
            offset,
            len,
            header_end: (MAGIC + jump).max(HEADER_END),
            preferred: number::<8>(head, PREF_ADDRESS),
            init_size: number::<4>(head, INIT_SIZE),
            relocatable: number::<1>(head, RELOCATABLE) != 0,
            alignment,
            initrd_addr_max: number::<4>(head, INITRD_ADDR_MAX),
            cmdline_size: usize::try_from(number::<4>(head, CMDLINE_SIZE)).unwrap_or(0),
        }))
    }

    /// Where the protected-mode kernel begins in its file, behind the setup code, and its length.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.offset, self.len)
    }

    pub(super) fn cmdline_max(&self) -> usize {
        self.cmdline_size
    }

    /// The first address that an initrd must not reach.
    pub(super) fn initrd_limit(&self) -> u64 {
        self.initrd_addr_max.saturating_add(1)
    }

    /// Where it is loaded: where it likes to be, or as low as it can.
    fn address(&self, layout: &Layout) -> Result<u64, BootError> {
        let need = self.init_size.max(self.len);
        let fits = |start: u64| start.checked_add(need).is_some_and(|end| end <= layout.low);
        let lowest = HIGH_RAM.next_multiple_of(self.alignment);
        let preferred = self.preferred.max(HIGH_RAM);
        if fits(preferred) {
            Ok(preferred)
        } else if self.relocatable && fits(lowest) {
            Ok(lowest)
        } else {
            let start = if self.relocatable { lowest } else { preferred };
            Err(BootError::KernelTooLarge {
                end: start.saturating_add(need),
                ram: layout.low,
            })
        }
    }

    /// Loads the kernel; returns the first address behind what it needs.
    pub(super) fn load(
        &self,
        file: &OpenFile,
        memory: &GuestMemView,
        layout: &Layout,
    ) -> Result<u64, BootError> {
        let start = self.address(layout)?;
        load::pread(memory, start, file.as_fd(), self.offset, self.len).map_err(unreadable)?;
        Ok(start + self.init_size.max(self.len))
    }

    /// Writes `boot_params`.
    pub(super) fn hand_over(
        &self,
        file: &OpenFile,
        layout: &Layout,
        handover: &Handover<'_>,
    ) -> Result<BootEntry, BootError> {
        let mut params = vec![0; BOOT_PARAMS_LEN];
        if let Some(header) = params.get_mut(SETUP_SECTS..self.header_end) {
            read_at(file, header, SETUP_SECTS as u64)?;
        }
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = params.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(TYPE_OF_LOADER, &[LOADER]);
        put(ACPI_RSDP_ADDR, &handover.rsdp.to_le_bytes());
        put(CMD_LINE_PTR, &short(CMDLINE));
        put(CMDLINE_SIZE, &handover.cmdline_len.to_le_bytes());
        let (initrd, size) = handover.initrd.unwrap_or((0, 0));
        put(RAMDISK_IMAGE, &short(initrd));
        put(RAMDISK_SIZE, &short(size));
        let map = layout.e820();
        put(E820_ENTRIES, &[u8::try_from(map.len()).unwrap_or(0)]);
        for (slot, entry) in map.iter().enumerate() {
            put(E820_TABLE + slot * E820Entry::LEN, &entry.to_bytes());
        }
        handover
            .memory
            .write_slice(&params, GuestAddress(BOOT_PARAMS))
            .map_err(BootError::Memory)?;
        Ok(BootEntry::Linux64 {
            entry: self.address(layout)? + ENTRY_64,
            boot_params: BOOT_PARAMS,
        })
    }
}

/// The low half of a number that the placement keeps below 4 GiB.
fn short(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

fn damaged(problem: String) -> BootError {
    BootError::Damaged {
        part: "setup header",
        problem,
    }
}
