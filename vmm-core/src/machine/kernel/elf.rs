//! ELF kernels with a PVH entry: Linux' vmlinux, unikernels, test programs.
//!
//! Sources: System V ABI, ELF-64; Xen's `docs/misc/pvh.pandoc` and
//! `xen/include/public/arch-x86/hvm/start_info.h` for the note and the start info.

use std::os::fd::AsFd;

use devices::memory::GuestMemView;
use fdset::OpenFile;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, CMDLINE, Handover, number, read_at, unreadable};
use crate::kvm::BootEntry;
use crate::memory::{Layout, load};

const START_INFO: u64 = 0x6000;
const MODULE: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x6080;
const START_MAGIC: u32 = 0x336e_c578;

const CLASS_64_LITTLE: [u8; 2] = [2, 1];
const MACHINE_X86_64: u64 = 62;
const PROGRAM_HEADER: usize = 56;
const MAX_PROGRAM_HEADERS: u64 = 128;
const LOAD: u64 = 1;
const NOTE: u64 = 4;
const PHYS32_ENTRY: u64 = 18;
/// Linux' notes are a few hundred bytes.
const MAX_NOTES: u64 = 64 << 10;
const ZEROES: [u8; 4096] = [0; 4096];

/// The checked headers of an ELF file.
#[derive(Debug, PartialEq, Eq)]
pub struct PvhElf {
    entry: u32,
    segments: Vec<Segment>,
}

/// A piece of the file and its place in memory.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    address: u64,
    in_file: u64,
    in_memory: u64,
}

impl PvhElf {
    /// Reads the headers of a file of `size` bytes that begins with `head`; `None` if it is not
    /// an x86-64 ELF file with a PVH entry note.
    pub(super) fn parse(
        file: &OpenFile,
        head: &[u8],
        size: u64,
    ) -> Result<Option<Self>, BootError> {
        if !head.starts_with(b"\x7fELF")
            || head.get(4..6) != Some(&CLASS_64_LITTLE)
            || number::<2>(head, 18) != MACHINE_X86_64
        {
            return Ok(None);
        }
        let (table, len, count) = (
            number::<8>(head, 32),
            number::<2>(head, 54),
            number::<2>(head, 56),
        );
        if len != PROGRAM_HEADER as u64 || count > MAX_PROGRAM_HEADERS {
            return Err(damaged(format!(
                "{count} program headers of {len} bytes, wanted at most {MAX_PROGRAM_HEADERS} of \
                 {PROGRAM_HEADER}"
            )));
        }
        let mut headers = vec![0; usize::try_from(len * count).unwrap_or(0)];
        if read_at(file, &mut headers, table)? != headers.len() {
            return Err(damaged(format!(
                "the file ends before its program headers at {table:#x}"
            )));
        }
        let mut entry = None;
        let mut segments = Vec::new();
        for header in headers.chunks_exact(PROGRAM_HEADER) {
            match number::<4>(header, 0) {
                LOAD => segments.push(Segment::parse(header, size)?),
                NOTE => entry = entry.or(find_entry(file, header)?),
                _ => {}
            }
        }
        segments.retain(|segment| segment.in_memory > 0);
        let Some(entry) = entry.filter(|_| !segments.is_empty()) else {
            return Ok(None);
        };
        if !segments.iter().any(|segment| segment.holds(entry)) {
            return Err(damaged(format!(
                "the PVH entry {entry:#x} lies in none of its segments"
            )));
        }
        Ok(Some(Self { entry, segments }))
    }

    /// Loads all segments; returns the first address behind them.
    pub(super) fn load(
        &self,
        file: &OpenFile,
        memory: &GuestMemView,
        layout: &Layout,
    ) -> Result<u64, BootError> {
        let mut end = 0;
        for segment in &self.segments {
            let behind = segment.address.saturating_add(segment.in_memory);
            if behind > layout.low {
                return Err(BootError::KernelTooLarge {
                    end: behind,
                    ram: layout.low,
                });
            }
            load::pread(
                memory,
                segment.address,
                file.as_fd(),
                segment.offset,
                segment.in_file,
            )
            .map_err(unreadable)?;
            clear(memory, segment.address + segment.in_file, behind)?;
            end = end.max(behind);
        }
        Ok(end)
    }

