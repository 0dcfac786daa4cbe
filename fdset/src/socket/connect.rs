//! Connecting.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::net::addr::SocketAddrArg;
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketAddrUnix};

use super::{
    SocketAddress, answer, family, first_that_works, in_use, set_nonblocking, stream_socket,
};
use crate::error::{OpenError, Wanted};
use crate::inherited::take_passed;
use crate::kind::Kind;
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::registry::Door;
use crate::request::Role;

const NOT_CONNECTED: &str = "the fd is not a connected socket; pass one end of a connection, \
                             or say server=on if it is listening";

/// What can answer for a path to connect to.
const CONNECTED: [Kind; 3] = [Kind::UnixStream, Kind::InetStream, Kind::VsockStream];

/// Whether connecting waits for the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it answers; the socket is a blocking one.
    ForPeer,
    /// Not at all; the socket is non-blocking and may still be on its way.
    Not,
}

/// A socket that is connected or on its way to be.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub fd: OpenFile,
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
    let wanted = || Wanted::new(address.to_string(), role, reason);
    let failed = |source: io::Error| OpenError::os(wanted(), source);
    if let SocketAddress::Fd { name } = address {
        let (fd, origin) = take_passed(door, name, role, reason, |fd| {
            rustix::net::getpeername(fd)
                .map(drop)
                .map_err(|_| NOT_CONNECTED.to_owned())
        })?;
        let socket = in_use(door, fd, wanted(), Via::Name, Some(origin));
        return passed_connection(socket, wait).map_err(failed);
    }
    if let Some(socket) = answer(door, address, &CONNECTED, role, reason)? {
        return passed_connection(socket, wait).map_err(failed);
    }
    door.registry().admit(wanted)?;
    let (fd, in_progress) = call(address, wait).map_err(failed)?;
    Ok(Connection {
        fd: in_use(door, fd, wanted(), Via::Address, None),
        in_progress,
    })
}

/// Whether [`connect`] may call `address` by itself, now: for who will call later.
///
/// # Errors
/// The policy takes only what was handed in.
pub fn may_connect(
    door: &Door,
    address: &SocketAddress,
    role: Role,
    reason: &str,
) -> Result<(), OpenError> {
    door.registry()
        .admit(|| Wanted::new(address.to_string(), role, reason))
}

fn passed_connection(fd: OpenFile, wait: Wait) -> io::Result<Connection> {
    if wait == Wait::Not {
        set_nonblocking(fd.as_fd())?;
    }
    Ok(Connection {
        fd,
        in_progress: false,
    })
}

/// Makes a socket and calls; says whether the call is still on its way.
fn call(address: &SocketAddress, wait: Wait) -> io::Result<(OwnedFd, bool)> {
    match address {
        SocketAddress::Unix { path } => {
            let to = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
            connect_to(AddressFamily::UNIX, &to, wait)
        }
        SocketAddress::Abstract { name } => {
            let to = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
            connect_to(AddressFamily::UNIX, &to, wait)
        }
        SocketAddress::Inet { host, port } => first_that_works(host, *port, |address| {
            connect_to(family(&address), &address, wait)
        }),
        SocketAddress::Fd { .. } => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// How a connection in progress went, once its socket is writable.
///
/// # Errors
/// The reason why it failed.
pub fn finish_connect(socket: impl AsFd) -> io::Result<()> {
    Ok(socket_error(socket)??)
}

#[expect(clippy::disallowed_methods, reason = "the one place that connects")]
fn connect_to(
    family: AddressFamily,
    address: &impl SocketAddrArg,
    wait: Wait,
) -> io::Result<(OwnedFd, bool)> {
    let fd = stream_socket(family, wait)?;
    let in_progress = match rustix::net::connect(&fd, address) {
        Ok(()) => false,
        Err(rustix::io::Errno::INPROGRESS) => true,
        Err(errno) => return Err(errno.into()),
    };
    Ok((fd, in_progress))
}
