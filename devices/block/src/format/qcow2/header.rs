//! The header: from bytes that nobody vouches for to numbers that are checked, and back.
//!
//! ```text
//!   cluster 0   | fixed fields | further fields | extensions … end | backing file's name |
//!               0             72/104       header_length                        cluster end
//! ```
//!
//! What is not known and may be kept is kept: further fields, compatible features, extensions.

use super::bytes::{u16_at, u32_at, u64_at};
use super::compress::Compression;
use super::error::ImageError;
use super::features::{AutoClear, Compatible, Incompatible, names_of};
use super::geometry::{Geometry, MAX_HOST};

/// The first four bytes.
pub(super) const MAGIC: u32 = 0x5146_49fb;
/// The longest L1 table, in bytes.
pub(super) const MAX_L1: u64 = 32 << 20;
/// The longest refcount table, in bytes.
pub(super) const MAX_REFTABLE: u64 = 8 << 20;
/// The most snapshots.
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
/// The longest backing file's name, in bytes.
pub(super) const MAX_BACKING_NAME: usize = 1023;
/// Bytes of the fixed fields, in version 2 and 3.
const LENGTH_V2: usize = 72;
const LENGTH_V3: usize = 104;
/// Bytes of the fields that a new image gets.
const LENGTH_NEW: usize = 112;
/// Where the type of compression stands.
const COMPRESSION_AT: usize = 104;

/// Types of header extensions.
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
    pub(super) const DATA_FILE: u32 = 0x4441_5441;
}

