//! Compressed clusters: bytes that nobody vouches for become exactly one cluster, or an error.
//!
//! What is given may go on behind the end of the compressed bytes, because an entry counts whole
//! sectors; decompression stops when the cluster is full.

use std::io::{self, Read};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;
use ruzstd::decoding::StreamingDecoder;

/// How an image's compressed clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a zlib header (RFC 1951); called `zlib`.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The name in QMP.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// Fills `cluster` from `packed`.
    ///
    /// # Errors
    /// `packed` is no stream of this kind, or gives fewer bytes than the cluster has.
    pub(super) fn decompress(self, packed: &[u8], cluster: &mut [u8]) -> io::Result<()> {
        let broken = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        match self {
            Self::Zlib => {
                let inflated =
                    decompress_slice_iter_to_slice(cluster, std::iter::once(packed), false, true);
                match inflated {
                    Ok(len) if len == cluster.len() => Ok(()),
                    // The cluster is full; what follows is of no use.
                    Err(TINFLStatus::HasMoreOutput) => Ok(()),
                    Ok(len) => Err(broken(format!("only {len} bytes"))),
                    Err(status) => Err(broken(format!("{status:?}"))),
                }
            }
            Self::Zstd => StreamingDecoder::new(packed)
                .map_err(|e| broken(e.to_string()))?
                .read_exact(cluster),
        }
    }
}
