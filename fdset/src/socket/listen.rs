//! Listening and accepting.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::stat::lstat;
use rustix::net::sockopt::{set_socket_reuseaddr, socket_acceptconn};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags};

use super::{
    SocketAddress, Wait, answer, family, first_that_works, in_use, set_nonblocking, stream_socket,
};
use crate::error::{OpenError, Wanted};
use crate::inherited::take_passed;
use crate::kind::Kind;
use crate::lease::{FileType, Identity, OpenFile};
use crate::ledger::Via;
use crate::policy::Policy;
use crate::registry::{Door, FdRegistry};
use crate::request::Role;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

const NOT_LISTENING: &str = "the fd is not a listening socket; pass one after listen(), \
                             or say server=off if it is a connection";

/// What can answer for a path to listen at.
const LISTENING: [Kind; 3] = [Kind::UnixListener, Kind::InetListener, Kind::VsockListener];

/// A listening, non-blocking socket. A path that it bound is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    // Declared first, so dropped first: nobody finds the path of a listener that has closed.
    bound: Option<BoundPath>,
    socket: OpenFile,
    local: Option<SocketAddr>,
}

impl Listener {
    /// The TCP address it got, with the port that 0 stood for; `None` for other families.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The path it bound and will remove.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.bound.as_ref().map(|bound| bound.path.as_path())
    }
}

