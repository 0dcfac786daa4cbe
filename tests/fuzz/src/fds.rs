//! Fds that can be told apart, and a count that must come back to where it was.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use nix::sys::stat::fstat;

/// How many there are.
const COUNT: usize = 32;

/// Fds of different files, made once: handing one over copies it.
pub(crate) struct Pool(Vec<Pooled>);

struct Pooled {
    fd: OwnedFd,
    mark: u64,
    /// The other end, which keeps this one alive.
    _partner: Option<OwnedFd>,
}

/// A file, the ends of pipes, a socket, in turns.
fn one(index: usize) -> (OwnedFd, Option<OwnedFd>) {
    match index % 5 {
        0 | 1 => (tempfile::tempfile().expect("a file").into(), None),
        2 => {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            (reader.into(), Some(writer.into()))
        }
        3 => {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            (writer.into(), Some(reader.into()))
        }
        _ => {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            (ours.into(), Some(theirs.into()))
        }
    }
}

impl Pool {
    /// The fds of this process.
    pub(crate) fn of_this_process() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let fds = (0..COUNT).map(|index| {
                let (fd, partner) = one(index);
                let mark = mark(&fd);
                Pooled {
                    fd,
                    mark,
                    _partner: partner,
                }
            });
            Self(fds.collect())
        })
    }

    /// The `index`th fd, counted round, and its mark.
    pub(crate) fn fd(&self, index: usize) -> (&OwnedFd, u64) {
        let pooled = &self.0[index % COUNT];
        (&pooled.fd, pooled.mark)
    }
}

/// What tells an fd's file from others.
pub(crate) fn mark(fd: impl AsFd) -> u64 {
    fstat(fd).expect("an open fd").st_ino
}

/// Held by each test: targets count the fds of the process.
#[cfg(test)]
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // One that failed has nothing to hide from the others.
    ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How many fds this process had when it was made.
pub(crate) struct Watch(usize);

impl Watch {
    /// Counts now.
    pub(crate) fn new() -> Self {
        Pool::of_this_process();
        Self(open_fds())
    }

    /// So many must be there beside those.
    pub(crate) fn assert_more(&self, count: usize) {
        assert_eq!(
            open_fds(),
            self.0 + count,
            "fds were left open, or too many closed"
        );
    }

    /// Nothing may be left of what came since.
    pub(crate) fn assert_nothing_is_left(self) {
        assert_eq!(open_fds(), self.0, "fds were left open, or too many closed");
    }
}

/// How many fds are open, the one that counts among them.
fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").expect("procfs").count()
}
