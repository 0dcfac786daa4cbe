//! A datagram socket: each datagram is a packet.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fdset::{Datagram, Door, Remote, Role, SocketAddress};
use mio::Interest;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{RecvFlags, SocketAddrAny};

use super::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use super::burst::{Burst, Full};
use super::packet::Packet;
use super::{HEADER, NetError};
use crate::reactor::{Reactor, Readiness, Ready, Registration};
use crate::repeats::Repeats;

/// A datagram socket with a card before it.
pub struct DatagramNet {
    socket: Socket,
    shown: String,
    reactor: Reactor,
    /// Where packets go, unless the socket is connected.
    to: Option<SocketAddrAny>,
    outgoing: Mutex<Burst>,
    /// The card waits for room.
    full: AtomicBool,
    me: Weak<Self>,
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
        let to = socket.remote.as_ref().map(|remote| match remote {
            Remote::Inet(to) => to.as_any(),
            Remote::Unix(to) => to.as_any(),
        });
        Ok(Arc::new_cyclic(|me| Self {
            shown: describe(&socket, local, remote),
            socket: Socket(Arc::new(socket)),
            reactor: reactor.clone(),
            to,
            outgoing: Mutex::default(),
            full: AtomicBool::new(false),
            me: Weak::clone(me),
            watch: Mutex::default(),
            refused: Repeats::default(),
        }))
    }

    fn outgoing(&self) -> MutexGuard<'_, Burst> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, as far as there is room.
    fn send_kept(&self, burst: &mut Burst) -> Result<(), Full> {
        // Nobody may be there yet; what datagrams promise is kept by losing a packet.
        let refused = |error| {
            if let Some(times) = self.refused.note() {
                tracing::debug!(times, %error, "a packet is dropped");
            }
        };
        burst.send(self.socket.0.fd.as_fd(), self.to.as_ref(), refused)
    }

    /// Has it told when there is room, or not: each packet that the peer takes would be an event
    /// otherwise.
    fn wait_for_room(&self, wait: bool) {
        let watched = self.watch().as_ref().map(|watch| {
            watch.watch_for(if wait {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            })
        });
        if let Some(Err(error)) = watched {
            tracing::warn!(%error, "a socket of packets cannot be watched");
        }
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
            backend: Weak::clone(&self.me),
        });
        let socket = Arc::new(self.socket.clone());
        let watch = self.reactor.register(socket, Interest::READABLE, handler)?;
        let before = self.watch().replace(watch);
        drop(before);
        Ok(())
    }

    fn detach(&self) {
        let watch = self.watch().take();
        drop(watch);
    }

    fn send(&self, _queue: usize, packet: &Packet<'_>) -> Sent {
        let mut burst = self.outgoing();
        if burst.put(packet) {
            return Sent::Done;
        }
        if self.send_kept(&mut burst) == Ok(()) {
            burst.put(packet);
            return Sent::Done;
        }
        drop(burst);
        self.full.store(true, Ordering::Release);
        self.wait_for_room(true);
        Sent::Full
    }

    fn flush(&self, _queue: usize) {
        let sent = self.send_kept(&mut self.outgoing());
        if sent == Err(Full) {
            self.wait_for_room(true);
        }
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
    backend: Weak<DatagramNet>,
}

impl Ready for SocketReady {
    fn ready(&self, readiness: Readiness) {
        let (Some(frontend), Some(backend)) = (self.frontend.upgrade(), self.backend.upgrade())
        else {
            return;
        };
        if readiness.contains(Readiness::WRITE) {
            let sent = backend.send_kept(&mut backend.outgoing());
            if sent == Ok(()) {
                backend.wait_for_room(false);
                if backend.full.swap(false, Ordering::AcqRel) {
                    frontend.writable(0);
                }
            }
        }
        if readiness.contains(Readiness::READ) {
            frontend.readable(0);
        }
    }
}
