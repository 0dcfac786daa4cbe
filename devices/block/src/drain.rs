//! Drain: the users of some nodes stop asking, and what they asked is answered.
//!
//! Each user of a node (a disk, a job) has a [`Gate`]; each task that sends its requests (a queue
//! of the disk, a loop of the job) has a [`Seat`] at that gate.
//!
//! ```text
//!                 gate closed, requests in flight
//!            ┌──────────────────────────────────► finishing
//!     ┌──────┴─┐                                     │ nothing in flight
//!     │ asking │                                     ▼
//!     └──────▲─┘          gate open again         parked ──► Drain::begin returns when all are
//!            └────────────────────────────────────┘
//! ```
//!
//! A request costs one look at a flag; only parking takes the gate's lock. The main loop closes
//! many gates at once and then waits for all, so the pause is as long as the slowest request.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// The way of one user to its node: open, or closed by as many drains as hold it.
#[derive(Clone, Default)]
pub struct Gate(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// How many drains keep the gate closed.
    closed: AtomicUsize,
    seats: Mutex<Seats>,
    parked: Condvar,
}

#[derive(Default)]
struct Seats {
    next: u64,
    taken: Vec<Taken>,
}

struct Taken {
    id: u64,
    waker: Waker,
    parked: bool,
}

impl Shared {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        let wakers: Vec<Waker> = {
            let seats = self.seats();
            seats.taken.iter().map(|seat| seat.waker.clone()).collect()
        };
        wakers.iter().for_each(Waker::wake_by_ref);
    }

    fn close(&self) {
        self.closed.fetch_add(1, Ordering::SeqCst);
        self.wake_all();
    }

    fn wait(&self) {
        let mut seats = self.seats();
        while seats.taken.iter().any(|seat| !seat.parked) {
            seats = self
                .parked
                .wait(seats)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self) {
        {
            let mut seats = self.seats();
            if self.closed.fetch_sub(1, Ordering::SeqCst) > 1 {
                return;
            }
            // Nobody starts a request before it has seen the gate open, which is from here on.
            for seat in &mut seats.taken {
                seat.parked = false;
            }
        }
        self.wake_all();
    }
}

impl Gate {
    /// An open gate nobody sits at.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A seat for a task that sends requests; `waker` is the task's, woken whenever the gate
    /// closes or opens. At a closed gate it begins parked.
    #[must_use]
    pub fn take_seat(&self, waker: Waker) -> Seat {
        let mut seats = self.0.seats();
        let id = seats.next;
        seats.next += 1;
        seats.taken.push(Taken {
            id,
            waker,
            parked: self.0.closed.load(Ordering::SeqCst) > 0,
        });
        Seat {
            gate: Arc::clone(&self.0),
            id,
        }
    }

    /// Whether both are the same gate.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("closed", &self.0.closed.load(Ordering::SeqCst))
            .field("seats", &self.0.seats().taken.len())
            .finish()
    }
}

/// A task's place at a gate. It goes when the task does.
pub struct Seat {
    gate: Arc<Shared>,
    id: u64,
}

impl Seat {
    /// Whether a request may be started now: one load.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.gate.closed.load(Ordering::SeqCst) == 0
    }

    /// Says that the task has nothing in flight. Does nothing while the gate is open.
    pub fn park(&self) {
        {
            let mut seats = self.gate.seats();
            if self.is_open() {
                return;
            }
            let mine = seats.taken.iter_mut().find(|seat| seat.id == self.id);
            match mine {
                Some(seat) if !seat.parked => seat.parked = true,
                _ => return,
            }
        }
        self.gate.parked.notify_all();
    }

    /// Waits until requests may be started, parked meanwhile. The task has nothing in flight.
    pub async fn pass(&self) {
        std::future::poll_fn(|_| {
            if self.is_open() {
                return Poll::Ready(());
            }
            self.park();
            // Opened between the two looks: the wake-up may have come before we were parked.
            if self.is_open() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.seats().taken.retain(|seat| seat.id != self.id);
        self.gate.parked.notify_all();
    }
}

/// Gates held closed, with nothing of their users in flight. Dropping it opens them.
#[derive(Debug)]
pub struct Drain {
    gates: Vec<Gate>,
    since: Instant,
}

impl Drain {
    /// Closes all `gates`, then waits until every task at them is parked. Never called on an
    /// io-thread.
    #[must_use = "the drain ends when this is dropped"]
    pub fn begin(gates: Vec<Gate>) -> Self {
        let since = Instant::now();
        for gate in &gates {
            gate.0.close();
        }
        for gate in &gates {
            gate.0.wait();
        }
        Self { gates, since }
    }

    /// Opens the gates; how long they were closed, from the first that closed.
    pub fn end(self) -> Duration {
        let since = self.since;
        drop(self);
        since.elapsed()
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        for gate in &self.gates {
            gate.0.open();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;
    use crate::engine::executor::own_waker;
    use crate::{IoThread, IoThreadSpec};

    fn thread(id: &str) -> IoThread {
        IoThread::start(IoThreadSpec { id: id.to_owned() }).expect("io-thread")
    }

    #[test]
    fn drain_returns_only_once_every_task_is_parked_and_lets_them_go_on_at_its_end() {
        let gate = Gate::new();
        let inside = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [thread("g0"), thread("g1")];
        let (tell, told) = mpsc::channel();
        for io_thread in &threads {
            let (gate, inside, stop, tell) = (
                gate.clone(),
                Arc::clone(&inside),
                Arc::clone(&stop),
                tell.clone(),
            );
            io_thread.spawn(move |_| async move {
                let seat = gate.take_seat(own_waker().await);
                let mut rounds = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    seat.pass().await;
                    inside.fetch_add(1, Ordering::SeqCst);
                    yield_once().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    rounds += 1;
                    if rounds == 1 {
                        tell.send(()).expect("listener");
                    }
                }
            });
        }
        drop(tell);
        for _ in &threads {
            told.recv().expect("both tasks run");
        }
        for _ in 0..100 {
            let drain = Drain::begin(vec![gate.clone()]);
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            let nested = Drain::begin(vec![gate.clone()]);
            drop(drain);
            assert_eq!(inside.load(Ordering::SeqCst), 0, "the second still holds");
            let _pause = nested.end();
        }
        stop.store(true, Ordering::SeqCst);
        assert!(told.recv().is_err(), "both tasks went on and ended");
    }

    #[test]
    fn seat_taken_at_a_closed_gate_holds_nobody_up_and_starts_nothing() {
        let gate = Gate::new();
        let drain = Drain::begin(vec![gate.clone()]);
        let seat = gate.take_seat(Waker::noop().clone());
        assert!(!seat.is_open());
        let again = Drain::begin(vec![gate.clone()]);
        drop((drain, again));
        assert!(seat.is_open());
        seat.park();
        drop(seat);
        drop(Drain::begin(vec![gate]));
    }

    async fn yield_once() {
        let mut first = true;
        std::future::poll_fn(|cx| {
            if std::mem::take(&mut first) {
                cx.waker().wake_by_ref();
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}
