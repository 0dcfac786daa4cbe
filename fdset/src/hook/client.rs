//! The client's end of the hook's connection.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use super::lines::{Line, Lines};
use super::request::{State, cause_of};
use super::{HookError, Wish};
use crate::error::OpenError;
use crate::handover::Peer;
use crate::inherited::passed_if;
use crate::registry::Door;
use crate::request::Role;
use crate::scm::{expect_only_fds, recv_with_fds, send_with_fds};
use crate::socket::{SocketAddress, Wait, connect};

/// How many bytes are received at once.
const CHUNK: usize = 16 << 10;
/// How many times the socket is read before others have their turn.
const ROUNDS: usize = 16;
/// How many bytes may wait for a manager that does not read.
const MAX_OUTPUT: usize = 1 << 20;
/// How many answers may be owed that nobody waits for any more.
const MAX_OWED: usize = 1024;

const CLOSED: &str = "it has closed the connection";

const NO_CONNECTION: &str = "the fd is not one end of a unix stream connection; pass one of a \
                             socketpair(AF_UNIX, SOCK_STREAM)";

/// How requests and answers are written, one in each line. Lines have no end here.
pub trait HookWire: Send {
    /// Asks for `wish`, on behalf of `command` if there is one, to be answered within `patience`.
    fn open(&self, id: u64, wish: &Wish, command: Option<&str>, patience: Duration) -> Vec<u8>;

    /// Says that the request `id` needs no answer any more.
    fn cancel(&self, id: u64) -> Vec<u8>;

    /// Reads an answer.
    ///
    /// # Errors
    /// What is wrong with the line.
    fn answer(&self, line: &[u8]) -> Result<WireAnswer, String>;
}

/// What the line of an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireAnswer {
    /// The number of the request.
    pub id: u64,
    /// Why there is no fd; without it, an fd comes along.
    pub error: Option<String>,
}

/// One request, for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A request that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Which.
    pub ticket: Ticket,
    /// How: with an fd that is what was wished for, or why there is none.
    pub outcome: Result<OwnedFd, HookError>,
}

/// A request that the manager has not answered.
#[derive(Debug)]
struct Asked {
    state: State,
    wish: Wish,
    deadline: Instant,
}

/// That the manager has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Why.
    pub reason: String,
    /// How many requests it had not answered; they have failed.
    pub unanswered: usize,
}

/// The connection to the manager.
enum Link {
    Up(OwnedFd),
    /// With the reason.
    Gone(String),
}

/// The open hook, seen from the one who asks. Owned and driven by one thread: call
/// [`attend`](Self::attend) when its socket is ready, at its [`deadline`](Self::deadline), and
/// after everything that was asked of it.
pub struct HookClient {
    link: Link,
    wire: Box<dyn HookWire>,
    timeout: Duration,
    last_id: u64,
    asked: BTreeMap<u64, Asked>,
    finished: Vec<Finished>,
    /// Told once.
    departure: Option<Departure>,
    /// What the socket has not taken yet.
    output: Vec<u8>,
    lines: Lines,
    /// The socket may hold bytes that no readiness will tell about.
    more: bool,
}

impl HookClient {
    /// Connects to a manager, or takes a passed connection.
    ///
    /// # Errors
    /// Nobody listens at the address, or the fd is not one end of a unix stream connection, in
    /// which case it stays where it was.
    pub fn connect(
        door: &Door,
        address: &SocketAddress,
        wire: Box<dyn HookWire>,
        timeout: Duration,
        reason: &str,
    ) -> Result<Self, OpenError> {
        let socket = match address {
            SocketAddress::Fd { name } => {
                passed_if(door, name, Role::OpenHook, reason, is_connection)?
            }
            other => {
                connect(door, other, Wait::Not, Role::OpenHook, reason)?
                    .fd
                    .into_parts()
                    .0
            }
        };
        Ok(Self::new(socket, wire, timeout))
    }

