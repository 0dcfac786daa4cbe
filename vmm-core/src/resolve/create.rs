//! New images: `blockdev-create`.

use block::format::qcow2::{Compression, NewImage, Preallocation};
use block::spec::ChildSpec;
use qapi_schema::QmpError;
use qapi_schema::block_core::Qcow2CompressionType;
use qapi_schema::block_create::{
    BlockdevCreateOptions, BlockdevCreateOptionsFile, BlockdevCreateOptionsQcow2,
    BlockdevCreateOptionsVariant as Kind, BlockdevQcow2Version, PreallocMode,
};

use super::node::child;
use crate::transaction::overlay::PLAIN;

/// An image that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateSpec {
    /// A regular file.
    File(NewFileSpec),
    /// A qcow2 image.
    Qcow2(Box<NewQcow2Spec>),
}

/// A regular file that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFileSpec {
    /// Its path, or the name of a file that was handed in.
    pub filename: String,
    /// Its length in bytes.
    pub size: u64,
    /// What of it is there from the start.
    pub preallocation: Preallocation,
}

/// A qcow2 image that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewQcow2Spec {
    /// The node for header and tables.
    pub file: ChildSpec,
    /// The node for the guest's clusters, if they are not in `file`, and whether it alone is to be
    /// the disk.
    pub data_file: Option<(ChildSpec, bool)>,
    /// The image; its data file is named once that is open.
    pub image: NewImage,
}

/// Whether images of this driver are made.
///
/// # Errors
/// They are not.
pub fn check_driver(options: &BlockdevCreateOptions) -> Result<(), QmpError> {
    match options.driver {
        Kind::File(_) | Kind::Qcow2(_) => Ok(()),
        _ => Err(QmpError::generic(
            "Driver does not support blockdev-create: only 'file' and 'qcow2' do",
        )),
    }
}

/// What is to be made.
///
/// # Errors
/// Members contradict each other, or images of this driver are not made.
pub fn create(options: BlockdevCreateOptions) -> Result<CreateSpec, QmpError> {
    check_driver(&options)?;
    match options.driver {
        Kind::File(file) => new_file(file).map(CreateSpec::File),
        Kind::Qcow2(qcow2) => new_qcow2(qcow2).map(|new| CreateSpec::Qcow2(Box::new(new))),
        _ => Err(QmpError::generic("Driver does not support blockdev-create")),
    }
}

fn new_file(options: BlockdevCreateOptionsFile) -> Result<NewFileSpec, QmpError> {
    let preallocation = preallocation(options.preallocation);
    if preallocation == Preallocation::Metadata {
        return Err(QmpError::generic(
            "Unsupported preallocation mode 'metadata': a file has none; use 'falloc'",
        ));
    }
    Ok(NewFileSpec {
        filename: options.filename,
        size: options.size,
        preallocation,
    })
}

fn new_qcow2(options: BlockdevCreateOptionsQcow2) -> Result<NewQcow2Spec, QmpError> {
    if options.backing_fmt.is_some() && options.backing_file.is_none() {
        return Err(QmpError::generic(
            "Backing format cannot be used without backing file",
        ));
    }
    let raw = options.data_file_raw.unwrap_or(false);
    if raw && options.data_file.is_none() {
        return Err(QmpError::generic("data-file-raw requires data-file"));
    }
    let data_file = options.data_file.map(|data| child(data, &PLAIN));
    let data_file = data_file.transpose()?.map(|data| (data, raw));
    let usual = NewImage::new(options.size);
    // A width that is no number of bits is refused where the image is checked.
    let bits = options
        .refcount_bits
        .map(|bits| u32::try_from(bits).unwrap_or(0));
    let format = options.backing_fmt.map(|format| format.as_str().to_owned());
    Ok(NewQcow2Spec {
        file: child(options.file, &PLAIN)?,
        data_file,
        image: NewImage {
            version: match options.version {
                Some(BlockdevQcow2Version::V2) => 2,
                None | Some(BlockdevQcow2Version::V3) => 3,
            },
            cluster_size: options.cluster_size.unwrap_or(usual.cluster_size),
            refcount_bits: bits.unwrap_or(usual.refcount_bits),
            lazy_refcounts: options.lazy_refcounts.unwrap_or(false),
            extended_l2: options.extended_l2.unwrap_or(false),
            compression: match options.compression_type {
                None | Some(Qcow2CompressionType::Zlib) => Compression::Zlib,
                Some(Qcow2CompressionType::Zstd) => Compression::Zstd,
            },
            backing: options.backing_file.map(|name| (name, format)),
            preallocation: preallocation(options.preallocation),
            ..usual
        },
    })
}

fn preallocation(mode: Option<PreallocMode>) -> Preallocation {
    match mode {
        None | Some(PreallocMode::Off) => Preallocation::Off,
        Some(PreallocMode::Metadata) => Preallocation::Metadata,
        Some(PreallocMode::Falloc) => Preallocation::Falloc,
        Some(PreallocMode::Full) => Preallocation::Full,
    }
}
