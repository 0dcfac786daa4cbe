//! Resources that have no name of their own: anonymous memory and ptys.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ftruncate;

use crate::error::{OpenError, Wanted};
use crate::lease::OpenFile;
use crate::registry::Door;
use crate::request::Role;

/// A page size of hugetlbfs that memfds can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePageSize {
    /// What the kernel was booted with (`default_hugepagesz`).
    Default,
    /// 2 MiB.
    Size2M,
    /// 1 GiB.
    Size1G,
}

/// The shape of a memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemfdSpec {
    /// Its size in bytes; with huge pages a multiple of theirs.
    pub size: u64,
    /// Whether its size and its seals are sealed: whoever maps it can rely on the size.
    pub sealed: bool,
    /// Huge pages instead of ordinary ones.
    pub huge: Option<HugePageSize>,
}

// Nothing of the door is looked at here: holding one is the right to make something.

/// Anonymous memory, called `name` in `/proc`.
///
/// # Errors
/// When the size is out of range, there are no such huge pages, or the kernel refuses.
pub fn memfd(
    _door: &Door,
    name: &str,
    spec: MemfdSpec,
    role: Role,
    reason: &str,
) -> Result<OpenFile, OpenError> {
    anonymous(name, spec)
        .map(|fd| OpenFile::new(fd, None))
        .map_err(|source| OpenError::os(Wanted::new(format!("memfd:{name}"), role, reason), source))
}

fn anonymous(name: &str, spec: MemfdSpec) -> io::Result<OwnedFd> {
    let size = i64::try_from(spec.size).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} bytes are more than a file can have", spec.size),
        )
    })?;
    let mut flags = MFdFlags::MFD_CLOEXEC;
    flags.set(MFdFlags::MFD_ALLOW_SEALING, spec.sealed);
    flags |= match spec.huge {
        None => MFdFlags::empty(),
        Some(HugePageSize::Default) => MFdFlags::MFD_HUGETLB,
        Some(HugePageSize::Size2M) => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        Some(HugePageSize::Size1G) => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
    };
    #[expect(clippy::disallowed_methods, reason = "the one place that makes memfds")]
    let fd = memfd_create(name, flags)?;
    ftruncate(&fd, size)?;
    if spec.sealed {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    }
    Ok(fd)
}

/// Our end of a pseudo terminal in raw mode, and where the other end is.
#[derive(Debug)]
pub struct Pty {
    /// Our end, non-blocking.
    pub master: OwnedFd,
    /// The other end's path, for the user.
    pub path: PathBuf,
}

/// Makes a pseudo terminal.
///
/// # Errors
/// When the kernel refuses.
pub fn pty(_door: &Door, role: Role, reason: &str) -> Result<Pty, OpenError> {
    terminal().map_err(|source| OpenError::os(Wanted::new("pty", role, reason), source))
}

fn terminal() -> io::Result<Pty> {
    #[expect(clippy::disallowed_methods, reason = "the one place that makes ptys")]
    let master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = PathBuf::from(ptsname_r(&master)?);
    // On Linux both ends have one line discipline: setting it here spares opening the other end.
    let mut line = tcgetattr(&master)?;
    cfmakeraw(&mut line);
    tcsetattr(&master, SetArg::TCSANOW, &line)?;
    Ok(Pty {
        master: master.into(),
        path,
    })
}
