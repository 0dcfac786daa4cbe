//! Compressed clusters: bytes that nobody vouches for become exactly one cluster, or an error.
//!
//! What is given may go on behind the end of the compressed bytes, because an entry counts whole
//! sectors; decompression stops when the cluster is full.
//!
//! What we compress keeps to the format's window of 4 KiB, which readers may rely on.

use std::io::{self, Read};

use miniz_oxide::DataFormat;
use miniz_oxide::deflate::CompressionLevel;
use miniz_oxide::deflate::core::{CompressorOxide, TDEFLFlush, TDEFLStatus, compress};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::compress_to_vec;

/// The largest window of a Zstandard frame: what the format asks of every decoder. A cluster's own
/// is at most its size, 2 MiB.
const MAX_WINDOW: u64 = 8 << 20;

/// How far back a deflate stream may refer: the format's `windowBits` are 12.
const DEFLATE_WINDOW: usize = 4096;

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

    /// Compresses a cluster; `None` if that takes more than about `room` bytes.
    pub(super) fn compress(self, cluster: &[u8], room: usize) -> Option<Vec<u8>> {
        match self {
            Self::Zlib => deflate(cluster, room),
            Self::Zstd => {
                let packed = compress_to_vec(cluster, ruzstd::encoding::CompressionLevel::Fastest);
                (packed.len() <= room).then_some(packed)
            }
        }
    }
}

/// A deflate stream whose distances stay inside the window: the encoder has one of 32 KiB that
/// cannot be made smaller, so it is made to forget at the end of each piece of a window's size.
fn deflate(cluster: &[u8], room: usize) -> Option<Vec<u8>> {
    let mut encoder =
        CompressorOxide::with_format_and_level(DataFormat::Raw, CompressionLevel::DefaultLevel);
    let mut packed = vec![0; room];
    let mut len = 0;
    let mut pieces = cluster.chunks(DEFLATE_WINDOW).peekable();
    while let Some(piece) = pieces.next() {
        let (flush, wanted) = match pieces.peek() {
            Some(_) => (TDEFLFlush::Full, TDEFLStatus::Okay),
            None => (TDEFLFlush::Finish, TDEFLStatus::Done),
        };
        let (status, taken, put) = compress(&mut encoder, piece, &mut packed[len..], flush);
        len += put;
        // A full buffer may have left something behind.
        let all = status == wanted && taken == piece.len() && len < room;
        if !all {
            return None;
        }
    }
    packed.truncate(len);
    Some(packed)
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
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
    use proptest::prelude::*;

    use super::*;

    /// Inflates with a window of 4 KiB and no more: what refers farther back is an error or wrong.
    fn inflate_in_window(packed: &[u8]) -> Vec<u8> {
        let mut ring = [0; DEFLATE_WINDOW];
        let (mut at, mut taken, mut all) = (0, 0, Vec::new());
        let mut decoder = DecompressorOxide::new();
        loop {
            let from = &packed[taken..];
            let (status, used, put) = decompress(&mut decoder, from, &mut ring, at, 0);
            all.extend(&ring[at..at + put]);
            (taken, at) = (taken + used, (at + put) % DEFLATE_WINDOW);
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::Done => return all,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn deflate_refers_back_no_farther_than_the_formats_window() {
        // Repeats that a window of 32 KiB finds and one of 4 KiB does not.
        let block: Vec<u8> = (0..6000_u32)
            .map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        let cluster: Vec<u8> = block.iter().copied().cycle().take(65536).collect();
        let packed = deflate(&cluster, 2 * 65536).expect("room");
        assert!(inflate_in_window(&packed) == cluster);
        let far = miniz_oxide::deflate::compress_to_vec(&cluster, 6);
        assert!(far.len() < 16 << 10, "{} with farther ones", far.len());
    }

    proptest! {
        #[test]
        fn what_is_compressed_is_the_same_again_and_fits(
            runs in proptest::collection::vec((any::<u8>(), 1_usize..600), 1..200),
            bits in 9_u32..=18, zstd: bool,
        ) {
            let pieces = runs.iter().flat_map(|(byte, len)| vec![*byte; *len]);
            let mut cluster: Vec<u8> = pieces.take(1 << bits).collect();
            cluster.resize(1 << bits, 0);
            let kind = if zstd { Compression::Zstd } else { Compression::Zlib };
            if let Some(packed) = kind.compress(&cluster, cluster.len() - 1) {
                prop_assert!(packed.len() < cluster.len());
                if !zstd {
                    prop_assert!(inflate_in_window(&packed) == cluster);
                }
                let mut padded = packed;
                padded.resize(padded.len().next_multiple_of(512), 0);
                let mut again = vec![1; cluster.len()];
                kind.decompress(&padded, &mut again).expect("ours");
                prop_assert!(again == cluster);
            }
        }
    }

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
