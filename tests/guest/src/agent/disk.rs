//! Block devices: which are there, and reading and writing them past the page cache.
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use guest::pattern;
use serde_json::{Value, json};

use super::Arguments;
use super::files::open_direct;

/// One transfer: large enough to be split by the device, aligned for any block size.
const CHUNK: usize = 256 << 10;
const ALIGN: usize = 4096;
const LOOK_EVERY: Duration = Duration::from_millis(20);

nix::ioctl_write_ptr_bad!(
    /// Discards a byte range: two u64, offset and length (`linux/fs.h`).
    block_discard,
    nix::request_code_none!(0x12, 119),
    [u64; 2]
);
nix::ioctl_write_ptr_bad!(
    /// Writes zeroes to a byte range, by the device when it can.
    block_zero_out,
    nix::request_code_none!(0x12, 127),
    [u64; 2]
);

/// Every disk: name, size in bytes, serial, queues, and whether it is read-only.
pub(super) fn list() -> io::Result<Value> {
    let mut disks = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let attribute = |name: &str| {
            fs::read_to_string(entry.path().join(name))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let sectors: u64 = attribute("size").parse().unwrap_or(0);
        let queues = fs::read_dir(entry.path().join("mq")).map_or(0, Iterator::count);
        disks.push(json!({
            "name": entry.file_name().to_string_lossy(),
            "size": sectors.saturating_mul(512),
            "serial": attribute("serial"),
            "queues": queues,
            "read-only": attribute("ro") == "1",
        }));
    }
    Ok(Value::Array(disks))
}

/// `serial`, `seconds`: the name of the disk with that serial, once it is there.
pub(super) fn wait(arguments: &Arguments<'_>) -> io::Result<Value> {
    let serial = arguments.text("serial")?;
    until(arguments.number("seconds")?, || {
        // The kernel shows a disk in /sys a moment before its device can be opened.
        find(serial).filter(|name| File::open(format!("/dev/{name}")).is_ok())
    })
    .map(Value::String)
    .ok_or_else(|| io::Error::other(format!("no disk with serial {serial} came")))
}

/// `serial`, `seconds`: answers once no disk has that serial.
pub(super) fn wait_gone(arguments: &Arguments<'_>) -> io::Result<Value> {
    let serial = arguments.text("serial")?;
    until(arguments.number("seconds")?, || {
        find(serial).is_none().then_some(())
    })
    .map(|()| Value::Null)
    .ok_or_else(|| io::Error::other(format!("the disk with serial {serial} stays")))
}

/// `disk`, `offset`, `length`, `seed`: writes the pattern, then flushes the device.
pub(super) fn write_pattern(arguments: &Arguments<'_>) -> io::Result<Value> {
    let seed = arguments.number("seed")?;
    let device = open_direct(arguments.text("disk")?, true)?;
    each_chunk(arguments, |buffer, offset| {
        pattern::fill(buffer, seed, offset);
        device.write_all_at(buffer, offset)
    })?;
    device.sync_data()?;
    Ok(Value::Null)
}

/// `disk`, `offset`, `length`, `seed`: reads from the device and compares.
pub(super) fn verify_pattern(arguments: &Arguments<'_>) -> io::Result<Value> {
    let seed = arguments.number("seed")?;
    let device = open_direct(arguments.text("disk")?, false)?;
    each_chunk(arguments, |buffer, offset| {
        device.read_exact_at(buffer, offset)?;
        match pattern::first_difference(buffer, seed, offset) {
            None => Ok(()),
            Some(at) => Err(io::Error::other(format!("byte {at} is not the pattern's"))),
        }
    })?;
    Ok(Value::Null)
}

/// `disk`, `offset`, `length`.
pub(super) fn discard(arguments: &Arguments<'_>) -> io::Result<Value> {
    let device = open_direct(arguments.text("disk")?, true)?;
    let range = [arguments.number("offset")?, arguments.number("length")?];
    discard_range(&device, &range)?;
    Ok(Value::Null)
}

/// `disk`, `offset`, `length`.
pub(super) fn zero(arguments: &Arguments<'_>) -> io::Result<Value> {
    let device = open_direct(arguments.text("disk")?, true)?;
    let range = [arguments.number("offset")?, arguments.number("length")?];
    zero_range(&device, &range)?;
    Ok(Value::Null)
}

// UNSAFETY: BLKDISCARD and BLKZEROOUT have no safe wrapper in any crate we use.
#[expect(unsafe_code, reason = "an ioctl that takes a pointer to two numbers")]
fn discard_range(device: &File, range: &[u64; 2]) -> io::Result<()> {
    // SAFETY: the kernel reads exactly two u64 from `range`, which outlives the call.
    unsafe { block_discard(device.as_raw_fd(), range) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "an ioctl that takes a pointer to two numbers")]
fn zero_range(device: &File, range: &[u64; 2]) -> io::Result<()> {
    // SAFETY: the kernel reads exactly two u64 from `range`, which outlives the call.
    unsafe { block_zero_out(device.as_raw_fd(), range) }?;
    Ok(())
}

fn find(serial: &str) -> Option<String> {
    fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .find(|entry| {
            fs::read_to_string(entry.path().join("serial")).is_ok_and(|text| text.trim() == serial)
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

pub(super) fn until<T>(seconds: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() > Duration::from_secs(seconds) {
            return None;
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn each_chunk(
    arguments: &Arguments<'_>,
    mut visit: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut offset = arguments.number("offset")?;
    let end = offset.saturating_add(arguments.number("length")?);
    let mut memory = vec![0; CHUNK + ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN);
    while offset < end {
        let length = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
        visit(&mut memory[start..start + length], offset)?;
        offset += length as u64;
    }
    Ok(())
}