    /// Writes `hvm_start_info` with the memory map and the initrd.
    pub(super) fn hand_over(&self, handover: &Handover<'_>) -> Result<BootEntry, BootError> {
        let put = |address: u64, bytes: &[u8]| {
            handover
                .memory
                .write_slice(bytes, GuestAddress(address))
                .map_err(BootError::Memory)
        };
        let map = handover.layout.e820();
        let mut table = Vec::new();
        for entry in &map {
            table.extend(entry.start.to_le_bytes());
            table.extend(entry.len.to_le_bytes());
            table.extend((entry.kind as u32).to_le_bytes());
            table.extend(0u32.to_le_bytes());
        }
        put(MEMORY_MAP, &table)?;
        if let Some((address, size)) = handover.initrd {
            let module: Vec<u8> = [address, size, 0, 0]
                .into_iter()
                .flat_map(u64::to_le_bytes)
                .collect();
            put(MODULE, &module)?;
        }
        let mut info = Vec::new();
        info.extend(START_MAGIC.to_le_bytes());
        info.extend(1u32.to_le_bytes());
        info.extend(0u32.to_le_bytes());
        info.extend(u32::from(handover.initrd.is_some()).to_le_bytes());
        for address in [MODULE, CMDLINE, handover.rsdp, MEMORY_MAP] {
            info.extend(address.to_le_bytes());
        }
        info.extend(u32::try_from(map.len()).unwrap_or(0).to_le_bytes());
        info.extend(0u32.to_le_bytes());
        put(START_INFO, &info)?;
        Ok(BootEntry::Pvh {
            entry: self.entry,
            start_info: u32::try_from(START_INFO).unwrap_or(0),
        })
    }
}

impl Segment {
    /// Whether `address` is in it once it is loaded.
    fn holds(&self, address: u32) -> bool {
        let inside = u64::from(address).checked_sub(self.address);
        inside.is_some_and(|offset| offset < self.in_memory)
    }

    fn parse(header: &[u8], size: u64) -> Result<Self, BootError> {
        let segment = Self {
            offset: number::<8>(header, 8),
            address: number::<8>(header, 24),
            in_file: number::<8>(header, 32),
            in_memory: number::<8>(header, 40),
        };
        let inside = segment
            .offset
            .checked_add(segment.in_file)
            .is_some_and(|end| end <= size);
        if !inside || segment.in_file > segment.in_memory {
            return Err(damaged(format!(
                "a segment of {:#x} bytes at {:#x}, {:#x} in memory, does not lie in the file's \
                 {size:#x}",
                segment.in_file, segment.offset, segment.in_memory
            )));
        }
        Ok(segment)
    }
}

/// Looks for Xen's entry note in a segment of notes.
fn find_entry(file: &OpenFile, header: &[u8]) -> Result<Option<u32>, BootError> {
    let len = number::<8>(header, 32).min(MAX_NOTES);
    let mut notes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = read_at(file, &mut notes, number::<8>(header, 8))?;
    notes.truncate(read);
    let mut rest = notes.as_slice();
    while rest.len() >= 12 {
        let (name_len, len) = (number::<4>(rest, 0), number::<4>(rest, 4));
        let kind = number::<4>(rest, 8);
        let aligned = |len: u64| usize::try_from(len.next_multiple_of(4)).unwrap_or(usize::MAX);
        let name_end = aligned(name_len).saturating_add(12);
        let end = name_end.saturating_add(aligned(len));
        let name = rest.get(12..name_end).unwrap_or_default();
        if kind == PHYS32_ENTRY && name_len == 4 && name == b"Xen\0" {
            let value = rest.get(name_end..).unwrap_or_default();
            let entry = match len {
                4 => number::<4>(value, 0),
                8 => number::<8>(value, 0),
                _ => return Err(damaged(format!("a PVH entry note of {len} bytes"))),
            };
            return u32::try_from(entry)
                .map(Some)
                .map_err(|_| damaged(format!("the PVH entry {entry:#x} is above 4 GiB")));
        }
        rest = rest.get(end..).unwrap_or_default();
    }
    Ok(None)
}

/// Zeroes `[start, end)`: after a reset, RAM still holds what was there.
fn clear(memory: &GuestMemView, start: u64, end: u64) -> Result<(), BootError> {
    let mut at = start;
    while at < end {
        let len = (end - at).min(ZEROES.len() as u64);
        let zeroes = ZEROES
            .get(..usize::try_from(len).unwrap_or(0))
            .unwrap_or(&ZEROES);
        memory
            .write_slice(zeroes, GuestAddress(at))
            .map_err(BootError::Memory)?;
        at += len;
    }
    Ok(())
}

fn damaged(problem: String) -> BootError {
    BootError::Damaged {
        part: "ELF header",
        problem,
    }
}
