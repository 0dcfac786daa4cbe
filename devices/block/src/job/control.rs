//! What a job's loop and the main loop share: orders one way, progress and news the other.
//!
//! ```text
//!   main ── pause, cancel, complete, speed ──► Control ──► loop, at its next point
//!   main ◄── JobNews: paused, ready, an error, the end ─── loop
//!   main ◄── done, total (counters) ────────────────────── loop
//! ```

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::drain::{Gate, Seat};
use crate::engine::Io;
use crate::engine::executor::own_waker;

/// How long one slice of a limited job is: it does its share and rests until the next.
const SLICE: Duration = Duration::from_millis(100);

/// What a job or a disk does about an error of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It fails; a disk's request does.
    Report,
    /// It goes on, and fails at its end; a disk's request is said to have been done.
    Ignore,
    /// It waits until it is told to try again; so does a disk's request, and the machine stops.
    Stop,
    /// It waits if the storage is full, and fails otherwise.
    Enospc,
}

/// What a job did about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// It fails.
    Report,
    /// It goes on.
    Ignore,
    /// It waits.
    Stop,
}

impl OnError {
    /// What is to be done about this error.
    #[must_use]
    pub fn action(self, error: &io::Error) -> ErrorAction {
        let full = error.raw_os_error() == Some(libc::ENOSPC);
        match self {
            Self::Ignore => ErrorAction::Ignore,
            Self::Stop => ErrorAction::Stop,
            Self::Enospc if full => ErrorAction::Stop,
            Self::Report | Self::Enospc => ErrorAction::Report,
        }
    }

    /// Whether any error stops who asked.
    #[must_use]
    pub fn can_stop(self) -> bool {
        matches!(self, Self::Stop | Self::Enospc)
    }
}

/// Why a loop ended early.
#[derive(Debug)]
pub enum JobFailure {
    /// It was told to.
    Cancelled,
    /// The storage failed.
    Storage(io::Error),
    /// It cannot be done; why.
    Unable(String),
}

impl From<io::Error> for JobFailure {
    fn from(error: io::Error) -> Self {
        Self::Storage(error)
    }
}

/// News of a job's loop.
#[derive(Debug)]
pub enum JobNews {
    /// It waits, as it was told.
    Paused,
    /// It goes on.
    Resumed,
    /// It has done everything but what changes meanwhile.
    Ready,
    /// The storage failed.
    Error {
        /// Whether a write failed.
        write: bool,
        /// What the loop does about it.
        action: ErrorAction,
        /// Whether the storage is full.
        nospace: bool,
    },
    /// Its loop has ended.
    Ended(Result<(), JobFailure>),
}

/// Where a job's loop sends its news: never blocks.
#[derive(Clone)]
pub struct JobSink(Arc<dyn Fn(JobNews) + Send + Sync>);

impl JobSink {
    /// A sink that hands each piece of news to `deliver`.
    pub fn new(deliver: impl Fn(JobNews) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    /// Tells that the loop has ended.
    pub fn ended(&self, result: Result<(), JobFailure>) {
        self.send(JobNews::Ended(result));
    }

    pub(super) fn send(&self, news: JobNews) {
        (self.0)(news);
    }
}

impl fmt::Debug for JobSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobSink")
    }
}

#[derive(Debug, Default)]
struct Orders {
    /// Told to wait: by the client, or by an error.
    paused: bool,
    /// Told to go on since it began to wait, even if told to wait again.
    resumed: bool,
    cancelled: bool,
    complete: bool,
    waker: Option<Waker>,
}

/// The shared half of a job.
#[derive(Debug, Default)]
pub struct Control {
    orders: Mutex<Orders>,
    done: AtomicU64,
    total: AtomicU64,
    /// Bytes in a second; 0 is no limit.
    speed: AtomicU64,
    busy: AtomicBool,
}

impl Control {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        let waker = {
            let mut orders = self.orders();
            change(&mut orders);
            orders.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Has the loop wait at its next point, or go on.
    pub fn set_paused(&self, paused: bool) {
        self.order(|orders| {
            orders.paused = paused;
            orders.resumed |= !paused;
        });
    }

    /// Whether the loop is to wait; what it was told before is over.
    fn must_wait(&self) -> bool {
        let mut orders = self.orders();
        orders.resumed = false;
        orders.paused
    }

    /// Whether the loop was told to wait.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.orders().paused
    }

    /// Has the loop end at its next point.
    pub fn cancel(&self) {
        self.order(|orders| orders.cancelled = true);
    }

    /// Whether the loop was told to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.orders().cancelled
    }

    /// Has a loop that is ready end.
    pub fn complete(&self) {
        self.order(|orders| orders.complete = true);
    }

    /// Sets the limit in bytes per second; 0 is none.
    pub fn set_speed(&self, speed: u64) {
        self.speed.store(speed, Ordering::Relaxed);
        self.order(|_| {});
    }

    /// The limit in bytes per second; 0 is none.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.speed.load(Ordering::Relaxed)
    }

    /// How much is done, and how much there is to do, in bytes.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.total.load(Ordering::Relaxed))
    }

    /// Sets what there is to do.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Whether a request is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

/// A job's loop seen from itself.
#[derive(Debug)]
pub struct JobCx {
    io: Io,
    control: Arc<Control>,
    sink: JobSink,
    seat: Seat,
    slice: (Instant, u64),
}

