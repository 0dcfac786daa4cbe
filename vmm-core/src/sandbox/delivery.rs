//! How a filter reaches a thread that runs: the thread puts it on itself, in a signal handler.
//!
//! The kernel lets a thread restrict only itself, or all threads the same way. Threads that wait in
//! the kernel, run a guest or hold a lock must all be reached, and none of them must have to know
//! this room: so each is sent a signal, as the C library does to change user ids.
//!
//! ```text
//!   main: deliver(thread, filter) ──► PARCEL, tgkill ─────► handler on that thread:
//!                                                             landlock_restrict_self
//!   main: poll(bell) ◄── eventfd ◄────────────────────────── seccomp, outcome, write(bell)
//! ```
//!
//! One parcel is on its way at a time; the main thread is the only sender.
#![expect(
    unsafe_code,
    reason = "a signal handler, and calls without a safe form"
)]
// UNSAFETY: a handler reaches its order through a static pointer, and makes raw system calls,
// because nothing else may be done inside a signal handler.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use seccompiler::BpfProgram;

use super::landlock;

/// Milliseconds until a thread that does not answer is given up: it hangs in the kernel.
const PATIENCE: u16 = 5_000;

/// Not opened yet.
const PENDING: i32 = -1;
/// The thread is at it.
const OPENED: i32 = -2;

/// What a thread is to put on itself.
struct Parcel {
    /// The thread it is for; any other leaves it alone.
    to: i32,
    program: BpfProgram,
    ruleset: Option<RawFd>,
    bell: EventFd,
    /// 0: done; positive: the number of the error.
    outcome: AtomicI32,
}

static PARCEL: AtomicPtr<Parcel> = AtomicPtr::new(ptr::null_mut());

/// What became of a parcel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// The thread has it on.
    On,
    /// There is no such thread any more.
    Gone,
}

/// The second real-time signal that the C library leaves to programs; the first kicks vCPUs.
pub(super) fn seal_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Lets the thread `to` of this process put `program` on itself, and `ruleset` before it.
///
/// # Errors
/// The kernel refuses, or the thread does not answer.
pub(super) fn deliver(
    to: i32,
    program: &BpfProgram,
    ruleset: Option<RawFd>,
) -> io::Result<Delivered> {
    install_handler()?;
    let parcel = Box::new(Parcel {
        to,
        program: program.clone(),
        ruleset,
        bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
        outcome: AtomicI32::new(PENDING),
    });
    let parcel = Box::into_raw(parcel);
    PARCEL.store(parcel, Ordering::Release);
    // SAFETY: takes three numbers; the thread belongs to this process.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), to, seal_signal()) };
    let sent = Errno::result(sent);
    // SAFETY: made by `Box::into_raw` above and freed by nobody but us, below.
    let outcome = sent.and_then(|_| await_outcome(unsafe { &*parcel }));
    PARCEL.store(ptr::null_mut(), Ordering::Release);
    if sent.is_err() || outcome.is_ok() {
        // SAFETY: the thread has answered, which is the last it does with the parcel, or never
        // got it. One that has not answered may still: its parcel is left to it for ever.
        drop(unsafe { Box::from_raw(parcel) });
    }
    match outcome {
        Ok(0) => Ok(Delivered::On),
        Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
        Err(Errno::ESRCH) => Ok(Delivered::Gone),
        Err(errno) => Err(errno.into()),
    }
}

fn await_outcome(parcel: &Parcel) -> Result<i32, Errno> {
    loop {
        let mut bell = [PollFd::new(parcel.bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut bell, PollTimeout::from(PATIENCE)) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => return Ok(parcel.outcome.load(Ordering::Acquire)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Puts `program` on the calling thread, which has no_new_privs.
fn filter_this_thread(program: &BpfProgram) -> Result<(), i32> {
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(libc::E2BIG);
    };
    let program = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the structure and the instructions it points to live through the call, which copies
    // them; seccompiler's instruction has the kernel's layout, as `len` counts them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0_u32,
            &raw const program,
        )
    };
    if done == 0 {
        return Ok(());
    }
    Err(Errno::last_raw())
}

extern "C" fn on_parcel(_signal: libc::c_int) {
    let interrupted = Errno::last_raw();
    let parcel = PARCEL.load(Ordering::Acquire);
    // SAFETY: not null only while `deliver` waits, or left for ever to the thread it was for. The
    // check of the receiver keeps every other thread from waiting for anything in here.
    let parcel = unsafe { parcel.as_ref() };
    // SAFETY: takes nothing, gives a number.
    let this = unsafe { libc::syscall(libc::SYS_gettid) };
    if let Some(parcel) = parcel.filter(|parcel| i64::from(parcel.to) == this) {
        open(parcel);
    }
    Errno::set_raw(interrupted);
}

/// Only async-signal-safe calls: two that restrict, and a write.
fn open(parcel: &Parcel) {
    let first =
        parcel
            .outcome
            .compare_exchange(PENDING, OPENED, Ordering::AcqRel, Ordering::Acquire);
    if first.is_err() {
        return;
    }
    let bell = parcel.bell.as_raw_fd();
    let restricted = parcel
        .ruleset
        .map_or(Ok(()), landlock::restrict_this_thread)
        .and_then(|()| filter_this_thread(&parcel.program));
    parcel
        .outcome
        .store(restricted.err().unwrap_or(0), Ordering::Release);
    let one = 1_u64.to_ne_bytes();
    // SAFETY: eight bytes of our own stack, to an eventfd that is open until they have arrived.
    unsafe { libc::write(bell, one.as_ptr().cast(), one.len()) };
}

fn install_handler() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one; the handler does only what is safe in one.
        let failed = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            let handler: extern "C" fn(libc::c_int) = on_parcel;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(seal_signal(), &raw const action, ptr::null_mut()) != 0
        };
        if failed {
            result = Err(io::Error::last_os_error());
        }
    });
    result
}

/// Lets this thread, and those it will start, be reached, whatever mask the process began with.
pub(super) fn unblock() {
    // SAFETY: an all-zero set is storage for `sigemptyset` to fill; the calls write only to it.
    let failed = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, seal_signal());
        libc::sigaddset(&raw mut set, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut())
    };
    if failed != 0 {
        tracing::error!("threads cannot be sealed later: the signal for it stays blocked");
    }
}
