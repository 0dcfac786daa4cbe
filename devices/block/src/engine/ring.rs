//! The io_uring of one io-thread, and the operations in flight on it.
//!
//! ```text
//!   Op (future)  ──► slot: iovecs, file, memory ──► SQE ──► kernel
//!        ▲                │ kept until the CQE               │
//!        └──── waker ◄────┴──────────── reap ◄───────────────┘
//! ```
//!
//! This is the only place that writes submission entries. The operations are: readv, writev, fsync,
//! fallocate, timeout, poll_add, async_cancel; no ring can do any other (`rings`).
#![expect(
    unsafe_code,
    reason = "submission entries carry addresses and fd numbers"
)]
// UNSAFETY: an SQE names memory by address and a file by number, and the kernel uses both until the
// completion. Each operation therefore moves its iovecs, a share of the memory and a share of the
// file into its slot, and the slot is emptied only by the completion, never by the future.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fdset::OpenFile;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::buffers::{Keep, Window};
use super::prompt::Promptness;

/// The `user_data` of completions nobody waits for.
const IGNORE: u64 = u64::MAX;

/// The largest number of pieces in one operation (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

#[derive(Debug)]
enum State {
    /// In the kernel; the future waits.
    Waiting(Option<Waker>),
    /// Completed; the future has not looked yet.
    Done(i32),
    /// A multishot poll: events not yet seen, and whether it still runs.
    Watching {
        events: u32,
        armed: bool,
        waker: Option<Waker>,
    },
    /// In the kernel; the future is gone. The completion empties the slot.
    Orphaned,
    /// Empty.
    Free,
}

struct Slot {
    state: State,
    iovecs: Vec<libc::iovec>,
    memory: Keep,
    file: Option<Arc<OpenFile>>,
    watched: Option<Box<dyn AsRawFd>>,
    timer: Option<Box<types::Timespec>>,
}

impl Slot {
    fn empty() -> Self {
        Self {
            state: State::Free,
            iovecs: Vec::new(),
            memory: Keep::Nothing,
            file: None,
            watched: None,
            timer: None,
        }
    }

    fn let_go(&mut self) {
        self.state = State::Free;
        self.iovecs.clear();
        self.memory = Keep::Nothing;
        self.file = None;
        self.watched = None;
        self.timer = None;
    }
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.all.push(Slot::empty());
            self.all.len() - 1
        })
    }

    fn give_back(&mut self, index: usize) {
        if let Some(slot) = self.all.get_mut(index) {
            slot.let_go();
            self.free.push(index);
        }
    }
}

/// One ring and its operations. Belongs to one thread.
pub(super) struct Ring {
    uring: RefCell<IoUring>,
    slots: RefCell<Slots>,
    /// Operations on files that have not completed.
    flying: Cell<usize>,
    promptness: Promptness,
}

impl Ring {
    pub(super) fn new(uring: IoUring) -> Self {
        Self {
            uring: RefCell::new(uring),
            slots: RefCell::default(),
            flying: Cell::new(0),
            promptness: Promptness::default(),
        }
    }

    /// The bare ring again, with nothing in flight.
    pub(super) fn into_bare(self) -> IoUring {
        self.uring.into_inner()
    }

    /// Puts an entry into the submission queue; enters the kernel first if the queue is full.
    fn submit(&self, entry: &squeue::Entry) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        loop {
            // SAFETY: the entry's addresses and files are kept by the slot named in its user data
            // until the completion (`start`, `watch`); `cancel` has neither.
            if unsafe { uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            retry_interrupted(|| uring.submit())?;
        }
    }

    /// Hands over what was submitted, without waiting.
    pub(super) fn hand_over(&self) -> io::Result<()> {
        self.enter(|uring| uring.submit(), false)
    }

    /// Hands over what was submitted and sleeps until a completion is there.
    pub(super) fn sleep(&self) -> io::Result<()> {
        self.enter(|uring| uring.submit_and_wait(1), true)
    }

    fn enter(
        &self,
        call: impl Fn(&IoUring) -> io::Result<usize>,
        may_wait: bool,
    ) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        let asked = uring.submission().len();
        match retry_interrupted(|| call(&uring)) {
            Ok(_) => {}
            // Completions must be reaped before the kernel takes more.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        let answered = uring.completion().len();
        self.promptness.learn(asked, answered, may_wait);
        Ok(())
    }

    /// Whether the kernel has something for us, without asking it.
    pub(super) fn has_news(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        !uring.completion().is_empty() || uring.submission().taskrun()
    }

    /// Whether the kernel was not yet told of everything.
    pub(super) fn has_unsubmitted(&self) -> bool {
        !self.uring.borrow_mut().submission().is_empty()
    }

    /// How many operations on files have not completed.
    pub(super) fn flying(&self) -> usize {
        self.flying.get()
    }

    /// How many operations to start before the kernel is told of them.
    pub(super) fn batch(&self) -> usize {
        self.promptness.batch()
    }

