//! The time in which a machine's devices live: the host's, or one that a tester moves by hand.
//!
//! ```text
//!   device ─► VmClock::now, VmTimer::arm ─┬─ Host:   the host's clock, the reactor's timers
//!                                         └─ Tested: TestedClock ◄─ advance, next_deadline ◄─ tester
//!                                                       └─► each Timed: deadline? run!
//! ```
//!
//! What talks to the host, as a chardev that connects again, stays on the host's clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::legacy::Clock;
use crate::reactor::{Reactor, Readiness, Ready, Timer};

/// Something that waits for a moment on a tester's clock.
pub trait Timed: Send + Sync {
    /// The moment; `None` while it waits for none.
    fn deadline(&self) -> Option<Instant>;

    /// The moment has come: it is `now`. Afterwards the deadline is another one.
    fn run(&self, now: Instant);
}

/// A clock that stands still until it is moved.
pub struct TestedClock {
    start: Instant,
    /// How far it has been moved. Leaf lock.
    moved: Mutex<Duration>,
    /// Who waits. Leaf lock: nobody is called with it.
    timed: Mutex<Vec<Weak<dyn Timed>>>,
}

impl TestedClock {
    /// A clock at zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            moved: Mutex::default(),
            timed: Mutex::default(),
        })
    }

    /// How far it has been moved.
    #[must_use]
    pub fn moved(&self) -> Duration {
        *lock(&self.moved)
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.at(self.moved())
    }

    /// Has `timed` run when its moment comes, as long as somebody keeps it.
    pub fn add(&self, timed: Weak<dyn Timed>) {
        lock(&self.timed).push(timed);
    }

    /// How far it must be moved for the next one to run.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let next = self.timed().iter().filter_map(|it| it.deadline()).min()?;
        Some(next.saturating_duration_since(self.start))
    }

    /// Moves it on to `to`, moment by moment; never back. Not to be called by what runs.
    pub fn advance(&self, to: Duration) {
        while let Some(next) = self.next_deadline().filter(|next| *next <= to) {
            let now = {
                let mut moved = lock(&self.moved);
                *moved = next.max(*moved);
                self.at(*moved)
            };
            let due = self.timed();
            let due = due
                .iter()
                .filter(|it| it.deadline().is_some_and(|at| at <= now));
            due.for_each(|it| it.run(now));
        }
        let mut moved = lock(&self.moved);
        *moved = to.max(*moved);
    }

    fn timed(&self) -> Vec<Arc<dyn Timed>> {
        let mut timed = lock(&self.timed);
        timed.retain(|it| it.strong_count() > 0);
        timed.iter().filter_map(Weak::upgrade).collect()
    }

    /// A clock that is moved out of the host's range stays at its end.
    fn at(&self, moved: Duration) -> Instant {
        self.start.checked_add(moved).unwrap_or(self.start)
    }
}

/// The clock of a machine. Cheap to clone.
#[derive(Clone, Default)]
pub enum VmClock {
    /// The host's.
    #[default]
    Host,
    /// A tester's.
    Tested(Arc<TestedClock>),
}

impl VmClock {
    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            Self::Host => Instant::now(),
            Self::Tested(tested) => tested.now(),
        }
    }

    /// Time since now.
    #[must_use]
    pub fn since_now(&self) -> Clock {
        match self {
            Self::Host => Clock::monotonic(),
            Self::Tested(tested) => {
                let (tested, start) = (Arc::clone(tested), tested.moved());
                Clock::new(move || tested.moved().saturating_sub(start))
            }
        }
    }

    /// A timer that calls `handler` each time it runs out: on the reactor's thread, or on the
    /// tester's.
    ///
    /// # Errors
    /// The reactor's thread cannot start.
    pub fn timer(&self, reactor: &Reactor, handler: Arc<dyn Ready>) -> std::io::Result<VmTimer> {
        match self {
            Self::Host => reactor.timer(handler).map(VmTimer::Host),
            Self::Tested(tested) => {
                let timer = Arc::new(TestedTimer {
                    handler,
                    deadline: Mutex::new(None),
                });
                tested.add(Arc::downgrade(&timer) as _);
                Ok(VmTimer::Tested(timer, Arc::clone(tested)))
            }
        }
    }
}

/// A timer on a machine's clock.
pub enum VmTimer {
    /// On the host's.
    Host(Timer),
    /// On a tester's.
    Tested(Arc<TestedTimer>, Arc<TestedClock>),
}

impl VmTimer {
    /// Has the handler called once, `after` from now; replaces an earlier deadline.
    pub fn arm(&self, after: Duration) {
        match self {
            Self::Host(timer) => timer.arm(after),
            // A deadline beyond the clock's range is none.
            Self::Tested(timer, clock) => {
                *lock(&timer.deadline) = clock.now().checked_add(after);
            }
        }
    }
}

/// A timer on a tester's clock.
pub struct TestedTimer {
    handler: Arc<dyn Ready>,
    /// Leaf lock.
    deadline: Mutex<Option<Instant>>,
}

impl Timed for TestedTimer {
    fn deadline(&self) -> Option<Instant> {
        *lock(&self.deadline)
    }

    fn run(&self, _now: Instant) {
        *lock(&self.deadline) = None;
        self.handler.ready(Readiness::TIMER);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its calls, and arms itself again so often.
    struct Ticks {
        clock: Arc<TestedClock>,
        timer: Mutex<Option<VmTimer>>,
        seen: Mutex<Vec<u64>>,
    }

    impl Ready for Ticks {
        fn ready(&self, _readiness: Readiness) {
            let moved = self.clock.moved();
            self.seen.lock().unwrap().push(moved.as_secs());
            if let Some(timer) = &*self.timer.lock().unwrap() {
                timer.arm(Duration::from_secs(2));
            }
        }
    }

    #[test]
    fn a_tested_clock_stops_at_each_moment_on_its_way() {
        let clock = TestedClock::new();
        let ticks = Arc::new(Ticks {
            clock: Arc::clone(&clock),
            timer: Mutex::default(),
            seen: Mutex::default(),
        });
        let handler = Arc::clone(&ticks) as Arc<dyn Ready>;
        let of_vm = VmClock::Tested(Arc::clone(&clock));
        let timer = of_vm.timer(&Reactor::new(), handler).unwrap();
        assert_eq!(clock.next_deadline(), None);
        timer.arm(Duration::from_secs(1));
        assert_eq!(clock.next_deadline(), Some(Duration::from_secs(1)));
        *ticks.timer.lock().unwrap() = Some(timer);
        clock.advance(Duration::from_secs(6));
        assert_eq!(*ticks.seen.lock().unwrap(), [1, 3, 5]);
        assert_eq!(clock.moved(), Duration::from_secs(6));
        clock.advance(Duration::from_secs(2));
        assert_eq!(clock.moved(), Duration::from_secs(6), "never back");
        ticks.timer.lock().unwrap().take();
        assert_eq!(clock.next_deadline(), None, "a dropped timer waits no more");
    }

    #[test]
    fn time_since_a_moment_moves_with_the_testers_clock_only() {
        let tested = TestedClock::new();
        let clock = VmClock::Tested(Arc::clone(&tested));
        tested.advance(Duration::from_millis(5));
        let since = clock.since_now();
        assert_eq!(since.now(), Duration::ZERO);
        tested.advance(Duration::from_millis(7));
        assert_eq!(since.now(), Duration::from_millis(2));
        tested.advance(Duration::MAX);
        assert!(clock.now() >= tested.start);
    }
}