/// Where the persistent bitmaps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BitmapsExtension {
    pub(super) count: u32,
    pub(super) directory_size: u64,
    pub(super) directory_offset: u64,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    /// The virtual disk's length in bytes.
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: Incompatible,
    pub(super) compatible: Compatible,
    pub(super) autoclear: AutoClear,
    pub(super) compression: Compression,
    /// Further fields, behind the type of compression, as they are.
    pub(super) further: Vec<u8>,
    pub(super) backing_file: Option<String>,
    pub(super) backing_format: Option<String>,
    pub(super) data_file: Option<String>,
    pub(super) bitmaps: Option<BitmapsExtension>,
    /// Extensions that are not known, and the table of feature names: kept as they are.
    pub(super) kept: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// How many bytes of the file [`parse`](Self::parse) wants: the first cluster, or as much of
    /// it as there may be. `start` are the first bytes, at least 24.
    pub(super) fn wanted(start: &[u8]) -> Result<u64, ImageError> {
        if u32_at(start, 0) != Some(MAGIC) {
            return Err(ImageError::NotQcow2);
        }
        let version = u32_at(start, 4).unwrap_or(0);
        if !matches!(version, 2 | 3) {
            return Err(ImageError::Version(version));
        }
        let bits = u32_at(start, 20).unwrap_or(0);
        check_cluster_bits(bits)?;
        Ok(1 << bits)
    }

    /// Reads the first cluster.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let cut = || ImageError::Truncated("header");
        let word = |at| u32_at(bytes, at).ok_or_else(cut);
        let long = |at| u64_at(bytes, at).ok_or_else(cut);
        Self::wanted(bytes)?;
        let version = word(4)?;
        let mut header = Self {
            version,
            cluster_bits: word(20)?,
            refcount_order: 4,
            size: long(24)?,
            l1_entries: word(36)?,
            l1_offset: long(40)?,
            reftable_offset: long(48)?,
            reftable_clusters: word(56)?,
            snapshots: word(60)?,
            snapshots_offset: long(64)?,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: AutoClear::empty(),
            compression: Compression::Zlib,
            further: Vec::new(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            bitmaps: None,
            kept: Vec::new(),
        };
        let crypt = word(32)?;
        let mut length = LENGTH_V2;
        if version >= 3 {
            header.incompatible = Incompatible::from_bits_retain(long(72)?);
            header.compatible = Compatible::from_bits_retain(long(80)?);
            header.autoclear = AutoClear::from_bits_retain(long(88)?);
            header.refcount_order = word(96)?;
            length = header.parse_length(bytes, word(100)?)?;
        }
        header.parse_extensions(bytes, length)?;
        header.parse_backing(bytes, long(8)?, word(16)?)?;
        header.check_features()?;
        if crypt != 0 {
            return Err(ImageError::Encrypted(match crypt {
                1 => "AES".to_owned(),
                2 => "LUKS".to_owned(),
                other => format!("crypt_method {other}"),
            }));
        }
        header.check_compression(bytes, length)?;
        header.check_tables()?;
        Ok(header)
    }

    fn parse_length(&mut self, bytes: &[u8], length: u32) -> Result<usize, ImageError> {
        let wanted = |wanted: String| ImageError::Field {
            field: "header_length",
            value: u64::from(length),
            wanted,
        };
        let given = length as usize;
        if given < LENGTH_V3 || !given.is_multiple_of(8) {
            return Err(wanted(format!("at least {LENGTH_V3} and a multiple of 8")));
        }
        if given as u64 > self.geometry().cluster_size() {
            return Err(wanted("it must end within the first cluster".to_owned()));
        }
        let further = bytes.get(LENGTH_V3..given);
        self.further = further
            .ok_or(ImageError::Truncated("header"))?
            .get(COMPRESSION_AT + 1 - LENGTH_V3..)
            .unwrap_or_default()
            .to_vec();
        Ok(given)
    }

    fn parse_extensions(&mut self, bytes: &[u8], start: usize) -> Result<(), ImageError> {
        let broken = |name, why: &str| ImageError::Extension {
            name,
            why: why.to_owned(),
        };
        let mut at = start;
        // Version 2 images of old need not have any extension, nor the mark of their end.
        while let (Some(kind), Some(len)) = (u32_at(bytes, at), u32_at(bytes, at + 4)) {
            if kind == extension::END {
                break;
            }
            let body = (at + 8)
                .checked_add(len as usize)
                .and_then(|end| bytes.get(at + 8..end))
                .ok_or_else(|| broken("area", "it goes on beyond the first cluster"))?;
            let text = |name| match std::str::from_utf8(body) {
                Ok(text) if body.len() <= MAX_BACKING_NAME => Ok(Some(text.to_owned())),
                Ok(_) => Err(broken(name, "longer than 1023 bytes")),
                Err(_) => Err(broken(name, "not UTF-8")),
            };
            match kind {
                extension::BACKING_FORMAT => self.backing_format = text("backing file format")?,
                extension::DATA_FILE => self.data_file = text("external data file")?,
                extension::BITMAPS => self.bitmaps = Some(parse_bitmaps(body, self.cluster_bits)?),
                _ => self.kept.push((kind, body.to_vec())),
            }
            at = (at + 8 + len as usize).next_multiple_of(8);
        }
        Ok(())
    }

    fn parse_backing(&mut self, bytes: &[u8], offset: u64, len: u32) -> Result<(), ImageError> {
        if offset == 0 {
            return Ok(());
        }
        let field = |field, value, wanted: &str| ImageError::Field {
            field,
            value,
            wanted: wanted.to_owned(),
        };
        if len as usize > MAX_BACKING_NAME {
            let wanted = "a backing file's name has at most 1023 bytes";
            return Err(field("backing_file_size", u64::from(len), wanted));
        }
        let name = usize::try_from(offset)
            .ok()
            .and_then(|from| bytes.get(from..from.checked_add(len as usize)?))
            .ok_or_else(|| {
                let wanted = "the backing file's name must end within the first cluster";
                field("backing_file_offset", offset, wanted)
            })?;
        let name = std::str::from_utf8(name).map_err(|_| {
            let wanted = "the backing file's name there is not UTF-8";
            field("backing_file_offset", offset, wanted)
        })?;
        self.backing_file = (!name.is_empty()).then(|| name.to_owned());
        Ok(())
    }

    fn check_features(&self) -> Result<(), ImageError> {
        let unknown = self.incompatible.difference(Incompatible::all());
        if unknown.is_empty() {
            return Ok(());
        }
        let table = self
            .kept
            .iter()
            .find(|(kind, _)| *kind == extension::FEATURE_NAMES)
            .map(|(_, body)| body.as_slice());
        let names = names_of(unknown.bits(), table.unwrap_or_default());
        Err(ImageError::Features(names))
    }

    fn check_compression(&mut self, bytes: &[u8], length: usize) -> Result<(), ImageError> {
        let kind = if length > COMPRESSION_AT {
            bytes.get(COMPRESSION_AT).copied().unwrap_or(0)
        } else {
            0
        };
        let other = self.incompatible.contains(Incompatible::COMPRESSION);
        let wanted = match (kind, other) {
            (0, false) => return Ok(()),
            (1, true) => {
                self.compression = Compression::Zstd;
                return Ok(());
            }
            (0, true) => "0 (zlib) contradicts the feature bit of another compression type",
            (1, false) => "1 (zstd) needs the feature bit of the compression type",
            _ => "only 0 (zlib) and 1 (zstd) are known",
        };
        Err(ImageError::Field {
            field: "compression_type",
            value: u64::from(kind),
            wanted: wanted.to_owned(),
        })
    }

    fn check_tables(&self) -> Result<(), ImageError> {
        let field = |field, value, wanted: String| {
            Err(ImageError::Field {
                field,
                value,
                wanted,
            })
        };
        if self.refcount_order > 6 {
            let order = u64::from(self.refcount_order);
            return field("refcount_order", order, "at most 6 (64 bits)".to_owned());
        }
        let geometry = self.geometry();
        if geometry.extended && self.cluster_bits < 14 {
            let bits = u64::from(self.cluster_bits);
            let wanted = "extended L2 entries need at least 14 (16 KiB)".to_owned();
            return field("cluster_bits", bits, wanted);
        }
        if self.size > crate::node::MAX_LEN {
            return field("size", self.size, "no disk is longer than 8 EiB".to_owned());
        }
        let needed = geometry.l1_entries_for(self.size);
        let most = MAX_L1 / 8;
        let entries = u64::from(self.l1_entries);
        if entries > most {
            return field(
                "l1_size",
                entries,
                format!("at most {most} entries (32 MiB)"),
            );
        }
        if entries < needed {
            let wanted = format!("a disk of {} bytes needs {needed} entries", self.size);
            return field("l1_size", entries, wanted);
        }
        let table = MAX_REFTABLE >> self.cluster_bits;
        let clusters = u64::from(self.reftable_clusters);
        if clusters == 0 || clusters > table.max(1) {
            let wanted = format!("1 to {} clusters (8 MiB)", table.max(1));
            return field("refcount_table_clusters", clusters, wanted);
        }
        if self.snapshots > MAX_SNAPSHOTS {
            let (count, wanted) = (
                u64::from(self.snapshots),
                format!("at most {MAX_SNAPSHOTS}"),
            );
            return field("nb_snapshots", count, wanted);
        }
        for (name, offset, used) in [
            ("l1_table_offset", self.l1_offset, self.l1_entries > 0),
            ("refcount_table_offset", self.reftable_offset, true),
            (
                "snapshots_offset",
                self.snapshots_offset,
                self.snapshots > 0,
            ),
        ] {
            let inside = offset >= geometry.cluster_size() && offset < MAX_HOST;
            if used && !(inside && geometry.is_aligned(offset)) {
                let wanted = "the start of a cluster behind the first, below 64 PiB".to_owned();
                return field(name, offset, wanted);
            }
        }
        Ok(())
    }

    /// The sizes from which places follow.
    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended: self.incompatible.contains(Incompatible::EXTENDED_L2),
            external: self.incompatible.contains(Incompatible::DATA_FILE),
            zero_flag: self.version >= 3,
        }
    }

    /// The bytes of the first cluster: header, extensions, name; zeros behind them.
    pub(super) fn encode(&self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::with_capacity(LENGTH_NEW);
        let word = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_be_bytes());
        let long = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_be_bytes());
        word(&mut bytes, MAGIC);
        word(&mut bytes, self.version);
        // The backing file's name: filled in below.
        long(&mut bytes, 0);
        word(&mut bytes, 0);
        word(&mut bytes, self.cluster_bits);
        long(&mut bytes, self.size);
        word(&mut bytes, 0);
        word(&mut bytes, self.l1_entries);
        long(&mut bytes, self.l1_offset);
        long(&mut bytes, self.reftable_offset);
        word(&mut bytes, self.reftable_clusters);
        word(&mut bytes, self.snapshots);
        long(&mut bytes, self.snapshots_offset);
        if self.version >= 3 {
            let length = (COMPRESSION_AT + 1 + self.further.len()).next_multiple_of(8);
            long(&mut bytes, self.incompatible.bits());
            long(&mut bytes, self.compatible.bits());
            long(&mut bytes, self.autoclear.bits());
            word(&mut bytes, self.refcount_order);
            word(&mut bytes, u32::try_from(length).unwrap_or(u32::MAX));
            bytes.push(u8::from(self.compression == Compression::Zstd));
            bytes.extend(&self.further);
            bytes.resize(length, 0);
        }
        for (kind, body) in self.extensions() {
            word(&mut bytes, kind);
            word(&mut bytes, u32::try_from(body.len()).unwrap_or(u32::MAX));
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        long(&mut bytes, 0);
        if let Some(name) = &self.backing_file {
            let at = bytes.len() as u64;
            bytes.extend(name.as_bytes());
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
            bytes[16..20].copy_from_slice(&len.to_be_bytes());
        }
        let room = self.geometry().cluster_size();
        if bytes.len() as u64 > room {
            let needed = bytes.len();
            return Err(ImageError::HeaderFull { needed, room });
        }
        bytes.resize(usize::try_from(room).unwrap_or(usize::MAX), 0);
        Ok(bytes)
    }

    fn extensions(&self) -> Vec<(u32, Vec<u8>)> {
        let mut list = Vec::new();
        if let Some(format) = &self.backing_format {
            list.push((extension::BACKING_FORMAT, format.clone().into_bytes()));
        }
        if let Some(name) = &self.data_file {
            list.push((extension::DATA_FILE, name.clone().into_bytes()));
        }
        if let Some(bitmaps) = self.bitmaps {
            let mut body = Vec::with_capacity(24);
            body.extend(bitmaps.count.to_be_bytes());
            body.extend([0; 4]);
            body.extend(bitmaps.directory_size.to_be_bytes());
            body.extend(bitmaps.directory_offset.to_be_bytes());
            list.push((extension::BITMAPS, body));
        }
        list.extend(self.kept.iter().cloned());
        list
    }

    /// Gives the header the table of the names of the features known here.
    pub(super) fn name_features(&mut self) {
        self.kept
            .push((extension::FEATURE_NAMES, super::features::name_table()));
    }
}