    /// Takes all completions and wakes who waits for them.
    pub(super) fn reap(&self) {
        loop {
            let entry = self.uring.borrow_mut().completion().next();
            let Some(entry) = entry else { return };
            if entry.user_data() != IGNORE {
                self.complete(&entry);
            }
        }
    }

    fn complete(&self, entry: &cqueue::Entry) {
        let Ok(index) = usize::try_from(entry.user_data()) else {
            return;
        };
        let more = cqueue::more(entry.flags());
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.all.get_mut(index) else {
            return;
        };
        if slot.file.is_some() {
            self.flying.set(self.flying.get().saturating_sub(1));
        }
        let waker = match &mut slot.state {
            State::Waiting(waker) => {
                let waker = waker.take();
                slot.state = State::Done(entry.result());
                waker
            }
            State::Watching {
                events,
                armed,
                waker,
            } => {
                *events = events.saturating_add(1);
                *armed = more;
                waker.take()
            }
            State::Orphaned if more => None,
            State::Orphaned => {
                slots.give_back(index);
                None
            }
            State::Done(_) | State::Free => None,
        };
        drop(slots);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the kernel holds no operation of ours and nobody waits for a result.
    pub(super) fn is_idle(&self) -> bool {
        let slots = self.slots.borrow();
        slots.free.len() == slots.all.len()
    }

    fn cancel(&self, index: usize) {
        let entry = opcode::AsyncCancel::new(index as u64)
            .build()
            .user_data(IGNORE);
        if let Err(error) = self.submit(&entry) {
            tracing::error!(%error, "cannot cancel an operation of the ring");
        }
    }

    /// Starts an operation: the slot takes its shares of file and memory, then `build` writes the
    /// entry for the slot's iovecs.
    fn start(
        self: &Rc<Self>,
        file: &Arc<OpenFile>,
        window: Option<Window<'_>>,
        build: impl FnOnce(RawFd, &[libc::iovec]) -> squeue::Entry,
    ) -> Op {
        let (index, entry) = {
            let mut slots = self.slots.borrow_mut();
            let index = slots.take();
            let slot = &mut slots.all[index];
            slot.state = State::Waiting(None);
            slot.file = Some(Arc::clone(file));
            if let Some(window) = window {
                slot.memory = window.segments().keep();
                slot.iovecs.extend(window.pieces().take(MAX_PIECES));
            }
            (
                index,
                build(file.as_raw_fd(), &slot.iovecs).user_data(index as u64),
            )
        };
        match self.submit(&entry) {
            Ok(()) => self.flying.set(self.flying.get() + 1),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.slots.borrow_mut().all[index].state = State::Done(-errno);
            }
        }
        Op {
            ring: Rc::clone(self),
            index: Some(index),
        }
    }

    /// Reads from `offset` into `into`: one readv.
    pub(super) fn readv(
        self: &Rc<Self>,
        file: &Arc<OpenFile>,
        offset: u64,
        into: Window<'_>,
    ) -> Op {
        self.start(file, Some(into), |fd, iovecs| {
            opcode::Readv::new(types::Fd(fd), iovecs.as_ptr(), count(iovecs))
                .offset(offset)
                .build()
        })
    }

    /// Writes `from` at `offset`: one writev. With `durable` it completes when the bytes would
    /// survive a power cut (RWF_DSYNC).
    pub(super) fn writev(
        self: &Rc<Self>,
        file: &Arc<OpenFile>,
        offset: u64,
        from: Window<'_>,
        durable: bool,
    ) -> Op {
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        self.start(file, Some(from), |fd, iovecs| {
            opcode::Writev::new(types::Fd(fd), iovecs.as_ptr(), count(iovecs))
                .offset(offset)
                .rw_flags(flags)
                .build()
        })
    }

    /// Makes all completed writes durable: one fdatasync.
    pub(super) fn fdatasync(self: &Rc<Self>, file: &Arc<OpenFile>) -> Op {
        self.start(file, None, |fd, _| {
            opcode::Fsync::new(types::Fd(fd))
                .flags(types::FsyncFlags::DATASYNC)
                .build()
        })
    }

    /// Allocates, zeroes or punches a range: one fallocate with its mode bits.
    pub(super) fn fallocate(
        self: &Rc<Self>,
        file: &Arc<OpenFile>,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Op {
        self.start(file, None, |fd, _| {
            opcode::Fallocate::new(types::Fd(fd), len)
                .offset(offset)
                .mode(mode)
                .build()
        })
    }

    /// Completes after `rest`.
    pub(super) fn timeout(self: &Rc<Self>, rest: Duration) -> Timer {
        let (index, entry) = {
            let mut slots = self.slots.borrow_mut();
            let index = slots.take();
            let slot = &mut slots.all[index];
            slot.state = State::Waiting(None);
            let timer = slot.timer.insert(Box::new(rest.into()));
            let timer: *const types::Timespec = &raw const **timer;
            (index, opcode::Timeout::new(timer).build())
        };
        if let Err(error) = self.submit(&entry.user_data(index as u64)) {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.slots.borrow_mut().all[index].state = State::Done(-errno);
        }
        Timer(Op {
            ring: Rc::clone(self),
            index: Some(index),
        })
    }

    /// Watches an eventfd until the watch is dropped. The fd's counter is never read: each signal
    /// is one event.
    pub(super) fn watch(self: &Rc<Self>, fd: Box<dyn AsRawFd>) -> io::Result<Watch> {
        let index = {
            let mut slots = self.slots.borrow_mut();
            let index = slots.take();
            let slot = &mut slots.all[index];
            slot.state = State::Watching {
                events: 0,
                armed: false,
                waker: None,
            };
            slot.watched = Some(fd);
            index
        };
        let watch = Watch {
            ring: Rc::clone(self),
            index,
        };
        watch.arm()?;
        Ok(watch)
    }
}

fn retry_interrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Keeps a task's waker, without a clone where it is known already.
fn remember(slot: &mut Option<Waker>, waker: &Waker) {
    if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
        *slot = Some(waker.clone());
    }
}

