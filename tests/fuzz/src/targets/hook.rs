//! A manager that answers the open hook with anything, at any time, in any pieces, with any fds;
//! and a command that asks, gives up, and opens what it was given.
//!
//! What must hold: each question ends exactly once, and for a reason that is there; a question
//! that was given up or ran out of time never ends with an fd; an fd that is given is one that was
//! sent, that nobody else got, and that is what was wished for; the rest is closed.
//!
//! The input is a row of steps, each one byte and what it needs.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use fdset::hook::{Finished, Ticket};
use fdset::scm::send_with_fds;
use fdset::{
    Access, Answers, Door, Expected, FdRegistry, HookClient, HookError, Kind, Nature, Request,
    Role, Scope, Wish, open,
};
use vmm_core::hook::JsonLines;

use crate::fds::{Pool, Watch, mark};

/// How long the manager may take to answer.
const PATIENCE: Duration = Duration::from_millis(1000);
/// How many steps an input is worth.
const STEPS: usize = 200;

pub(super) fn run(input: &[u8]) {
    let watch = Watch::new();
    let mut world = World::new();
    let mut input = Unstructured::new(input);
    for _ in 0..STEPS {
        if input.is_empty() || world.step(&mut input).is_err() {
            break;
        }
    }
    world.end();
    watch.assert_nothing_is_left();
}

/// A question as this model knows it.
struct Question {
    ticket: Ticket,
    wish: Wish,
    deadline: Instant,
    given_up: bool,
    ended: bool,
}

struct World {
    client: HookClient,
    manager: Option<UnixStream>,
    now: Instant,
    questions: Vec<Question>,
    /// The marks of the fds that were sent and that nobody has got.
    sent: Vec<u64>,
    sends: usize,
    door: Door,
    answers: Arc<Answers>,
    /// What lies in `answers`: name and access, and whether it is an fd.
    given: Vec<(String, Access, bool)>,
    /// The departure was told.
    gone: bool,
}

