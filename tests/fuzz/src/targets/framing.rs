//! A QMP client that cuts its bytes anywhere and attaches fds anywhere, over a real socket pair.
//!
//! What must hold: the requests are those that the same bytes give when they come one by one;
//! every fd is with exactly one request, or closed: with the first that is completed after it came,
//! unless that takes none and more came in the same read;
//! after a reset byte the next request is understood, whatever was before.
//!
//! ```text
//!   input: plan.. 0 text..      plan: one byte for the length of a piece, one for its fds and
//!                               what the receiver does, one for the receiver's buffer
//! ```

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use fdset::scm::{MAX_FDS, Received, recv_with_fds, send_with_fds};
use monitor::fuzz::{Input, Told};
use qapi_schema::find_command;

use crate::fds::{Pool, Watch, mark};

/// How many pieces a plan has at most.
const PIECES: usize = 64;
/// What a client sends to be understood again (`qmp-spec`, synchronization), and what it asks then.
const RESET: &[u8] = b"\xFF\n{\"execute\":\"in-sync\",\"id\":\"last\"}\n";

/// One piece of the plan.
#[derive(Clone, Copy)]
struct Piece {
    length: usize,
    fds: usize,
    /// The receiver reads what is there before the next piece is sent.
    read: bool,
    /// The kernel could not deliver all fds.
    lost: bool,
    room: usize,
}

impl Piece {
    fn new(bytes: [u8; 3]) -> Self {
        let [length, flags, room] = bytes.map(usize::from);
        let many = flags & 0x40 != 0;
        Self {
            length,
            fds: (flags & 0x0f) * if many { 17 } else { 1 },
            read: flags & 0x10 != 0,
            lost: flags & 0x20 != 0,
            room: if room == 0 { 4096 } else { room },
        }
    }
}

pub(super) fn run(input: &[u8]) {
    let (plan, text) = split(input);
    let text = [text, RESET].concat();
    let wanted = one_by_one(&text);
    let last = wanted.last().map(|(_, told)| told);
    assert!(
        last.is_some_and(|told| told.request == Ok(("in-sync".into(), serde_json::json!({})))),
        "not understood after a reset: {last:?}"
    );
    let watch = Watch::new();
    Client::new(wanted).send(&plan, &text);
    watch.assert_nothing_is_left();
}

/// The plan and the text behind it.
fn split(input: &[u8]) -> (Vec<Piece>, &[u8]) {
    let (mut plan, mut rest) = (Vec::new(), input);
    while let [length, flags, room, after @ ..] = rest
        && *length > 0
        && plan.len() < PIECES
    {
        plan.push(Piece::new([*length, *flags, *room]));
        rest = after;
    }
    (plan, rest.strip_prefix(&[0]).unwrap_or(rest))
}

/// The requests in `text` when it comes byte by byte, each with the number of bytes it took.
fn one_by_one(text: &[u8]) -> Vec<(usize, Told)> {
    let mut input = Input::new();
    let mut requests = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        let received = Received {
            bytes: 1,
            fds: Vec::new(),
            truncated: false,
        };
        input.receive(&[*byte], received);
        while let Some((told, fds)) = input.next_request() {
            assert!(fds.is_empty());
            requests.push((at + 1, told));
        }
    }
    requests
}

/// Both ends of the connection, and what must come of it.
struct Client {
    sender: UnixStream,
    receiver: UnixStream,
    input: Input,
    wanted: std::iter::Peekable<std::vec::IntoIter<(usize, Told)>>,
    /// How many bytes were received.
    received: usize,
    /// Whether all fds that wait came with the last read.
    came_now: bool,
    /// The marks of the fds that came since the last request.
    pending: Vec<u64>,
    lost: bool,
    sent_fds: usize,
}

impl Client {
    fn new(wanted: Vec<(usize, Told)>) -> Self {
        let (sender, receiver) = UnixStream::pair().expect("a pair");
        sender.set_nonblocking(true).expect("a socket");
        receiver.set_nonblocking(true).expect("a socket");
        Self {
            sender,
            receiver,
            input: Input::new(),
            wanted: wanted.into_iter().peekable(),
            received: 0,
            came_now: false,
            pending: Vec::new(),
            lost: false,
            sent_fds: 0,
        }
    }

    fn send(mut self, plan: &[Piece], text: &[u8]) {
        let mut rest = text;
        for piece in plan {
            let (now, later) = rest.split_at(piece.length.min(rest.len()));
            rest = later;
            if now.is_empty() {
                break;
            }
            self.send_piece(now, piece.fds);
            if piece.read {
                self.read(text, piece.room, piece.lost);
            }
        }
        if !rest.is_empty() {
            self.send_piece(rest, 0);
        }
        self.read(text, 4096, false);
        assert!(self.wanted.peek().is_none(), "requests are missing");
        self.input.end();
    }

    fn send_piece(&mut self, bytes: &[u8], fds: usize) {
        let pool = Pool::of_this_process();
        let first = self.sent_fds;
        let fds: Vec<BorrowedFd<'_>> = (first..first + fds.min(MAX_FDS))
            .map(|index| pool.fd(index).0.as_fd())
            .collect();
        self.sent_fds += fds.len();
        let sent = send_with_fds(&self.sender, bytes, &fds).expect("the socket has room");
        assert_eq!(sent, bytes.len());
    }

    /// Receives all there is.
    fn read(&mut self, text: &[u8], room: usize, lost: bool) {
        let mut buffer = vec![0; room];
        while let Ok(mut received) = recv_with_fds(&self.receiver, &mut buffer) {
            received.truncated |= lost;
            self.received += received.bytes;
            self.came_now = self.pending.is_empty() && !self.lost;
            self.pending.extend(received.fds.iter().map(mark));
            self.lost |= lost || self.pending.len() > MAX_FDS;
            if self.lost {
                self.pending.clear();
            }
            self.input.receive(&buffer, received);
            self.take_requests(text);
        }
    }

    fn take_requests(&mut self, text: &[u8]) {
        while let Some((told, fds)) = self.input.next_request() {
            let (at, wanted) = self
                .wanted
                .next()
                .expect("no more requests than one by one");
            assert!(at <= self.received, "a request before its last byte");
            let marks: Vec<u64> = fds.iter().map(mark).collect();
            let follows = !text[at..self.received].trim_ascii().is_empty();
            if self.came_now && follows && takes_none(&wanted) {
                assert_eq!((marks, told), (Vec::new(), wanted), "it takes none");
                continue;
            }
            assert_eq!(marks, std::mem::take(&mut self.pending), "whose fds?");
            if std::mem::take(&mut self.lost) && wanted.request.is_ok() {
                assert_eq!(told.id, wanted.id);
                assert!(told.request.is_err(), "its fds were lost: {told:?}");
            } else {
                assert_eq!(told, wanted);
            }
        }
        let due = self
            .wanted
            .peek()
            .is_some_and(|(at, _)| *at <= self.received);
        assert!(!due, "a request is whole and was not told");
    }
}

fn takes_none(told: &Told) -> bool {
    let command = told.request.as_ref().ok();
    let command = command.and_then(|(name, _)| find_command(name));
    command.is_some_and(|command| command.fds == 0)
}