fn count(iovecs: &[libc::iovec]) -> u32 {
    // At most MAX_PIECES.
    u32::try_from(iovecs.len()).unwrap_or(0)
}

/// One operation in flight. Its output is what the system call of the same name would return:
/// a count of bytes, or an error.
///
/// Dropping it early leaves the operation to finish by itself; its memory and file stay alive.
#[must_use = "an operation is awaited, or its outcome is lost"]
pub struct Op {
    ring: Rc<Ring>,
    index: Option<usize>,
}

impl Future for Op {
    type Output = io::Result<u32>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(index) = self.index else {
            return Poll::Ready(Err(io::Error::other("operation awaited after its end")));
        };
        let mut slots = self.ring.slots.borrow_mut();
        let result = match slots.all.get_mut(index).map(|slot| &mut slot.state) {
            Some(State::Done(result)) => *result,
            Some(State::Waiting(waker)) => {
                remember(waker, cx.waker());
                return Poll::Pending;
            }
            _ => return Poll::Ready(Err(io::Error::other("operation lost its slot"))),
        };
        slots.give_back(index);
        drop(slots);
        self.index = None;
        Poll::Ready(u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        let mut slots = self.ring.slots.borrow_mut();
        match slots.all.get_mut(index).map(|slot| &mut slot.state) {
            Some(State::Done(_)) => slots.give_back(index),
            Some(state) => *state = State::Orphaned,
            None => {}
        }
    }
}

/// A rest, which ends early where it is dropped.
#[must_use = "a rest is awaited, or it is over at once"]
pub struct Timer(Op);

impl Future for Timer {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.0).poll(cx) {
            Poll::Pending => Poll::Pending,
            // The kernel's word for a timer that has run out.
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::ETIME) => {
                Poll::Ready(Ok(()))
            }
            Poll::Ready(result) => Poll::Ready(result.map(drop)),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let waiting = self.0.index.filter(|index| {
            let slots = self.0.ring.slots.borrow();
            let state = slots.all.get(*index).map(|slot| &slot.state);
            matches!(state, Some(State::Waiting(_)))
        });
        if let Some(index) = waiting {
            self.0.ring.cancel(index);
        }
    }
}

/// A watched eventfd.
pub struct Watch {
    ring: Rc<Ring>,
    index: usize,
}

impl Watch {
    fn arm(&self) -> io::Result<()> {
        let entry = {
            let mut slots = self.ring.slots.borrow_mut();
            let Some(slot) = slots.all.get_mut(self.index) else {
                return Ok(());
            };
            let State::Watching { armed, .. } = &mut slot.state else {
                return Ok(());
            };
            *armed = true;
            let fd = slot.watched.as_ref().map_or(-1, |fd| fd.as_raw_fd());
            let events = u32::try_from(libc::POLLIN).unwrap_or(1);
            opcode::PollAdd::new(types::Fd(fd), events)
                .multi(true)
                .build()
        };
        self.ring.submit(&entry.user_data(self.index as u64))
    }

    /// Whether the fd was signalled since the last call; if not, the task is woken when it is.
    ///
    /// # Errors
    /// The ring refused to go on watching.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let rearm = {
            let mut slots = self.ring.slots.borrow_mut();
            let state = slots.all.get_mut(self.index).map(|slot| &mut slot.state);
            let Some(State::Watching {
                events,
                armed,
                waker,
            }) = state
            else {
                return Poll::Ready(Err(io::Error::other("watch lost its slot")));
            };
            if *events == 0 {
                remember(waker, cx.waker());
                return Poll::Pending;
            }
            *events = 0;
            !*armed
        };
        Poll::Ready(if rearm { self.arm() } else { Ok(()) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let armed = {
            let mut slots = self.ring.slots.borrow_mut();
            let Some(slot) = slots.all.get_mut(self.index) else {
                return;
            };
            let armed = matches!(slot.state, State::Watching { armed: true, .. });
            if armed {
                slot.state = State::Orphaned;
            } else {
                slots.give_back(self.index);
            }
            armed
        };
        if armed {
            self.ring.cancel(self.index);
        }
    }
}
