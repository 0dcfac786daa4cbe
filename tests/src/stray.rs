//! Fds that whoever started us left open by mistake: they end here.
#![expect(unsafe_code, reason = "close_range has no safe wrapper")]
// UNSAFETY: closing by number can take an fd from its owner; here nothing is closed, only marked.

use std::sync::Once;

use nix::libc;

/// Lets no child have an fd that it is not handed: a VMM tells of every fd it began with. What
/// this program opens itself is close-on-exec from birth.
pub fn keep_from_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let all = libc::c_uint::MAX;
        // SAFETY: with this flag the call sets close-on-exec on all fds from 3 on and closes none.
        let _ = unsafe { libc::close_range(3, all, CLOSE_RANGE_CLOEXEC) };
    });
}

/// `CLOSE_RANGE_CLOEXEC` of `linux/close_range.h`, in the type of the call.
const CLOSE_RANGE_CLOEXEC: libc::c_int = 4;
