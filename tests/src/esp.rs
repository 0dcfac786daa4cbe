//! A disk as an installer would leave it: GPT, and one EFI system partition (FAT16) with the files
//! that are given. Made from bytes: nothing here needs root or another program.
//!
//! ```text
//!   sector 0 protective MBR · 1 GPT header · 2..34 entries · 2048.. the partition · backup GPT
//!     partition: boot sector · two FATs · root folder · clusters
//! ```
//!
//! Sources: UEFI 2.10, 5.3 (GPT); Microsoft's FAT specification 1.03.
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

const SECTOR: usize = 512;
/// Where the partition begins and how long it is, in sectors: 96 MiB.
const START: u32 = 2048;
const SECTORS: u32 = 192 << 10;
/// The backup's entries and header follow the partition.
const BACKUP: u32 = START + SECTORS;
const ENTRIES: u32 = 32;
const DISK: u64 = (BACKUP as u64 + ENTRIES as u64 + 1) * SECTOR as u64;

/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as GPT stores it.
const ESP_TYPE: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// Sectors of a cluster, in front of the FATs, of a FAT, and of the root folder.
const CLUSTER: usize = 4;
const RESERVED: usize = 1;
const FAT: usize = 192;
const ROOT: usize = 32;
/// The same as the boot sector has them.
const CLUSTER_BYTE: u8 = 4;
const FAT_SECTORS: u16 = 192;
const ROOT_ENTRIES: u16 = 512;
const DATA: usize = RESERVED + 2 * FAT + ROOT;
const CLUSTER_BYTES: usize = CLUSTER * SECTOR;
const ENTRY: usize = 32;
const FOLDER: u8 = 0x10;
const END: u16 = 0xffff;

