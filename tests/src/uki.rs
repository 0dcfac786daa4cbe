//! A program for firmware that is a whole system: kernel, initramfs and command line in one file, as
//! distributions make it of systemd's stub. Parts that the stub looks for are appended to it.
//!
//! ```text
//!   the stub ─ headers, one more entry for each part ─ its own sections ─ .cmdline .initrd .linux
//!                                                                          └ the kernel's EFI stub
//! ```
//!
//! Sources: Microsoft's PE format; UAPI group's specification of unified kernel images.
use anyhow::{Context, Result, ensure};

/// Where the PE header's place is, in the program of DOS.
const PE_AT: usize = 0x3c;
/// From the PE header: how many sections, how long the optional header, and where that begins.
const SECTIONS: usize = 6;
const OPTIONAL_LEN: usize = 20;
const OPTIONAL: usize = 24;
/// From the optional header: how long the program is in memory, and all headers.
const IMAGE_LEN: usize = 56;
const HEADERS_LEN: usize = 60;
const ENTRY: usize = 40;
/// Sections begin here in memory and in the file at multiples of this.
const PAGE: u32 = 4096;
/// Initialised, readable.
const READABLE: u32 = 0x4000_0040;

/// The program: `stub` with these parts behind it.
pub fn image(stub: &[u8], kernel: &[u8], initrd: &[u8], cmdline: &str) -> Result<Vec<u8>> {
    let mut file = stub.to_vec();
    let pe = number(stub, PE_AT)? as usize;
    ensure!(stub[pe..].starts_with(b"PE\0\0"), "the stub is no PE file");
    for (name, bytes) in [
        (b".cmdline", cmdline.as_bytes()),
        (b".initrd\0", initrd),
        (b".linux\0\0", kernel),
    ] {
        append(&mut file, pe, *name, bytes)?;
    }
    Ok(file)
}

fn append(file: &mut Vec<u8>, pe: usize, name: [u8; 8], bytes: &[u8]) -> Result<()> {
    let optional = pe + OPTIONAL;
    let count = short(file, pe + SECTIONS)?;
    let table = optional + usize::from(short(file, pe + OPTIONAL_LEN)?);
    let entry = table + usize::from(count) * ENTRY;
    let headers = number(file, optional + HEADERS_LEN)? as usize;
    ensure!(entry + ENTRY <= headers, "no room for one more section");
    let len = u32::try_from(bytes.len())?;
    let in_memory = number(file, optional + IMAGE_LEN)?.next_multiple_of(PAGE);
    let in_file = u32::try_from(file.len())?.next_multiple_of(PAGE);
    let end = (in_file + len).next_multiple_of(PAGE);
    file.resize(in_file as usize, 0);
    file.extend_from_slice(bytes);
    file.resize(end as usize, 0);
    file[entry..entry + 8].copy_from_slice(&name);
    for (at, value) in [
        (8, len),
        (12, in_memory),
        (16, end - in_file),
        (20, in_file),
    ] {
        put(file, entry + at, value);
    }
    put(file, entry + 36, READABLE);
    put(
        file,
        optional + IMAGE_LEN,
        (in_memory + len).next_multiple_of(PAGE),
    );
    file[pe + SECTIONS..pe + SECTIONS + 2].copy_from_slice(&(count + 1).to_le_bytes());
    Ok(())
}

fn put(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn number(file: &[u8], at: usize) -> Result<u32> {
    let bytes = file.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u32::from_le_bytes(*bytes.context("the stub is cut off")?))
}

fn short(file: &[u8], at: usize) -> Result<u16> {
    let bytes = file.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u16::from_le_bytes(*bytes.context("the stub is cut off")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers of 1 KiB without a section.
    fn stub() -> Vec<u8> {
        let mut stub = vec![0; 0x400];
        put(&mut stub, PE_AT, 0x80);
        stub[0x80..0x84].copy_from_slice(b"PE\0\0");
        stub[0x80 + OPTIONAL_LEN] = 240;
        put(&mut stub, 0x80 + OPTIONAL + IMAGE_LEN, 0x1234);
        put(&mut stub, 0x80 + OPTIONAL + HEADERS_LEN, 0x400);
        stub
    }

    #[test]
    fn each_part_has_an_entry_that_leads_to_it() {
        let file = image(&stub(), &[7; 5000], b"disk", "quiet").unwrap();
        assert_eq!(short(&file, 0x86).unwrap(), 3);
        let table = 0x80 + OPTIONAL + 240;
        let entry = |nth: usize, at: usize| number(&file, table + nth * ENTRY + at).unwrap();
        let linux = entry(2, 20) as usize;
        assert_eq!(file[linux..linux + 5000], [7; 5000]);
        assert_eq!([8, 12, 16].map(|at| entry(2, at)), [5000, 0x4000, 0x2000]);
        assert_eq!([8, 12, 16].map(|at| entry(0, at)), [5, 0x2000, 0x1000]);
        let len = number(&file, 0x80 + OPTIONAL + IMAGE_LEN).unwrap();
        assert_eq!(len, 0x6000);
    }

    #[test]
    fn a_stub_without_room_is_refused() {
        let mut full = stub();
        put(&mut full, 0x80 + OPTIONAL + HEADERS_LEN, 0x1a0);
        assert!(image(&full, b"", b"", "").is_err());
    }
}
