//! In-band requests on their way from `qmp-io` to the main loop: one lane per session, popped in
//! turns, so that a client that sends much delays nobody else by more than one command.
//!
//! ```text
//!   session 3 ─► [ r r r ] ┐
//!   session 5 ─► [ r ]     ├─► pop: 3, 5, 9, 3, 9, 3 ... ─► main loop ─► finished
//!   session 9 ─► [ r r ]   ┘
//! ```
//!
//! A lane holds [`OOB_ROOM`] requests once out-of-band commands are negotiated; without, one at a
//! time is read and run. A full lane drops nothing: `qmp-io` stops reading that client and asks to
//! be told when it may go on. Pure bookkeeping behind one leaf lock.
//!
//! A request that `qmp-io` can have run at once takes its lane's turn without waiting in it
//! ([`Inbox::begin`]): the requests of a session keep their order.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qapi_schema::CommandSpec;
use serde_json::Value;

use crate::line::{Key, Line};
use crate::request::Refusal;

/// How many requests wait in a lane of a session that negotiated `oob`.
pub(crate) const OOB_ROOM: usize = 8;

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: Option<Value>,
    pub(crate) command: &'static CommandSpec,
    pub(crate) arguments: Value,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What waits in a lane.
#[derive(Debug)]
pub(crate) enum Queued {
    /// To be run.
    Run(Pending),
    /// To be answered with an error when its turn comes.
    Refused(Refusal),
}

/// What `qmp-io` waits for in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Nothing,
    /// Room for one more request.
    Room,
    /// All requests finished.
    Quiet,
}

#[derive(Debug)]
struct Lane {
    line: Arc<Line>,
    waiting: VecDeque<Queued>,
    running: usize,
    oob: bool,
    awaited: Awaited,
}

impl Lane {
    fn has_room(&self) -> bool {
        if self.oob {
            self.waiting.len() < OOB_ROOM
        } else {
            self.is_quiet()
        }
    }

    fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }

    /// Whether what `qmp-io` waits for has just come.
    fn comes(&mut self) -> bool {
        let came = match self.awaited {
            Awaited::Nothing => false,
            Awaited::Room => self.has_room(),
            Awaited::Quiet => self.is_quiet(),
        };
        if came {
            self.awaited = Awaited::Nothing;
        }
        came
    }
}

/// A request that was popped.
#[derive(Debug)]
pub(crate) struct Popped {
    /// Where the answer goes.
    pub(crate) line: Arc<Line>,
    /// The request.
    pub(crate) queued: Queued,
    /// Whether `qmp-io` is to be told that the session can go on.
    pub(crate) resume: bool,
}

/// All lanes.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<Lanes>);

#[derive(Debug, Default)]
struct Lanes {
    lanes: HashMap<Key, Lane>,
    /// The sessions that have something waiting and nothing running, in the order of their turns.
    turns: VecDeque<Key>,
}

impl Inbox {
    /// Opens a lane for a new session.
    pub(crate) fn open(&self, line: Arc<Line>) {
        let lane = Lane {
            line,
            waiting: VecDeque::new(),
            running: 0,
            oob: false,
            awaited: Awaited::Nothing,
        };
        self.lanes().lanes.insert(lane.line.key, lane);
    }

    /// Ends a session: what waits is dropped, what runs goes on without an answer.
    pub(crate) fn close(&self, key: Key) {
        let dropped_without_lock = {
            let mut lanes = self.lanes();
            lanes.turns.retain(|turn| *turn != key);
            lanes.lanes.remove(&key)
        };
        drop(dropped_without_lock);
    }

    /// Widens a lane: the session negotiated `oob`.
    pub(crate) fn widen(&self, key: Key) {
        if let Some(lane) = self.lanes().lanes.get_mut(&key) {
            lane.oob = true;
        }
    }

    /// Whether one more request may be read; if not, `finish` or `pop` will say when.
    pub(crate) fn has_room(&self, key: Key) -> bool {
        self.reached(key, Awaited::Room)
    }

    /// Whether every request is finished; if not, `finish` will say when.
    pub(crate) fn is_quiet(&self, key: Key) -> bool {
        self.reached(key, Awaited::Quiet)
    }

