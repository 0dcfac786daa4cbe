//! For tests: an fd to hand over, and a way to ask the kernel whether anybody still has it.

use std::io::{PipeReader, pipe};
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::handover::{Handover, Origin};

/// An fd as the command line would hand it over.
pub(crate) fn passed(fd: impl Into<OwnedFd>) -> Handover {
    Handover::new(fd.into(), Origin::CommandLine)
}

/// The read end of a pipe whose write end was handed over.
pub(crate) struct Watch(PipeReader);

/// The write end of a new pipe, and its watch.
pub(crate) fn watched() -> (OwnedFd, Watch) {
    let (reader, writer) = pipe().expect("a pipe");
    (writer.into(), Watch(reader))
}

impl Watch {
    /// Whether the last copy of the write end is closed.
    pub(crate) fn is_closed(&self) -> bool {
        let mut end = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut end, PollTimeout::ZERO).expect("poll");
        end[0]
            .revents()
            .is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
    }
}

/// Lets the test's process have as many fds as it may, for tests of our own limits.
pub(crate) fn raise_fd_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
}
