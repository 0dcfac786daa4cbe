//! Datagram sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::net::sockopt::{set_ip_add_membership, set_ip_multicast_loop, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::listen::BoundPath;
use super::{
    SocketAddress, Wait, answer, family, first_that_works, in_use, new_socket, set_nonblocking,
};
use crate::error::{OpenError, Wanted};
use crate::inherited::handed_in;
use crate::kind::Kind;
use crate::lease::OpenFile;
use crate::ledger::Via;
use crate::registry::Door;
use crate::request::Role;

/// What can answer for the address of a datagram socket.
const DATAGRAM: [Kind; 2] = [Kind::UnixDatagram, Kind::InetDatagram];

/// A non-blocking datagram socket, and where its packets go.
#[derive(Debug)]
pub struct Datagram {
    // Declared first, so dropped first: nobody finds the path of a socket that has closed.
    _bound: Option<BoundPath>,
    /// The socket.
    pub fd: OpenFile,
    /// Where packets go; `None` for one that was handed in, which is connected.
    pub remote: Option<Remote>,
}

/// Where packets go.
#[derive(Debug)]
pub enum Remote {
    /// By IP.
    Inet(SocketAddr),
    /// To a unix socket.
    Unix(SocketAddrUnix),
}

/// A datagram socket at `local` for packets to `remote`; a multicast group in `remote` is joined, on
/// the interface that has the address `local`. A socket that was handed in as `local` goes without
/// `remote`.
///
/// # Errors
/// An address is taken, malformed, or of another family than the other one; the policy takes only
/// what was handed in; or the kernel refuses.
pub fn datagram(
    door: &Door,
    local: Option<&SocketAddress>,
    remote: Option<&SocketAddress>,
    role: Role,
    reason: &str,
) -> Result<Datagram, OpenError> {
    let shown = local.or(remote).map_or(String::new(), ToString::to_string);
    let wanted = || Wanted::new(shown.clone(), role, reason);
    let failed = |source: io::Error| OpenError::os(wanted(), source);
    let passed = match local {
        Some(SocketAddress::Fd { name }) => Some(handed_in(door, name, role, &DATAGRAM, reason)?),
        Some(address) => answer(door, address, &DATAGRAM, role, reason)?,
        None => None,
    };
    if let Some(fd) = passed {
        set_nonblocking(fd.as_fd()).map_err(failed)?;
        let remote = remote.map(resolve).transpose().map_err(failed)?;
        return Ok(Datagram {
            _bound: None,
            fd,
            remote,
        });
    }
    door.registry().admit(wanted)?;
    let remote = remote.map(resolve).transpose().map_err(failed)?;
    let (fd, bound) = make(door, local, remote.as_ref()).map_err(failed)?;
    Ok(Datagram {
        _bound: bound,
        fd: in_use(door, fd, wanted(), Via::Address, None),
        remote,
    })
}

