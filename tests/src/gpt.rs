//! The table of a disk's partitions: GPT, with its copy at the end and the MBR that protects it.
//!
//! ```text
//!   sector 0 protective MBR · 1 header · 2..34 entries · 2048.. partitions · entries · header
//! ```
//!
//! Source: UEFI 2.10, 5.3.
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Result;

/// The length of a sector in bytes.
pub const SECTOR: usize = 512;
/// Where the first partition begins, in sectors.
pub const FIRST: u32 = 2048;
/// How many sectors all entries take.
const ENTRIES: u32 = 32;

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What firmware boots from: C12A7328-F81F-11D2-BA4B-00A0C93EC93B.
    Efi,
    /// Files of Linux: 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
    Linux,
}

impl Kind {
    /// Its GUID, as it is stored.
    fn guid(self) -> [u8; 16] {
        match self {
            Self::Efi => *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b",
            Self::Linux => *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4",
        }
    }
}

/// Gives the disk partitions of so many sectors, one behind the other, and its length; returns
/// where each begins, in bytes.
pub fn lay_out(disk: &File, partitions: &[(Kind, u32)]) -> Result<Vec<u64>> {
    let mut starts = Vec::new();
    let mut entries = vec![0; ENTRIES as usize * SECTOR];
    let mut end = FIRST;
    for ((kind, sectors), entry) in partitions.iter().zip(entries.chunks_mut(128)) {
        starts.push(at(end));
        put(entry, 0, &kind.guid());
        put(entry, 16, &[0x5e; 16]);
        put(entry, 31, &[u8::try_from(starts.len())?]);
        put(entry, 32, &u64::from(end).to_le_bytes());
        end += sectors;
        put(entry, 40, &u64::from(end - 1).to_le_bytes());
    }
    let last = end + ENTRIES;
    disk.set_len(at(last + 1))?;
    disk.write_all_at(&protective_mbr(last), 0)?;
    disk.write_all_at(&header([1, last, 2], end, &entries), at(1))?;
    disk.write_all_at(&entries, at(2))?;
    disk.write_all_at(&entries, at(end))?;
    disk.write_all_at(&header([last, 1, end], end, &entries), at(last))?;
    Ok(starts)
}

fn at(sector: u32) -> u64 {
    u64::from(sector) * SECTOR as u64
}

/// Puts bytes into others.
pub(crate) fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn protective_mbr(last: u32) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    put(&mut sector, 446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    put(&mut sector, 454, &1u32.to_le_bytes());
    put(&mut sector, 458, &last.to_le_bytes());
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

/// The header of partitions before `end`: where it is, where the other one is, where its entries are.
fn header([own, other, entries_at]: [u32; 3], end: u32, entries: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    put(&mut sector, 0, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    for (place, lba) in [
        (24, own),
        (32, other),
        (40, FIRST),
        (48, end - 1),
        (72, entries_at),
    ] {
        put(&mut sector, place, &u64::from(lba).to_le_bytes());
    }
    put(&mut sector, 56, &[0xd1; 16]);
    put(&mut sector, 80, &128u32.to_le_bytes());
    put(&mut sector, 84, &128u32.to_le_bytes());
    put(&mut sector, 88, &crc32(entries).to_le_bytes());
    let sum = crc32(&sector[..92]);
    put(&mut sector, 16, &sum.to_le_bytes());
    sector
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 {
                sum >> 1 ^ 0xedb8_8320
            } else {
                sum >> 1
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_sum_is_that_of_everybody() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn partitions_lie_one_behind_the_other_and_the_tables_at_both_ends() {
        let disk = tempfile::tempfile().unwrap();
        let starts = lay_out(&disk, &[(Kind::Efi, 100), (Kind::Linux, 50)]).unwrap();
        assert_eq!(starts, [2048 * 512, 2148 * 512]);
        let len = disk.metadata().unwrap().len();
        assert_eq!(len, (2198 + 33) * 512);
        for header in [512, len - 512] {
            let mut name = [0; 8];
            disk.read_exact_at(&mut name, header).unwrap();
            assert_eq!(&name, b"EFI PART");
        }
        let mut ends = [0; 16];
        disk.read_exact_at(&mut ends, 1024 + 128 + 32).unwrap();
        assert_eq!(ends[..8], 2148u64.to_le_bytes());
        assert_eq!(ends[8..], 2197u64.to_le_bytes());
    }
}
