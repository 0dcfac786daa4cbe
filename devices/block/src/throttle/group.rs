//! A group: limits, and the requests of its members that wait for them.
//!
//! ```text
//!   no limits ────────────────────────────────────────────────────────► go (one load)
//!   limits ─► seat at the gate ─► others wait? bucket full? ─ no ─────► count, go
//!                                        │ yes
//!                                        ▼        my turn, time is up
//!                                      waiting ───────────────────────► count, go ─► wake the next
//!                                        │        gate closed, limits lifted
//!                                        └────────────────────────────► count, go
//! ```
//!
//! A request that waits sits at the group's gate. Whoever needs what is in flight to end (a drain,
//! a queue that stops) closes it: then nobody waits, and what goes is counted all the same.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::buckets::{Buckets, Direction};
use super::limits::ThrottleLimits;
use super::turns::Turns;
use crate::drain::{Gate, Seat};
use crate::engine::{Io, Timer};

/// Limits that nodes share.
pub struct ThrottleGroup {
    name: String,
    limited: AtomicBool,
    hurry: Gate,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    buckets: Buckets,
    reads: Turns,
    writes: Turns,
    next_ticket: u64,
    next_member: u64,
    /// Who is in the group, by number.
    members: Vec<(u64, String)>,
}

impl State {
    fn turns(&mut self, direction: Direction) -> &mut Turns {
        match direction {
            Direction::Read => &mut self.reads,
            Direction::Write => &mut self.writes,
        }
    }
}

/// What a request that asks is told.
enum Answer {
    /// Go; and somebody else may have to be told.
    Go(Option<Waker>),
    /// It is your turn in this time.
    In(Duration),
    /// It is another one's turn.
    Later,
}

impl ThrottleGroup {
    /// A group without members. While `hurry` is closed, nobody waits.
    #[must_use]
    pub fn new(name: String, limits: ThrottleLimits, hurry: Gate) -> Self {
        Self {
            name,
            limited: AtomicBool::new(limits.any()),
            hurry,
            began: Instant::now(),
            state: Mutex::new(State {
                buckets: Buckets::new(limits, Duration::ZERO),
                reads: Turns::default(),
                writes: Turns::default(),
                next_ticket: 0,
                next_member: 0,
                members: Vec::new(),
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a request may have to wait: one load.
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::SeqCst)
    }

    /// The limits.
    pub fn limits(&self) -> ThrottleLimits {
        self.state().buckets.limits()
    }

    /// Sets other limits, which are checked. The buckets are empty again, and who waits looks anew.
    pub fn set_limits(&self, limits: ThrottleLimits) {
        let waiting: Vec<Waker> = {
            let mut state = self.state();
            state.buckets = Buckets::new(limits, self.began.elapsed());
            self.limited.store(limits.any(), Ordering::SeqCst);
            state.reads.wakers().chain(state.writes.wakers()).collect()
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// A node or user of the group, if there is one.
    pub fn first_member(&self) -> Option<String> {
        let state = self.state();
        state.members.first().map(|(_, node)| node.clone())
    }

    /// One more node, or user, of the group.
    #[must_use]
    pub fn join(self: &Arc<Self>, node: &str) -> Member {
        let mut state = self.state();
        let id = state.next_member;
        state.next_member += 1;
        state.members.push((id, node.to_owned()));
        Member {
            group: Arc::clone(self),
            id,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThrottleGroup")
            .field("name", &self.name)
            .field("limits", &self.limits())
            .finish_non_exhaustive()
    }
}

/// A node's or user's place in a group. It goes when they do.
#[derive(Debug)]
pub struct Member {
    group: Arc<ThrottleGroup>,
    id: u64,
}

impl Member {
    /// Whose limits it has.
    pub(super) fn group(&self) -> &Arc<ThrottleGroup> {
        &self.group
    }

    /// Whether a request may have to wait: one load.
    pub fn is_limited(&self) -> bool {
        self.group.is_limited()
    }

    /// Waits until a request of so many bytes may go, and counts it.
    ///
    /// # Errors
    /// The thread has no timer.
    pub async fn pass(&self, io: &Io, direction: Direction, bytes: u64) -> io::Result<()> {
        if !self.is_limited() {
            return Ok(());
        }
        Wait {
            member: self,
            io,
            direction,
            bytes,
            ticket: None,
            seat: None,
            timer: None,
        }
        .await
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.group.state();
        state.members.retain(|(id, _)| *id != self.id);
    }
}

/// A request that asks until it may go.
struct Wait<'a> {
    member: &'a Member,
    io: &'a Io,
    direction: Direction,
    bytes: u64,
    /// Its place among those who wait.
    ticket: Option<u64>,
    seat: Option<Seat>,
    timer: Option<Timer>,
}

impl Wait<'_> {
    fn ask(&mut self, hurry: bool, waker: &Waker) -> Answer {
        let group = &self.member.group;
        let mut state = group.state();
        let now = group.began.elapsed();
        let wait = state.buckets.wait(self.direction, now);
        let lifted = hurry || !state.buckets.limits().any();
        let turns = state.turns(self.direction);
        let my_turn = match self.ticket {
            None => turns.is_empty(),
            Some(ticket) => turns.is_next(ticket),
        };
        if lifted || (my_turn && wait.is_zero()) {
            if let Some(ticket) = self.ticket.take() {
                turns.remove(ticket);
            }
            let next = turns.next();
            state.buckets.count(self.direction, self.bytes, now);
            return Answer::Go(next);
        }
        if self.ticket.is_none() {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            let turns = state.turns(self.direction);
            turns.push(self.member.id, ticket, waker.clone());
            self.ticket = Some(ticket);
        }
        if my_turn {
            Answer::In(wait)
        } else {
            Answer::Later
        }
    }
}

impl Future for Wait<'_> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let gate = &this.member.group.hurry;
        // Before the first look, so that no closing of the gate goes by unseen.
        let seat = this
            .seat
            .get_or_insert_with(|| gate.take_seat(cx.waker().clone()));
        let mut hurry = !seat.is_open();
        loop {
            this.timer = None;
            let rest = match this.ask(hurry, cx.waker()) {
                Answer::Go(next) => {
                    this.seat = None;
                    next.into_iter().for_each(Waker::wake);
                    return Poll::Ready(Ok(()));
                }
                Answer::In(rest) => rest,
                Answer::Later => return Poll::Pending,
            };
            let timer = this.timer.insert(this.io.sleep(rest));
            match Pin::new(timer).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => hurry = this.seat.as_ref().is_some_and(|it| !it.is_open()),
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else {
            return;
        };
        let next = {
            let mut state = self.member.group.state();
            let turns = state.turns(self.direction);
            turns.remove(ticket);
            turns.next()
        };
        next.into_iter().for_each(Waker::wake);
    }
}