/// Waits until somebody calls; the call is left for [`accept`].
///
/// # Errors
/// A signal that the process handles came, also one that this thread blocks: whoever starts the
/// process must be able to end it while nobody calls. The kind is then `Interrupted`.
pub fn wait_for_caller(listener: &Listener) -> io::Result<()> {
    let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    ppoll(&mut wanted, None, Some(SigSet::empty()))?;
    Ok(())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A unix socket's path that we made; removed on drop if it is still ours.
#[derive(Debug)]
pub(super) struct BoundPath {
    registry: Arc<FdRegistry>,
    path: PathBuf,
    identity: Identity,
}

impl BoundPath {
    pub(super) fn new(door: &Door, path: &Path) -> io::Result<Self> {
        Ok(Self {
            registry: Arc::clone(door.registry()),
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if self.registry.policy() == Policy::Sealed {
            tracing::info!(path = %self.path.display(), "a sealed process leaves its unix socket");
            return;
        }
        // A manager may have put another socket in our place; that one stays.
        if identity(&self.path).ok() == Some(self.identity) {
            remove(&self.path);
        }
    }
}

/// Listens at `address`. A stale unix socket, left behind by a process that died, is replaced, and so
/// is an empty file, by which programs reserve a name (`mkstemp`); a socket that still answers is not,
/// nor any other file.
///
/// # Errors
/// When the address is taken or malformed, a passed fd is not a listening socket, or the kernel
/// refuses.
pub fn listen(
    door: &Door,
    address: &SocketAddress,
    role: Role,
    reason: &str,
) -> Result<Listener, OpenError> {
    let wanted = || Wanted::new(address.to_string(), role, reason);
    let failed = |source: io::Error| OpenError::os(wanted(), source);
    if let SocketAddress::Fd { name } = address {
        let (fd, origin) = take_passed(door, name, role, reason, |fd| {
            socket_acceptconn(fd)
                .is_ok_and(|listening| listening)
                .then_some(())
                .ok_or_else(|| NOT_LISTENING.to_owned())
        })?;
        let socket = in_use(door, fd, wanted(), Via::Name, Some(origin));
        return passed_listener(socket).map_err(failed);
    }
    if let Some(socket) = answer(door, address, &LISTENING, role, reason)? {
        return passed_listener(socket).map_err(failed);
    }
    door.registry().admit(wanted)?;
    let Bound { fd, path, local } = bind(door, address).map_err(failed)?;
    Ok(Listener {
        bound: path,
        socket: in_use(door, fd, wanted(), Via::Address, None),
        local,
    })
}

fn passed_listener(socket: OpenFile) -> io::Result<Listener> {
    set_nonblocking(socket.as_fd())?;
    Ok(Listener {
        bound: None,
        socket,
        local: None,
    })
}

/// A socket that was made here and listens.
struct Bound {
    fd: OwnedFd,
    path: Option<BoundPath>,
    local: Option<SocketAddr>,
}

fn bind(door: &Door, address: &SocketAddress) -> io::Result<Bound> {
    match address {
        SocketAddress::Unix { path } => listen_at_path(door, path),
        SocketAddress::Abstract { name } => listen_abstract(name),
        SocketAddress::Inet { host, port } => listen_inet(host, *port),
        SocketAddress::Fd { .. } => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Accepts one connection, non-blocking. The ledger has it as a use of the listener's role.
///
/// # Errors
/// Those of `accept4(2)`; [`io::ErrorKind::WouldBlock`] when nobody is waiting.
pub fn accept(listener: &Listener) -> io::Result<OpenFile> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let caller = rustix::net::accept_with(listener, flags)?;
    let lease = listener.socket.lease();
    let lease = lease.and_then(|lease| lease.of_caller(&caller));
    Ok(OpenFile::new(caller, lease))
}

#[expect(clippy::disallowed_methods, reason = "one of the places that bind")]
fn listen_at_path(door: &Door, path: &Path) -> io::Result<Bound> {
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    let fd = stream_socket(AddressFamily::UNIX, Wait::Not)?;
    match rustix::net::bind(&fd, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if is_reserved(path) || is_stale(path, &address) => {
            remove(path);
            rustix::net::bind(&fd, &address)?;
        }
        other => other?,
    }
    let bound = BoundPath::new(door, path)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Bound {
        fd,
        path: Some(bound),
        local: None,
    })
}

#[expect(clippy::disallowed_methods, reason = "one of the places that bind")]
fn listen_abstract(name: &str) -> io::Result<Bound> {
    let fd = stream_socket(AddressFamily::UNIX, Wait::Not)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Bound {
        fd,
        path: None,
        local: None,
    })
}

#[expect(clippy::disallowed_methods, reason = "one of the places that bind")]
fn listen_inet(host: &str, port: u16) -> io::Result<Bound> {
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    first_that_works(host, port, |address| {
        let fd = stream_socket(family(&address), Wait::Not)?;
        set_socket_reuseaddr(&fd, true)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, BACKLOG)?;
        let local = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
        Ok(Bound {
            fd,
            path: None,
            local: Some(local),
        })
    })
}

/// Whether `path` is a socket on which nobody listens any more. The kernel refuses connections
/// to a regular file with the same error, so the type is looked at first.
#[expect(
    clippy::disallowed_methods,
    reason = "asks whether anybody listens, and hangs up"
)]
fn is_stale(path: &Path, address: &SocketAddrUnix) -> bool {
    let is_socket = lstat(path).is_ok_and(|stat| FileType::of(&stat) == FileType::Socket);
    is_socket
        && stream_socket(AddressFamily::UNIX, Wait::Not).is_ok_and(|probe| {
            rustix::net::connect(&probe, address) == Err(rustix::io::Errno::CONNREFUSED)
        })
}

/// Whether `path` is a regular file without contents, and without another name.
fn is_reserved(path: &Path) -> bool {
    lstat(path).is_ok_and(|stat| {
        FileType::of(&stat) == FileType::Regular && stat.st_size == 0 && stat.st_nlink == 1
    })
}

fn identity(path: &Path) -> io::Result<Identity> {
    let stat = lstat(path)?;
    Ok(Identity {
        dev: stat.st_dev,
        ino: stat.st_ino,
    })
}

fn remove(path: &Path) {
    #[expect(
        clippy::disallowed_methods,
        reason = "removes a socket that this process bound, or that nobody listens on any more"
    )]
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "could not remove a unix socket");
    }
}
