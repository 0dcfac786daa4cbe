//! The process around the VM: its signals, and its way into the background.
//!
//! ```text
//!   main ── Daemon::fork ──► parent: waits for the child's word, exits with its status
//!                        └─► child ── builds the VM ── Daemon::ready ──► 0 to the parent
//! ```
//!
//! This room knows no VM. It runs before the first thread exists.

#![expect(
    unsafe_code,
    reason = "fork, signal handlers, the time zone and the allocator"
)]
// UNSAFETY: none has a safe form; fork is called while the process has one thread.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{
    ForkResult, Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setgroups, setresgid,
    setresuid, setsid, setuid,
};

/// A request from outside to end the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndRequest {
    /// The signal's number.
    pub signal: u32,
    /// The sender's process id, as far as the kernel knows it.
    pub sender: u32,
}

/// The signals that ask the process to end, as an fd for the event loop.
#[derive(Debug)]
pub struct EndSignals(SignalFd);

impl EndSignals {
    /// Turns SIGTERM, SIGINT and SIGHUP into reads of this fd, for every thread started later.
    /// SIGPIPE is already ignored by the runtime. A wait for a first client lets the signals
    /// through, and ends with the error `Interrupted`.
    ///
    /// # Errors
    /// No fd is left.
    pub fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), set);
        for signal in &set {
            // SAFETY: the handler does nothing, so it may run anywhere.
            unsafe { sigaction(signal, &action) }?;
        }
        Ok(Self(SignalFd::with_flags(
            &set,
            SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
        )?))
    }

    /// The next request, if one came.
    pub fn next_request(&self) -> Option<EndRequest> {
        let info = self.0.read_signal().ok().flatten()?;
        Some(EndRequest {
            signal: info.ssi_signo,
            sender: info.ssi_pid,
        })
    }
}

/// Only there so that a signal interrupts a wait instead of ending the process on the spot.
extern "C" fn ignore(_signal: libc::c_int) {}

impl AsFd for EndSignals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The child of `-daemonize`, which still owes its parent the word that it is ready.
#[derive(Debug)]
pub struct Daemon {
    parent: UnixStream,
}

impl Daemon {
    /// Forks. The parent stays in here until the child is ready or gone, and exits: 0 when the
    /// child is ready, 1 otherwise. Only the child returns.
    ///
    /// # Errors
    /// No fd or process is left.
    pub fn fork() -> io::Result<Self> {
        let (parent, child) = UnixStream::pair()?;
        // SAFETY: nothing has started a thread yet, so the child's copy of the heap and of every
        // lock is consistent.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => {
                drop(child);
                let mut word = [0];
                let ready = { parent }.read_exact(&mut word).is_ok();
                process::exit(i32::from(!ready));
            }
            ForkResult::Child => {
                drop(parent);
                setsid()?;
                Ok(Self { parent: child })
            }
        }
    }

    /// Lets the parent go, and leaves its terminal: standard input and outputs become `null`.
    ///
    /// # Errors
    /// The standard fds cannot be replaced.
    pub fn ready(mut self, null: &impl AsFd) -> io::Result<()> {
        dup2_stdin(null)?;
        dup2_stdout(null)?;
        dup2_stderr(null)?;
        // Last: whoever started the parent finds everything done once it has ended.
        self.parent.write_all(&[0])
    }
}

/// Makes `folder` the root of the process. What is open stays open.
///
/// # Errors
/// The process may not (it needs `CAP_SYS_CHROOT`), or there is no such folder.
pub fn change_root(folder: &str) -> io::Result<()> {
    nix::unistd::chroot(folder)?;
    Ok(nix::unistd::chdir("/")?)
}

/// Becomes another user, in every thread and for ever. `groups` are all of its groups.
///
/// # Errors
/// The process may not (it needs `CAP_SETUID` and `CAP_SETGID`), or it could come back.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    if !user.is_root() && setuid(Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other("the process can become root again"));
    }
    Ok(())
}

/// Gives the process another name in lists of processes; the kernel keeps its first 15 bytes.
///
/// # Errors
/// The name holds a zero byte.
pub fn rename(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    Ok(nix::sys::prctl::set_name(&name)?)
}

/// Locks all memory of the process into the host's, now and later.
///
/// # Errors
/// The limit for locked memory (`RLIMIT_MEMLOCK`) is too low.
pub fn lock_memory() -> io::Result<()> {
    Ok(mlockall(
        MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE,
    )?)
}

/// Lets all threads allocate from one arena. The C library's other arenas open a file in `/proc`
/// before they give memory back, at a time nobody can foresee, and a sealed process must not.
pub fn use_one_arena() {
    // SAFETY: takes two numbers; no thread has an arena of its own yet.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::error!("the C library does not keep to one arena of memory");
    }
}

/// Seconds since 1970-01-01T00:00:00 UTC.
#[must_use]
pub fn unix_time() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Local time minus UTC at this moment, in seconds.
#[must_use]
pub fn local_time_offset() -> i64 {
    let now = unix_time();
    // SAFETY: an all-zero `tm` is a valid one; both pointers are to live locals.
    let local = unsafe {
        let mut local = mem::zeroed();
        libc::localtime_r(&raw const now, &raw mut local);
        local
    };
    local.tm_gmtoff
}
