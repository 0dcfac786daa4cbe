//! A stream socket: packets behind their lengths, to one peer after the other.
//!
//! ```text
//!               accepted, or the call was answered
//!    ┌─────────┐ ───────────────────────────────► ┌───────────┐  a client's, or passed  ┌───────┐
//!    │ Waiting │                                  │ Connected │ ──────────────────────► │ Ended │
//!    └─────────┘ ◄─────────────────────────────── └───────────┘          peer left      └───────┘
//!               the peer of a server or of who calls again left
//! ```
//!
//! While one peer is connected a server accepts nobody else. Without a peer packets are dropped.
//!
//! Read next: `peers` (how they are found and lost), [`super::framing`].

mod peers;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use fdset::{Door, OpenFile, SocketAddress};
use mio::Interest;
use nix::errno::Errno;
use nix::unistd;

use self::peers::Source;
use super::backend::{Abilities, NetBackend, NetFrontend, Offloads, Received, Sent};
use super::framing::{Inbox, Outbox};
use super::packet::Packet;
use super::{NetError, StreamSpec};
use crate::notice::NoticeSink;
use crate::reactor::{Reactor, Readiness, Ready, Registration, Timer};

enum Phase {
    Waiting,
    Connected {
        /// Where the peer is.
        peer: SocketAddress,
        watch: Option<Registration>,
    },
    Ended,
}

/// The bytes of the connection.
#[derive(Default)]
struct Wire {
    /// The connection and its number, which tells a late event of one from the next one's.
    socket: Option<(usize, Arc<OpenFile>)>,
    inbox: Inbox,
    outbox: Outbox,
    /// The card waits for room.
    full: bool,
    /// What is in the outbox waits for room, not for the end of its batch.
    is_stuck: bool,
}

/// A stream socket with a card before it.
pub struct StreamNet {
    me: Weak<Self>,
    id: String,
    reactor: Reactor,
    notices: NoticeSink,
    source: Source,
    phase: Mutex<Phase>,
    wire: Mutex<Wire>,
    frontend: Mutex<Option<Weak<dyn NetFrontend>>>,
    connections: AtomicUsize,
    /// A call that was not answered yet.
    calling: Mutex<Option<(Arc<OpenFile>, Registration)>>,
    listening: Mutex<Option<Registration>>,
    timer: OnceLock<Timer>,
}

impl StreamNet {
    /// The stream that `spec` asks for.
    ///
    /// # Errors
    /// The address is taken, nobody answers there, or the policy takes only what was handed in.
    pub fn open(
        id: &str,
        spec: &StreamSpec,
        door: &Door,
        reactor: &Reactor,
        notices: NoticeSink,
    ) -> Result<Arc<Self>, NetError> {
        let (source, first) = Source::open(id, spec, door)?;
        let stream = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            id: id.to_owned(),
            reactor: reactor.clone(),
            notices,
            source,
            phase: Mutex::new(Phase::Waiting),
            wire: Mutex::default(),
            frontend: Mutex::default(),
            connections: AtomicUsize::new(0),
            calling: Mutex::default(),
            listening: Mutex::default(),
            timer: OnceLock::new(),
        });
        stream
            .begin(first)
            .map_err(|source| NetError::host(id, "watching its socket", source))?;
        Ok(stream)
    }

    /// Writes what waits; whether all is gone. A connection that takes nothing any more is told of as
    /// an event.
    fn write(wire: &mut Wire) -> bool {
        let Wire {
            socket: Some((_, socket)),
            outbox,
            is_stuck,
            ..
        } = wire
        else {
            return true;
        };
        *is_stuck = false;
        while !outbox.waiting().is_empty() {
            match unistd::write(&**socket, outbox.waiting()) {
                Ok(count) => outbox.sent(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    *is_stuck = true;
                    return false;
                }
                Err(_) => outbox.clear(),
            }
        }
        true
    }

    fn frontend(&self) -> Option<Arc<dyn NetFrontend>> {
        let frontend = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        frontend.as_ref()?.upgrade()
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it told when the connection takes more, or not: each byte that the peer reads would be
    /// an event otherwise.
    fn wait_for_room(&self, wait: bool) {
        let watched = match &*self.phase() {
            Phase::Connected {
                watch: Some(watch), ..
            } => watch.watch_for(if wait {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            }),
            _ => Ok(()),
        };
        if let Err(error) = watched {
            tracing::warn!(netdev = %self.id, %error, "a peer cannot be watched");
        }
    }

    /// Something happened on connection `serial`.
    fn ready(&self, serial: usize, readiness: Readiness) {
        let (is_current, is_gone, was_full) = {
            let mut wire = self.wire();
            let is_current = wire.socket.as_ref().is_some_and(|(now, _)| *now == serial);
            // A batch that is still being made is not cut in two.
            let is_gone = is_current && (!wire.is_stuck || Self::write(&mut wire));
            (
                is_current,
                is_gone,
                is_gone && std::mem::take(&mut wire.full),
            )
        };
        if !is_current {
            return;
        }
        if is_gone && readiness.contains(Readiness::WRITE) {
            self.wait_for_room(false);
        }
        if let Some(frontend) = self.frontend() {
            if was_full {
                frontend.writable(0);
            }
            if readiness.contains(Readiness::READ) {
                frontend.readable(0);
            }
        }
        if readiness.contains(Readiness::CLOSED) {
            self.hang_up(serial);
        }
    }
}

