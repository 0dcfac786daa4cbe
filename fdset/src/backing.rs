//! Resources that have no name of their own: anonymous memory and ptys.
//!
//! Both ask for a [`Door`]: who has none shall not make things, and what is made is in its ledger.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, unlockpt};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ftruncate;

use crate::error::{OpenError, Wanted};
use crate::kernel::{open_pty_peer, pty_number};
use crate::kind::Nature;
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::policy::Policy;
use crate::registry::Door;
use crate::request::{Access, Role};

/// The name under which the open hook is asked for a pty.
pub const PTY_NAME: &str = "pty";

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

/// Anonymous memory, called `name` in `/proc`.
///
/// # Errors
/// When the size is out of range, there are no such huge pages, or the kernel refuses.
pub fn memfd(
    door: &Door,
    name: &str,
    spec: MemfdSpec,
    role: Role,
    reason: &str,
) -> Result<OpenFile, OpenError> {
    let wanted = || Wanted::new(format!("memfd:{name}"), role, reason);
    let fd = anonymous(name, spec).map_err(|source| OpenError::os(wanted(), source))?;
    let lease = door.lease(wanted(), Via::Anonymous, Nature::of(&fd), None);
    Ok(OpenFile::new(fd, Some(lease)))
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
    pub master: OpenFile,
    /// The other end's path, for the user.
    pub path: PathBuf,
}

/// Makes a pseudo terminal, or takes the one that the open hook has answered [`PTY_NAME`] with:
/// our end of it.
///
/// # Errors
/// When the kernel or the hook refuses, or the answer is not our end of a pty.
pub fn pty(door: &Door, role: Role, reason: &str) -> Result<Pty, OpenError> {
    let wanted = || Wanted::new(PTY_NAME, role, reason);
    let failed = |source| OpenError::os(wanted(), source);
    let (master, via, origin) = match door.answer(PTY_NAME, Access::ReadWrite) {
        Some(Ok(given)) => (given.fd, Via::Hook, Some(given.origin)),
        Some(Err(source)) => {
            return Err(OpenError::Hook {
                wanted: wanted(),
                source: Box::new(source),
            });
        }
        None => {
            door.registry().admit(wanted)?;
            (new_terminal().map_err(failed)?, Via::Anonymous, None)
        }
    };
    let lease = door.lease(wanted(), via, Nature::of(&master), origin);
    let may_open = door.registry().policy() < Policy::Sealed;
    let path = set_up(&master, may_open).map_err(|errno| match errno {
        Errno::ENOTTY | Errno::EINVAL => OpenError::unfit(
            wanted(),
            "the fd is not the first end of a pty; pass what posix_openpt() gave",
        ),
        other => failed(other.into()),
    })?;
    Ok(Pty {
        master: OpenFile::new(master, Some(lease)),
        path,
    })
}

fn new_terminal() -> io::Result<OwnedFd> {
    #[expect(clippy::disallowed_methods, reason = "the one place that makes ptys")]
    let master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    Ok(master.into())
}