/// A disk with these files, by paths of 8.3 names such as `EFI/BOOT/BOOTX64.EFI`.
pub fn disk(files: &[(&str, &[u8])]) -> Result<File> {
    let disk = tempfile::tempfile()?;
    disk.set_len(DISK)?;
    let mut partition = Fat::default();
    let tree = Folder::of(files)?;
    let root = partition.folder(&tree, 0, 0)?;
    ensure!(root.len() <= ROOT * SECTOR, "too many files in the root");
    let begin = u64::from(START) * SECTOR as u64;
    disk.write_all_at(&boot_sector(), begin)?;
    let table = partition.table();
    for copy in 0..2 {
        disk.write_all_at(&table, begin + ((RESERVED + copy * FAT) * SECTOR) as u64)?;
    }
    disk.write_all_at(&root, begin + ((RESERVED + 2 * FAT) * SECTOR) as u64)?;
    disk.write_all_at(&partition.data, begin + (DATA * SECTOR) as u64)?;
    disk.write_all_at(&protective_mbr(), 0)?;
    let entries = entries();
    disk.write_all_at(&header(1, BACKUP + ENTRIES, 2, &entries), SECTOR as u64)?;
    disk.write_all_at(&entries, 2 * SECTOR as u64)?;
    disk.write_all_at(&entries, u64::from(BACKUP) * SECTOR as u64)?;
    let last = header(BACKUP + ENTRIES, 1, BACKUP, &entries);
    disk.write_all_at(&last, u64::from(BACKUP + ENTRIES) * SECTOR as u64)?;
    Ok(disk)
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn protective_mbr() -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    put(&mut sector, 446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    put(&mut sector, 454, &1u32.to_le_bytes());
    put(&mut sector, 458, &(BACKUP + ENTRIES).to_le_bytes());
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

fn entries() -> Vec<u8> {
    let mut bytes = vec![0; ENTRIES as usize * SECTOR];
    put(&mut bytes, 0, &ESP_TYPE);
    put(&mut bytes, 16, &[0x5e; 16]);
    put(&mut bytes, 32, &u64::from(START).to_le_bytes());
    put(&mut bytes, 40, &u64::from(BACKUP - 1).to_le_bytes());
    for (at, letter) in (56..).step_by(2).zip(b"ESP") {
        bytes[at] = *letter;
    }
    bytes
}

fn header(own: u32, other: u32, entries_at: u32, entries: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    put(&mut sector, 0, b"EFI PART\0\0\x01\0\x5c\0\0\0");
    for (at, lba) in [
        (24, own),
        (32, other),
        (40, START),
        (48, BACKUP - 1),
        (72, entries_at),
    ] {
        put(&mut sector, at, &u64::from(lba).to_le_bytes());
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

fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    put(&mut sector, 0, b"\xeb\x3c\x90SESAME  ");
    put(&mut sector, 11, &512u16.to_le_bytes());
    put(&mut sector, 13, &[CLUSTER_BYTE, 1, 0, 2]);
    put(&mut sector, 17, &ROOT_ENTRIES.to_le_bytes());
    put(&mut sector, 21, &[0xf8]);
    put(&mut sector, 22, &FAT_SECTORS.to_le_bytes());
    put(&mut sector, 28, &START.to_le_bytes());
    put(&mut sector, 32, &SECTORS.to_le_bytes());
    put(&mut sector, 36, &[0x80, 0, 0x29, 1, 2, 3, 4]);
    put(&mut sector, 43, b"ESP        FAT16   ");
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

/// A folder's files and folders.
#[derive(Default)]
struct Folder<'a> {
    files: BTreeMap<&'a str, &'a [u8]>,
    folders: BTreeMap<&'a str, Folder<'a>>,
}

impl<'a> Folder<'a> {
    fn of(files: &[(&'a str, &'a [u8])]) -> Result<Self> {
        let mut root = Self::default();
        for (path, bytes) in files {
            let mut folder = &mut root;
            let mut parts: Vec<_> = path.split('/').collect();
            let name = parts.pop().context("a path has a name")?;
            for part in parts {
                folder = folder.folders.entry(part).or_default();
            }
            folder.files.insert(name, bytes);
        }
        Ok(root)
    }
}

/// Clusters from number 2 on, and which follows which.
#[derive(Default)]
struct Fat {
    next: Vec<u16>,
    data: Vec<u8>,
}

impl Fat {
    fn table(&self) -> Vec<u8> {
        let chain = [0xfff8, END].into_iter().chain(self.next.iter().copied());
        chain.flat_map(u16::to_le_bytes).collect()
    }

    /// Takes clusters for `len` bytes; the first one's number.
    fn reserve(&mut self, len: usize) -> Result<u16> {
        let first = u16::try_from(self.next.len() + 2)?;
        let count = len.div_ceil(CLUSTER_BYTES).max(1);
        ensure!(
            (self.next.len() + count + 2) * 2 <= FAT * SECTOR,
            "the partition is too small"
        );
        for index in 1..count {
            self.next.push(first + u16::try_from(index)?);
        }
        self.next.push(END);
        self.data.resize(self.next.len() * CLUSTER_BYTES, 0);
        Ok(first)
    }

    fn fill(&mut self, first: u16, bytes: &[u8]) {
        put(
            &mut self.data,
            (usize::from(first) - 2) * CLUSTER_BYTES,
            bytes,
        );
    }

    /// The entries of a folder at cluster `own`, below the one at `above`; 0 is the root.
    fn folder(&mut self, folder: &Folder<'_>, own: u16, above: u16) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if own != 0 {
            bytes.extend(entry(*b".          ", FOLDER, own, 0));
            bytes.extend(entry(*b"..         ", FOLDER, above, 0));
        }
        for (name, below) in &folder.folders {
            let first = self.reserve(CLUSTER_BYTES)?;
            let inside = self.folder(below, first, own)?;
            ensure!(inside.len() <= CLUSTER_BYTES, "too many files in {name}");
            self.fill(first, &inside);
            bytes.extend(entry(short_name(name)?, FOLDER, first, 0));
        }
        for (name, content) in &folder.files {
            let first = self.reserve(content.len())?;
            self.fill(first, content);
            let len = u32::try_from(content.len())?;
            bytes.extend(entry(short_name(name)?, 0x20, first, len));
        }
        Ok(bytes)
    }
}

fn entry(name: [u8; 11], kind: u8, first: u16, len: u32) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    put(&mut bytes, 0, &name);
    bytes[11] = kind;
    put(&mut bytes, 26, &first.to_le_bytes());
    put(&mut bytes, 28, &len.to_le_bytes());
    bytes
}

fn short_name(name: &str) -> Result<[u8; 11]> {
    let (stem, suffix) = name.split_once('.').unwrap_or((name, ""));
    ensure!(
        stem.len() <= 8 && suffix.len() <= 3,
        "{name} is no 8.3 name"
    );
    let mut short = [b' '; 11];
    put(&mut short, 0, stem.as_bytes());
    put(&mut short, 8, suffix.as_bytes());
    Ok(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_sum_is_that_of_everybody() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_file_is_found_by_its_folders() {
        let content = vec![7; 5000];
        let disk = disk(&[("EFI/BOOT/BOOTX64.EFI", &content), ("A.TXT", b"text")]).unwrap();
        let begin = u64::from(START) * 512;
        let at =
            |cluster: u16| begin + ((DATA + (usize::from(cluster) - 2) * CLUSTER) * 512) as u64;
        let find = |place: u64, name: &[u8; 11]| {
            let mut entries = vec![0; CLUSTER_BYTES];
            disk.read_exact_at(&mut entries, place).unwrap();
            let found = entries.chunks(ENTRY).find(|entry| &entry[..11] == name);
            let entry = found.expect("in the folder");
            (u16::from_le_bytes([entry[26], entry[27]]), entry[28])
        };
        let root = begin + ((RESERVED + 2 * FAT) * 512) as u64;
        let (efi, _) = find(root, b"EFI        ");
        let (boot, _) = find(at(efi), b"BOOT       ");
        let (file, len) = find(at(boot), b"BOOTX64 EFI");
        assert_eq!(len, 5000u16.to_le_bytes()[0]);
        let mut bytes = vec![0; 5000];
        disk.read_exact_at(&mut bytes, at(file)).unwrap();
        assert_eq!(bytes, content);
        let mut next = [0; 2];
        let fat = begin + 512 + u64::from(file) * 2;
        disk.read_exact_at(&mut next, fat).unwrap();
        assert_eq!(u16::from_le_bytes(next), file + 1);
    }
}
