//! What runs on `dev-io`: the table of handlers, deadlines and jobs, and the loop over it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Token, Waker};

use super::{Readiness, Ready};

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Event slots per visit to the kernel; more only means another visit.
const EVENTS_PER_POLL: usize = 64;
const WAKE: Token = Token(0);

/// What the thread and the registrations share.
pub(super) struct Core {
    pub(super) registry: Registry,
    waker: Waker,
    table: Mutex<Table>,
    /// Signalled when a handler has returned.
    returned: Condvar,
}

#[derive(Default)]
struct Table {
    handlers: HashMap<Token, Arc<dyn Ready>>,
    deadlines: HashMap<Token, Instant>,
    jobs: VecDeque<Job>,
    last_token: usize,
    /// Whose handler is being called now.
    running: Option<Token>,
    thread: Option<ThreadId>,
    stop: bool,
}

impl Core {
    /// The books of a thread that will wait with `poll`.
    pub(super) fn new(poll: &Poll) -> io::Result<Self> {
        Ok(Self {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            table: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, handler: Arc<dyn Ready>) -> Token {
        let mut table = self.table();
        // Never reused, so an event that was read before a registration was dropped finds nobody.
        table.last_token = table.last_token.wrapping_add(1);
        let token = Token(table.last_token);
        table.handlers.insert(token, handler);
        token
    }

    /// Has the handler called at `deadline`, in place of an earlier one.
    pub(super) fn arm(&self, token: Token, deadline: Instant) -> io::Result<()> {
        self.table().deadlines.insert(token, deadline);
        self.waker.wake()
    }

    /// Has the thread run `job` when it has time.
    pub(super) fn run(&self, job: Job) -> io::Result<()> {
        self.table().jobs.push_back(job);
        self.waker.wake()
    }

    /// Has the thread end.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.table().stop = true;
        self.waker.wake()
    }

    /// Takes a handler away and waits until it is not running (unless it is the caller).
    pub(super) fn remove(&self, token: Token) {
        let mut table = self.table();
        table.deadlines.remove(&token);
        let handler = table.handlers.remove(&token);
        let here = table.thread == Some(thread::current().id());
        while !here && table.running == Some(token) {
            table = self
                .returned
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(table);
        drop(handler);
    }

    /// What the thread does, until it is stopped.
    pub(super) fn serve(&self, mut poll: Poll) {
        self.table().thread = Some(thread::current().id());
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        while let Some(timeout) = self.next_timeout() {
            match poll.poll(&mut events, timeout.into()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "dev-io cannot wait for events and ends");
                    return;
                }
            }
            for event in events.iter().filter(|event| event.token() != WAKE) {
                self.call(event.token(), readiness(event));
            }
            // One look at the clock and at the queue: what a timer arms or a job adds now waits
            // until the descriptors had their turn.
            let now = Instant::now();
            while let Some(token) = self.next_expired(now) {
                self.call(token, Readiness::TIMER);
            }
            let waiting = self.table().jobs.len();
            for _ in 0..waiting {
                if let Some(job) = self.next_job() {
                    job();
                }
            }
        }
    }

    /// How long to wait for events, or `None` when it is time to end.
    fn next_timeout(&self) -> Option<Timeout> {
        let table = self.table();
        if table.stop {
            return None;
        }
        if !table.jobs.is_empty() {
            return Some(Timeout(Some(Duration::ZERO)));
        }
        let next = table.deadlines.values().min();
        Some(Timeout(next.map(|deadline| {
            deadline.saturating_duration_since(Instant::now())
        })))
    }

    fn next_expired(&self, now: Instant) -> Option<Token> {
        let mut table = self.table();
        let (&token, _) = table
            .deadlines
            .iter()
            .find(|(_, deadline)| **deadline <= now)?;
        table.deadlines.remove(&token);
        Some(token)
    }

    fn next_job(&self) -> Option<Job> {
        self.table().jobs.pop_front()
    }

    fn call(&self, token: Token, readiness: Readiness) {
        let mut table = self.table();
        let Some(handler) = table.handlers.get(&token).cloned() else {
            return;
        };
        table.running = Some(token);
        drop(table);
        handler.ready(readiness);
        // Dropped before the registration's owner goes on: it may be the last reference.
        drop(handler);
        self.table().running = None;
        self.returned.notify_all();
    }
}

/// What `Poll::poll` wants: a limit, or none.
struct Timeout(Option<Duration>);

impl From<Timeout> for Option<Duration> {
    fn from(timeout: Timeout) -> Self {
        timeout.0
    }
}

fn readiness(event: &mio::event::Event) -> Readiness {
    let mut readiness = Readiness::empty();
    readiness.set(
        Readiness::READ,
        event.is_readable() || event.is_read_closed(),
    );
    readiness.set(
        Readiness::WRITE,
        event.is_writable() || event.is_write_closed(),
    );
    readiness.set(
        Readiness::CLOSED,
        event.is_error() || (event.is_read_closed() && event.is_write_closed()),
    );
    readiness
}