impl JobCx {
    /// For a loop that runs on the io-thread of `io`, as a user of nodes behind `gate`.
    pub async fn new(io: Io, control: Arc<Control>, sink: JobSink, gate: &Gate) -> Self {
        Self {
            io,
            control,
            sink,
            seat: gate.take_seat(own_waker().await),
            slice: (Instant::now(), 0),
        }
    }

    /// Where operations start.
    #[must_use]
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// The orders and counters.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Where the loop has nothing in flight: it is parked here while its nodes are drained, waits
    /// while it is paused, and ends if it is cancelled.
    ///
    /// # Errors
    /// It was cancelled.
    pub async fn point(&self) -> Result<(), JobFailure> {
        self.control.busy.store(false, Ordering::Relaxed);
        loop {
            self.seat.pass().await;
            if self.control.is_cancelled() {
                return Err(JobFailure::Cancelled);
            }
            if !self.control.must_wait() {
                self.control.busy.store(true, Ordering::Relaxed);
                return Ok(());
            }
            self.sink.send(JobNews::Paused);
            self.wait(|orders| orders.resumed || orders.cancelled).await;
            self.sink.send(JobNews::Resumed);
        }
    }

    /// Waits until the orders are so; parked meanwhile where the nodes are drained.
    async fn wait(&self, until: impl Fn(&Orders) -> bool) {
        std::future::poll_fn(|cx| {
            if !self.seat.is_open() {
                self.seat.park();
            }
            let mut orders = self.control.orders();
            if until(&orders) {
                return Poll::Ready(());
            }
            orders.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether it may go on without a [`point`](Self::point): nobody drains, pauses, cancels or
    /// limits it.
    pub(super) fn is_free(&self) -> bool {
        let orders = self.control.orders();
        let is_told = orders.paused || orders.cancelled;
        !is_told && self.seat.is_open() && self.control.speed() == 0
    }

    /// Says that `bytes` more are done.
    pub fn advance(&self, bytes: u64) {
        self.control.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `moved` bytes for the limit, and rests if there is one and it is reached. The loop
    /// has nothing in flight.
    ///
    /// # Errors
    /// It was cancelled, or the ring has no timer.
    pub async fn rest(&mut self, moved: u64) -> Result<(), JobFailure> {
        let speed = self.control.speed();
        if speed == 0 || moved == 0 {
            return Ok(());
        }
        if self.slice.0.elapsed() >= SLICE {
            self.slice = (Instant::now(), 0);
        }
        self.slice.1 = self.slice.1.saturating_add(moved);
        // A piece that is larger than a share uses up as many slices as it has shares.
        let share = (speed / 10).max(1);
        let slices = u32::try_from(self.slice.1 / share).unwrap_or(u32::MAX);
        let until = self.slice.0 + SLICE.saturating_mul(slices);
        while self.control.speed() == speed {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(());
            }
            self.control.busy.store(false, Ordering::Relaxed);
            self.sleep(rest, |_| self.control.speed() != speed).await?;
            self.point().await?;
        }
        self.slice = (Instant::now(), 0);
        Ok(())
    }

    /// Rests, unless the orders change so that it must not.
    async fn sleep(
        &self,
        rest: Duration,
        wake: impl Fn(&Orders) -> bool,
    ) -> Result<(), JobFailure> {
        let mut timer = pin!(self.io.sleep(rest));
        std::future::poll_fn(|cx| {
            if !self.seat.is_open() {
                self.seat.park();
            }
            {
                let mut orders = self.control.orders();
                if orders.cancelled || orders.paused || wake(&orders) {
                    return Poll::Ready(Ok(()));
                }
                orders.waker = Some(cx.waker().clone());
            }
            timer.as_mut().poll(cx)
        })
        .await?;
        Ok(())
    }

    /// Of a job that is ready: rests for a slice, unless it is told to complete. Returns whether it
    /// was.
    ///
    /// # Errors
    /// It was cancelled, or the ring has no timer.
    pub async fn idle(&self) -> Result<bool, JobFailure> {
        self.point().await?;
        if self.control.orders().complete {
            return Ok(true);
        }
        self.control.busy.store(false, Ordering::Relaxed);
        self.sleep(SLICE, |orders| orders.complete).await?;
        self.point().await?;
        Ok(self.control.orders().complete)
    }

    /// Says that the job is ready.
    pub fn ready(&self) {
        self.sink.send(JobNews::Ready);
    }

    /// Tells an error of the storage, and what to do about it: `Ok(true)` is to try again.
    ///
    /// # Errors
    /// The job fails.
    pub async fn failed(
        &self,
        error: io::Error,
        write: bool,
        policy: OnError,
    ) -> Result<bool, JobFailure> {
        let action = policy.action(&error);
        if action == ErrorAction::Stop {
            self.control.set_paused(true);
        }
        self.sink.send(JobNews::Error {
            write,
            action,
            nospace: error.raw_os_error() == Some(libc::ENOSPC),
        });
        match action {
            ErrorAction::Report => Err(JobFailure::Storage(error)),
            ErrorAction::Ignore => Ok(false),
            ErrorAction::Stop => {
                self.point().await?;
                Ok(true)
            }
        }
    }
}
