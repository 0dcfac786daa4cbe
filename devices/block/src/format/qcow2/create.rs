//! New images.
//!
//! The smallest image comes first: header, refcount table, one refcount block, no disk. Then it is
//! opened and given its length like any other.

use super::compress::Compression;
use super::error::ImageError;
use super::features::{AutoClear, Compatible, Incompatible};
use super::header::{Header, MAX_BACKING_NAME};
use super::image::Image;
use super::open::{Children, Tuning, open};
use super::refcount::write_count;
use super::resize::l1_fits;
use super::storage::Storage;
use crate::engine::Io;
use crate::node::{MAX_LEN, NodeRef, ResizeError};
use crate::slot::{BackingSlot, ChildSlot};

/// The longest disk that QEMU's block layer knows: a whole GiB below 8 EiB.
const MAX_SIZE: u64 = MAX_LEN / (1 << 30) * (1 << 30);

/// What of a new image is there before it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables, and places for all clusters.
    Metadata,
    /// And the host's space for them.
    Falloc,
    /// And zeros written to all of it.
    Full,
}

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// The disk's length in bytes, a multiple of 512.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a refcount: a power of two up to 64.
    pub refcount_bits: u32,
    /// Whether refcounts are written late.
    pub lazy_refcounts: bool,
    /// Whether clusters have parts that appear one by one.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The backing file's name and format, for the header.
    pub backing: Option<(String, Option<String>)>,
    /// The data file's name, for the header, and whether it alone is to be the disk.
    pub data_file: Option<(String, bool)>,
    /// What is there from the start.
    pub preallocation: Preallocation,
}

impl NewImage {
    /// An image with the usual sizes: version 3, clusters of 64 KiB, refcounts of 16 bits.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Zlib,
            backing: None,
            data_file: None,
            preallocation: Preallocation::Off,
        }
    }

    /// Refuses what does not go together. Texts that clients match on are QEMU's.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), ImageError> {
        let wrong = |is_wrong: bool, text: &str| match is_wrong {
            true => Err(ImageError::Options(text.to_owned())),
            false => Ok(()),
        };
        let cluster = self.cluster_size;
        wrong(
            !self.size.is_multiple_of(512),
            "Image size must be a multiple of 512 bytes",
        )?;
        wrong(
            !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster),
            "Cluster size must be a power of two between 512 and 2048k",
        )?;
        wrong(
            self.extended_l2 && cluster < 16384,
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        )?;
        wrong(
            !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64,
            "Refcount width must be a power of two and may not exceed 64 bits",
        )?;
        let old = self.version < 3;
        wrong(
            old && self.refcount_bits != 16,
            "Different refcount widths than 16 bits require compatibility level 1.1 or above \
             (use version=v3 or greater)",
        )?;
        wrong(
            old && self.lazy_refcounts,
            "Lazy refcounts only supported with compatibility level 1.1 and above (use \
             version=v3 or greater)",
        )?;
        wrong(
            old && self.extended_l2,
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use \
             version=v3 or greater)",
        )?;
        wrong(
            old && self.data_file.is_some(),
            "External data files are only supported with compatibility level 1.1 and above (use \
             version=v3 or greater)",
        )?;
        wrong(
            old && self.compression != Compression::Zlib,
            "Non-zlib compression type is only supported with compatibility level 1.1 and above \
             (use version=v3 or greater)",
        )?;
        let raw = self.data_file.as_ref().is_some_and(|(_, raw)| *raw);
        wrong(
            raw && self.backing.is_some(),
            "Backing file and data-file-raw cannot be used at the same time",
        )?;
        wrong(
            self.backing.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2,
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        )?;
        let long = |(name, _): &(String, Option<String>)| name.len() > MAX_BACKING_NAME;
        wrong(
            self.backing.as_ref().is_some_and(long),
            "Backing file name too long",
        )?;
        wrong(
            self.size > MAX_LEN,
            "Could not resize image: Image size cannot be negative",
        )?;
        let text = format!(
            "Could not resize image: offset({}) exceeds maximum({MAX_SIZE})",
            self.size
        );
        wrong(self.size > MAX_SIZE, &text)?;
        wrong(
            !l1_fits(self.header().geometry(), self.size),
            "Could not resize image: Failed to grow the L1 table: File too large",
        )
    }

    /// The header of an image without a disk.
    fn header(&self) -> Header {
        let external = self.data_file.is_some();
        let raw = self.data_file.as_ref().is_some_and(|(_, raw)| *raw);
        let mut incompatible = Incompatible::empty();
        incompatible.set(Incompatible::DATA_FILE, external);
        incompatible.set(Incompatible::EXTENDED_L2, self.extended_l2);
        let other = self.compression != Compression::Zlib;
        incompatible.set(Incompatible::COMPRESSION, other);
        let mut compatible = Compatible::empty();
        compatible.set(Compatible::LAZY_REFCOUNTS, self.lazy_refcounts);
        let mut autoclear = AutoClear::empty();
        autoclear.set(AutoClear::RAW_DATA_FILE, raw);
        let (backing_file, backing_format) = self.backing.clone().unzip();
        let mut header = Header {
            version: self.version,
            cluster_bits: self.cluster_size.trailing_zeros(),
            refcount_order: self.refcount_bits.trailing_zeros(),
            size: 0,
            l1_entries: 0,
            l1_offset: 0,
            reftable_offset: self.cluster_size,
            reftable_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible,
            compatible,
            autoclear,
            compression: self.compression,
            further: Vec::new(),
            backing_file,
            backing_format: backing_format.flatten(),
            data_file: self.data_file.clone().map(|(name, _)| name),
            bitmaps: None,
            kept: Vec::new(),
        };
        if self.version >= 3 {
            header.name_features();
        }
        header
    }

    /// Header, refcount table and refcount block.
    fn first_clusters(&self) -> Result<Vec<u8>, ImageError> {
        let header = self.header();
        let mut bytes = match header.encode() {
            // Where there is no room for the names of features, they are left out.
            Err(ImageError::HeaderFull { .. }) => {
                let kept = Vec::new();
                Header { kept, ..header }.encode()?
            }
            other => other?,
        };
        let cluster = bytes.len();
        bytes.resize(3 * cluster, 0);
        let block = 2 * self.cluster_size;
        bytes[cluster..cluster + 8].copy_from_slice(&block.to_be_bytes());
        for number in 0..3 {
            let order = self.refcount_bits.trailing_zeros();
            write_count(&mut bytes[2 * cluster..], order, number, 1);
        }
        Ok(bytes)
    }
}

