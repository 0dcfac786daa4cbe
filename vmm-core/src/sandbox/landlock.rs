//! Landlock: a rule set that allows nothing, under the filters.
//!
//! A filter sees the number of a call; Landlock sees the file. With no rule in the set, no path can
//! be opened, made, renamed or removed, no TCP port bound or connected to, by whatever way into the
//! kernel. What is open stays open. (Linux `Documentation/userspace-api/landlock.rst`)
#![expect(unsafe_code, reason = "system calls without a wrapper")]
// UNSAFETY: the C library has no functions for these three calls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Ask for the version instead of making a set.
const CREATE_RULESET_VERSION: u32 = 1;
/// Abstract unix sockets of others are out of reach. (Signals are not taken away: each thread is
/// restricted by itself, and kernels before 6.15 would not let them signal each other.)
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;
const NET_BIND_AND_CONNECT: u64 = 3;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handled {
    file_system: u64,
    net: u64,
    scoped: u64,
}

impl Handled {
    /// All that a kernel with this ABI can take away.
    fn of(abi: u32) -> Self {
        let newest_right = match abi {
            0 | 1 => 12,
            2 => 13,     // refer
            3 | 4 => 14, // truncate
            _ => 15,     // ioctl on devices
        };
        Self {
            file_system: (1 << (newest_right + 1)) - 1,
            net: if abi >= 4 { NET_BIND_AND_CONNECT } else { 0 },
            scoped: if abi >= 6 {
                SCOPE_ABSTRACT_UNIX_SOCKET
            } else {
                0
            },
        }
    }

    /// How much of the structure such a kernel knows.
    fn size(abi: u32) -> usize {
        let members = match abi {
            0..4 => 1,
            4 | 5 => 2,
            _ => 3,
        };
        members * size_of::<u64>()
    }
}

/// The version of Landlock in this kernel; `None` without it, built in or switched on.
pub(super) fn abi() -> Option<u32> {
    // SAFETY: with this flag the call takes no memory and makes nothing.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<Handled>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// A set without a rule.
#[derive(Debug)]
pub(super) struct Nothing(OwnedFd);

impl Nothing {
    /// Makes the set for a kernel with this ABI.
    ///
    /// # Errors
    /// The kernel refuses it, or no fd is left.
    pub(super) fn new(abi: u32) -> io::Result<Self> {
        let handled = Handled::of(abi);
        // SAFETY: the structure lives through the call and is at least as long as the size says.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const handled,
                Handled::size(abi),
                0_u32,
            )
        };
        match RawFd::try_from(fd) {
            // SAFETY: a new fd, owned by nobody else; the kernel makes it close-on-exec.
            Ok(fd) if fd >= 0 => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Nothing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Leaves the calling thread with what `ruleset` allows. The thread has no_new_privs. Safe to call
/// in a signal handler.
pub(super) fn restrict_this_thread(ruleset: RawFd) -> Result<(), i32> {
    // SAFETY: takes two numbers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0_u32) };
    if done == 0 {
        return Ok(());
    }
    Err(nix::errno::Errno::last_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_abi_handles_exactly_the_rights_it_knows() {
        let rights = |abi| Handled::of(abi).file_system.count_ones();
        assert_eq!([1, 2, 3, 4, 5, 9].map(rights), [13, 14, 15, 15, 16, 16]);
        assert_eq!([1, 4, 6].map(Handled::size), [8, 16, 24]);
        assert_eq!((Handled::of(3).net, Handled::of(4).net), (0, 3));
        assert_eq!((Handled::of(5).scoped, Handled::of(6).scoped), (0, 1));
    }

    #[test]
    fn a_restricted_thread_opens_nothing() {
        let Some(abi) = abi() else {
            eprintln!("this kernel has no Landlock: nothing to see");
            return;
        };
        std::thread::spawn(move || {
            let nothing = Nothing::new(abi).expect("a set");
            nix::sys::prctl::set_no_new_privs().expect("always possible");
            restrict_this_thread(nothing.as_raw_fd()).expect("restricted");
            let door = fdset::Door::new(
                std::sync::Arc::new(fdset::FdRegistry::new()),
                fdset::Scope::Process,
            );
            let access = fdset::Access::ReadOnly;
            let error = fdset::null(&door, access, fdset::Role::Log, "test").expect_err("refused");
            assert_eq!(error.errno(), libc::EACCES);
        })
        .join()
        .expect("no assertion failed");
    }
}
