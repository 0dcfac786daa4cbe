//! What an opener gets: the fd, and the lease that stands for it in the books.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use crate::handover::{Origin, Peer};
use crate::kernel;
use crate::kind::Nature;
use crate::ledger::{Use, UseId, Via};
use crate::registry::FdRegistry;
use crate::sets::FdsetId;

/// Which file an fd leads to, whatever its name: two fds with equal identities are one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device that holds the file.
    pub dev: u64,
    /// The file's number there.
    pub ino: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.ino)
    }
}

/// What an fd leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file; a memfd too.
    Regular,
    /// A block device.
    BlockDevice,
    /// A character device: a terminal, `/dev/kvm`, `/dev/null`.
    CharDevice,
    /// A pipe or FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A directory.
    Directory,
    /// A kernel object without a type: an eventfd, a VM, an epoll.
    Other,
}

impl FileType {
    pub(crate) fn of(stat: &FileStat) -> Self {
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Self::Regular,
            SFlag::S_IFBLK => Self::BlockDevice,
            SFlag::S_IFCHR => Self::CharDevice,
            SFlag::S_IFIFO => Self::Fifo,
            SFlag::S_IFSOCK => Self::Socket,
            SFlag::S_IFDIR => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// One use of a file: a line of the [ledger](crate::ledger), and of the fd set it came from, which
/// stays as long. Clones are the same use; the last one to drop gives it back.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Token>);

#[derive(Debug)]
struct Token {
    registry: Arc<FdRegistry>,
    entry: UseId,
    via: Via,
}

impl Lease {
    /// Stands for `entry` of the ledger, and for the use of a set in `via`, counted already.
    pub(crate) fn new(registry: Arc<FdRegistry>, entry: UseId, via: Via) -> Self {
        Self(Arc::new(Token {
            registry,
            entry,
            via,
        }))
    }

    /// Notes in the ledger what is open now under this lease.
    pub(crate) fn now_is(&self, nature: Nature) {
        self.0.registry.change(self.0.entry, nature);
    }

    /// A line of its own for `caller`, who connected to the listener that this lease is of.
    pub(crate) fn of_caller(&self, caller: impl AsFd) -> Option<Self> {
        let registry = &self.0.registry;
        let entry = Use {
            via: Via::Accepted,
            nature: Nature::of(&caller),
            origin: Some(Origin::Caller {
                peer: Peer::of(&caller),
            }),
            since: Instant::now(),
            ..registry.entry(self.0.entry)?
        };
        let entry = registry.begin(entry);
        Some(Self::new(Arc::clone(registry), entry, Via::Accepted))
    }

    /// Where the file came from.
    #[must_use]
    pub fn via(&self) -> Via {
        self.0.via
    }

    /// The set in use, where the file came from one.
    #[must_use]
    pub fn set(&self) -> Option<FdsetId> {
        self.0.via.set()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.registry.end(self.entry, self.via.set());
    }
}

/// What [`open`](crate::open()) gives: an fd of our own, and the lease that says so in the books.
#[derive(Debug)]
pub struct OpenFile {
    // Declared before the lease: the fd is closed before the books say so.
    fd: OwnedFd,
    lease: Option<Lease>,
}

impl OpenFile {
    /// Joins an fd with the lease it depends on.
    #[must_use]
    pub fn new(fd: OwnedFd, lease: Option<Lease>) -> Self {
        Self { fd, lease }
    }

    /// Takes both apart. Keep the lease for as long as the fd is in use.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Option<Lease>) {
        (self.fd, self.lease)
    }

    /// The fd as a file, and the lease to keep beside it.
    #[must_use]
    pub fn into_file(self) -> (File, Option<Lease>) {
        (File::from(self.fd), self.lease)
    }

    /// The lease; what was wrapped by [`new`](Self::new) may have none.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// A second fd for the same open file (they share one offset), under the same lease.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.fd.try_clone()?, self.lease.clone()))
    }

    /// Which file this is.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn identity(&self) -> io::Result<Identity> {
        let stat = self.stat()?;
        Ok(Identity {
            dev: stat.st_dev,
            ino: stat.st_ino,
        })
    }

    /// What it is.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn file_type(&self) -> io::Result<FileType> {
        Ok(FileType::of(&self.stat()?))
    }

    /// Whether reads and writes go past the page cache (`O_DIRECT`), and so must be aligned.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn is_direct(&self) -> io::Result<bool> {
        let flags = OFlag::from_bits_retain(fcntl(&self.fd, FcntlArg::F_GETFL)?);
        Ok(flags.contains(OFlag::O_DIRECT))
    }

    /// The size of the pages that a mapping of it has: more than 4096 bytes on hugetlbfs.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn page_size(&self) -> io::Result<u64> {
        let system = fstatfs(&self.fd)?;
        if system.filesystem_type() != HUGETLBFS_MAGIC {
            return Ok(4096);
        }
        u64::try_from(system.block_size()).map_err(io::Error::other)
    }

    /// Gives a file that is empty `size` bytes; one that has any stays as it is.
    ///
    /// # Errors
    /// It cannot be written, or is no regular file.
    pub fn fill_empty(&self, size: u64) -> io::Result<()> {
        if self.size()? > 0 {
            return Ok(());
        }
        let size = i64::try_from(size).map_err(io::Error::other)?;
        Ok(ftruncate(&self.fd, size)?)
    }

    /// Sees to it that nobody can cut the file short from now on, where files have seals (memfds
    /// made with `MFD_ALLOW_SEALING`) and this fd may write it; says whether that holds.
    pub fn seal_length(&self) -> bool {
        let seals = || {
            let bits = fcntl(&self.fd, FcntlArg::F_GET_SEALS).ok()?;
            Some(SealFlag::from_bits_retain(bits))
        };
        let Some(before) = seals() else { return false };
        if !before.contains(SealFlag::F_SEAL_SHRINK) {
            // Refused where no seal may be added; the seals then say so.
            let _ = fcntl(&self.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK));
        }
        seals().is_some_and(|after| after.contains(SealFlag::F_SEAL_SHRINK))
    }

    /// The size in bytes of a regular file (a memfd is one) or a block device.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for anything that has no size, or the kernel's refusal.
    pub fn size(&self) -> io::Result<u64> {
        let stat = self.stat()?;
        match FileType::of(&stat) {
            FileType::Regular => u64::try_from(stat.st_size).map_err(io::Error::other),
            FileType::BlockDevice => kernel::block_device_size(self.fd.as_fd()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a regular file nor a block device: it has no size",
            )),
        }
    }

    fn stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.fd)?)
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for OpenFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
