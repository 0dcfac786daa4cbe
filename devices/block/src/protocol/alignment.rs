//! What O_DIRECT wants of a file: asked of the kernel, not guessed.
#![expect(unsafe_code, reason = "statx(2) has no safe binding here")]
// UNSAFETY: one call of statx(2) that fills a structure of ours.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// What suits every device, where the kernel cannot say (before 6.1, some file systems).
const SAFE: u32 = 4096;

/// What transfers of a file must be multiples of, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Offsets and lengths.
    pub(super) request: u32,
    /// Addresses and lengths in host memory.
    pub(super) memory: u32,
}

/// The alignment of an open file: one byte, unless it is open with O_DIRECT (statx(2),
/// STATX_DIOALIGN).
pub(super) fn probe(file: BorrowedFd<'_>) -> io::Result<Alignment> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_DIRECT) {
        return Ok(Alignment {
            request: 1,
            memory: 1,
        });
    }
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, the fd is borrowed, and `stat` has room for the
    // structure.
    let outcome = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before the call, and all its members are integers.
    let stat = unsafe { stat.assume_init() };
    let told = |value: u32| if value.is_power_of_two() { value } else { SAFE };
    let known = stat.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(if known {
        Alignment {
            request: told(stat.stx_dio_offset_align),
            memory: told(stat.stx_dio_mem_align),
        }
    } else {
        Alignment {
            request: SAFE,
            memory: SAFE,
        }
    })
}
