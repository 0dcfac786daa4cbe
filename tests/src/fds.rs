//! Files to hand in, and the books on what a process holds.
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A new file in memory, as a manager would make one for guest RAM.
pub fn memfd(size: u64) -> Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create("guest-ram", flags)?;
    let file = File::from(fd);
    file.set_len(size)?;
    Ok(file.into())
}

/// A new, empty disk of that size without a name anywhere.
pub fn disk(size: u64) -> Result<File> {
    let file = tempfile::tempfile()?;
    file.set_len(size)?;
    Ok(file)
}

/// A copy of a file, without a name anywhere.
pub fn copy_of(path: &Path) -> Result<File> {
    let file = tempfile::tempfile()?;
    file.write_all_at(&fs::read(path)?, 0)?;
    Ok(file)
}

/// An empty qcow2 image of `size` bytes, at most 4 TiB: clusters of 64 KiB, one for each table.
pub fn image(size: u64) -> Result<File> {
    const CLUSTER: usize = 65536;
    /// What an L2 table leads to.
    const REACH: u64 = 512 << 20;
    let tables = u32::try_from(size.div_ceil(REACH).max(1))?;
    let mut bytes = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &tables.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    let mut file = tempfile::tempfile()?;
    io::Write::write_all(&mut file, &bytes)?;
    Ok(file)
}

/// As [`image`], 1 MiB, whose header names the backing file `name` of the format `format`.
pub fn image_over(name: &str, format: &str) -> Result<File> {
    let file = image(1 << 20)?;
    file.write_all_at(&extension(0xe279_2aca, format)?, 104)?;
    file.write_all_at(&512_u64.to_be_bytes(), 8)?;
    file.write_all_at(&u32::try_from(name.len())?.to_be_bytes(), 16)?;
    file.write_all_at(name.as_bytes(), 512)?;
    Ok(file)
}

/// As [`image`], 1 MiB, whose header names the file with the data.
pub fn image_with_data_in(name: &str) -> Result<File> {
    const DATA_FILE_BIT: u64 = 1 << 2;
    let file = image(1 << 20)?;
    file.write_all_at(&extension(0x4441_5441, name)?, 104)?;
    file.write_all_at(&DATA_FILE_BIT.to_be_bytes(), 72)?;
    Ok(file)
}

/// An extension of an image's header: type, length, text.
fn extension(kind: u32, text: &str) -> Result<Vec<u8>> {
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend(u32::try_from(text.len())?.to_be_bytes());
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// A file opened for reading and writing.
pub fn open_rw(path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// A file opened for reading.
pub fn open_ro(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

/// What a process holds right now, by `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Memory mappings.
    pub mappings: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} fds, {} threads, {} mappings",
            self.fds, self.threads, self.mappings
        )
    }
}

impl Usage {
    /// Counts for one process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let process = format!("/proc/{pid}");
        Ok(Self {
            fds: fs::read_dir(format!("{process}/fd"))?.count(),
            threads: fs::read_dir(format!("{process}/task"))?.count(),
            mappings: fs::read_to_string(format!("{process}/maps"))?
                .lines()
                .count(),
        })
    }
}

/// Proportional set size of a process in bytes: its own memory and its share of what it shares.
pub fn proportional_size(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kibibytes(&rollup, "Pss:").context("smaps_rollup has no Pss")
}

/// Resident set size of a process in bytes.
pub fn resident_size(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kibibytes(&status, "VmRSS:").context("status has no VmRSS")
}

/// What a process has in memory that is its own: not the pages of its program, which come and go.
pub fn own_size(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kibibytes(&status, "RssAnon:").context("status has no RssAnon")
}

/// The part of [`proportional_size`] in mappings whose whole size is at least `least` bytes: the
/// guest's RAM, when `least` is below its size and above every other mapping's.
pub fn proportional_size_of_large(pid: u32, least: u64) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut total = 0;
    let mut size = 0;
    for line in smaps.lines() {
        if let Some(bytes) = kibibytes(line, "Size:") {
            size = bytes;
        } else if let Some(bytes) = kibibytes(line, "Pss:") {
            total += if size >= least { bytes } else { 0 };
        }
    }
    Ok(total)
}

fn kibibytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    number.checked_mul(1024)
}
