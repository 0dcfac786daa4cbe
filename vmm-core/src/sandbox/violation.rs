//! The last words of a process that made a call it may not make.
//!
//! ```text
//!   forbidden call ──► filter: trap ──► SIGSYS on that thread ──► one line on stderr ──► abort
//! ```
#![expect(unsafe_code, reason = "a signal handler")]
// UNSAFETY: only a handler learns which call it was, and inside one there is nothing but raw calls.

use std::io;
use std::mem;
use std::ptr;

use super::names;
use crate::last_words::Line;

/// `si_code` of a signal that a filter sent.
const SYS_SECCOMP: i32 = 1;

/// Reports calls that filters trap, from now on.
///
/// # Errors
/// The kernel takes no handler.
pub(super) fn report() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one; the handler does only what is safe in one.
    let failed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) =
            on_violation;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `siginfo_t` as the kernel fills it for SIGSYS (`asm-generic/siginfo.h`, `_sigsys`).
#[repr(C)]
struct SigSys {
    signo: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    call_address: *const libc::c_void,
    call: i32,
    arch: u32,
}

extern "C" fn on_violation(
    _signal: libc::c_int,
    info: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    // SAFETY: SA_SIGINFO: the kernel gives a whole siginfo_t, larger than this view of it; all
    // members are plain numbers.
    let info = unsafe { &*info.cast::<SigSys>() };
    let mut line = Line::default();
    line.add(b"sesame: sealed: thread '");
    line.add_thread();
    if info.code == SYS_SECCOMP {
        line.add(b"' made the system call ");
        line.add(names::of(i64::from(info.call)).as_bytes());
        line.add(b" (");
        line.add_number(info.call.unsigned_abs().into());
        line.add(b"), which it may not make");
    } else {
        line.add(b"' was sent SIGSYS");
    }
    line.add(b": the process ends\n");
    line.write();
    // SAFETY: abort is async-signal-safe and does not come back.
    unsafe { libc::abort() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_line_fits() {
        let mut line = Line::default();
        line.add(b"sesame: sealed: thread 'fifteen-letters' made the system call ");
        line.add(b"sched_rr_get_interval_time64");
        line.add(b" (");
        line.add_number(4_294_967_295);
        line.add(b"), which it may not make: the process ends\n");
        assert!(
            line.text()
                .ends_with(b"(4294967295), which it may not make: the process ends\n")
        );
    }
}
