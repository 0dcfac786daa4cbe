//! The life of a chardev that has descriptors: who is connected, what waits to be sent, what was
//! read and not taken yet.
//!
//! ```text
//!               accept, call, slave opened
//!    ┌─────────┐ ───────────────────────► ┌───────────┐   the peer of a fixed   ┌───────┐
//!    │ Waiting │                          │ Connected │ ──────────────────────► │ Ended │
//!    └─────────┘ ◄─────────────────────── └───────────┘   descriptor left       └───────┘
//!               the peer of a server, caller or pty left
//! ```
//!
//! A line without a frontend still connects; its input waits in the kernel. While one peer is
//! connected a server accepts nobody else: later ones wait in the listen queue.
//!
//! All calls to the frontend and all reading happen on the reactor's thread. Writing happens on
//! the caller's, straight into the descriptor as long as nothing waits before it.
//!
//! Read next: `peers` (how they are found and lost), `input` (from the peer to the frontend).

mod input;
mod peers;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use mio::Interest;

use super::endpoint::Origin;
use super::handle::Seat;
use super::peer::{Intake, Peer, Sent};
use crate::reactor::{Reactor, Readiness, Ready, Registration, Timer};

/// How many bytes of output wait for a slow peer, at most.
pub const OUTGOING_LIMIT: usize = 64 << 10;

enum Phase {
    Waiting,
    Connected(Connected),
    Ended,
}

struct Connected {
    /// Counts connections, so that a late event of one is not taken for the next one's.
    serial: usize,
    peer: Peer,
    /// Watches the only or the output descriptor; `None` for a regular file.
    watch_output: Option<Registration>,
    /// Watches a separate input descriptor.
    watch_input: Option<Registration>,
}

impl Connected {
    fn watch_of_input(&self) -> Option<&Registration> {
        if self.peer.is_duplex() {
            self.watch_output.as_ref()
        } else {
            self.watch_input.as_ref()
        }
    }
}

struct State {
    phase: Phase,
    outgoing: VecDeque<u8>,
    /// The frontend was told "less than that", and waits for `writable`.
    starved: bool,
}

/// A chardev's connection. Kept alive by the chardev alone: handlers hold it weakly.
pub(super) struct Line {
    me: Weak<Line>,
    seat: Arc<Seat>,
    reactor: Reactor,
    origin: Origin,
    state: Mutex<State>,
    /// Out while the reactor's thread works with it.
    intake: Mutex<Option<Intake>>,
    /// Nobody reads until the frontend asks for input, as it does when it is attached.
    paused: AtomicBool,
    connections: AtomicUsize,
    /// A call that was not answered yet.
    calling: Mutex<Option<(Peer, Registration)>>,
    timer: OnceLock<Timer>,
    listening: Mutex<Option<Registration>>,
}