    fn reached(&self, key: Key, awaited: Awaited) -> bool {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.lanes.get_mut(&key) else {
            return true;
        };
        lane.awaited = awaited;
        lane.comes()
    }

    /// Appends to a lane. Gives it back when the answer is known and need not wait for others.
    pub(crate) fn push(&self, key: Key, queued: Queued) -> Option<Queued> {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.lanes.get_mut(&key) else {
            return Some(queued);
        };
        if matches!(queued, Queued::Refused(_)) && lane.is_quiet() {
            return Some(queued);
        }
        lane.waiting.push_back(queued);
        if lane.waiting.len() == 1 && lane.running == 0 {
            lanes.turns.push_back(key);
        }
        None
    }

    /// The next request whose turn it is. Each one popped is to be [finished](Self::finish), and
    /// until then its session has no turn: the requests of one session run in their order.
    pub(crate) fn pop(&self) -> Option<Popped> {
        let mut lanes = self.lanes();
        let key = lanes.turns.pop_front()?;
        let lane = lanes.lanes.get_mut(&key)?;
        let queued = lane.waiting.pop_front()?;
        lane.running += 1;
        let popped = Popped {
            line: Arc::clone(&lane.line),
            queued,
            resume: lane.comes(),
        };
        Some(popped)
    }

    /// Takes the turn of a session that has nothing waiting and nothing running: its request is
    /// run by the caller, as if it had been popped. False: it has to wait behind others.
    pub(crate) fn begin(&self, key: Key) -> bool {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.lanes.get_mut(&key) else {
            return false;
        };
        let free = lane.is_quiet();
        lane.running += usize::from(free);
        free
    }

    /// Puts back what was begun or popped, before everything else that the session has waiting.
    pub(crate) fn put_back(&self, key: Key, pending: Pending) {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.lanes.get_mut(&key) else {
            // The session has ended. Fds are closed without the lock.
            drop(lanes);
            return drop(pending);
        };
        lane.running = lane.running.saturating_sub(1);
        lane.waiting.push_front(Queued::Run(pending));
        lanes.turns.push_back(key);
    }

