//! Compressed clusters: bytes that nobody vouches for become exactly one cluster, or an error.
//!
//! What is given may go on behind the end of the compressed bytes, because an entry counts whole
//! sectors; decompression stops when the cluster is full.

use std::io::{self, Read};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;
use ruzstd::decoding::StreamingDecoder;

/// The largest window of a Zstandard frame: what the format asks of every decoder. A cluster's own
/// is at most its size, 2 MiB.
const MAX_WINDOW: u64 = 8 << 20;

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
            Self::Zstd => {
                // The decoder keeps that much in memory, whatever it is asked for.
                if let Some(window) = window(packed).filter(|window| *window > MAX_WINDOW) {
                    return Err(broken(format!("a window of {window} bytes")));
                }
                StreamingDecoder::new(packed)
                    .map_err(|e| broken(e.to_string()))?
                    .read_exact(cluster)
            }
        }
    }
}

/// How far back a Zstandard frame refers, in bytes (RFC 8878, section 3.1.1.1); `None` if there is
/// no such frame.
fn window(frame: &[u8]) -> Option<u64> {
    let descriptor = *frame.get(4)?;
    if descriptor & 0x20 == 0 {
        let byte = *frame.get(5)?;
        let base = 1_u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // A single segment: the window is all of it.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (len, add) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let bytes = frame.get(5 + dictionary..5 + dictionary + len)?;
    let size = bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Some(size + add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_that_wants_much_memory_is_refused() {
        // 128 KiB of zeros in one block of repeated bytes, with a window of 1 KiB or 96 MiB.
        let frame = |window| [0x28, 0xb5, 0x2f, 0xfd, 0, window, 0x03, 0x00, 0x10, 0];
        let mut cluster = [1; 512];
        Compression::Zstd
            .decompress(&frame(0x38), &mut cluster)
            .expect("128 KiB");
        assert_eq!(cluster, [0; 512]);
        let error = Compression::Zstd.decompress(&frame(0x84), &mut cluster);
        let error = error.expect_err("96 MiB").to_string();
        assert_eq!(error, "a window of 100663296 bytes");
        assert_eq!(window(&[0, 0, 0, 0, 0xa0, 0, 0, 0, 1]), Some(1 << 24));
    }
}
