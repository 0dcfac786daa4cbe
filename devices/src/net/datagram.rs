//! A datagram socket: each datagram is a packet.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fdset::{Datagram, Door, Remote, Role, SocketAddress};
use mio::Interest;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use super::packet::Packet;
use super::{HEADER, LONGEST, NetError};
use crate::reactor::{Reactor, Readiness, Ready, Registration};
use crate::repeats::Repeats;

/// A datagram socket with a card before it.
pub struct DatagramNet {
    socket: Socket,
    shown: String,
    reactor: Reactor,
    /// A packet on its way out: sockets want it in one piece.
    outgoing: Mutex<Box<[u8]>>,
    full: Arc<AtomicBool>,
    watch: Mutex<Option<Registration>>,
    refused: Repeats,
}

#[derive(Clone)]
struct Socket(Arc<Datagram>);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.0.fd.as_raw_fd()
    }
}

impl DatagramNet {
    /// The socket between these addresses.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(
        id: &str,
        local: Option<&SocketAddress>,
        remote: Option<&SocketAddress>,
        door: &Door,
        reactor: &Reactor,
    ) -> Result<Arc<Self>, NetError> {
        let reason = format!("netdev '{id}'");
        let socket = fdset::datagram(door, local, remote, Role::Net, &reason)?;
        Ok(Arc::new(Self {
            shown: describe(&socket, local, remote),
            socket: Socket(Arc::new(socket)),
            reactor: reactor.clone(),
            outgoing: Mutex::new(vec![0; LONGEST - HEADER].into_boxed_slice()),
            full: Arc::default(),
            watch: Mutex::default(),
            refused: Repeats::default(),
        }))
    }

    fn watch(&self) -> MutexGuard<'_, Option<Registration>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(
    socket: &Datagram,
    local: Option<&SocketAddress>,
    remote: Option<&SocketAddress>,
) -> String {
    let bare = |address: &SocketAddress| match address {
        SocketAddress::Unix { path } => path.display().to_string(),
        SocketAddress::Inet { host, port } => format!("{host}:{port}"),
        other => other.to_string(),
    };
    match (&socket.remote, local, remote) {
        (Some(Remote::Inet(group)), _, _) if group.ip().is_multicast() => format!("mcast={group}"),
        (_, Some(SocketAddress::Fd { .. }), _) => passed(socket),
        (Some(Remote::Unix(_)), Some(local), Some(remote)) => {
            format!("udp={}:{}", bare(local), bare(remote))
        }
        (_, Some(local), Some(remote)) => format!("udp={}/{}", bare(local), bare(remote)),
        _ => String::new(),
    }
}

/// A socket that was handed in says by itself where it is.
fn passed(socket: &Datagram) -> String {
    let local = rustix::net::getsockname(&socket.fd).ok();
    let local = local.and_then(|address| SocketAddr::try_from(address).ok());
    let remote = rustix::net::getpeername(&socket.fd).ok().flatten();
    let remote = remote.and_then(|address| SocketAddr::try_from(address).ok());
    match (local, remote) {
        (Some(local), Some(remote)) => format!("fd={} {local}/{remote}", socket.fd.as_raw_fd()),
        _ => format!("fd={} unix", socket.fd.as_raw_fd()),
    }
}

impl NetBackend for DatagramNet {
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    fn queues(&self) -> u16 {
        1
    }

    fn set_offloads(&self, _offloads: Offloads) {}

    fn use_queues(&self, _count: u16) -> io::Result<()> {
        Ok(())
    }

    fn attach(&self, frontend: Weak<dyn NetFrontend>) -> io::Result<()> {
        let handler = Arc::new(SocketReady {
            frontend,
            full: Arc::clone(&self.full),
        });
        let both = Interest::READABLE | Interest::WRITABLE;
        let socket = Arc::new(self.socket.clone());
        let watch = self.reactor.register(socket, both, handler)?;
        let before = self.watch().replace(watch);
        drop(before);
        Ok(())
    }

    fn detach(&self) {
        let watch = self.watch().take();
        drop(watch);
    }

    fn send(&self, _queue: usize, packet: &Packet<'_>) -> Sent {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let count = packet.copy(HEADER, &mut outgoing);
        let bytes = outgoing.get(..count).unwrap_or_default();
        let (fd, flags) = (&self.socket.0.fd, SendFlags::NOSIGNAL);
        self.full.store(true, Ordering::Release);
        let sent = match &self.socket.0.remote {
            Some(Remote::Inet(to)) => rustix::net::sendto(fd, bytes, flags, to),
            Some(Remote::Unix(to)) => rustix::net::sendto(fd, bytes, flags, to),
            None => rustix::net::send(fd, bytes, flags),
        };
        if sent == Err(Errno::AGAIN) {
            return Sent::Full;
        }
        self.full.store(false, Ordering::Release);
        // Nobody may be there yet; what datagrams promise is kept by losing this one.
        if let Err(error) = sent
            && let Some(times) = self.refused.note()
        {
            tracing::debug!(times, %error, "a packet is dropped");
        }
        Sent::Done
    }

    fn receive(&self, _queue: usize, buffer: &mut [u8]) -> Received {
        let Some((header, room)) = buffer.split_at_mut_checked(HEADER) else {
            return Received::Nothing;
        };
        header.fill(0);
        loop {
            match rustix::net::recv(&self.socket.0.fd, &mut *room, RecvFlags::empty()) {
                // An empty datagram is no packet.
                Ok((_, 0)) | Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Ok((_, count)) => return Received::Packet(HEADER + count.min(room.len())),
                Err(_) => return Received::Nothing,
            }
        }
    }

    fn describe(&self) -> String {
        self.shown.clone()
    }
}

struct SocketReady {
    frontend: Weak<dyn NetFrontend>,
    full: Arc<AtomicBool>,
}

impl Ready for SocketReady {
    fn ready(&self, readiness: Readiness) {
        let Some(frontend) = self.frontend.upgrade() else {
            return;
        };
        if readiness.contains(Readiness::WRITE) && self.full.swap(false, Ordering::AcqRel) {
            frontend.writable(0);
        }
        if readiness.contains(Readiness::READ) {
            frontend.readable(0);
        }
    }
}
