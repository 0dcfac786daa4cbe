//! The last words of a process whose guest memory is no longer there: a file that was cut short, or
//! storage that failed.
//!
//! ```text
//!   map ──► watch: a slot with range and name       (main)
//!   a touch beyond the file's end ──► SIGBUS on that thread ──► which slot? ──► one line on stderr
//!                                              the touch is made again, and ends the process ◄──┘
//! ```
//!
//! A memfd that we could seal cannot be cut short; any other file is in the hands of whoever gave it.
//! What the guest itself touches comes back from KVM as an error instead (`VM_INTERNAL_ERROR`).
#![expect(unsafe_code, reason = "a signal handler")]
// UNSAFETY: only a handler learns which address it was, and the process cannot go on.

use std::io;
use std::mem;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::last_words::Line;

/// How many mappings are known by name; one more is not, and the line then says less.
const SLOTS: usize = 64;
/// How much of a name is kept, in bytes.
const NAME: usize = 96;

/// A mapping of a file. Atomics, because a handler may read it at any time; only `main` writes.
struct Slot {
    /// Its first address; 0 while there is none.
    start: AtomicUsize,
    len: AtomicUsize,
    name: [AtomicU8; NAME],
}

static MAPPINGS: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        name: [const { AtomicU8::new(0) }; NAME],
    }
}; SLOTS];

impl Slot {
    /// How far `address` is into it.
    fn offset_of(&self, address: usize) -> Option<usize> {
        let start = self.start.load(Ordering::Acquire);
        let offset = address.checked_sub(start).filter(|_| start != 0)?;
        (offset < self.len.load(Ordering::Relaxed)).then_some(offset)
    }

    fn overlaps(&self, start: usize, len: usize) -> bool {
        let own = self.start.load(Ordering::Relaxed);
        let end = own.saturating_add(self.len.load(Ordering::Relaxed));
        own != 0 && own < start.saturating_add(len) && start < end
    }

    fn fill(&self, start: usize, len: usize, name: &str) {
        self.start.store(0, Ordering::Release);
        let bytes = name.bytes().chain(std::iter::repeat(0));
        for (place, byte) in self.name.iter().zip(bytes) {
            place.store(byte, Ordering::Relaxed);
        }
        self.len.store(len, Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
    }
}

/// Sets the handler up. A sealed process may not: it is done with the machine's own memory, before
/// more of it can come.
pub(super) fn be_ready() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = report() {
            tracing::warn!(%error, "memory that is cut short will end the process without a word");
        }
    });
}

/// Names the backend in the last words, should the file behind these addresses be cut short. A
/// mapping that was there before is gone, or they would not be free.
pub(super) fn watch(start: *const u8, len: usize, name: &str) {
    be_ready();
    let start = start.addr();
    let mut free = None;
    for slot in &MAPPINGS {
        if slot.overlaps(start, len) {
            slot.start.store(0, Ordering::Release);
        }
        if slot.start.load(Ordering::Relaxed) == 0 {
            free.get_or_insert(slot);
        }
    }
    if let Some(slot) = free {
        slot.fill(start, len, name);
    }
}

/// The mapping at these addresses goes away.
pub(super) fn forget(start: *const u8, len: usize) {
    for slot in &MAPPINGS {
        if slot.overlaps(start.addr(), len) {
            slot.start.store(0, Ordering::Release);
        }
    }
}

fn report() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one; the handler does only what is safe in one.
    let failed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) =
            on_bus_error;
        action.sa_sigaction = handler as usize;
        // Reset: the touch is made again, and then ends the process as it does without a handler.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_bus_error(
    _signal: libc::c_int,
    info: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    // SAFETY: SA_SIGINFO: the kernel gives a whole siginfo_t; of a fault it has an address, of a
    // signal that was sent some other number in its place, which is only compared.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let mut line = Line::default();
    line.add(b"sesame: ");
    match MAPPINGS
        .iter()
        .find_map(|slot| Some((slot, slot.offset_of(address)?)))
    {
        Some((slot, offset)) if code > 0 => {
            for byte in &slot.name {
                match byte.load(Ordering::Relaxed) {
                    0 => break,
                    byte => line.add(&[byte]),
                }
            }
            line.add(b": what is behind it is gone at byte ");
            line.add_number(u64::try_from(offset).unwrap_or(u64::MAX));
            line.add(b": the file was cut short, or its storage has failed");
        }
        _ if code > 0 => line.add(b"memory that a file is behind is gone"),
        _ => line.add(b"the process was sent SIGBUS"),
    }
    line.add(b" (thread '");
    line.add_thread();
    line.add(
        b"'): the process ends; never shorten a file that is guest memory, and make memfds with \
               MFD_ALLOW_SEALING\n",
    );
    line.write();
    if code <= 0 {
        // SAFETY: async-signal-safe; it is delivered when this handler returns, with no other there.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
