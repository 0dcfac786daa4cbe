//! What only the start needed, given back.
//!
//! ```text
//!   launch ──► code and constants of the command line, device models, TLS, ... all mapped
//!      │            (the kernel maps 64 KiB around each page that is touched)
//!      ▼ nothing has happened for a moment: give_back, once
//!   idle   ──► what is touched from now on; each first touch is a minor fault
//! ```
//!
//! The pages stay in the kernel's page cache, so nothing is read again; the process merely does not
//! hold on to them. This room knows no VM.

#![expect(unsafe_code, reason = "the mappings of the program itself")]
// UNSAFETY: dl_iterate_phdr hands out raw addresses, and madvise takes them.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::slice;
use std::time::{Duration, Instant};

/// The first pause of the main loop that is so long ends the start.
const CALM: Duration = Duration::from_millis(100);

/// Ends the walk over the objects.
const ENOUGH: c_int = 1;

/// Whether the start's pages are still there.
#[derive(Debug)]
pub(crate) struct StartCode {
    is_held: bool,
}

impl StartCode {
    /// The process has just started.
    pub(crate) fn held() -> Self {
        Self { is_held: true }
    }

    /// When a wait that begins at `now` ends, if it would otherwise at `deadline`.
    pub(crate) fn wake_by(&self, deadline: Option<Instant>, now: Instant) -> Option<Instant> {
        let calm = self.is_held.then(|| now + CALM);
        deadline.into_iter().chain(calm).min()
    }

    /// The main loop has waited so long for something to happen.
    pub(crate) fn waited(&mut self, time: Duration) {
        if self.is_held && time >= CALM {
            self.is_held = false;
            give_back();
        }
    }
}

/// Lets go of all pages of the program's own file that are never written to, code and constants
/// alike. Whatever is needed again comes back by itself, from memory.
///
/// A build with debug assertions keeps them: a debugger's breakpoints are private copies of such
/// pages, and would be gone. Memory that is locked stays as well.
fn give_back() {
    if cfg!(debug_assertions) {
        return;
    }
    // SAFETY: the callback has the wanted form, and takes no argument of ours.
    unsafe { libc::dl_iterate_phdr(Some(give_back_program), ptr::null_mut()) };
}

/// For the first object, which is the program; the libraries are shared with all other processes.
extern "C" fn give_back_program(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: the loader lends its description of the object for the time of this call.
    let object = unsafe { &*object };
    // SAFETY: these two are the object's table of segments, mapped as long as the object is.
    let segments = unsafe { slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for segment in segments {
        let never_written = segment.p_flags & libc::PF_W == 0;
        if segment.p_type == libc::PT_LOAD && never_written {
            let start = object.dlpi_addr.wrapping_add(segment.p_vaddr);
            give_back_segment(start, segment.p_memsz);
        }
    }
    ENOUGH
}

/// Lets go of the whole pages that begin at or after the one of `start`.
fn give_back_segment(start: u64, size: u64) {
    // SAFETY: asks for a number.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let first = start - start % page;
    let Ok(length) = usize::try_from(start - first + size) else {
        return;
    };
    // SAFETY: a mapping of the program's file that nothing writes to: what a page held is what the
    // file holds, so it comes back as it was. A segment shares no page with a writable one.
    let result = unsafe { libc::madvise(first as *mut c_void, length, libc::MADV_DONTNEED) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the pages of the start stay");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_calm_moment_ends_the_start_and_no_later_one_wakes_the_loop() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        let mut start_code = StartCode::held();
        assert_eq!(start_code.wake_by(None, now), Some(now + CALM));
        assert_eq!(start_code.wake_by(Some(now), now), Some(now));
        start_code.waited(CALM / 2);
        assert_eq!(start_code.wake_by(Some(now + hour), now), Some(now + CALM));
        start_code.waited(CALM);
        assert_eq!(start_code.wake_by(None, now), None);
        assert_eq!(start_code.wake_by(Some(now + hour), now), Some(now + hour));
    }

    #[test]
    fn what_is_given_back_is_there_again() {
        static WORDS: [&str; 2] = ["constants", "code"];
        // SAFETY: as in `give_back`, which does nothing in a build with debug assertions.
        unsafe { libc::dl_iterate_phdr(Some(give_back_program), ptr::null_mut()) };
        assert_eq!(WORDS.concat(), "constantscode");
    }
}
