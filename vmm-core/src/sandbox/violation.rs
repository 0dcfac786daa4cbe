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

/// `si_code` of a signal that a filter sent.
const SYS_SECCOMP: i32 = 1;
/// The longest name of a thread, with the zero after it.
const NAME: usize = 16;

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
    let mut name = [0_u8; NAME];
    // SAFETY: the call writes at most 16 bytes, zero included.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut line = Line::default();
    line.add(b"sesame: sealed: thread '");
    line.add(name.split(|byte| *byte == 0).next().unwrap_or_default());
    if info.code == SYS_SECCOMP {
        line.add(b"' made the system call ");
        line.add(names::of(i64::from(info.call)).as_bytes());
        line.add(b" (");
        line.add_number(info.call.unsigned_abs());
        line.add(b"), which it may not make");
    } else {
        line.add(b"' was sent SIGSYS");
    }
    line.add(b": the process ends\n");
    let line = line.text();
    // SAFETY: bytes of our own stack; abort is async-signal-safe and does not come back.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::abort();
    }
}

/// Text without an allocation.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 160],
            len: 0,
        }
    }
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn add_number(&mut self, number: u32) {
        if number >= 10 {
            self.add_number(number / 10);
        }
        let digit = u8::try_from(number % 10).unwrap_or(0);
        self.add(&[b'0' + digit]);
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
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
