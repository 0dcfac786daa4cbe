//! How a stream finds its peers and loses them: it accepts, calls, waits for an answer, and looks
//! again.
//!
//! All of it is on the reactor's thread, but for the beginning.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use fdset::{
    Access, Answers, Connection, Door, Expected, Listener, OpenError, OpenFile, Request, Role,
    SocketAddress, Wait, Wish,
};
use mio::Interest;
use rustix::net::SocketAddrUnix;

use super::{NetError, Part, Phase, StreamNet, Wire};
use crate::net::spec::{StreamRole, StreamSpec};
use crate::notice::Notice;

/// How long a server that is out of descriptors waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// How often a caller that may not call looks whether a connection was handed in.
const HANDED_IN_AGAIN: Duration = Duration::from_secs(1);

/// Where peers come from.
pub(super) enum Source {
    /// The one it began with, and nobody after it.
    Once { address: SocketAddress },
    /// Whoever calls.
    Server {
        listener: Arc<Listener>,
        address: SocketAddress,
    },
    /// The one we call.
    Caller {
        door: Door,
        reason: String,
        address: SocketAddress,
        interval: Duration,
        /// The log knows that it may not call by itself.
        told: AtomicBool,
    },
}

/// A peer that is there, or was called and has not answered.
pub(super) struct Peer {
    socket: OpenFile,
    in_progress: bool,
}

impl Source {
    /// Listens, calls, or gets ready to call.
    pub(super) fn open(
        id: &str,
        spec: &StreamSpec,
        door: &Door,
    ) -> Result<(Self, Option<Peer>), NetError> {
        let reason = format!("netdev '{id}'");
        let mut address = spec.address.clone();
        match spec.role {
            StreamRole::Server => {
                let listener = fdset::listen(door, &address, Role::Net, &reason)?;
                if let (SocketAddress::Inet { port, .. }, Some(local)) =
                    (&mut address, listener.local())
                {
                    *port = local.port();
                }
                let listener = Arc::new(listener);
                Ok((Self::Server { listener, address }, None))
            }
            StreamRole::Client => {
                let Connection { fd, in_progress } =
                    fdset::connect(door, &address, Wait::Not, Role::Net, &reason)?;
                let peer = Peer {
                    socket: fd,
                    in_progress,
                };
                Ok((Self::Once { address }, Some(peer)))
            }
            StreamRole::Reconnecting(interval) => {
                fdset::may_connect(door, &address, Role::Net, &reason)?;
                let source = Self::Caller {
                    door: door.clone(),
                    reason,
                    address,
                    interval,
                    told: AtomicBool::new(false),
                };
                Ok((source, None))
            }
        }
    }

    /// What `info network` shows while nobody is connected.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Server { .. } => "listening".to_owned(),
            Self::Once { .. } | Self::Caller { .. } => "connecting".to_owned(),
        }
    }

    fn address(&self) -> &SocketAddress {
        match self {
            Self::Once { address }
            | Self::Server { address, .. }
            | Self::Caller { address, .. } => address,
        }
    }

    /// Calls the peer, or takes the connection to it that is among `answers`. `Err` says how long to
    /// wait.
    fn call(&self, answers: Arc<Answers>) -> Result<Peer, Duration> {
        let Self::Caller {
            door,
            reason,
            address,
            interval,
            told,
        } = self
        else {
            return Err(HANDED_IN_AGAIN);
        };
        let door = door.clone().with_answers(answers);
        match fdset::connect(&door, address, Wait::Not, Role::Net, reason) {
            Ok(Connection { fd, in_progress }) => {
                told.store(false, Ordering::Relaxed);
                Ok(Peer {
                    socket: fd,
                    in_progress,
                })
            }
            Err(error @ OpenError::NotPassed { .. }) => {
                if !told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "a netdev cannot call again by itself; it goes on when \
                        the open hook, an alias or a set gives it a connection");
                }
                Err((*interval).max(HANDED_IN_AGAIN))
            }
            Err(error) => {
                tracing::debug!(%error, "a netdev's peer does not answer");
                Err(*interval)
            }
        }
    }
}

