//! A disk as an installer would leave it: an EFI system partition (FAT16) with the files that are
//! given. Made from bytes: nothing here needs root or another program.
//!
//! ```text
//!   the partition: boot sector · two FATs · root folder · clusters
//! ```
//!
//! Source: Microsoft's FAT specification 1.03.
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::gpt::{self, Kind, SECTOR, put};

/// How long the partition is, in sectors: 96 MiB.
pub const SECTORS: u32 = 192 << 10;

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
    gpt::lay_out(&disk, &[(Kind::Efi, SECTORS)])?;
    fill(&disk, files)?;
    Ok(disk)
}

/// Makes the first partition of a disk one with these files; it is of [`SECTORS`], and empty.
pub fn fill(disk: &File, files: &[(&str, &[u8])]) -> Result<()> {
    let mut partition = Fat::default();
    let tree = Folder::of(files)?;
    let root = partition.folder(&tree, 0, 0)?;
    ensure!(root.len() <= ROOT * SECTOR, "too many files in the root");
    let begin = u64::from(gpt::FIRST) * SECTOR as u64;
    disk.write_all_at(&boot_sector(), begin)?;
    let table = partition.table();
    for copy in 0..2 {
        disk.write_all_at(&table, begin + ((RESERVED + copy * FAT) * SECTOR) as u64)?;
    }
    disk.write_all_at(&root, begin + ((RESERVED + 2 * FAT) * SECTOR) as u64)?;
    disk.write_all_at(&partition.data, begin + (DATA * SECTOR) as u64)?;
    Ok(())
}

fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    put(&mut sector, 0, b"\xeb\x3c\x90SESAME  ");
    put(&mut sector, 11, &512u16.to_le_bytes());
    put(&mut sector, 13, &[CLUSTER_BYTE, 1, 0, 2]);
    put(&mut sector, 17, &ROOT_ENTRIES.to_le_bytes());
    put(&mut sector, 21, &[0xf8]);
    put(&mut sector, 22, &FAT_SECTORS.to_le_bytes());
    put(&mut sector, 28, &gpt::FIRST.to_le_bytes());
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
    fn a_file_is_found_by_its_folders() {
        let content = vec![7; 5000];
        let disk = disk(&[("EFI/BOOT/BOOTX64.EFI", &content), ("A.TXT", b"text")]).unwrap();
        let begin = u64::from(gpt::FIRST) * 512;
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
