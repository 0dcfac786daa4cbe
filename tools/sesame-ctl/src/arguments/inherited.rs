//! An fd that whoever started this program left open for it.
#![expect(
    unsafe_code,
    reason = "an inherited fd is only a number until somebody dups it"
)]
// UNSAFETY: no safe call takes a number. It is borrowed for one dup, which fails if it is not open.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A copy of fd `number`.
pub(super) fn copy(number: u16) -> io::Result<OwnedFd> {
    // SAFETY: the number is not -1, and the borrow ends before anything could close it: the dup is
    // all that is done with it, and it fails with EBADF if nobody left that fd open.
    let fd = unsafe { BorrowedFd::borrow_raw(number.into()) };
    fd.try_clone_to_owned()
}
