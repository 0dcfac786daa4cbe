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

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use fdset::{OpenFile, Wish};
use mio::Interest;

use super::endpoint::{self, Accepted, Origin};
use super::handle::Seat;
use super::peer::{Intake, Peer, Received, Sent};
use crate::reactor::{Reactor, Readiness, Ready, Registration, Timer};

/// How many bytes of output wait for a slow peer, at most.
pub const OUTGOING_LIMIT: usize = 64 << 10;

/// How often one visit reads before other descriptors get their turn.
const ROUNDS: usize = 16;

/// How long a server that is out of descriptors waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

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

    /// The frontend has room again.
    pub(super) fn resume_input(&self) {
        if !self.paused.swap(false, Ordering::SeqCst) {
            return;
        }
        // Bytes whose sender may have left already, and regular files, have no event to come.
        let mut by_hand = self.has_intake();
        let mut done = Ok(());
        if let Phase::Connected(connected) = &self.state().phase {
            match connected.watch_of_input() {
                Some(watch) if !by_hand => done = watch.rearm(),
                Some(_) => {}
                None => by_hand |= connected.peer.input.is_some(),
            }
        }
        if by_hand {
            let line = Weak::clone(&self.me);
            done = self.reactor.run(move || {
                if let Some(line) = line.upgrade() {
                    line.pump();
                }
            });
        }
        if let Err(error) = done {
            tracing::error!(%error, "a chardev's input cannot be resumed");
        }
    }

    /// Whether a peer is connected.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.state().phase, Phase::Connected(_))
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

    fn has_intake(&self) -> bool {
        self.intake()
            .as_ref()
            .is_some_and(|intake| !intake.waiting().is_empty())
    }

    fn hook(&self, part: Part) -> Arc<dyn Ready> {
        Arc::new(Hook {
            line: Weak::clone(&self.me),
            part,
        })
    }

    /// Takes up a connection.
    fn greet(&self, peer: Peer) -> io::Result<()> {
        let serial = self.connections.fetch_add(1, Ordering::SeqCst);
        // Connected before the watch, so that the first event finds it so.
        self.state().phase = Phase::Connected(Connected {
            serial,
            peer: peer.clone(),
            watch_output: None,
            watch_input: None,
        });
        let duplex = peer.is_duplex();
        let watch_output = if duplex {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.watch(&peer.output, both, Part::Both(serial))?
        } else {
            self.watch(&peer.output, Interest::WRITABLE, Part::Output(serial))?
        };
        let watch_input = match peer.input.as_ref().filter(|_| !duplex) {
            Some(input) => self.watch(input, Interest::READABLE, Part::Input)?,
            None => None,
        };
        let late = {
            let mut state = self.state();
            match &mut state.phase {
                Phase::Connected(connected) => {
                    connected.watch_output = watch_output;
                    connected.watch_input = watch_input;
                    None
                }
                // It has left in the meantime.
                Phase::Waiting | Phase::Ended => Some((watch_output, watch_input)),
            }
        };
        drop(late);
        Ok(())
    }

    /// Watches a descriptor, unless it never blocks.
    fn watch(
        &self,
        file: &Arc<OpenFile>,
        interest: Interest,
        part: Part,
    ) -> io::Result<Option<Registration>> {
        if endpoint::never_blocks(file)? {
            return Ok(None);
        }
        let file: Arc<OpenFile> = Arc::clone(file);
        match self.reactor.register(file, interest, self.hook(part)) {
            Ok(watch) => Ok(Some(watch)),
            // Devices such as /dev/null are always ready as well.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks for the next peer. On the reactor's thread.
    fn find_peer(&self) {
        if self.is_waiting() {
            self.receive(self.origin.next_peer());
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state().phase, Phase::Waiting)
    }

    fn receive(&self, accepted: Accepted) {
        match accepted {
            Accepted::Peer(peer) => self.take_up(peer),
            Accepted::Calling(peer) => self.await_answer(peer),
            Accepted::Nobody => {}
            Accepted::Asking(wish) => self.ask(wish),
            Accepted::Later(after) => self.look_again(after),
            Accepted::OutOfDescriptors(error) => {
                tracing::warn!(%error, "a chardev cannot accept its peer now");
                self.look_again(ACCEPT_AGAIN);
            }
        }
    }

    /// Goes on with the call when the open hook has answered.
    fn ask(&self, wish: Wish) {
        let (line, reactor) = (Weak::clone(&self.me), self.reactor.clone());
        let told = move |answers| {
            let job = move || {
                if let Some(line) = line.upgrade().filter(|line| line.is_waiting()) {
                    line.receive(line.origin.call(answers));
                }
            };
            if let Err(error) = reactor.run(job) {
                tracing::error!(%error, "a chardev cannot call its peer");
            }
        };
        self.origin.ask(wish, Box::new(told));
    }

    fn take_up(&self, peer: Peer) {
        match self.greet(peer) {
            Ok(()) => {
                if let Some(frontend) = self.seat.frontend() {
                    frontend.peer_changed();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a chardev's new peer cannot be watched");
                self.hang_up();
            }
        }
    }

    /// Waits until a call is answered or refused.
    fn await_answer(&self, peer: Peer) {
        let file: Arc<OpenFile> = Arc::clone(&peer.output);
        match self
            .reactor
            .register(file, Interest::WRITABLE, self.hook(Part::Call))
        {
            Ok(watch) => *self.calling() = Some((peer, watch)),
            Err(error) => tracing::error!(%error, "a chardev's call cannot be watched"),
        }
    }

    fn answered(&self) {
        let Some((peer, watch)) = self.calling().take() else {
            return;
        };
        drop(watch);
        match fdset::finish_connect(&*peer.output) {
            Ok(()) => self.take_up(peer),
            Err(error) => {
                tracing::debug!(%error, "a chardev's peer does not answer");
                if let Some(pause) = self.origin.pause_between_peers() {
                    self.look_again(pause);
                }
            }
        }
    }

    fn calling(&self) -> MutexGuard<'_, Option<(Peer, Registration)>> {
        self.calling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_again(&self, after: Duration) {
        if let Some(timer) = self.timer.get() {
            timer.arm(after);
            return;
        }
        match self.reactor.timer(self.hook(Part::Timer)) {
            Ok(timer) => self.timer.get_or_init(|| timer).arm(after),
            Err(error) => tracing::error!(%error, "a chardev cannot wait for its peer"),
        }
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

    /// Reads as long as the frontend has room. On the reactor's thread.
    fn pump(&self) {
        let Some(mut intake) = self.intake().take() else {
            return;
        };
        let flow = (0..ROUNDS)
            .map(|_| self.pump_once(&mut intake))
            .find(|flow| !matches!(flow, Flow::More))
            .unwrap_or(Flow::More);
        *self.intake() = Some(intake);
        match flow {
            Flow::More => {
                self.paused.store(true, Ordering::SeqCst);
                self.resume_input();
            }
            Flow::Stopped => {}
            Flow::EndOfInput => self.end_input(),
        }
    }

    fn pump_once(&self, intake: &mut Intake) -> Flow {
        // Before the question, so that an answer that changes meanwhile is not missed.
        self.paused.store(true, Ordering::SeqCst);
        let Some(frontend) = self.seat.frontend() else {
            return Flow::Stopped;
        };
        let room = frontend.room();
        if room == 0 {
            return Flow::Stopped;
        }
        if intake.waiting().is_empty() {
            let read = match &self.state().phase {
                Phase::Connected(connected) => intake.refill(&connected.peer, room),
                Phase::Waiting | Phase::Ended => Received::Nothing,
            };
            match read {
                Received::Bytes => {}
                Received::Nothing => {
                    self.paused.store(false, Ordering::SeqCst);
                    return Flow::Stopped;
                }
                Received::End => return Flow::EndOfInput,
            }
        }
        let waiting = intake.waiting();
        let offered = waiting.get(..room).unwrap_or(waiting);
        let taken = frontend.receive(offered);
        intake.consume(taken);
        // A frontend that took nothing asks for more when it can.
        if taken == 0 {
            return Flow::Stopped;
        }
        self.paused.store(false, Ordering::SeqCst);
        Flow::More
    }

    /// There is no more input: a duplex peer has left, a separate input is only done with.
    fn end_input(&self) {
        let ended = {
            let mut state = self.state();
            match &mut state.phase {
                Phase::Connected(connected) if !connected.peer.is_duplex() => {
                    let input = connected.peer.input.take();
                    Some((input, connected.watch_input.take()))
                }
                Phase::Connected(_) | Phase::Waiting | Phase::Ended => None,
            }
        };
        if ended.is_none() {
            self.hang_up();
        }
    }

    /// The peer is gone in both directions. What it sent last is kept for a frontend that is open
    /// (up to what is read at once); one that is not shall not find old orders later.
    fn peer_left(&self, serial: usize) {
        match &self.state().phase {
            Phase::Connected(connected) if connected.serial == serial => {}
            Phase::Connected(_) | Phase::Waiting | Phase::Ended => return,
        }
        let Some(mut intake) = self.intake().take() else {
            return;
        };
        if !self.seat.is_open() {
            intake.clear();
        } else if intake.waiting().is_empty()
            && let Phase::Connected(connected) = &self.state().phase
        {
            intake.refill(&connected.peer, usize::MAX);
        }
        *self.intake() = Some(intake);
        self.hang_up();
    }

    /// Lets the peer go and looks for the next one. On the reactor's thread.
    fn hang_up(&self) {
        let (left, starved) = {
            let mut state = self.state();
            if !matches!(state.phase, Phase::Connected(_)) {
                return;
            }
            let next = if self.origin.has_more_peers() {
                Phase::Waiting
            } else {
                Phase::Ended
            };
            state.outgoing.clear();
            let starved = std::mem::take(&mut state.starved);
            (std::mem::replace(&mut state.phase, next), starved)
        };
        drop(left);
        if let Some(frontend) = self.seat.frontend() {
            if starved {
                frontend.writable();
            }
            frontend.peer_changed();
        }
        match self.origin.pause_between_peers() {
            Some(pause) => self.look_again(pause),
            None => self.find_peer(),
        }
    }
}

enum Flow {
    More,
    Stopped,
    EndOfInput,
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
