//! A header read before there is a node: which further files an image wants.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::uio::pread;

use super::error::ImageError;
use super::header::Header;
use super::open::Outside;

/// What memory, places and lengths are aligned to: enough for any O_DIRECT.
const ALIGNMENT: usize = 4096;
/// The fixed fields of the oldest version.
const SHORTEST: usize = 72;

/// Reads which other files the image wants whose first byte is at `offset` of `file`.
///
/// # Errors
/// The file cannot be read, or the header is not one that can be used.
pub fn look_into(file: BorrowedFd<'_>, offset: u64) -> Result<Outside, ImageError> {
    let start = read(file, offset, ALIGNMENT)?;
    let wanted = Header::wanted(&start)?;
    if start.len() < SHORTEST {
        return Err(ImageError::Truncated("header"));
    }
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut bytes = if wanted <= start.len() {
        start
    } else {
        read(file, offset, wanted)?
    };
    bytes.truncate(wanted);
    Header::parse(&bytes).map(Outside::from)
}

/// `len` bytes or as many as there are, at most a cluster's 2 MiB.
fn read(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Vec<u8>, ImageError> {
    let failed = |errno: Errno| ImageError::storage("read the header")(errno.into());
    let len = len.next_multiple_of(ALIGNMENT);
    let mut buffer = vec![0_u8; len + ALIGNMENT];
    let from = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let window = buffer.get_mut(from..from + len).unwrap_or_default();
    let mut done = 0;
    while let Some(rest) = window.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(done as u64);
        let at = i64::try_from(at).map_err(|_| failed(Errno::EOVERFLOW))?;
        match pread(file, rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            // Behind the end of a file whose length is no multiple of what O_DIRECT wants.
            Err(Errno::EINVAL) if done > 0 => break,
            Err(errno) => return Err(failed(errno)),
        }
    }
    buffer.drain(..from);
    buffer.truncate(done);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_image_or_cut_off_is_told_and_not_read_on() {
        for bytes in [
            &b""[..],
            b"QFI",
            b"no image at all, but long enough for one",
        ] {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(bytes).expect("written");
            let error = look_into(file.as_fd(), 0).expect_err("no image");
            assert!(matches!(error, ImageError::NotQcow2), "{error}");
        }
        let mut file = tempfile::tempfile().expect("a file");
        let start = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 12], &[0, 0, 0, 16]].concat();
        file.write_all(&start).expect("written");
        let error = look_into(file.as_fd(), 0).expect_err("cut off");
        assert!(matches!(error, ImageError::Truncated(_)), "{error}");
        let pipe = std::io::pipe().expect("a pipe").0;
        assert!(look_into(pipe.as_fd(), 0).is_err());
    }
}
