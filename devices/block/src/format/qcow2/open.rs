//! Opening: the header's gate, then the tables that are held in memory; and the same once more, for
//! another image in its place, or when another process has had it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::bytes::words;
use super::details::Details;
use super::error::ImageError;
use super::features::{AutoClear, Compatible};
use super::header::Header;
use super::holders::Holders;
use super::image::{Image, Meta};
use super::map::Map;
use super::refcount::Refcounts;
use super::storage::Storage;
use super::turn::{Ranges, Turn};
use super::{snapshots, stored};
use crate::bitmap::Bitmaps;
use crate::engine::Io;
use crate::node::NodeRef;
use crate::reopen::{OtherImage, Prepared};
use crate::slot::{BackingSlot, ChildSlot};

/// The nodes that an image stands on.
#[derive(Clone, Debug)]
pub struct Children {
    /// The file with header and tables.
    pub file: ChildSlot,
    /// The file with the guest's clusters, for images that have it outside.
    pub data: Option<ChildSlot>,
    /// The disk below.
    pub backing: BackingSlot,
}

/// What of an image's handling can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of L2 tables that are kept in memory.
    pub l2_cache: u64,
    /// Bytes of L2 tables that are read at once: a power of two from 512 to a cluster's size.
    pub l2_slice: u64,
    /// Whether refcounts are written late; `None` as the image says.
    pub lazy_refcounts: Option<bool>,
    /// Whether what the guest discards is discarded in the file.
    pub pass_discard: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            l2_cache: 32 << 20,
            l2_slice: 4096,
            lazy_refcounts: None,
            pass_discard: false,
        }
    }
}

/// What an image says of its other files, before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The backing file's name and format, as they stand in the header.
    pub backing: Option<(String, Option<String>)>,
    /// Whether the guest's clusters are in another file.
    pub needs_data_file: bool,
    /// That file's name, as it stands in the header.
    pub data_file: Option<String>,
}

/// Reads which other files an image wants.
///
/// # Errors
/// The storage fails, or the header is not one that can be used.
pub async fn peek(io: &Io, file: &NodeRef) -> Result<Outside, ImageError> {
    let (header, _) = read_header(io, &Storage::new(file.clone())).await?;
    Ok(header.into())
}

impl From<Header> for Outside {
    fn from(header: Header) -> Self {
        Self {
            needs_data_file: header.geometry().external,
            data_file: header.data_file,
            backing: header
                .backing_file
                .map(|file| (file, header.backing_format)),
        }
    }
}

/// The header, and the first cluster as it is in the file.
pub(super) async fn read_header(io: &Io, file: &Storage) -> Result<(Header, Vec<u8>), ImageError> {
    let failed = || ImageError::storage("read the header");
    if file.len() < 72 {
        let start = file.read(io, 0, file.len()).await.map_err(failed())?;
        Header::wanted(&start)?;
        return Err(ImageError::Truncated("header"));
    }
    let start = file.read(io, 0, 72).await.map_err(failed())?;
    let wanted = Header::wanted(&start)?;
    let bytes = file.read(io, 0, wanted).await.map_err(failed())?;
    Ok((Header::parse(&bytes)?, bytes))
}

