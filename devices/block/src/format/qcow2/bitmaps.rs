//! Persistent bitmaps in the file: their directory, and the mark that they are out of date.
//!
//! While the image may be written, all that are held in memory are marked *in use*: the file does
//! not know what was recorded since. Settling stores them and takes the mark away
//! ([`stored`](super::stored)); after a crash it stays, and says that the bits are not to be
//! trusted.

use std::io;

use super::bytes::{u16_at, u32_at, u64_at};
use super::error::ImageError;
use super::features::AutoClear;
use super::geometry::Geometry;
use super::header::BitmapsExtension;
use super::image::{Image, Meta};
use super::storage::Storage;
use crate::engine::Io;

/// Flags of an entry of the directory.
pub(super) const IN_USE: u32 = 1;
pub(super) const AUTO: u32 = 2;
const KNOWN: u32 = IN_USE | AUTO;
/// The only type there is: recorded writes.
const TRACKING: u8 = 1;
/// Bytes of an entry before its variable part.
const ENTRY: usize = 24;
/// Where the flags stand in an entry.
const FLAGS: usize = 12;
/// The most entries of a bitmap's table: 2^29 bytes of bits, as QEMU has it.
const MAX_TABLE: u32 = 0x2000_0000 / 512;

/// One bitmap, as the directory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    /// Where its entry is in the directory, and how long.
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) name: String,
    pub(super) flags: u32,
    /// The power of two of the bytes that a bit stands for: 9 to 31.
    pub(super) granularity_bits: u8,
    pub(super) table_offset: u64,
    pub(super) table_entries: u32,
}

impl Bitmap {
    /// Whether it must know every write.
    pub(super) fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }

    /// Whether it may be out of date.
    pub(super) fn is_in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }
}

/// The entry of a bitmap that is not in use.
pub(super) fn encode(
    name: &str,
    enabled: bool,
    granularity: u64,
    (table_offset, table_entries): (u64, u32),
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENTRY + name.len() + 8);
    bytes.extend(table_offset.to_be_bytes());
    bytes.extend(table_entries.to_be_bytes());
    bytes.extend((if enabled { AUTO } else { 0 }).to_be_bytes());
    bytes.push(TRACKING);
    bytes.push(u8::try_from(granularity.trailing_zeros()).unwrap_or(u8::MAX));
    bytes.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// The bitmaps of a directory.
pub(super) fn parse(
    directory: &[u8],
    count: u32,
    geometry: Geometry,
) -> Result<Vec<Bitmap>, ImageError> {
    let broken = |why: String| ImageError::Extension {
        name: "bitmaps",
        why,
    };
    let mut list = Vec::new();
    let mut at = 0;
    for number in 0..count {
        let entry = directory.get(at..).unwrap_or_default();
        let cut = || broken(format!("the entry of bitmap {number} is cut short"));
        let table_offset = u64_at(entry, 0).ok_or_else(cut)?;
        let table_entries = u32_at(entry, 8).ok_or_else(cut)?;
        let flags = u32_at(entry, FLAGS).ok_or_else(cut)?;
        let granularity_bits = *entry.get(17).ok_or_else(cut)?;
        let name_len = usize::from(u16_at(entry, 18).ok_or_else(cut)?);
        let extra_len = u32_at(entry, 20).ok_or_else(cut)? as usize;
        let name_at = ENTRY.checked_add(extra_len).ok_or_else(cut)?;
        let name_end = name_at.checked_add(name_len).ok_or_else(cut)?;
        let name = entry.get(name_at..name_end).ok_or_else(cut)?;
        if !geometry.is_aligned(table_offset) || table_entries > MAX_TABLE {
            return Err(broken(format!(
                "the table of bitmap {number} is impossible"
            )));
        }
        let name = std::str::from_utf8(name)
            .map_err(|_| broken(format!("the name of bitmap {number} is not UTF-8")))?;
        let known = flags & !KNOWN == 0 && entry.get(16) == Some(&TRACKING) && extra_len == 0;
        if !known || !(9..=31).contains(&granularity_bits) || name.is_empty() {
            let why = format!("Bitmap '{name}' doesn't satisfy the constraints");
            return Err(broken(why));
        }
        if list.iter().any(|other: &Bitmap| other.name == name) {
            return Err(broken(format!("there are two bitmaps '{name}'")));
        }
        let len = name_end.next_multiple_of(8);
        list.push(Bitmap {
            at,
            len,
            name: name.to_owned(),
            flags,
            granularity_bits,
            table_offset,
            table_entries,
        });
        at += len;
    }
    Ok(list)
}

/// Reads the directory: its bytes and what they say.
pub(super) async fn read(
    io: &Io,
    file: &Storage,
    extension: BitmapsExtension,
    geometry: Geometry,
) -> Result<(Vec<u8>, Vec<Bitmap>), ImageError> {
    let bytes = file
        .read(io, extension.directory_offset, extension.directory_size)
        .await
        .map_err(ImageError::storage("read the directory of bitmaps"))?;
    let list = parse(&bytes, extension.count, geometry)?;
    Ok((bytes, list))
}

impl Image {
    /// The image's bitmaps, if what is said of them counts.
    pub(super) async fn bitmaps(
        &self,
        io: &Io,
        meta: &Meta,
    ) -> Result<Option<(Vec<u8>, Vec<Bitmap>)>, ImageError> {
        let consistent = meta.header.autoclear.contains(AutoClear::BITMAPS);
        match meta.header.bitmaps.filter(|_| consistent) {
            Some(extension) => {
                let read = read(io, &self.file(), extension, self.geometry).await?;
                Ok(Some(read))
            }
            None => Ok(None),
        }
    }

    /// Marks the bitmaps that the file will be wrong about. Says whether anything was written.
    pub(super) async fn mark_bitmaps(&self, io: &Io, meta: &mut Meta) -> io::Result<bool> {
        let Some((mut bytes, list)) = self.bitmaps(io, meta).await? else {
            return Ok(false);
        };
        let mut changed = false;
        for bitmap in list {
            if bitmap.is_in_use() {
                continue;
            }
            let at = bitmap.at + FLAGS;
            if let Some(flags) = bytes.get_mut(at..at + 4) {
                flags.copy_from_slice(&(bitmap.flags | IN_USE).to_be_bytes());
                changed = true;
            }
        }
        meta.bitmaps_marked |= changed;
        if changed && let Some(extension) = meta.header.bitmaps {
            let place = extension.directory_offset;
            self.file().write(io, place, &bytes).await?;
        }
        Ok(changed)
    }
}

/// The clusters of a bitmap's data, from its table.
pub(super) fn data_clusters(table: &[u64]) -> impl Iterator<Item = u64> {
    let offsets = table.iter().map(|entry| entry & 0x00ff_ffff_ffff_fe00);
    offsets.filter(|offset| *offset != 0)
}
