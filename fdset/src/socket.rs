//! Sockets: listening, connecting, accepting.
//!
//! Every socket is close-on-exec from birth. Listeners and what they accept are non-blocking,
//! because one thread serves many of them.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::lstat;
use rustix::net::addr::SocketAddrArg;
use rustix::net::sockopt::{set_socket_reuseaddr, socket_acceptconn, socket_error};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{OpenError, Wanted};
use crate::inherited::passed;
use crate::lease::{FileType, Identity};
use crate::registry::Door;
use crate::request::Role;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where a stream socket listens or connects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketAddress {
    /// A unix socket in the file system.
    Unix {
        /// At most 107 bytes: the kernel has no room for more.
        path: PathBuf,
    },
    /// A unix socket in Linux's abstract name space.
    Abstract {
        /// The name, without its leading zero byte.
        name: String,
    },
    /// TCP.
    Inet {
        /// A host name or an address; empty listens on all addresses.
        host: String,
        /// The port; 0 listens on any free one.
        port: u16,
    },
    /// A socket that was passed: listening for a listener, connected for a connection.
    Fd {
        /// A name from `getfd`, or the number of an inherited fd.
        name: String,
    },
}

impl std::fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Abstract { name } => write!(f, "unix:@{name}"),
            Self::Inet { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Inet { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Fd { name } => write!(f, "fd:{name}"),
        }
    }
}

/// Whether connecting waits for the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it answers; the socket is a blocking one.
    ForPeer,
    /// Not at all; the socket is non-blocking and may still be on its way.
    Not,
}

/// A listening, non-blocking socket. A path that it bound is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    // Declared first, so dropped first: nobody finds the path of a listener that has closed.
    bound: Option<BoundPath>,
    fd: OwnedFd,
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

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A unix socket's path that we made; removed on drop if it is still ours.
#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    identity: Identity,
}

impl BoundPath {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        // A manager may have put another socket in our place; that one stays.
        if identity(&self.path).ok() == Some(self.identity) {
            remove(&self.path);
        }
    }
}

/// Listens at `address`. A stale unix socket, left behind by a process that died, is replaced;
/// one that still answers is not.
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
    let failed =
        |source: io::Error| OpenError::os(Wanted::new(address.to_string(), role, reason), source);
    match address {
        SocketAddress::Unix { path } => listen_at_path(path).map_err(failed),
        SocketAddress::Abstract { name } => listen_abstract(name).map_err(failed),
        SocketAddress::Inet { host, port } => listen_inet(host, *port).map_err(failed),
        SocketAddress::Fd { name } => {
            let fd = passed(door, name, role, reason)?;
            if !socket_acceptconn(&fd).unwrap_or(false) {
                return Err(OpenError::unfit(
                    Wanted::new(address.to_string(), role, reason),
                    "the fd is not a listening socket; pass one after listen(), \
                     or say server=off if it is a connection",
                ));
            }
            set_nonblocking(fd.as_fd()).map_err(failed)?;
            Ok(Listener {
                bound: None,
                fd,
                local: None,
            })
        }
    }
}

/// A socket that is connected or on its way to be.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub fd: OwnedFd,
    /// Whether the peer has not answered yet: wait until the socket is writable, then ask
    /// [`finish_connect`].
    pub in_progress: bool,
}

