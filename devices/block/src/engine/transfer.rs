//! Whole transfers that need a buffer of our own: zeros, and bounces for O_DIRECT.

use std::io;
use std::sync::Arc;

use fdset::OpenFile;

use super::buffers::{Segments, Window};
use super::iothread::Io;

/// The most one piece of zeros or of a bounce buffer holds.
const CHUNK: u64 = 1 << 20;

/// Writes zeros by sending them: for storage that knows no better way.
pub(crate) async fn send_zeroes(
    io: &Io,
    file: &Arc<OpenFile>,
    offset: u64,
    len: u64,
    alignment: usize,
    durable: bool,
) -> io::Result<()> {
    let size = usize::try_from(len.min(CHUNK)).map_err(io::Error::other)?;
    let zeros = Segments::owned(size, alignment)?;
    let mut done = 0;
    while done < len {
        let part = zeros.all().part(0, len - done);
        let put = io.write(file, offset + done, part, durable).await?;
        if put == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        done += u64::from(put);
    }
    Ok(())
}

/// What a read moved of `part`, with zeros where the file ended: `got` bytes came from storage that
/// moves whole blocks, so that an end within one is the end of the file.
pub(crate) fn fill_to_block(part: &Window<'_>, got: u32, block: u64) -> u64 {
    let got = u64::from(got);
    let end = match got {
        0 => part.len(),
        _ => got.next_multiple_of(block).min(part.len()),
    };
    part.part(got, end - got).fill_zero();
    end
}

/// Reads through a buffer that suits O_DIRECT: aligned so in memory, in blocks of so many bytes.
pub(crate) async fn bounce_read(
    io: &Io,
    file: &Arc<OpenFile>,
    offset: u64,
    into: Window<'_>,
    (alignment, block): (usize, u64),
) -> io::Result<()> {
    let size = usize::try_from(into.len().min(CHUNK)).map_err(io::Error::other)?;
    let buffer = Segments::owned(size, alignment)?;
    let mut done = 0;
    while done < into.len() {
        let part = buffer.all().part(0, into.len() - done);
        let got = io.read(file, offset + done, part).await?;
        let moved = fill_to_block(&part, got, block);
        let rest = into.part(done, moved);
        rest.copy_from_window(&part.part(0, moved));
        done += moved;
    }
    Ok(())
}

/// Writes through a buffer that suits O_DIRECT.
pub(crate) async fn bounce_write(
    io: &Io,
    file: &Arc<OpenFile>,
    offset: u64,
    from: Window<'_>,
    alignment: usize,
    durable: bool,
) -> io::Result<()> {
    let size = usize::try_from(from.len().min(CHUNK)).map_err(io::Error::other)?;
    let buffer = Segments::owned(size, alignment)?;
    let mut done = 0;
    while done < from.len() {
        let part = buffer.all().part(0, from.len() - done);
        part.copy_from_window(&from.part(done, part.len()));
        let put = io.write(file, offset + done, part, durable).await?;
        if put == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        done += u64::from(put);
    }
    Ok(())
}