    /// Takes a connected unix stream socket.
    #[must_use]
    pub fn new(socket: OwnedFd, wire: Box<dyn HookWire>, timeout: Duration) -> Self {
        expect_only_fds(&socket);
        let link = match unblock(&socket) {
            Ok(()) => Link::Up(socket),
            Err(error) => Link::Gone(format!("its socket cannot be used: {error}")),
        };
        Self {
            link,
            wire,
            timeout,
            last_id: 0,
            asked: BTreeMap::new(),
            finished: Vec::new(),
            departure: None,
            output: Vec::new(),
            lines: Lines::default(),
            more: true,
        }
    }

    /// How long the manager may take to answer.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The socket, while there is a connection.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.link {
            Link::Up(socket) => Some(socket.as_fd()),
            Link::Gone(_) => None,
        }
    }

    /// The manager, where the connection tells.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        Peer::of(self.socket()?)
    }

    /// Whether something waits until the socket is writable.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// How many requests wait for an answer.
    #[must_use]
    pub fn pending(&self) -> usize {
        let asked = self.asked.values();
        asked.filter(|asked| asked.state == State::Sent).count()
    }

    /// When to attend although nothing is ready: at once, or when the next request is too old.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.finished.is_empty() || (self.more && self.socket().is_some()) {
            return Some(now);
        }
        let asked = self.asked.values();
        asked
            .filter(|asked| asked.state == State::Sent)
            .map(|asked| asked.deadline)
            .min()
    }

    /// Asks for `wish`. Whatever comes of it, a later [`attend`](Self::attend) tells, once.
    pub fn ask(&mut self, wish: Wish, command: Option<&str>, now: Instant) -> Ticket {
        self.last_id += 1;
        let id = self.last_id;
        if let Link::Gone(why) = &self.link {
            let outcome = Err(HookError::Gone(why.clone()));
            self.finished.push(Finished {
                ticket: Ticket(id),
                outcome,
            });
            return Ticket(id);
        }
        let line = self.wire.open(id, &wish, command, self.timeout);
        let asked = Asked {
            state: State::Sent,
            wish,
            deadline: now + self.timeout,
        };
        self.asked.insert(id, asked);
        self.send(line);
        Ticket(id)
    }

    /// Gives a request up. One that has ended stays as it is.
    pub fn cancel(&mut self, ticket: Ticket) {
        if self.end(ticket.0, Err(HookError::Cancelled)) {
            let line = self.wire.cancel(ticket.0);
            self.send(line);
        }
    }

    /// Ends the connection; every request that waits fails.
    pub fn disconnect(&mut self, why: &str) {
        if self.socket().is_none() {
            return;
        }
        tracing::debug!(why, "the open hook is gone");
        self.departure = Some(Departure {
            reason: why.to_owned(),
            unanswered: self.pending(),
        });
        self.link = Link::Gone(why.to_owned());
        self.output = Vec::new();
        self.lines = Lines::default();
        for id in self.asked.keys().copied().collect::<Vec<_>>() {
            self.end(id, Err(HookError::Gone(why.to_owned())));
        }
        self.asked.clear();
    }

    /// That the manager has gone, if it is so and this was not asked before.
    pub fn take_departure(&mut self) -> Option<Departure> {
        self.departure.take()
    }

    /// Sends, receives and looks at the clock; gives the requests that have ended since.
    pub fn attend(&mut self, now: Instant) -> Vec<Finished> {
        self.flush();
        self.read();
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.state == State::Sent && asked.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end(id, Err(HookError::TimedOut(self.timeout)));
        }
        if self.asked.len() - self.pending() > MAX_OWED {
            self.disconnect(&format!("it owes more than {MAX_OWED} answers"));
        }
        std::mem::take(&mut self.finished)
    }

    /// Ends a request that has not ended; true if it was so. An fd that comes too late is closed.
    fn end(&mut self, id: u64, outcome: Result<OwnedFd, HookError>) -> bool {
        let Some(asked) = self.asked.get_mut(&id) else {
            return false;
        };
        let Some(next) = asked.state.after(cause_of(&outcome)) else {
            return false;
        };
        asked.state = next;
        if !next.is_owed() {
            self.asked.remove(&id);
        }
        self.finished.push(Finished {
            ticket: Ticket(id),
            outcome,
        });
        true
    }

    fn send(&mut self, mut line: Vec<u8>) {
        if self.socket().is_none() {
            return;
        }
        line.push(b'\n');
        if self.output.len() + line.len() > MAX_OUTPUT {
            return self.disconnect("it does not read what it is asked");
        }
        self.output.append(&mut line);
        self.flush();
    }

    fn flush(&mut self) {
        while let Link::Up(socket) = &self.link
            && !self.output.is_empty()
        {
            match send_with_fds(socket, &self.output, &[]) {
                Ok(sent) => drop(self.output.drain(..sent.min(self.output.len()))),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return,
                    // It has closed its end, perhaps after answers that are still to be read: the
                    // end of what it sent is the end.
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        self.output.clear();
                        self.more = true;
                    }
                    _ => self.disconnect(&format!("it cannot be written to: {error}")),
                },
            }
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; CHUNK];
        self.more = false;
        for _ in 0..ROUNDS {
            let Link::Up(socket) = &self.link else {
                return;
            };
            let received = match recv_with_fds(socket, &mut buffer) {
                Ok(received) if received.bytes == 0 => {
                    return self.disconnect(CLOSED);
                }
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => return,
                    // It went without reading what it was asked.
                    io::ErrorKind::ConnectionReset => return self.disconnect(CLOSED),
                    _ => return self.disconnect(&format!("it cannot be read: {error}")),
                },
            };
            let lines = match self.lines.push(&buffer, received) {
                Ok(lines) => lines,
                Err(error) => return self.disconnect(&error.to_string()),
            };
            for line in lines {
                self.take(line);
            }
        }
        self.more = true;
    }

    /// Takes an answer in.
    fn take(&mut self, line: Line) {
        let answer = match self.wire.answer(&line.bytes) {
            Ok(answer) => answer,
            Err(problem) => {
                return self.disconnect(&format!("it sent a line that is no answer: {problem}"));
            }
        };
        let Some(asked) = self.asked.get(&answer.id) else {
            return self.disconnect(&format!(
                "it answered request {}, which was never made or has its answer",
                answer.id
            ));
        };
        if asked.state != State::Sent {
            tracing::debug!(id = answer.id, "a late answer of the open hook is dropped");
            self.asked.remove(&answer.id);
            return;
        }
        let outcome = judge(&asked.wish, answer.error, line);
        self.end(answer.id, outcome);
    }
}