    /// Notes that a popped request has its answer. True: `qmp-io` is to be told.
    pub(crate) fn finish(&self, key: Key) -> bool {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.lanes.get_mut(&key) else {
            return false;
        };
        lane.running = lane.running.saturating_sub(1);
        let comes = lane.comes();
        if lane.running == 0 && !lane.waiting.is_empty() {
            lanes.turns.push_back(key);
        }
        comes
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use qapi_schema::MonitorId;

    use super::*;
    use crate::line::Bell;
    use crate::print::Style;
    use crate::transport::{Outlet, Port};

    fn inbox(sessions: usize) -> Inbox {
        let inbox = Inbox::default();
        for key in 0..sessions {
            let (ours, _) = UnixStream::pair().expect("a socket pair");
            let port = Port::new(ours.into()).expect("a port");
            inbox.open(Arc::new(Line {
                key: Key(key),
                monitor: MonitorId(0),
                rights: Arc::default(),
                peer: None,
                style: Style::Line,
                outlet: Outlet::new(Arc::new(port)),
                bell: Arc::new(Bell::new()),
                deserted: false.into(),
                scope: None,
            }));
        }
        inbox
    }

    fn request() -> Queued {
        Queued::Run(Pending {
            id: None,
            command: &qapi_schema::COMMANDS[0],
            arguments: Value::Null,
            fds: Vec::new(),
        })
    }

    #[test]
    fn sessions_take_turns() {
        let inbox = inbox(3);
        for _ in 0..3 {
            inbox.push(Key(0), request());
        }
        inbox.push(Key(1), request());
        inbox.push(Key(2), request());
        let order: Vec<_> = std::iter::from_fn(|| {
            let key = inbox.pop()?.line.key;
            inbox.finish(key);
            Some(key.0)
        })
        .collect();
        assert_eq!(order, [0, 1, 2, 0, 0]);
    }

    #[test]
    fn a_session_whose_request_runs_on_holds_up_only_itself() {
        let inbox = inbox(2);
        inbox.widen(Key(0));
        inbox.push(Key(0), request());
        inbox.push(Key(0), request());
        inbox.push(Key(1), request());
        assert_eq!(inbox.pop().expect("a request").line.key, Key(0));
        assert_eq!(inbox.pop().expect("a request").line.key, Key(1));
        inbox.push(Key(0), request());
        assert!(inbox.pop().is_none(), "the first of session 0 still runs");
        inbox.finish(Key(0));
        assert_eq!(inbox.pop().expect("a request").line.key, Key(0));
    }

    #[test]
    fn without_oob_one_request_runs_before_the_next_is_read() {
        let inbox = inbox(1);
        assert!(inbox.has_room(Key(0)));
        inbox.push(Key(0), request());
        assert!(!inbox.has_room(Key(0)));
        let popped = inbox.pop().expect("a request");
        assert!(!popped.resume && !inbox.has_room(Key(0)));
        assert!(inbox.finish(Key(0)), "qmp-io waits for room");
        assert!(inbox.has_room(Key(0)));
    }

    #[test]
    fn with_oob_eight_requests_wait_and_a_pop_makes_room() {
        let inbox = inbox(1);
        inbox.widen(Key(0));
        for _ in 0..OOB_ROOM {
            assert!(inbox.has_room(Key(0)));
            inbox.push(Key(0), request());
        }
        assert!(!inbox.has_room(Key(0)));
        assert!(inbox.pop().expect("a request").resume);
        inbox.finish(Key(0));
        assert!(!inbox.pop().expect("a request").resume, "told once");
    }

    #[test]
    fn a_refusal_waits_only_behind_requests_of_its_own_session() {
        let inbox = inbox(2);
        let refused = || Queued::Refused(Refusal::anonymous("no"));
        inbox.push(Key(1), request());
        assert!(inbox.push(Key(0), refused()).is_some());
        assert!(inbox.push(Key(1), refused()).is_none());
    }

    #[test]
    fn a_closed_session_leaves_nothing_and_its_last_answer_is_harmless() {
        let inbox = inbox(2);
        inbox.push(Key(0), request());
        inbox.push(Key(0), request());
        inbox.push(Key(1), request());
        inbox.pop().expect("a request");
        inbox.close(Key(0));
        assert!(!inbox.finish(Key(0)));
        assert_eq!(inbox.pop().expect("a request").line.key, Key(1));
        assert!(inbox.pop().is_none());
    }

    #[test]
    fn what_is_begun_at_once_keeps_the_order_of_its_session() {
        let pending = || match request() {
            Queued::Run(pending) => pending,
            Queued::Refused(_) => unreachable!("it is a request"),
        };
        let inbox = inbox(1);
        inbox.widen(Key(0));
        assert!(inbox.begin(Key(0)));
        assert!(!inbox.begin(Key(0)), "one runs");
        inbox.push(Key(0), Queued::Refused(Refusal::anonymous("the second")));
        assert!(inbox.pop().is_none(), "the first still runs");
        inbox.put_back(Key(0), pending());
        assert!(!inbox.begin(Key(0)), "two wait");
        let first = inbox.pop().expect("the first");
        assert!(matches!(first.queued, Queued::Run(_)));
        inbox.finish(Key(0));
        let second = inbox.pop().expect("the second");
        assert!(matches!(second.queued, Queued::Refused(_)));
        inbox.finish(Key(0));
        assert!(inbox.begin(Key(0)), "quiet again");
        inbox.close(Key(0));
        inbox.put_back(Key(0), pending());
        assert!(
            inbox.pop().is_none() && !inbox.begin(Key(0)),
            "the session has ended"
        );
    }

    #[test]
    fn a_quiet_lane_is_reported_to_who_waits_for_it() {
        let inbox = inbox(1);
        inbox.push(Key(0), request());
        assert!(!inbox.is_quiet(Key(0)));
        assert!(!inbox.pop().expect("a request").resume);
        assert!(inbox.finish(Key(0)));
        assert!(inbox.is_quiet(Key(0)));
    }
}