/// Connects to `address`. A host name with several addresses is tried in their order.
///
/// # Errors
/// When nobody listens there, a passed fd is not a connected socket, or the kernel refuses.
/// Without waiting, a unix listener whose queue is full gives `EAGAIN`: try again later.
pub fn connect(
    door: &Door,
    address: &SocketAddress,
    wait: Wait,
    role: Role,
    reason: &str,
) -> Result<Connection, OpenError> {
    let failed =
        |source: io::Error| OpenError::os(Wanted::new(address.to_string(), role, reason), source);
    match address {
        SocketAddress::Unix { path } => SocketAddrUnix::new(path.as_os_str().as_bytes())
            .map_err(io::Error::from)
            .and_then(|to| connect_to(AddressFamily::UNIX, &to, wait))
            .map_err(failed),
        SocketAddress::Abstract { name } => SocketAddrUnix::new_abstract_name(name.as_bytes())
            .map_err(io::Error::from)
            .and_then(|to| connect_to(AddressFamily::UNIX, &to, wait))
            .map_err(failed),
        SocketAddress::Inet { host, port } => connect_inet(host, *port, wait).map_err(failed),
        SocketAddress::Fd { name } => {
            let fd = passed(door, name, role, reason)?;
            if rustix::net::getpeername(&fd).is_err() {
                return Err(OpenError::unfit(
                    Wanted::new(address.to_string(), role, reason),
                    "the fd is not a connected socket; pass one end of a connection, \
                     or say server=on if it is listening",
                ));
            }
            if wait == Wait::Not {
                set_nonblocking(fd.as_fd()).map_err(failed)?;
            }
            Ok(Connection {
                fd,
                in_progress: false,
            })
        }
    }
}

/// How a connection in progress went, once its socket is writable.
///
/// # Errors
/// The reason why it failed.
pub fn finish_connect(socket: impl AsFd) -> io::Result<()> {
    Ok(socket_error(socket)??)
}

/// Accepts one connection, non-blocking.
///
/// # Errors
/// Those of `accept4(2)`; [`io::ErrorKind::WouldBlock`] when nobody is waiting.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(
        listener,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    )?)
}

fn listen_at_path(path: &Path) -> io::Result<Listener> {
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    let fd = stream_socket(AddressFamily::UNIX, Wait::Not)?;
    match rustix::net::bind(&fd, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if is_stale(path, &address) => {
            remove(path);
            rustix::net::bind(&fd, &address)?;
        }
        other => other?,
    }
    let bound = BoundPath::new(path)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Listener {
        bound: Some(bound),
        fd,
        local: None,
    })
}

fn listen_abstract(name: &str) -> io::Result<Listener> {
    let fd = stream_socket(AddressFamily::UNIX, Wait::Not)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Listener {
        bound: None,
        fd,
        local: None,
    })
}

fn listen_inet(host: &str, port: u16) -> io::Result<Listener> {
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    first_that_works(host, port, |address| {
        let fd = stream_socket(family(&address), Wait::Not)?;
        set_socket_reuseaddr(&fd, true)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, BACKLOG)?;
        let local = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
        Ok(Listener {
            bound: None,
            fd,
            local: Some(local),
        })
    })
}

fn connect_inet(host: &str, port: u16, wait: Wait) -> io::Result<Connection> {
    first_that_works(host, port, |address| {
        connect_to(family(&address), &address, wait)
    })
}

/// Tries every address of `host`, and reports the last refusal.
fn first_that_works<T>(
    host: &str,
    port: u16,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut refusal = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match attempt(address) {
            Ok(done) => return Ok(done),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn connect_to(
    family: AddressFamily,
    address: &impl SocketAddrArg,
    wait: Wait,
) -> io::Result<Connection> {
    let fd = stream_socket(family, wait)?;
    let in_progress = match rustix::net::connect(&fd, address) {
        Ok(()) => false,
        Err(rustix::io::Errno::INPROGRESS) => true,
        Err(errno) => return Err(errno.into()),
    };
    Ok(Connection { fd, in_progress })
}

/// Whether `path` is a socket on which nobody listens any more. The kernel refuses connections
/// to a regular file with the same error, so the type is looked at first.
fn is_stale(path: &Path, address: &SocketAddrUnix) -> bool {
    let is_socket = lstat(path).is_ok_and(|stat| FileType::of(&stat) == FileType::Socket);
    is_socket
        && stream_socket(AddressFamily::UNIX, Wait::Not).is_ok_and(|probe| {
            rustix::net::connect(&probe, address) == Err(rustix::io::Errno::CONNREFUSED)
        })
}

fn stream_socket(family: AddressFamily, wait: Wait) -> io::Result<OwnedFd> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, wait == Wait::Not);
    Ok(rustix::net::socket_with(
        family,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

fn family(address: &SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
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
