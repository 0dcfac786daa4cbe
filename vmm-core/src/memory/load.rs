//! Files read straight into guest memory, by offset: the kernel copies once, and a shared file
//! offset of a passed fd is neither used nor moved.
#![expect(unsafe_code, reason = "pread into guest memory")]
// UNSAFETY: guest memory is never a Rust slice (the guest writes it at any time), so the safe
// pread of the libraries does not apply.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use devices::memory::GuestMemView;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

/// Reads `len` bytes of `file` from `offset` to the guest's `address`.
///
/// # Errors
/// The range is not RAM ([`io::ErrorKind::InvalidInput`]), the file ends before
/// ([`io::ErrorKind::UnexpectedEof`]), or reading fails.
pub fn pread(
    memory: &GuestMemView,
    address: u64,
    file: BorrowedFd<'_>,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    let count = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut at = offset;
    for slice in memory.get_slices(GuestAddress(address), count) {
        let slice = slice.map_err(|_| io::ErrorKind::InvalidInput)?;
        at = fill(&slice, file, at)?;
    }
    Ok(())
}

fn fill<B: BitmapSlice>(
    slice: &VolatileSlice<'_, B>,
    file: BorrowedFd<'_>,
    mut offset: u64,
) -> io::Result<u64> {
    let mut done = 0;
    let guard = slice.ptr_guard_mut();
    while done < slice.len() {
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `done` is less than the slice's length, so the range lies within guest memory,
        // which stays mapped while the guard lives; the kernel writes at most its length.
        let read = unsafe {
            let to = guard.as_ptr().add(done);
            libc::pread(file.as_raw_fd(), to.cast(), slice.len() - done, at)
        };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                done += read;
                offset = offset.saturating_add(read as u64);
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    slice.bitmap().mark_dirty(0, done);
    Ok(offset)
}
