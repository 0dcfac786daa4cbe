//! What every watchdog is made of: a countdown that stands still while the machine does, a timer that
//! follows it, and who is told of its end.
//!
//! ```text
//!   guest ─► registers ─► Watchdog::change ─┬─► the countdown ends at another time? The timer is armed
//!   timer ─► Watchdog::run_out ─────────────┘
//!                └─► Registers::run_out ─► Expiry::Action ─► Notice::Watchdog
//! ```
//!
//! Never knows a chip: what its registers mean, and what follows an end, is `pci/i6300esb` and
//! `legacy/tco`.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::notice::{Notice, NoticeSink};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::vm_clock::{VmClock, VmTimer};

/// What a watchdog needs of the host.
pub struct WatchdogHost {
    /// Where its timer runs.
    pub reactor: Reactor,
    /// The time that it counts.
    pub clock: VmClock,
    /// Who is told that it has run out.
    pub notices: NoticeSink,
}

/// A countdown, and what a snapshot keeps of it: one made while the machine is paused knows how much is
/// left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countdown {
    /// What is left, while the machine is paused.
    left: Option<Duration>,
    /// When it ends, while the machine runs.
    #[serde(skip)]
    deadline: Option<Instant>,
}

impl Countdown {
    /// Begins anew.
    pub(crate) fn start(&mut self, length: Duration, now: Instant) {
        self.left = None;
        self.deadline = now.checked_add(length);
    }

    /// Ends without anything that follows.
    pub(crate) fn stop(&mut self) {
        *self = Self::default();
    }

    /// What is left; `None` where it does not run.
    pub(crate) fn left(&self, now: Instant) -> Option<Duration> {
        let running = self.deadline.map(|at| at.saturating_duration_since(now));
        self.left.or(running)
    }

    fn pause(&mut self, now: Instant) {
        if let Some(deadline) = self.deadline.take() {
            self.left = Some(deadline.saturating_duration_since(now));
        }
    }

    fn resume(&mut self, now: Instant) {
        if let Some(left) = self.left.take() {
            self.start(left, now);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// What the end of a countdown leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// Nothing that others see.
    Nothing,
    /// The watchdog's action.
    Action,
}

/// A chip's registers.
pub(crate) trait Registers: Send + 'static {
    /// Its countdown.
    fn countdown(&mut self) -> &mut Countdown;

    /// The countdown is over.
    fn run_out(&mut self, now: Instant) -> Expiry;
}

/// A chip: its registers, and the timer that follows their countdown.
pub(crate) struct Watchdog<R> {
    registers: Mutex<R>,
    /// Made with the chip. Armed with `registers` locked, so that the last deadline is that of the
    /// last change; neither calls back.
    timer: Mutex<Option<VmTimer>>,
    clock: VmClock,
    notices: NoticeSink,
}

impl<R: Registers> Watchdog<R> {
    /// A watchdog that counts as `registers` say.
    pub(crate) fn new(registers: R, host: WatchdogHost) -> io::Result<Arc<Self>> {
        let watchdog = Arc::new(Self {
            registers: Mutex::new(registers),
            timer: Mutex::new(None),
            clock: host.clock,
            notices: host.notices,
        });
        let ready = Arc::new(RunsOut(Arc::downgrade(&watchdog)));
        *lock(&watchdog.timer) = Some(watchdog.clock.timer(&host.reactor, ready)?);
        Ok(watchdog)
    }

    /// Looks at the registers.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&R, Instant) -> T) -> T {
        let now = self.clock.now();
        look(&lock(&self.registers), now)
    }

    /// Changes the registers, and has the timer follow them.
    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut R, Instant) -> T) -> T {
        let now = self.clock.now();
        let mut registers = lock(&self.registers);
        let before = registers.countdown().deadline;
        let outcome = act(&mut registers, now);
        let deadline = registers.countdown().deadline;
        if deadline != before
            && let (Some(at), Some(timer)) = (deadline, &*lock(&self.timer))
        {
            timer.arm(at.saturating_duration_since(now));
        }
        outcome
    }

    /// Time stands still from now on.
    pub(crate) fn pause(&self) {
        self.change(|registers, now| registers.countdown().pause(now));
    }

    /// Time goes on.
    pub(crate) fn resume(&self) {
        self.change(|registers, now| registers.countdown().resume(now));
    }

    /// The timer says that the countdown is over; it may be an earlier one's.
    fn run_out(&self) {
        let expiry = self.change(|registers, now| {
            if registers.countdown().is_over(now) {
                registers.run_out(now)
            } else {
                Expiry::Nothing
            }
        });
        if expiry == Expiry::Action {
            self.notices.send(Notice::Watchdog);
        }
    }
}

/// What the timer calls; it does not keep the chip.
struct RunsOut<R>(Weak<Watchdog<R>>);

impl<R: Registers> Ready for RunsOut<R> {
    fn ready(&self, _readiness: Readiness) {
        if let Some(watchdog) = self.0.upgrade() {
            watchdog.run_out();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