impl std::fmt::Debug for HookClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookClient")
            .field("timeout", &self.timeout)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

/// What an answer is worth to the one who wished.
fn judge(wish: &Wish, error: Option<String>, line: Line) -> Result<OwnedFd, HookError> {
    let unfit = |came: String| HookError::Unfit {
        wanted: wish.wanted(),
        came,
    };
    if line.lost {
        return Err(unfit(
            "an fd for which this process has no room left".to_owned(),
        ));
    }
    let mut fds = line.fds;
    match (error, fds.len()) {
        (Some(error), 0) => Err(HookError::Refused(error)),
        (Some(_), _) => Err(unfit("a refusal and an fd at once".to_owned())),
        (None, 1) => match fds.pop() {
            Some(fd) => match wish.fault(fd.as_fd()) {
                None => Ok(fd),
                Some(came) => Err(unfit(came)),
            },
            None => Err(unfit("no fd".to_owned())),
        },
        (None, 0) => Err(unfit("no fd".to_owned())),
        (None, count) => Err(unfit(format!("{count} fds"))),
    }
}

/// Fds travel over unix sockets only, and lines need a stream.
fn is_connection(fd: BorrowedFd<'_>) -> Result<(), String> {
    let is_unix = socket_domain(fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
    let is_stream = socket_type(fd).is_ok_and(|kind| kind == SocketType::STREAM);
    if is_unix && is_stream && rustix::net::getpeername(fd).is_ok() {
        Ok(())
    } else {
        Err(NO_CONNECTION.to_owned())
    }
}

fn unblock(socket: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}
