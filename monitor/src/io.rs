//! The thread `qmp-io`: one mio loop over all listeners and clients.
//!
//! ```text
//!              ┌──────────────── poll ◄─────────── waker: notes from other threads
//!              │ readable, writable                 (add a monitor, attend a session, stop)
//!     listener ▼          client
//!     accept ─► greeting  flush what waits ─► room? ─► receive ─► Session ─► admit
//!                                              │ no                            │
//!                                              ▼                   in band: at once, or Inbox
//!                                    leave it in the socket;       out of band: run here
//!                                    the inbox rings when          refused: answer
//!                                    there is room
//! ```
//!
//! Events are edge-triggered, so a client that was left with something to read is either attended
//! again by a note, or by its next edge, or stands in `again`. Nothing here blocks.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use fdset::{Peer, Scope};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use qapi_schema::{Event, EventSink, Reply};
use serde_json::Value;

use crate::builtin;
use crate::busy_poll::{self, BusyPoll};
use crate::call::Call;
use crate::dispatch::{Route, admit};
use crate::door::{self, Door, Entrance};
use crate::farewell::Farewell;
use crate::inbox::{Pending, Queued};
use crate::ledger;
use crate::line::{Key, Line, Manner, Note};
use crate::print;
use crate::request::{Refusal, Request};
use crate::server::{FdScope, Shared};
use crate::session::{Cause, Incoming, Session, State};
use crate::transport::{Outlet, Port, Sent};

/// The waker's token; keys begin after it.
pub(crate) const WAKER: Token = Token(0);

/// How many bytes are received at once: more than nearly every request, and little to hold.
const CHUNK: usize = 16 << 10;
/// How many reads and requests of one client are served before the others have their turn.
const ROUNDS: usize = 16;
/// How long clients have to take what waits for them when the server ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// A monitor on its way to `qmp-io`.
#[derive(Debug)]
pub(crate) struct NewMonitor {
    pub(crate) manner: Manner,
    pub(crate) way: Way,
    /// Told when the first client is there.
    pub(crate) first_client: Option<SyncSender<()>>,
}

/// How a monitor's clients come.
#[derive(Debug)]
pub(crate) enum Way {
    /// They come and go.
    Door(Entrance),
    /// There is one, and it is here.
    Connected { input: Arc<Port>, output: Arc<Port> },
}

#[derive(Debug)]
struct Client {
    /// The door it came by.
    door: Option<Key>,
    session: Session,
    input: Arc<Port>,
    output: Arc<Port>,
    line: Arc<Line>,
    /// The socket may hold bytes that no edge will tell about.
    more: bool,
    /// The end is in the socket, behind the bytes that are left: this edge does not come again.
    ending: bool,
    /// Whether to be told when the output has room; asked only while something waits, because
    /// else each message that the client takes would wake this thread.
    awaits_output: bool,
}

/// The loop's state.
pub(crate) struct Io {
    shared: Arc<Shared>,
    poll: Poll,
    doors: HashMap<Key, Door>,
    clients: HashMap<Key, Client>,
    last_key: Key,
    buffer: Vec<u8>,
    /// Clients to be read again before the next wait.
    again: Vec<Key>,
    busy_poll: BusyPoll,
}

impl Io {
    /// A loop over nothing.
    pub(crate) fn new(shared: Arc<Shared>, poll: Poll) -> Self {
        Self {
            shared,
            poll,
            doors: HashMap::new(),
            clients: HashMap::new(),
            last_key: Key(WAKER.0),
            buffer: vec![0; CHUNK],
            again: Vec::new(),
            busy_poll: BusyPoll::new(),
        }
    }