fn resolve(address: &SocketAddress) -> io::Result<Remote> {
    Ok(match address {
        SocketAddress::Unix { path } => {
            Remote::Unix(SocketAddrUnix::new(path.as_os_str().as_bytes())?)
        }
        SocketAddress::Abstract { name } => {
            Remote::Unix(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
        }
        SocketAddress::Inet { host, port } => Remote::Inet(first_that_works(host, *port, Ok)?),
        SocketAddress::Fd { .. } => return Err(io::ErrorKind::InvalidInput.into()),
    })
}

fn make(
    door: &Door,
    local: Option<&SocketAddress>,
    remote: Option<&Remote>,
) -> io::Result<(OwnedFd, Option<BoundPath>)> {
    if let Some(Remote::Inet(group)) = remote
        && group.ip().is_multicast()
    {
        return Ok((join(*group, local)?, None));
    }
    match local {
        Some(SocketAddress::Unix { path }) => {
            let fd = new_socket(AddressFamily::UNIX, SocketType::DGRAM, Wait::Not)?;
            bind(
                fd.as_fd(),
                &SocketAddrUnix::new(path.as_os_str().as_bytes())?,
            )?;
            Ok((fd, Some(BoundPath::new(door, path)?)))
        }
        Some(SocketAddress::Abstract { name }) => {
            let fd = new_socket(AddressFamily::UNIX, SocketType::DGRAM, Wait::Not)?;
            bind(
                fd.as_fd(),
                &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            )?;
            Ok((fd, None))
        }
        Some(SocketAddress::Inet { host, port }) => {
            let fd = first_that_works(host, *port, |address| {
                let fd = new_socket(family(&address), SocketType::DGRAM, Wait::Not)?;
                set_socket_reuseaddr(&fd, true)?;
                bind(fd.as_fd(), &address)?;
                Ok(fd)
            })?;
            Ok((fd, None))
        }
        Some(SocketAddress::Fd { .. }) | None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A socket in the multicast group `group`, whose own packets it hears too, as its other members on
/// this host do.
fn join(group: SocketAddr, local: Option<&SocketAddress>) -> io::Result<OwnedFd> {
    let IpAddr::V4(address) = group.ip() else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only multicast groups of IPv4 can be joined",
        ));
    };
    let interface = match local {
        Some(SocketAddress::Inet { host, .. }) => host
            .parse()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let fd = new_socket(family(&group), SocketType::DGRAM, Wait::Not)?;
    set_socket_reuseaddr(&fd, true)?;
    bind(fd.as_fd(), &group)?;
    set_ip_add_membership(&fd, &address, &interface)?;
    set_ip_multicast_loop(&fd, true)?;
    Ok(fd)
}

#[expect(clippy::disallowed_methods, reason = "one of the places that bind")]
fn bind(fd: BorrowedFd<'_>, address: &impl rustix::net::addr::SocketAddrArg) -> io::Result<()> {
    Ok(rustix::net::bind(fd, address)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use super::*;
    use crate::registry::{FdRegistry, Scope};
    use crate::watch::passed;

    fn door() -> Door {
        Door::new(Arc::new(FdRegistry::new()), Scope::Process)
    }

    fn send(from: &Datagram, bytes: &[u8]) {
        let none = rustix::net::SendFlags::empty();
        match from.remote.as_ref() {
            Some(Remote::Inet(to)) => rustix::net::sendto(&from.fd, bytes, none, to),
            Some(Remote::Unix(to)) => rustix::net::sendto(&from.fd, bytes, none, to),
            None => rustix::net::send(&from.fd, bytes, none),
        }
        .expect("sent");
    }

    fn receive(at: &Datagram) -> Vec<u8> {
        let mut bytes = [0; 16];
        let count = nix::unistd::read(&at.fd, &mut bytes).expect("it came");
        bytes[..count].to_vec()
    }

    #[test]
    fn two_unix_sockets_exchange_datagrams_and_their_paths_go_with_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| SocketAddress::Unix {
            path: folder.path().join(name),
        };
        let (a, b) = (at("a"), at("b"));
        let one = datagram(&door(), Some(&a), Some(&b), Role::Net, "test").expect("free");
        let other = datagram(&door(), Some(&b), Some(&a), Role::Net, "test").expect("free");
        send(&one, b"there");
        assert_eq!(receive(&other), b"there");
        send(&other, b"back");
        assert_eq!(receive(&one), b"back");
        drop((one, other));
        let left = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(left, 0);
    }

    #[test]
    fn a_socket_that_was_handed_in_needs_no_remote() {
        let door = door();
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        door.registry()
            .add_named(Scope::Process, "net", passed(ours))
            .expect("good name");
        let local = SocketAddress::Fd { name: "net".into() };
        let socket = datagram(&door, Some(&local), None, Role::Net, "test").expect("there");
        send(&socket, b"out");
        let mut bytes = [0; 8];
        assert_eq!(theirs.recv(&mut bytes).expect("it came"), 3);
    }

    #[test]
    fn a_stream_is_no_datagram_socket_and_a_missing_name_is_told() {
        let local = SocketAddress::Fd { name: "no".into() };
        let error = datagram(&door(), Some(&local), None, Role::Net, "test").expect_err("none");
        assert!(matches!(error, OpenError::NoSuchName { .. }), "{error}");
    }
}
