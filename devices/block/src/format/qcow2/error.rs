//! Why an image cannot be used, or cannot be changed as wanted.

use std::io;

/// What is wrong with an image, or with what is wanted of it. Texts that clients of QEMU match on
/// are those.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It does not begin with the magic bytes.
    #[error("Image is not in qcow2 format")]
    NotQcow2,
    /// It is older or newer than what there is.
    #[error("Unsupported qcow2 version {0}: only 2 and 3 are known")]
    Version(u32),
    /// A number in the header that cannot be.
    #[error("the header's {field} is {value}: {wanted}")]
    Field {
        /// The field, named as the format's specification does.
        field: &'static str,
        /// What stands there.
        value: u64,
        /// What should, and what to do.
        wanted: String,
    },
    /// The file ends within the header or what it points to.
    #[error("the file ends within the {0}: it was cut short")]
    Truncated(&'static str),
    /// Encrypted clusters.
    #[error(
        "the image is encrypted ({0}): encryption is not supported; decrypt it with \
         'qemu-img convert' first"
    )]
    Encrypted(String),
    /// Features that change the meaning of what one knows.
    #[error("Unsupported qcow2 feature(s): {0}")]
    Features(String),
    /// Someone found it corrupt before.
    #[error(
        "qcow2: Image is corrupt; cannot be opened read/write: repair it with \
         'qemu-img check -r all' first"
    )]
    Corrupt,
    /// A header extension that cannot be read.
    #[error("the header extension {name} is broken: {why}")]
    Extension {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The new header has more names than its cluster has room for.
    #[error("the header needs {needed} bytes, but a cluster has {room}: use shorter file names")]
    HeaderFull {
        /// Bytes it needs.
        needed: usize,
        /// Bytes of a cluster.
        room: u64,
    },
    /// The storage moves larger pieces than the image has.
    #[error(
        "clusters of {cluster} bytes cannot be moved by storage that moves multiples of \
         {alignment} bytes: use cache.direct=off"
    )]
    Alignment {
        /// Bytes of a cluster.
        cluster: u64,
        /// What the storage wants.
        alignment: u32,
    },
    /// A node that the image needs was not given.
    #[error("'{0}' is required for this image")]
    ChildMissing(&'static str),
    /// A node that the image has no use for was given.
    #[error("'{0}' can only be set for images with an external data file")]
    ChildUnwanted(&'static str),
    /// Options that do not go together.
    #[error("{0}")]
    Options(String),
    /// A snapshot that is not there.
    #[error("Can't find a snapshot with {0}")]
    NoSuchSnapshot(String),
    /// What this image cannot do, and why.
    #[error("{0}")]
    Cannot(String),
    /// The tables contradict each other.
    #[error("the image is inconsistent: {0}; repair it with 'qemu-img check -r all'")]
    Inconsistent(String),
    /// The storage failed.
    #[error("cannot {what}")]
    Storage {
        /// What was tried: `read the header`.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Says what was tried when the storage failed.
    pub(super) fn storage(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Storage { what, source }
    }
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Storage { source, .. } => source,
            other => Self::other(other),
        }
    }
}