/// Makes our end raw and non-blocking; gives the path of the other end. In a sealed process not
/// even that is opened.
fn set_up(master: &OwnedFd, may_open: bool) -> Result<PathBuf, Errno> {
    let number = pty_number(master.as_fd())?;
    // On Linux both ends have one line discipline: setting it here spares opening the other end.
    let mut line = tcgetattr(master)?;
    cfmakeraw(&mut line);
    tcsetattr(master, SetArg::TCSANOW, &line)?;
    let flags = OFlag::from_bits_retain(fcntl(master, FcntlArg::F_GETFL)?);
    fcntl(master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // A pty whose other end was never opened reports no hang-up. Once opened and closed, it does,
    // and so tells a user from nobody. The kernel opens that end for us, without its path.
    if may_open && let Err(error) = open_pty_peer(master.as_fd()) {
        tracing::debug!(%error, "a new pty does not tell a user from nobody until it had one");
    }
    Ok(PathBuf::from(format!("/dev/pts/{number}")))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::sync::Arc;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::registry::{FdRegistry, Scope};
    use crate::request::Request;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    fn memory(spec: MemfdSpec) -> Result<OpenFile, OpenError> {
        memfd(&door(), "ram0", spec, Role::Memory, "object 'ram0'")
    }

    #[test]
    fn a_sealed_memfd_keeps_its_size() {
        let spec = MemfdSpec {
            size: 8192,
            sealed: true,
            huge: None,
        };
        let file = memory(spec).expect("memory");
        assert_eq!(file.size().expect("a regular file"), 8192);
        assert_eq!(ftruncate(&file, 4096), Err(Errno::EPERM));
        assert_eq!(ftruncate(&file, 16384), Err(Errno::EPERM));
    }

    #[test]
    fn an_unsealed_memfd_may_change_its_size() {
        let spec = MemfdSpec {
            size: 8192,
            sealed: false,
            huge: None,
        };
        let file = memory(spec).expect("memory");
        ftruncate(&file, 4096).expect("it may");
        assert_eq!(file.size().expect("a regular file"), 4096);
    }

    #[test]
    fn a_size_that_no_file_can_have_is_refused() {
        let spec = MemfdSpec {
            size: u64::MAX,
            sealed: true,
            huge: None,
        };
        let error = memory(spec).expect_err("too large");
        assert_eq!(
            error.to_string(),
            "Could not open 'memfd:ram0' as guest memory of object 'ram0'"
        );
    }

    #[test]
    fn a_pty_changes_no_byte_on_its_way() {
        let door = door();
        let pty = pty(&door, Role::Chardev, "chardev 'c'").expect("a pty");
        let path = pty.path.to_str().expect("plain text");
        let request = Request::new(path, Access::ReadWrite, Role::Chardev, "test");
        let (mut user, _) = crate::open(&door, &request)
            .expect("the other end")
            .into_file();
        let (mut guest, _lease) = pty.master.into_file();
        let text = b"a\r\nb\x03\n";
        let mut seen = [0; 6];
        guest.write_all(text).expect("room");
        user.read_exact(&mut seen).expect("as written");
        assert_eq!(&seen, text);
        user.write_all(text).expect("room");
        read_when_ready(&mut guest, &mut seen);
        assert_eq!(&seen, text);
    }

    #[test]
    fn a_pty_can_come_from_the_open_hook_and_nothing_else_can_stand_in_for_it() {
        let registry = Arc::new(FdRegistry::new());
        registry.raise_policy(Policy::Passed);
        let answers = Arc::new(crate::Answers::new());
        let door = Door::new(registry, Scope::Process).with_answers(Arc::clone(&answers));
        let made = new_terminal().expect("a pty");
        answers.put(PTY_NAME, Access::ReadWrite, Ok(made), None);
        let taken = pty(&door, Role::Chardev, "chardev 'c'").expect("the hook's");
        assert!(taken.path.starts_with("/dev/pts"));
        assert_eq!(taken.master.lease().map(crate::Lease::via), Some(Via::Hook));

        let (_reader, writer) = io::pipe().expect("a pipe");
        answers.put(PTY_NAME, Access::ReadWrite, Ok(writer.into()), None);
        let error = pty(&door, Role::Chardev, "chardev 'c'").expect_err("a pipe");
        assert!(error.to_string().contains("posix_openpt"), "{error}");
    }

    #[test]
    fn a_new_pty_tells_that_nobody_has_its_other_end() {
        let pty = pty(&door(), Role::Chardev, "chardev 'c'").expect("a pty");
        let mut wanted = [PollFd::new(pty.master.as_fd(), PollFlags::empty())];
        poll(&mut wanted, PollTimeout::ZERO).expect("an answer");
        let told = wanted[0].revents().expect("known events");
        assert!(told.contains(PollFlags::POLLHUP));
    }

    /// The kernel hands bytes over to our end, which does not block, in its own time.
    fn read_when_ready(guest: &mut File, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let mut readable = [PollFd::new(guest.as_fd(), PollFlags::POLLIN)];
            poll(&mut readable, PollTimeout::NONE).expect("an answer");
            let count = guest.read(buffer).expect("something to read");
            buffer = &mut buffer[count..];
        }
    }
}