/// Makes an image in `file`, whose contents are lost.
///
/// # Errors
/// The options do not go together, or the storage fails.
pub async fn create(
    io: &Io,
    file: &NodeRef,
    data: Option<&NodeRef>,
    new: &NewImage,
) -> Result<(), ImageError> {
    new.check()?;
    if data.is_none() && new.data_file.is_some() {
        return Err(ImageError::ChildMissing("data-file"));
    }
    let storage = Storage::new(file.clone());
    let bytes = new.first_clusters()?;
    // The storage keeps its length: what is there may not be able to grow again. What it holds is
    // never taken for zeros.
    let (header, tables) = bytes.split_at(bytes.len() / 3);
    // The header last: before it is there, nobody takes the file for an image.
    for (at, part) in [(new.cluster_size, tables), (0, header)] {
        let written = storage.write(io, at, part).await;
        written.map_err(ImageError::storage("write the first clusters"))?;
    }
    let children = Children {
        file: ChildSlot::from(file.clone()),
        data: data.cloned().map(ChildSlot::from),
        backing: BackingSlot::new(None),
    };
    let image = open(io, file.name(), children, Tuning::default(), false).await?;
    let done = fill(io, &image, new).await;
    // Whatever happened, nothing is left in memory.
    let settled = image.settle(io).await;
    done?;
    settled.map_err(ImageError::storage("write the tables"))
}

async fn fill(io: &Io, image: &Image, new: &NewImage) -> Result<(), ImageError> {
    image
        .resize(io, new.size)
        .await
        .map_err(|error| match error {
            ResizeError::Unable(why) => ImageError::Cannot(why.to_owned()),
            ResizeError::Storage(source) => ImageError::Storage {
                what: "give the image its length",
                source,
            },
            ResizeError::Below(error) => ImageError::Cannot(error.to_string()),
        })?;
    if new.preallocation != Preallocation::Off {
        let done = image
            .preallocate(io, new.preallocation, new.backing.is_some())
            .await;
        done.map_err(ImageError::storage("preallocate"))?;
    }
    Ok(())
}