    /// Serves until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            if let Err(error) = self.wait(&mut events)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the thread qmp-io cannot wait for clients and ends");
                break;
            }
            for event in &events {
                let key = Key(event.token().0);
                if let Some(client) = self.clients.get_mut(&key) {
                    client.ending |= event.is_read_closed();
                    // Of two fds, the end of the input says nothing about the output.
                    let is_one = Arc::ptr_eq(&client.input, &client.output);
                    if is_one && event.is_write_closed() && client.line.desert() {
                        (self.shared.wake_main)();
                    }
                }
                self.attend(key);
            }
            if !self.take_notes() {
                break;
            }
            self.look_at_the_clock();
            for key in std::mem::take(&mut self.again) {
                self.attend(key);
            }
        }
        self.say_farewell(&mut events);
    }

    /// Waits until something is to be done.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        if self.busy_poll.is_due() && self.look_out(events)? {
            return Ok(());
        }
        self.poll.poll(events, self.patience())
    }

    /// Looks for what comes next without sleeping, for a moment; whether something came.
    fn look_out(&mut self, events: &mut Events) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            self.poll.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                self.busy_poll.paid();
                return Ok(true);
            }
            let now = Instant::now();
            if now.duration_since(start) >= busy_poll::LENGTH {
                self.busy_poll.in_vain();
                return Ok(false);
            }
            thread::yield_now();
            if now.elapsed() >= busy_poll::CROWDED {
                self.busy_poll.crowded();
                return Ok(false);
            }
        }
    }

    /// How long to wait at most.
    fn patience(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let rests = self.doors.values().filter_map(Door::rests_until);
        let next = rests
            .chain(self.shared.events.deadline())
            .chain(self.shared.registry.unclaimed_deadline())
            .min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Does what other threads ask; false when it is to stop.
    fn take_notes(&mut self) -> bool {
        let mut goes_on = true;
        for note in self.shared.bell.take() {
            match note {
                Note::Add(monitor) => self.add(*monitor),
                Note::Attend(key) => self.attend(key),
                Note::Clock => {}
                Note::Stop => goes_on = false,
            }
        }
        goes_on
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        self.shared.events.send_due(now);
        for forgotten in ledger::unclaimed(&self.shared.registry, now) {
            self.shared.events.emit(Event::FdUnclaimed(forgotten));
        }
        let rested: Vec<_> = self
            .doors
            .iter_mut()
            .filter_map(|(key, door)| door.has_rested(now).then_some(*key))
            .collect();
        for key in rested {
            self.accept(key);
        }
    }

    fn next_key(&mut self) -> Key {
        self.last_key = Key(self.last_key.0 + 1);
        self.last_key
    }

    fn add(&mut self, monitor: NewMonitor) {
        let NewMonitor {
            manner,
            way,
            first_client,
        } = monitor;
        match way {
            Way::Door(entrance) => {
                let key = self.next_key();
                let door = Door::new(manner, entrance, first_client);
                let watched = door
                    .knocker()
                    .map_or(Ok(()), |fd| self.watch(fd, key, Interest::READABLE));
                if let Err(error) = watched {
                    let monitor = &door.manner.rights.name;
                    tracing::error!(monitor, %error, "a monitor cannot be listened to");
                    return;
                }
                self.doors.insert(key, door);
                self.accept(key);
            }
            Way::Connected { input, output } => {
                if let Err(stranger) = manner.rights.admit(&*input) {
                    stranger.tell();
                    return door::turn_away(&output, manner.style, &stranger);
                }
                self.greet(None, manner, input, output);
                drop(first_client);
            }
        }
    }

    /// Watches an fd. Files cannot be watched; they are always ready, and so are not missed.
    fn watch(&self, fd: RawFd, key: Key, interest: Interest) -> io::Result<()> {
        let registry = self.poll.registry();
        match registry.register(&mut SourceFd(&fd), Token(key.0), interest) {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EPERM as i32) => Ok(()),
            other => other,
        }
    }

    fn attend(&mut self, key: Key) {
        if self.doors.contains_key(&key) {
            return self.accept(key);
        }
        let Some(mut client) = self.clients.remove(&key) else {
            return;
        };
        client.more = true;
        match self.serve(&mut client) {
            Ok(()) => {
                self.clients.insert(key, client);
            }
            Err(farewell) => self.dismiss(client, &farewell),
        }
    }

    /// Takes in all who wait at a door.
    fn accept(&mut self, key: Key) {
        while let Some(door) = self.doors.get_mut(&key)
            && let Some(port) = door.admit()
        {
            let manner = door.manner.clone();
            self.greet(Some(key), manner, Arc::clone(&port), port);
            if let Some(door) = self.doors.get_mut(&key) {
                door.announce();
            }
        }
    }

    /// Begins a session.
    fn greet(&mut self, door: Option<Key>, manner: Manner, input: Arc<Port>, output: Arc<Port>) {
        let key = self.next_key();
        let Manner {
            id,
            style,
            fd_scope,
            rights,
            tls: _,
        } = manner;
        let scope = Scope::Session {
            monitor: id.0,
            session: key.session().0,
        };
        let line = Arc::new(Line {
            key,
            monitor: id,
            rights,
            peer: Peer::of(&*input),
            style,
            outlet: Outlet::new(Arc::clone(&output)),
            bell: Arc::clone(&self.shared.bell),
            deserted: false.into(),
            scope: (fd_scope == FdScope::Session).then(|| self.shared.registry.begin_scope(scope)),
        });
        let client = Client {
            door,
            session: Session::new(),
            input,
            output,
            line,
            more: true,
            ending: false,
            awaits_output: false,
        };
        let watched = self.watch(client.input.as_raw_fd(), key, Interest::READABLE);
        self.shared.inbox.open(Arc::clone(&client.line));
        if let Err(error) = watched {
            let monitor = &client.line.rights.name;
            tracing::error!(monitor, %error, "a client cannot be watched");
            return self.dismiss(client, &Farewell::Gone);
        }
        client
            .line
            .send(&print::message(style, &[&self.shared.greeting]));
        let monitor = &client.line.rights.name;
        tracing::debug!(monitor, session = key.0, "a client has connected");
        self.clients.insert(key, client);
        self.again.push(key);
    }

    /// Asks to be told, or no longer, when a client's output has room.
    fn await_output(&self, client: &mut Client, wanted: bool) -> io::Result<()> {
        if client.awaits_output == wanted {
            return Ok(());
        }
        client.awaits_output = wanted;
        let token = Token(client.line.key.0);
        let registry = self.poll.registry();
        let fd = client.output.as_raw_fd();
        let mut output = SourceFd(&fd);
        match (Arc::ptr_eq(&client.input, &client.output), wanted) {
            (true, true) => {
                registry.reregister(&mut output, token, Interest::READABLE | Interest::WRITABLE)
            }
            (true, false) => registry.reregister(&mut output, token, Interest::READABLE),
            (false, true) => registry.register(&mut output, token, Interest::WRITABLE),
            (false, false) => registry.deregister(&mut output),
        }
    }

    /// Does for a client what can be done now.
    fn serve(&mut self, client: &mut Client) -> Result<(), Farewell> {
        match client.line.outlet.flush() {
            Sent::Through => self.await_output(client, false)?,
            Sent::BeganToWait | Sent::Waiting => self.await_output(client, true)?,
            // What it asked before it went is still done; the end of its input is the end.
            Sent::Gone => {}
            Sent::Overrun => return Err(Farewell::Overrun),
        }
        if client.session.state() != State::Draining {
            self.read(client)?;
            if client.output.is_encrypted() {
                // What the handshake has to say was not there before.
                let waits = client.line.outlet.flush() == Sent::Waiting;
                self.await_output(client, waits)?;
            }
        }
        if client.session.state() == State::Draining
            && self.shared.inbox.is_quiet(client.line.key)
            && client.line.outlet.is_settled()
        {
            client.session.step(Cause::Drained);
            return Err(Farewell::Gone);
        }
        Ok(())
    }

    /// Receives and admits until nothing is left, there is no room, or others wait.
    fn read(&mut self, client: &mut Client) -> Result<(), Farewell> {
        let key = client.line.key;
        let mut rounds = 0;
        while !client.session.is_drained() || client.more {
            if client.line.outlet.is_busy() || !self.shared.inbox.has_room(key) {
                return Ok(());
            }
            if rounds == ROUNDS {
                self.again.push(key);
                return Ok(());
            }
            rounds += 1;
            if let Some(incoming) = client.session.next() {
                self.take(client, incoming);
                continue;
            }
            if !client.more {
                return Ok(());
            }
            let received = match client.input.receive(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    client.more = false;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(Farewell::NotTls(error));
                }
                Err(_) => return Err(Farewell::Gone),
            };
            if received.bytes == 0 {
                client.more = false;
                client.session.end_input();
                return Ok(());
            }
            let room = self.buffer.len();
            client.more = client.ending || !client.input.is_emptied_by(&received, room);
            client.session.receive(&self.buffer, received);
        }
        Ok(())
    }

    /// Admits one input, and sends it where it belongs.
    fn take(&mut self, client: &mut Client, incoming: Incoming) {
        let shared = &self.shared;
        let Incoming { request, fds } = incoming;
        let request = match request {
            Ok(request) => request,
            Err(refusal) => {
                drop(fds);
                return self.refuse(client, refusal);
            }
        };
        let state = client.session.state();
        let rights = &client.line.rights;
        let admitted = admit(&request, fds.len(), state, shared.phase.now(), rights);
        let Request {
            id,
            arguments,
            out_of_band,
            ..
        } = request;
        let command = match admitted {
            Err(error) => {
                drop(fds);
                let refusal = Refusal { id, error };
                if out_of_band {
                    // What overtakes is not held up by being wrong.
                    return refusal.answer(&client.line);
                }
                return self.refuse(client, refusal);
            }
            Ok(Route::Negotiate) => return self.negotiate(client, id, arguments),
            Ok(Route::Run(command)) => command,
        };
        let pending = Pending {
            id,
            command,
            arguments,
            fds,
        };
        let line = &client.line;
        if !out_of_band {
            return self.run_in_band(line, pending);
        }
        let call = Call::new(pending, Arc::clone(line), None);
        if let Some(call) = shared.serve_builtin(call) {
            (shared.out_of_band)(call);
        }
    }

    /// Has a request run now, if nothing is before it and it need not wait; else by the main loop.
    fn run_in_band(&mut self, line: &Arc<Line>, pending: Pending) {
        let shared = &self.shared;
        if shared.inbox.begin(line.key) {
            let Some(call) = shared.call(pending, Arc::clone(line)) else {
                return;
            };
            let Some(call) = (shared.serve_now)(call) else {
                return self.busy_poll.answered();
            };
            call.put_back();
        } else {
            shared.inbox.push(line.key, Queued::Run(pending));
        }
        (shared.wake_main)();
    }

    /// Answers `qmp_capabilities`.
    fn negotiate(&self, client: &mut Client, id: Option<Value>, arguments: Value) {
        let line = &client.line;
        match builtin::negotiate(&self.shared, arguments) {
            Err(error) => self.refuse(client, Refusal { id, error }),
            Ok(oob) => {
                client.session.negotiated(oob);
                if oob {
                    self.shared.inbox.widen(line.key);
                }
                // Before the answer: a client that has it misses no event from then on.
                self.shared.events.add(Arc::clone(line));
                line.send(&print::success(line.style, id.as_ref(), &Reply::EMPTY));
            }
        }
    }

    /// Answers with an error, after the requests before it.
    fn refuse(&self, client: &Client, refusal: Refusal) {
        let line = &client.line;
        let due = self.shared.inbox.push(line.key, Queued::Refused(refusal));
        match due {
            Some(Queued::Refused(refusal)) => refusal.answer(line),
            _ => (self.shared.wake_main)(),
        }
    }

    /// Ends a session.
    fn dismiss(&mut self, mut client: Client, farewell: &Farewell) {
        let key = client.line.key;
        let monitor = &client.line.rights.name;
        match farewell {
            Farewell::Gone => tracing::debug!(monitor, session = key.0, "a client has gone"),
            reason => tracing::warn!(monitor, session = key.0, %reason, "a client is dropped"),
        }
        client.session.close();
        self.shared.events.remove(key);
        self.shared.inbox.close(key);
        client.line.outlet.close();
        if client.line.desert() {
            (self.shared.wake_main)();
        }
        for port in [&client.input, &client.output] {
            // One that was never watched, or is watched as the input already, is no loss.
            let fd = port.as_raw_fd();
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        if let Some(door) = client.door.and_then(|door| self.doors.get_mut(&door)) {
            door.part();
        }
    }

    /// Gives every client what waits for it, within [`FAREWELL`], and ends all sessions.
    fn say_farewell(mut self, events: &mut Events) {
        self.shared.events.send_held();
        self.doors.clear();
        let deadline = Instant::now() + FAREWELL;
        let mut clients: Vec<_> = self.clients.drain().map(|(_, client)| client).collect();
        loop {
            clients.retain_mut(|client| {
                let waits = client.line.outlet.flush() == Sent::Waiting;
                let goes_on = waits && self.await_output(client, true).is_ok();
                if !goes_on {
                    self.shared.inbox.close(client.line.key);
                    self.shared.events.remove(client.line.key);
                    client.line.outlet.close();
                }
                goes_on
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if clients.is_empty() || left.is_zero() {
                break;
            }
            if let Err(error) = self.poll.poll(events, Some(left))
                && error.kind() != io::ErrorKind::Interrupted
            {
                break;
            }
        }
        for client in clients {
            self.dismiss(client, &Farewell::Overrun);
        }
    }
}