/// Opens an image. Nothing is written before the first change.
pub(super) async fn open(
    io: &Io,
    name: &str,
    children: Children,
    tuning: Tuning,
    read_only: bool,
) -> Result<Image, ImageError> {
    let file = Storage::new(children.file.load());
    let (header, header_bytes) = read_header(io, &file).await?;
    let geometry = header.geometry();
    if !read_only {
        Image::refuse_writing(&header)?;
    }
    match (&children.data, geometry.external) {
        (None, true) => return Err(ImageError::ChildMissing("data-file")),
        (Some(_), false) => return Err(ImageError::ChildUnwanted("data-file")),
        _ => {}
    }
    if header.autoclear.contains(AutoClear::RAW_DATA_FILE) && !geometry.external {
        let why = "data-file-raw requires a data file".to_owned();
        return Err(ImageError::Options(why));
    }
    for node in [Some(&children.file), children.data.as_ref()]
        .into_iter()
        .flatten()
    {
        let alignment = node.load().limits().request_alignment;
        let cluster = geometry.subcluster_size();
        if cluster < u64::from(alignment) {
            return Err(ImageError::Alignment { cluster, alignment });
        }
    }
    let recorded = header.compatible.contains(Compatible::LAZY_REFCOUNTS);
    let lazy = tuning.lazy_refcounts.unwrap_or(recorded);
    if tuning.lazy_refcounts == Some(true) && header.version < 3 {
        let why = "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level";
        return Err(ImageError::Options(why.to_owned()));
    }
    let l1_len = u64::from(header.l1_entries) * 8;
    let l1 = file.read(io, header.l1_offset, l1_len).await;
    let l1 = words(&l1.map_err(ImageError::storage("read the L1 table"))?);
    let reftable_len = u64::from(header.reftable_clusters) << header.cluster_bits;
    let reftable = file.read(io, header.reftable_offset, reftable_len).await;
    let reftable = reftable.map_err(ImageError::storage("read the refcount table"))?;
    let place = (header.reftable_offset, header.reftable_clusters);
    let refcounts = Refcounts::new(geometry, Refcounts::table_from(&reftable), place);
    let snapshots = snapshots::read(io, &file, &header).await?;
    let bitmaps = Arc::new(Bitmaps::loaded(stored::load(io, &file, &header).await?));
    let l1 = (header.l1_offset, l1);
    let details = RwLock::new(Details::new(&header, snapshots.0.clone()));
    Ok(Image {
        name: name.to_owned(),
        geometry,
        compression: header.compression,
        raw_data: header.autoclear.contains(AutoClear::RAW_DATA_FILE),
        file: children.file,
        data: children.data,
        backing: children.backing,
        size: AtomicU64::new(header.size),
        map: Map::new(geometry, l1, tuning.l2_cache, tuning.l2_slice),
        holders: Holders::new(),
        ranges: Ranges::default(),
        meta: Turn::new(Meta {
            lazy: lazy && header.version >= 3,
            lazy_wanted: tuning.lazy_refcounts,
            header,
            snapshots,
            header_bytes,
            refcounts,
            loose: Vec::new(),
            resting: None,
            bitmaps_marked: false,
            is_ahead: false,
        }),
        writing: AtomicBool::new(false),
        unsaved: AtomicBool::new(false),
        corrupt: AtomicBool::new(false),
        sink: OnceLock::new(),
        pass_discard: AtomicBool::new(tuning.pass_discard),
        bitmaps,
        details,
    })
}

/// An image about to be another one, or to be what another process has made of it.
pub(super) struct Anew {
    image: Arc<Image>,
    new: Image,
}

impl Anew {
    /// Opens what is in `file` in place of what `image` has, which is drained and settled.
    ///
    /// # Errors
    /// It cannot be opened, or its clusters are of another kind.
    pub(super) async fn open(
        io: &Io,
        image: Arc<Image>,
        file: NodeRef,
        read_only: bool,
    ) -> Result<Self, ImageError> {
        let children = Children {
            file: ChildSlot::from(file),
            data: image.data.clone(),
            backing: image.backing.clone(),
        };
        let tuning = Tuning {
            lazy_refcounts: image.meta.take().await.lazy_wanted,
            ..Tuning::default()
        };
        let new = open(io, &image.name, children, tuning, read_only).await?;
        let kind = |image: &Image| (image.geometry, image.compression, image.raw_data);
        if kind(&new) != kind(&image) {
            let why = "its clusters are of another kind than those of the image that its node was \
                       made for: remove the node and add it again";
            return Err(ImageError::Cannot(why.to_owned()));
        }
        Ok(Self { image, new })
    }
}

impl From<Anew> for OtherImage {
    fn from(anew: Anew) -> Self {
        let details = anew.new.details.read();
        let is_backed = details
            .unwrap_or_else(PoisonError::into_inner)
            .backing
            .is_some();
        Self {
            len: anew.new.size.load(Ordering::SeqCst),
            is_backed,
            image: Box::new(anew),
        }
    }
}

impl Prepared for Anew {
    fn commit(self: Box<Self>) {
        let Self { image, new } = *self;
        image.meta.exchange(&new.meta);
        image.map.forget();
        image
            .map
            .replace_l1(new.map.l1_place(), new.map.l1_entries());
        let size = new.size.load(Ordering::SeqCst);
        image.size.store(size, Ordering::SeqCst);
        for flag in [&image.writing, &image.unsaved, &image.corrupt] {
            flag.store(false, Ordering::SeqCst);
        }
        image.bitmaps.reload(new.bitmaps.list());
        let details = new.details.into_inner();
        let mut shown = image
            .details
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *shown = details.unwrap_or_else(PoisonError::into_inner);
    }
}