/// A connected socket's address for `info network`.
pub(super) fn shown(peer: &SocketAddress) -> String {
    match peer {
        SocketAddress::Inet { host, port } => format!("tcp:{host}:{port}"),
        SocketAddress::Abstract { name } => format!("unix:{name}"),
        other => other.to_string(),
    }
}

/// Where the peer of `socket` is; what was called there is where we called.
fn place(socket: &OpenFile, source: &Source) -> SocketAddress {
    let peer = rustix::net::getpeername(socket).ok().flatten();
    if let Some(Ok(address)) = peer.clone().map(SocketAddr::try_from) {
        return SocketAddress::Inet {
            host: address.ip().to_string(),
            port: address.port(),
        };
    }
    match source.address() {
        SocketAddress::Fd { .. } => {
            let unix = peer.and_then(|address| SocketAddrUnix::try_from(address).ok());
            let path = unix.as_ref().and_then(SocketAddrUnix::path);
            let path = path.map(|path| path.to_string_lossy().into_owned());
            SocketAddress::Unix {
                path: path.unwrap_or_default().into(),
            }
        }
        other => other.clone(),
    }
}

impl StreamNet {
    pub(super) fn begin(&self, mut first: Option<Peer>) -> io::Result<()> {
        if let Source::Server { listener, .. } = &self.source {
            let fd: Arc<Listener> = Arc::clone(listener);
            let hook = self.hook(Part::Listener);
            let watch = self.reactor.register(fd, Interest::READABLE, hook)?;
            let mut listening = self
                .listening
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *listening = Some(watch);
            return Ok(());
        }
        if let Some(peer) = first.take_if(|peer| !peer.in_progress) {
            return self.take_up(peer);
        }
        let me = Weak::clone(&self.me);
        self.reactor.run(move || {
            let Some(stream) = me.upgrade() else {
                return;
            };
            match first {
                // On the thread that hears of the answer, which may be there already.
                Some(call) => stream.take_up_or_look_again(call),
                None => stream.find_peer(),
            }
        })
    }

    /// Looks for the next peer. On the reactor's thread.
    pub(super) fn find_peer(&self) {
        if !matches!(&*self.phase(), Phase::Waiting) {
            return;
        }
        match &self.source {
            Source::Once { .. } => {}
            Source::Server { listener, .. } => self.accept(listener),
            Source::Caller {
                door,
                reason,
                address,
                interval,
                ..
            } => match address.open_name() {
                Some(name) => {
                    let request = Request::new(&name, Access::ReadWrite, Role::Net, reason);
                    let wish = Wish::new(&request, Expected::ConnectedSocket);
                    self.ask(door, wish);
                }
                None => self.look_again(*interval),
            },
        }
    }