impl World {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_nonblocking(true).expect("a socket");
        let answers = Arc::new(Answers::new());
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        Self {
            client: HookClient::new(ours.into(), Box::new(JsonLines), PATIENCE),
            manager: Some(theirs),
            now: Instant::now(),
            questions: Vec::new(),
            sent: Vec::new(),
            sends: 0,
            door: door.with_answers(Arc::clone(&answers)),
            answers,
            given: Vec::new(),
            gone: false,
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=9)? {
            0 | 1 => self.ask(input.arbitrary()?),
            2 => self.give_up(input.arbitrary()?),
            3 => {
                let line = format!("{{\"id\": {}}}\n", input.arbitrary::<u8>()? % 16);
                self.send(line.as_bytes(), input.arbitrary()?);
            }
            4 => {
                let id = input.arbitrary::<u8>()? % 16;
                let line = format!("{{\"id\": {id}, \"error\": \"no\"}}\n");
                self.send(line.as_bytes(), input.arbitrary()?);
            }
            5 => {
                let length = usize::from(input.arbitrary::<u8>()?);
                let length = length.min(input.len());
                let bytes = input.bytes(length)?;
                self.send(bytes, input.arbitrary()?);
            }
            6 | 7 => self.attend(),
            8 => {
                self.now += Duration::from_millis(u64::from(input.arbitrary::<u8>()?) * 8);
                self.attend();
            }
            _ => match input.arbitrary::<u8>()? {
                0 => self.manager = None,
                1 => self.client.disconnect("open-hook-set"),
                2 => {
                    self.answers.close();
                    self.given.clear();
                }
                _ => self.drain(),
            },
        }
        Ok(())
    }

    fn ask(&mut self, kind: u8) {
        let (access, expected) = match kind % 5 {
            0 => (Access::ReadWrite, Expected::RegularFile),
            1 => (Access::ReadOnly, Expected::RegularFile),
            2 => (Access::WriteOnly, Expected::Stream),
            3 => (Access::ReadOnly, Expected::Stream),
            _ => (Access::ReadWrite, Expected::ConnectedSocket),
        };
        // None of these is in the file system, so that an open never goes there.
        let name = format!("/nowhere/{}", kind >> 4);
        let request = Request::new(&name, access, Role::Image, "node 'n'");
        let wish = Wish::new(&request, expected);
        let ticket = self
            .client
            .ask(wish.clone(), Some("blockdev-add"), self.now);
        self.questions.push(Question {
            ticket,
            wish,
            deadline: self.now + PATIENCE,
            given_up: false,
            ended: false,
        });
    }

    fn give_up(&mut self, index: u8) {
        let count = self.questions.len().max(1);
        if let Some(question) = self.questions.get_mut(usize::from(index) % count) {
            self.client.cancel(question.ticket);
            question.given_up = true;
        }
    }

    /// The manager sends `bytes`; of `fds`, two bits are how many come along, but once in a while
    /// it is a heap of them.
    fn send(&mut self, bytes: &[u8], fds: u8) {
        let Some(manager) = &self.manager else {
            return;
        };
        if bytes.is_empty() {
            return;
        }
        let count = if fds == u8::MAX {
            40
        } else {
            usize::from(fds & 3)
        };
        let first = self.sends + usize::from(fds >> 2);
        let pool = Pool::of_this_process();
        let chosen = (first..first + count).map(|index| pool.fd(index));
        let (fds, marks): (Vec<BorrowedFd<'_>>, Vec<u64>) =
            chosen.map(|(fd, mark)| (fd.as_fd(), mark)).unzip();
        if send_with_fds(manager, bytes, &fds).is_ok() {
            self.sent.extend(marks);
        }
        self.sends += 1;
    }

    /// The manager reads what it was asked.
    fn drain(&mut self) {
        use std::io::Read;
        let mut buffer = [0; 4096];
        while let Some(manager) = &mut self.manager
            && manager.read(&mut buffer).is_ok_and(|count| count > 0)
        {}
    }

    fn attend(&mut self) {
        for end in self.client.attend(self.now) {
            self.take(end);
        }
        if let Some(departure) = self.client.take_departure() {
            assert!(self.client.socket().is_none(), "told too soon");
            assert!(departure.unanswered <= self.questions.len());
            assert!(!std::mem::replace(&mut self.gone, true), "told twice");
        }
        let waiting = || self.questions.iter().filter(|question| !question.ended);
        assert_eq!(self.client.pending(), waiting().count());
        if let Some(first) = waiting().map(|question| question.deadline).min() {
            let wakes = self.client.deadline(self.now).expect("a question waits");
            assert!(wakes <= first, "it would wake too late");
        }
    }

    fn take(&mut self, end: Finished) {
        let gone = self.client.socket().is_none();
        let question = self
            .questions
            .iter_mut()
            .find(|question| question.ticket == end.ticket)
            .expect("a question that was asked");
        assert!(!std::mem::replace(&mut question.ended, true), "ended twice");
        match &end.outcome {
            Ok(fd) => {
                assert!(!question.given_up, "nobody wants it any more");
                let mark = mark(fd);
                let at = self.sent.iter().position(|sent| *sent == mark);
                self.sent
                    .swap_remove(at.expect("an fd that was sent, once"));
                assert_fits(&question.wish, Nature::of(fd));
            }
            Err(HookError::Cancelled) => assert!(question.given_up),
            Err(HookError::TimedOut(after)) => {
                assert!(*after == PATIENCE && question.deadline <= self.now);
            }
            Err(HookError::Gone(_)) => assert!(gone, "the connection stands"),
            Err(HookError::Refused(_) | HookError::Unfit { .. }) => {
                assert!(!question.given_up, "nobody wants to know any more");
            }
        }
        let wish = question.wish.clone();
        self.use_up(&wish, end);
    }

    /// The command opens what it has asked for; every other time it fails before.
    fn use_up(&mut self, wish: &Wish, end: Finished) {
        let given = (wish.name.clone(), wish.access, end.outcome.is_ok());
        self.given.push(given);
        self.answers.put(&wish.name, wish.access, end.outcome, None);
        if self.questions.len().is_multiple_of(2) {
            let opened = open(&self.door, &wish.request());
            let same = |(name, access, _): &(String, Access, bool)| {
                *name == wish.name && *access == wish.access
            };
            let oldest = self.given.iter().position(same).expect("one was put");
            let (.., is_fd) = self.given.remove(oldest);
            // Another question of this name may have wished for another kind.
            assert!(is_fd || opened.is_err(), "opened without an fd");
        }
    }

    fn end(mut self) {
        self.attend();
        self.now += PATIENCE;
        self.attend();
        assert!(self.questions.iter().all(|question| question.ended));
        assert_eq!(self.client.pending(), 0);
        assert_eq!(self.gone, self.client.socket().is_none());
        let Self {
            client,
            door,
            answers,
            ..
        } = self;
        answers.close();
        assert!(door.registry().uses().is_empty());
        drop(client);
    }
}

fn assert_fits(wish: &Wish, nature: Nature) {
    let kind = match wish.expected {
        Expected::RegularFile => matches!(nature.kind, Kind::File | Kind::Memfd),
        Expected::ConnectedSocket => nature.kind == Kind::UnixStream,
        _ => nature.kind != Kind::Eventfd,
    };
    let access = nature.access.is_some_and(|came| {
        came == Access::ReadWrite || came == wish.access || nature.kind == Kind::UnixStream
    });
    assert!(kind && access, "{wish:?} got {nature:?}");
}