impl NetBackend for StreamNet {
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
        let mut place = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(frontend);
        Ok(())
    }

    fn detach(&self) {
        let mut place = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = place.take();
        drop(place);
        drop(gone);
    }

    fn send(&self, _queue: usize, packet: &Packet<'_>) -> Sent {
        let mut wire = self.wire();
        if wire.socket.is_none() {
            return Sent::Done;
        }
        if wire.outbox.put(packet) {
            return Sent::Done;
        }
        if Self::write(&mut wire) {
            wire.outbox.put(packet);
            return Sent::Done;
        }
        wire.full = true;
        drop(wire);
        self.wait_for_room(true);
        Sent::Full
    }

    fn flush(&self, _queue: usize) {
        let is_gone = Self::write(&mut self.wire());
        if !is_gone {
            self.wait_for_room(true);
        }
    }

    fn receive(&self, _queue: usize, buffer: &mut [u8]) -> Received {
        let mut wire = self.wire();
        let Wire {
            socket: Some((serial, socket)),
            inbox,
            ..
        } = &mut *wire
        else {
            return Received::Nothing;
        };
        loop {
            match inbox.next(buffer) {
                Ok(Some(count)) => return Received::Packet(count),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(netdev = %self.id, %error, "a peer sends no packets");
                    break;
                }
            }
            match unistd::read(&**socket, inbox.room()) {
                Ok(0) => break,
                Ok(count) => inbox.filled(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Received::Nothing,
                Err(error) => {
                    tracing::debug!(netdev = %self.id, %error, "a connection is lost");
                    break;
                }
            }
        }
        let serial = *serial;
        drop(wire);
        self.hang_up_later(serial);
        Received::Nothing
    }

    fn describe(&self) -> String {
        match &*self.phase() {
            Phase::Connected { peer, .. } => peers::shown(peer),
            Phase::Waiting => self.source.describe(),
            Phase::Ended => "connection error".to_owned(),
        }
    }
}

impl Drop for StreamNet {
    fn drop(&mut self) {
        // Before the socket they are about.
        drop(self.calling.get_mut().map(Option::take));
        drop(self.listening.get_mut().map(Option::take));
    }
}

/// What an event is about.
#[derive(Clone, Copy)]
enum Part {
    Connection(usize),
    Listener,
    Timer,
    Call,
}

struct Hook {
    stream: Weak<StreamNet>,
    part: Part,
}

impl Ready for Hook {
    fn ready(&self, readiness: Readiness) {
        let Some(stream) = self.stream.upgrade() else {
            return;
        };
        match self.part {
            Part::Connection(serial) => stream.ready(serial, readiness),
            Part::Listener | Part::Timer => stream.find_peer(),
            Part::Call => stream.answered(),
        }
    }
}

impl StreamNet {
    fn hook(&self, part: Part) -> Arc<dyn Ready> {
        Arc::new(Hook {
            stream: Weak::clone(&self.me),
            part,
        })
    }

    fn serial(&self) -> usize {
        self.connections.fetch_add(1, Ordering::SeqCst)
    }
}
