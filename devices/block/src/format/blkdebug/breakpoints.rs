//! Requests that a tester holds: a breakpoint stops the next request of its kind until it is let go.
//!
//! ```text
//!   request ─► a point for it? ─ no ──────────────────────────────► goes on
//!                  │ yes: the point is used up
//!                  ▼        resume, remove, a closed gate
//!                held ───────────────────────────────────────────► goes on
//! ```
//!
//! A held request sits at the graph's gate for those who wait: whoever needs what is in flight to end
//! closes it, and then nothing is held.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::rules::{RequestKind, RuleEvent};
use crate::drain::{Gate, Seat};
use crate::engine::Io;
use crate::engine::executor::own_waker;

/// How long a tester waits for a request that does not come.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The breakpoints of a node, and the requests they hold.
#[derive(Debug, Default)]
pub struct Breakpoints {
    hurry: Gate,
    /// Whether there is a point, so that a request without one takes no lock.
    is_set: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    points: Vec<(RuleEvent, String)>,
    held: Vec<Held>,
    next: u64,
    watchers: Vec<Waker>,
}

#[derive(Debug)]
struct Held {
    id: u64,
    tag: String,
    waker: Waker,
}

impl Breakpoints {
    /// None yet. While `hurry` is closed, nobody is held.
    #[must_use]
    pub fn new(hurry: Gate) -> Self {
        Self {
            hurry,
            ..Self::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the next request of this kind, under this name.
    pub fn set(&self, event: RuleEvent, tag: &str) {
        self.state().points.push((event, tag.to_owned()));
        self.is_set.store(true, Ordering::Release);
    }

    /// Lets one request of this name go; says whether there was one.
    pub fn resume(&self, tag: &str) -> bool {
        let held = {
            let mut state = self.state();
            let at = state.held.iter().position(|held| held.tag == tag);
            at.map(|at| state.held.remove(at))
        };
        held.inspect(|held| held.waker.wake_by_ref()).is_some()
    }

    /// Forgets the points of this name and lets its requests go; says whether there were any.
    pub fn remove(&self, tag: &str) -> bool {
        let (gone, held) = {
            let mut state = self.state();
            let before = state.points.len();
            state.points.retain(|(_, other)| other != tag);
            self.is_set
                .store(!state.points.is_empty(), Ordering::Release);
            let held: Vec<Held> = state.held.extract_if(.., |held| held.tag == tag).collect();
            (before - state.points.len(), held)
        };
        held.iter().for_each(|held| held.waker.wake_by_ref());
        gone > 0 || !held.is_empty()
    }

    /// Waits until a request of this name is held; not for longer than ten seconds. Says whether one
    /// is.
    pub async fn wait(&self, io: &Io, tag: &str) -> bool {
        let mut timer = pin!(io.sleep(LONGEST_WAIT));
        std::future::poll_fn(|cx| {
            {
                let mut state = self.state();
                if state.held.iter().any(|held| held.tag == tag) {
                    return Poll::Ready(true);
                }
                state.watchers.push(cx.waker().clone());
            }
            timer.as_mut().poll(cx).map(|_| false)
        })
        .await
    }

    /// Where a request passes, and may be held.
    pub(super) async fn pass(&self, kind: RequestKind) {
        if !self.is_set.load(Ordering::Acquire) {
            return;
        }
        let waker = own_waker().await;
        // Before the request is held, so that no closing of the gate goes by unseen.
        let seat = self.hurry.take_seat(waker.clone());
        if !seat.is_open() {
            return;
        }
        let (id, watchers) = {
            let mut state = self.state();
            let mut points = state.points.iter();
            let Some(at) = points.position(|(event, _)| event.is_of(kind)) else {
                return;
            };
            let (_, tag) = state.points.remove(at);
            self.is_set
                .store(!state.points.is_empty(), Ordering::Release);
            let id = state.next;
            state.next += 1;
            state.held.push(Held { id, tag, waker });
            (id, std::mem::take(&mut state.watchers))
        };
        watchers.into_iter().for_each(Waker::wake);
        Hold {
            points: self,
            id,
            seat,
        }
        .await;
    }
}

/// A request that is held.
struct Hold<'a> {
    points: &'a Breakpoints,
    id: u64,
    seat: Seat,
}

impl Future for Hold<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let held = self
            .points
            .state()
            .held
            .iter()
            .any(|held| held.id == self.id);
        match held && self.seat.is_open() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.points.state().held.retain(|held| held.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drain;
    use crate::engine::executor::TaskSet;

    /// Which of some requests have gone on, one bit for each.
    fn gone<F: Future<Output = u8>>(set: &mut TaskSet<F>) -> u8 {
        std::iter::from_fn(|| set.next_done()).sum()
    }

    #[test]
    fn a_point_holds_one_request_of_its_kind_until_it_is_let_go() {
        let points = Breakpoints::new(Gate::new());
        points.set(RuleEvent::ReadAio, "a");
        let mut set = TaskSet::new(4, Waker::noop().clone());
        let kinds = [RequestKind::Write, RequestKind::Read, RequestKind::Read];
        for (bit, kind) in (0..).zip(kinds) {
            let points = &points;
            let pass = async move {
                points.pass(kind).await;
                1 << bit
            };
            assert!(set.push(pass).is_ok());
        }
        assert_eq!(gone(&mut set), 0b101);
        assert!(!points.resume("b") && !points.remove("b"));
        assert!(points.resume("a"));
        assert_eq!(gone(&mut set), 0b010);
        assert!(!points.resume("a"), "there was one");
    }

    #[test]
    fn what_is_removed_holds_nobody_and_neither_does_anything_while_others_wait() {
        let gate = Gate::new();
        let points = Breakpoints::new(gate.clone());
        let mut set = TaskSet::new(4, Waker::noop().clone());
        let pass = async |bit: u8| {
            points.pass(RequestKind::Write).await;
            bit
        };
        points.set(RuleEvent::WriteAio, "a");
        points.set(RuleEvent::WriteAio, "a");
        assert!(set.push(pass(1)).is_ok());
        assert_eq!(gone(&mut set), 0);
        assert!(points.remove("a"));
        assert!(set.push(pass(2)).is_ok());
        assert_eq!(gone(&mut set), 3);
        points.set(RuleEvent::WriteAio, "b");
        assert!(set.push(pass(4)).is_ok());
        assert_eq!(gone(&mut set), 0);
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| Drain::begin(vec![gate]));
            while gone(&mut set) == 0 {
                std::thread::yield_now();
            }
            drop(drain.join());
        });
    }
}
