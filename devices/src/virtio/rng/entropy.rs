//! Where random bytes come from.

#![expect(unsafe_code, reason = "getrandom(2)")]
// UNSAFETY: none of the crates we use wraps getrandom(2).

use std::io;
use std::sync::Arc;

use fdset::{FileType, OpenFile};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::reactor::Watched;

/// A source of random bytes. Called on the reactor's thread.
pub trait Entropy: Send + Sync {
    /// Fills the beginning of `buffer` without blocking; returns how many bytes. 0 is the end:
    /// there will never be more.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is nothing now; anything else is a failure.
    fn fill(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// What becomes readable when there is something again; `None` for a source that never waits.
    fn watched(&self) -> Option<Watched>;
}

/// The host kernel's own generator (`rng-builtin`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtin;

impl Entropy for Builtin {
    fn fill(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
        let filled = unsafe {
            libc::getrandom(
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::GRND_NONBLOCK,
            )
        };
        usize::try_from(filled).map_err(|_| io::Error::last_os_error())
    }

    fn watched(&self) -> Option<Watched> {
        None
    }
}

/// A file, device or pipe (`rng-random`).
#[derive(Clone, Debug)]
pub struct EntropyFile {
    file: Arc<OpenFile>,
    waits: bool,
}

impl EntropyFile {
    /// Reads from `file`, which becomes non-blocking.
    ///
    /// # Errors
    /// The descriptor's flags cannot be changed.
    pub fn new(file: OpenFile) -> io::Result<Self> {
        let waits = !matches!(
            file.file_type()?,
            FileType::Regular | FileType::BlockDevice | FileType::Directory
        );
        if waits {
            let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
            fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            file: Arc::new(file),
            waits,
        })
    }
}

impl Entropy for EntropyFile {
    fn fill(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.file, buffer)?)
    }

    fn watched(&self) -> Option<Watched> {
        self.waits.then(|| Arc::clone(&self.file) as Watched)
    }
}