fn check_cluster_bits(bits: u32) -> Result<(), ImageError> {
    if (9..=21).contains(&bits) {
        return Ok(());
    }
    Err(ImageError::Field {
        field: "cluster_bits",
        value: u64::from(bits),
        wanted: "9 to 21 (512 bytes to 2 MiB)".to_owned(),
    })
}

fn parse_bitmaps(body: &[u8], cluster_bits: u32) -> Result<BitmapsExtension, ImageError> {
    let broken = |why: &str| ImageError::Extension {
        name: "bitmaps",
        why: why.to_owned(),
    };
    let fields = (u32_at(body, 0), u64_at(body, 8), u64_at(body, 16));
    let (Some(count), Some(directory_size), Some(directory_offset)) = fields else {
        return Err(broken("shorter than 24 bytes"));
    };
    let aligned = directory_offset.trailing_zeros() >= cluster_bits;
    if !aligned || directory_offset == 0 || directory_offset >= MAX_HOST {
        return Err(broken("the directory does not begin where a cluster does"));
    }
    if count == 0 || count > 65535 || directory_size == 0 || directory_size > 64 << 20 {
        return Err(broken(
            "impossible number of bitmaps or length of the directory",
        ));
    }
    Ok(BitmapsExtension {
        count,
        directory_size,
        directory_offset,
    })
}

/// The name of an entry of a table of feature names: type, bit, name padded with zeros.
pub(super) fn feature_entry(entry: &[u8]) -> Option<(u16, String)> {
    let key = u16_at(entry, 0)?;
    let name = entry.get(2..)?;
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    Some((key, String::from_utf8_lossy(&name[..end]).into_owned()))
}