    fn accept(&self, listener: &Listener) {
        loop {
            match fdset::accept(listener) {
                Ok(socket) => {
                    let peer = Peer {
                        socket,
                        in_progress: false,
                    };
                    return self.take_up_or_look_again(peer);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        tracing::warn!(netdev = %self.id, %error, "a peer cannot be accepted now");
                        return self.look_again(ACCEPT_AGAIN);
                    }
                },
            }
        }
    }

    /// Calls when the open hook has answered; without one at once.
    fn ask(&self, door: &Door, wish: Wish) {
        let (me, reactor) = (Weak::clone(&self.me), self.reactor.clone());
        let told = move |answers| {
            let job = move || {
                let waits = |stream: &Arc<Self>| matches!(&*stream.phase(), Phase::Waiting);
                if let Some(stream) = me.upgrade().filter(waits) {
                    match stream.source.call(answers) {
                        Ok(peer) => stream.take_up_or_look_again(peer),
                        Err(wait) => stream.look_again(wait),
                    }
                }
            };
            if let Err(error) = reactor.run(job) {
                tracing::error!(%error, "a netdev cannot call its peer");
            }
        };
        door.ask_again(wish, Box::new(told));
    }

    fn take_up_or_look_again(&self, peer: Peer) {
        if let Err(error) = self.take_up(peer) {
            tracing::warn!(netdev = %self.id, %error, "a peer cannot be watched");
            self.look_again(ACCEPT_AGAIN);
        }
    }

    /// Takes up a connection, or waits until it is one: that on the reactor's thread.
    fn take_up(&self, peer: Peer) -> io::Result<()> {
        let Peer {
            socket,
            in_progress,
        } = peer;
        let socket = Arc::new(socket);
        if !in_progress {
            return self.greet(socket);
        }
        let file: Arc<OpenFile> = Arc::clone(&socket);
        let hook = self.hook(Part::Call);
        let watch = self.reactor.register(file, Interest::WRITABLE, hook)?;
        let mut calling = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
        *calling = Some((socket, watch));
        Ok(())
    }

    /// A call was answered or refused.
    pub(super) fn answered(&self) {
        let call = {
            let mut calling = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
            calling.take()
        };
        let Some((socket, watch)) = call else {
            return;
        };
        drop(watch);
        let greeted = fdset::finish_connect(&*socket).and_then(|()| self.greet(socket));
        if let Err(error) = greeted {
            tracing::debug!(netdev = %self.id, %error, "a peer does not answer");
            match &self.source {
                Source::Caller { interval, .. } => self.look_again(*interval),
                _ => *self.phase() = Phase::Ended,
            }
        }
    }

    fn greet(&self, socket: Arc<OpenFile>) -> io::Result<()> {
        // A packet is not worth waiting for the next; unix sockets know no such thing.
        let _ = fdset::set_nodelay(&*socket);
        let serial = self.serial();
        let peer = place(&socket, &self.source);
        {
            let mut wire = self.wire();
            wire.socket = Some((serial, Arc::clone(&socket)));
            wire.inbox.clear();
            wire.outbox.clear();
        }
        *self.phase() = Phase::Connected {
            peer: peer.clone(),
            watch: None,
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        let hook = self.hook(Part::Connection(serial));
        let watched = self.reactor.register(socket, both, hook)?;
        let late = match &mut *self.phase() {
            Phase::Connected { watch, .. } => watch.replace(watched),
            // It has left in the meantime.
            Phase::Waiting | Phase::Ended => Some(watched),
        };
        drop(late);
        self.notices.send(Notice::NetStream {
            id: self.id.clone(),
            peer: Some(peer),
        });
        Ok(())
    }

    /// Has the connection ended when whoever is at work has come to an end.
    pub(super) fn hang_up_later(&self, serial: usize) {
        let me = Weak::clone(&self.me);
        let job = move || {
            if let Some(stream) = me.upgrade() {
                stream.hang_up(serial);
            }
        };
        if let Err(error) = self.reactor.run(job) {
            tracing::error!(%error, "a connection cannot be ended");
        }
    }

    /// Lets the peer go and looks for the next one. On the reactor's thread.
    pub(super) fn hang_up(&self, serial: usize) {
        let (socket, waited) = {
            let mut wire = self.wire();
            match &wire.socket {
                Some((now, _)) if *now == serial => {}
                _ => return,
            }
            let Wire { socket, full, .. } = &mut *wire;
            (socket.take(), std::mem::take(full))
        };
        let next = match self.source {
            Source::Once { .. } => Phase::Ended,
            Source::Server { .. } | Source::Caller { .. } => Phase::Waiting,
        };
        let before = std::mem::replace(&mut *self.phase(), next);
        drop((before, socket));
        self.notices.send(Notice::NetStream {
            id: self.id.clone(),
            peer: None,
        });
        if let Some(frontend) = self.frontend().filter(|_| waited) {
            frontend.writable(0);
        }
        match &self.source {
            Source::Caller { interval, .. } => self.look_again(*interval),
            _ => self.find_peer(),
        }
    }

    fn look_again(&self, after: Duration) {
        if let Some(timer) = self.timer.get() {
            timer.arm(after);
            return;
        }
        match self.reactor.timer(self.hook(Part::Timer)) {
            Ok(timer) => self.timer.get_or_init(|| timer).arm(after),
            Err(error) => tracing::error!(%error, "a netdev cannot wait for its peer"),
        }
    }
}
