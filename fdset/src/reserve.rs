//! One fd kept back for the moment when the process has no more.
//!
//! Without it, a listener whose callers cannot be accepted stays ready, and they wait without a
//! word. With it they can be accepted, told why, and let go:
//!
//! ```text
//!   accept ─► EMFILE ─► lend: the spare is closed ─► accept, tell, close ─► a new spare is made
//! ```

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Whether a call has failed because the process, or the whole host, has no fd left.
#[must_use]
pub fn is_out_of_fds(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    number == Some(Errno::EMFILE as i32) || number == Some(Errno::ENFILE as i32)
}

/// The fd that is kept back. Another thread may be quicker when it is lent: then `attempt` fails
/// as it would without, and the reserve fills up again when it can.
#[derive(Debug)]
pub struct Reserve(Option<OwnedFd>);

impl Reserve {
    /// Keeps one fd back, if there is one.
    #[must_use]
    pub fn new() -> Self {
        Self(spare())
    }

    /// Gives the spare fd up for the length of `attempt`, which closes what it opens: else the
    /// reserve stays empty until [`refill`](Self::refill).
    pub fn lend<T>(&mut self, attempt: impl FnOnce() -> T) -> T {
        self.0 = None;
        let outcome = attempt();
        self.0 = spare();
        outcome
    }

    /// Tries to keep one back again; whether there is one now.
    pub fn refill(&mut self) -> bool {
        if self.0.is_none() {
            self.0 = spare();
        }
        self.0.is_some()
    }
}

impl Default for Reserve {
    fn default() -> Self {
        Self::new()
    }
}

/// Any fd will do; an eventfd leads nowhere and can be made in a sealed process.
fn spare() -> Option<OwnedFd> {
    let flags = EfdFlags::EFD_CLOEXEC;
    EventFd::from_flags(flags).ok().map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_comes_back() {
        let mut reserve = Reserve::new();
        assert!(reserve.refill());
        assert_eq!(reserve.lend(|| 7), 7);
        assert!(reserve.0.is_some());
    }

    #[test]
    fn only_a_want_of_fds_counts_as_one() {
        for (errno, is_want) in [
            (Errno::EMFILE, true),
            (Errno::ENFILE, true),
            (Errno::ENOMEM, false),
        ] {
            assert_eq!(is_out_of_fds(&io::Error::from(errno)), is_want);
        }
        assert!(!is_out_of_fds(&io::ErrorKind::WouldBlock.into()));
    }
}
