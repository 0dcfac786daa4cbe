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

/// Reads through a buffer that suits O_DIRECT.
pub(crate) async fn bounce_read(
    io: &Io,
    file: &Arc<OpenFile>,
    offset: u64,
    into: Window<'_>,
    alignment: usize,
) -> io::Result<()> {
    let size = usize::try_from(into.len().min(CHUNK)).map_err(io::Error::other)?;
    let buffer = Segments::owned(size, alignment)?;
    let mut done = 0;
    while done < into.len() {
        let part = buffer.all().part(0, into.len() - done);
        let got = io.read(file, offset + done, part).await?;
        let rest = into.part(done, part.len());
        if got == 0 {
            rest.fill_zero();
            done += part.len();
        } else {
            rest.copy_from_window(&part.part(0, u64::from(got)));
            done += u64::from(got);
        }
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
