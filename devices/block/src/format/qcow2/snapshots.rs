//! The table of internal snapshots: states of the disk that the image keeps beside the active one.

use super::bytes::{u16_at, u32_at, u64_at};
use super::error::ImageError;
use super::geometry::{Geometry, MAX_HOST};
use super::header::{Header, MAX_L1};
use super::storage::Storage;
use crate::engine::Io;

/// Bytes of an entry before its variable part.
const ENTRY: usize = 40;
/// The longest table, in bytes.
const MAX_TABLE: u64 = 64 << 20;
/// The most extra bytes of one entry.
const MAX_EXTRA: u32 = 1024;

/// A state that the image keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
    /// Its id: a number in most images.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub seconds: u32,
    /// And nanoseconds.
    pub nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub clock: u64,
    /// Bytes of the machine's state that are kept with it.
    pub vm_state: u64,
    /// The virtual disk's length in bytes.
    pub size: u64,
    /// Instructions the guest had executed, where they were counted.
    pub icount: Option<u64>,
    /// Extra bytes behind the known ones.
    pub(super) extra: Vec<u8>,
}

/// What is to become of an image's snapshots. The image is drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Keep the present state.
    Create(Snapshot),
    /// Go back to the snapshot with this id, which stays. The disk's length may change.
    Apply(String),
    /// Forget the snapshot with this id.
    Delete(String),
}

impl Snapshot {
    /// A snapshot to be made, at `seconds` and `nanoseconds` since 1970.
    #[must_use]
    pub fn new(id: &str, name: &str, seconds: u32, nanoseconds: u32) -> Self {
        Self {
            l1_offset: 0,
            l1_entries: 0,
            id: id.to_owned(),
            name: name.to_owned(),
            seconds,
            nanoseconds,
            clock: 0,
            vm_state: 0,
            size: 0,
            icount: None,
            extra: Vec::new(),
        }
    }

    /// Reads one entry; also how long it is.
    fn parse(bytes: &[u8], geometry: Geometry, size: u64) -> Option<(Self, usize)> {
        let extra_len = u32_at(bytes, 36).filter(|len| *len <= MAX_EXTRA)? as usize;
        let id_len = usize::from(u16_at(bytes, 12)?);
        let name_len = usize::from(u16_at(bytes, 14)?);
        let extra = bytes.get(ENTRY..ENTRY + extra_len)?;
        let id_at = ENTRY + extra_len;
        let id = bytes.get(id_at..id_at + id_len)?;
        let name = bytes.get(id_at + id_len..id_at + id_len + name_len)?;
        let snapshot = Self {
            l1_offset: u64_at(bytes, 0)?,
            l1_entries: u32_at(bytes, 8)?,
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            seconds: u32_at(bytes, 16)?,
            nanoseconds: u32_at(bytes, 20)?,
            clock: u64_at(bytes, 24)?,
            vm_state: u64_at(extra, 0).or_else(|| u32_at(bytes, 32).map(u64::from))?,
            size: u64_at(extra, 8).unwrap_or(size),
            icount: u64_at(extra, 16).filter(|count| *count != u64::MAX),
            extra: extra.get(24..).unwrap_or_default().to_vec(),
        };
        let len = u64::from(snapshot.l1_entries) * 8;
        let possible = geometry.is_aligned(snapshot.l1_offset)
            && snapshot.l1_offset < MAX_HOST
            && len <= MAX_L1;
        possible.then(|| (snapshot, (id_at + id_len + name_len).next_multiple_of(8)))
    }

    /// The entry as it lies in the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENTRY + 24 + self.id.len() + self.name.len());
        let len = |text: &str| u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes();
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(len(&self.id));
        bytes.extend(len(&self.name));
        bytes.extend(self.seconds.to_be_bytes());
        bytes.extend(self.nanoseconds.to_be_bytes());
        bytes.extend(self.clock.to_be_bytes());
        let short = u32::try_from(self.vm_state).unwrap_or(u32::MAX);
        bytes.extend(short.to_be_bytes());
        let extra = u32::try_from(24 + self.extra.len()).unwrap_or(u32::MAX);
        bytes.extend(extra.to_be_bytes());
        bytes.extend(self.vm_state.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.icount.unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend(&self.extra);
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

/// Reads the table that the header names: the snapshots and the table's length in bytes.
pub(super) async fn read(
    io: &Io,
    file: &Storage,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64), ImageError> {
    let mut list = Vec::new();
    if header.snapshots == 0 {
        return Ok((list, 0));
    }
    let rest = file.len().saturating_sub(header.snapshots_offset);
    let bytes = file
        .read(io, header.snapshots_offset, rest.min(MAX_TABLE))
        .await
        .map_err(ImageError::storage("read the snapshot table"))?;
    let geometry = header.geometry();
    let mut at = 0;
    for number in 0..header.snapshots {
        let entry = bytes.get(at..).unwrap_or_default();
        let (snapshot, len) = Snapshot::parse(entry, geometry, header.size).ok_or_else(|| {
            let why = format!("entry {number} of the snapshot table is impossible or cut short");
            ImageError::Inconsistent(why)
        })?;
        list.push(snapshot);
        at += len;
    }
    Ok((list, at as u64))
}