impl Line {
    /// A line that begins with `first`, if the origin brought a peer along, and finds its later
    /// peers by itself.
    pub(super) fn start(
        origin: Origin,
        first: Option<Peer>,
        seat: Arc<Seat>,
        reactor: Reactor,
    ) -> io::Result<Arc<Self>> {
        let line = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            seat,
            reactor,
            origin,
            state: Mutex::new(State {
                phase: Phase::Waiting,
                outgoing: VecDeque::new(),
                starved: false,
            }),
            intake: Mutex::new(Some(Intake::new())),
            paused: AtomicBool::new(true),
            connections: AtomicUsize::new(0),
            calling: Mutex::new(None),
            timer: OnceLock::new(),
            listening: Mutex::new(None),
        });
        let alone = first.is_none();
        if let Some(peer) = first {
            line.greet(peer)?;
        }
        if let Some(listener) = line.origin.listener() {
            let watch =
                line.reactor
                    .register(listener, Interest::READABLE, line.hook(Part::Listener))?;
            *line.listening() = Some(watch);
        } else if alone {
            line.reactor.run({
                let line = Weak::clone(&line.me);
                move || {
                    if let Some(line) = line.upgrade() {
                        line.find_peer();
                    }
                }
            })?;
        }
        Ok(line)
    }

    /// Sends `bytes` or keeps them; returns how many were taken. Without a peer all are dropped.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let State {
            phase,
            outgoing,
            starved,
        } = &mut *state;
        let Phase::Connected(connected) = phase else {
            return bytes.len();
        };
        let mut sent = 0;
        if outgoing.is_empty() {
            match connected.peer.send(bytes) {
                Sent::All => return bytes.len(),
                Sent::Some(count) => sent = count,
                // The reactor hears of it too, and ends the connection there.
                Sent::Gone => return bytes.len(),
            }
        }
        let rest = bytes.get(sent..).unwrap_or_default();
        let kept = rest
            .len()
            .min(OUTGOING_LIMIT.saturating_sub(outgoing.len()));
        outgoing.reserve_exact(OUTGOING_LIMIT.saturating_sub(outgoing.len()));
        outgoing.extend(rest.iter().take(kept));
        *starved |= kept < rest.len();
        sent + kept
    }

    /// Whether a peer is connected.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state().phase, Phase::Connected(_))
    }

    /// Another descriptor of a duplex peer.
    pub(super) fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        match &self.state().phase {
            Phase::Connected(connected) if connected.peer.is_duplex() => {
                connected.peer.output.as_fd().try_clone_to_owned().map(Some)
            }
            Phase::Connected(_) | Phase::Waiting | Phase::Ended => Ok(None),
        }
    }

    /// The name in `query-chardev`.
    pub(super) fn filename(&self) -> String {
        match &self.state().phase {
            Phase::Connected(connected) => connected.peer.name.clone(),
            Phase::Waiting | Phase::Ended => self.origin.name_without_peer(),
        }
    }

    /// Lets the peer go and finds no other. When it returns, no callback is under way, so a
    /// listener's path is free as soon as the line is dropped.
    pub(super) fn close(&self) {
        let phase = std::mem::replace(&mut self.state().phase, Phase::Ended);
        let listening = self.listening().take();
        let calling = self.calling().take();
        drop((phase, listening, calling));
    }

    fn listening(&self) -> MutexGuard<'_, Option<Registration>> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn intake(&self) -> MutexGuard<'_, Option<Intake>> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hook(&self, part: Part) -> Arc<dyn Ready> {
        Arc::new(Hook {
            line: Weak::clone(&self.me),
            part,
        })
    }

    fn calling(&self) -> MutexGuard<'_, Option<(Peer, Registration)>> {
        self.calling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, and wakes a starved frontend. On the reactor's thread.
    fn flush(&self) {
        let wake = {
            let mut state = self.state();
            let State {
                phase,
                outgoing,
                starved,
            } = &mut *state;
            let Phase::Connected(connected) = phase else {
                return;
            };
            while !outgoing.is_empty() {
                let (front, _) = outgoing.as_slices();
                match connected.peer.send(front) {
                    Sent::All => {
                        let count = front.len();
                        outgoing.drain(..count);
                    }
                    Sent::Some(count) => {
                        outgoing.drain(..count);
                        break;
                    }
                    Sent::Gone => outgoing.clear(),
                }
            }
            // Only when all is sent: one visit to the frontend for many bytes.
            outgoing.is_empty() && std::mem::take(starved)
        };
        if wake && let Some(frontend) = self.seat.frontend() {
            frontend.writable();
        }
    }
}

/// Which descriptor of a line an event is about, and of which connection.
#[derive(Clone, Copy)]
enum Part {
    Both(usize),
    Input,
    Output(usize),
    Listener,
    Timer,
    Call,
}

struct Hook {
    line: Weak<Line>,
    part: Part,
}

impl Ready for Hook {
    fn ready(&self, readiness: Readiness) {
        let Some(line) = self.line.upgrade() else {
            return;
        };
        match self.part {
            Part::Listener | Part::Timer => line.find_peer(),
            Part::Call => line.answered(),
            Part::Input => line.pump(),
            Part::Output(serial) | Part::Both(serial) => {
                line.flush();
                if matches!(self.part, Part::Both(_)) && readiness.contains(Readiness::READ) {
                    line.pump();
                }
                if readiness.contains(Readiness::CLOSED) {
                    line.peer_left(serial);
                }
            }
        }
    }
}
