//! Sockets: where they are, and the three ways to get one.
//!
//! ```text
//!   SocketAddress          listen                       connect
//!   Unix, Abstract, Inet   made and bound               made, on its way or there
//!   Fd                     passed, must be listening    passed, must be connected
//!   (an address for which a set or the open hook answers is as good as passed)
//!                             │ accept
//!                             ▼
//!                          one connection each
//! ```
//!
//! Every socket is close-on-exec from birth. Listeners and what they accept are non-blocking,
//! because one thread serves many of them. This room never knows what is spoken over a socket.
//!
//! Read next: [`Listener`] (whose path is whose), [`connect`], and [`crate::scm`].

mod connect;
mod datagram;
mod delay;
mod listen;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{OpenError, Wanted};
use crate::handover::Origin;
use crate::hook::Given;
use crate::kind::{Kind, Nature};
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::open::{is_passed, open};
use crate::registry::Door;
use crate::request::{Access, Request, Role};

pub use connect::{Connection, Wait, connect, finish_connect, may_connect};
pub use datagram::{Datagram, Remote, datagram};
pub use delay::set_nodelay;
pub use listen::{Listener, accept, listen, wait_for_caller};

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
        /// A host name or an address; empty listens on all IPv4 addresses.
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
            Self::Abstract { name } => write!(f, "unix:@{}", name.trim_end_matches('\0')),
            Self::Inet { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Inet { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Fd { name } => write!(f, "fd:{name}"),
        }
    }
}

impl SocketAddress {
    /// The name under which the open hook is asked for it: a unix socket's path, or the address
    /// as it is displayed. `None` for a passed socket and for a path that is no text.
    #[must_use]
    pub fn open_name(&self) -> Option<String> {
        match self {
            Self::Unix { path } => path.to_str().map(str::to_owned),
            Self::Fd { .. } => None,
            other => Some(other.to_string()),
        }
    }
}

/// A passed socket that answers for an address: a member of a set, by its number or an alias, or
/// what the open hook has answered. `None`: the socket is to be made here.
fn answer(
    door: &Door,
    address: &SocketAddress,
    kinds: &[Kind],
    role: Role,
    reason: &str,
) -> Result<Option<OpenFile>, OpenError> {
    let Some(name) = address.open_name() else {
        return Ok(None);
    };
    if is_passed(door, &name) {
        let request = Request::new(&name, Access::ReadWrite, role, reason).kinds(kinds);
        return open(door, &request).map(Some);
    }
    let Some(answer) = door.answer(&name, Access::ReadWrite) else {
        return Ok(None);
    };
    let wanted = || Wanted::new(address.to_string(), role, reason);
    match answer {
        Ok(Given { fd, origin }) => {
            let socket = in_use(door, fd, wanted(), Via::Hook, Some(origin));
            Ok(Some(socket))
        }
        Err(source) => Err(OpenError::Hook {
            wanted: wanted(),
            source: Box::new(source),
        }),
    }
}

/// A socket with its line in the ledger.
fn in_use(door: &Door, fd: OwnedFd, wanted: Wanted, via: Via, origin: Option<Origin>) -> OpenFile {
    let lease = door.lease(wanted, via, Nature::of(&fd), origin);
    OpenFile::new(fd, Some(lease))
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

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that makes sockets"
)]
fn new_socket(family: AddressFamily, kind: SocketType, wait: Wait) -> io::Result<OwnedFd> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, wait == Wait::Not);
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}

fn stream_socket(family: AddressFamily, wait: Wait) -> io::Result<OwnedFd> {
    new_socket(family, SocketType::STREAM, wait)
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

#[cfg(test)]
mod tests;
