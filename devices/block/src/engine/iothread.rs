//! An io-thread: the loop that runs a ring and its tasks, and the handle to it.
//!
//! ```text
//!   IoThread (clone, Send) ──┐                        ┌── Io (clone, stays on the thread)
//!   IoThread ────────────────┼──► Mailbox ──► loop ───┤
//!   last handle drops ───────┘  letters, eventfd      └── tasks, ring
//!                                   │
//!                                   └─ stop: drop the tasks, wait for the kernel, end
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::Wake;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fdset::OpenFile;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::buffers::{Lent, Stock, Window};
use super::life;
use super::looks::{Look, Looks};
use super::polling::PollSpec;
use super::ring::{Op, Ring, Timer, Watch};
use super::rings::{NoRing, Rings};

/// What an io-thread is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoThreadSpec {
    /// Its id, as the VM's owner knows it. The thread is named `iothread-ID`.
    pub id: String,
}

/// Why an io-thread could not be had, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    /// The kernel gives no io_uring.
    #[error(
        "io-thread '{id}': this kernel gives no io_uring; \
         allow it (sysctl kernel.io_uring_disabled=0, the container's seccomp profile)"
    )]
    NoRing {
        /// The io-thread's id.
        id: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process is sealed, and all rings made before are in use.
    #[error(
        "io-thread '{id}': no ring is left: a sealed process makes none, and all that were made \
         before the seal are in use; remove another io-thread first"
    )]
    OutOfStock {
        /// The io-thread's id.
        id: String,
    },
    /// No thread or eventfd is left.
    #[error("io-thread '{id}' cannot be started")]
    Start {
        /// The io-thread's id.
        id: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread ended before the work was done.
    #[error("io-thread '{id}' has ended")]
    Gone {
        /// The io-thread's id.
        id: String,
    },
}

pub(super) type LocalTask = Pin<Box<dyn Future<Output = ()>>>;
type Letter = Box<dyn FnOnce(Io) -> LocalTask + Send>;

/// What other threads reach: letters in, and a bell.
pub(super) struct Mailbox {
    letters: Mutex<VecDeque<Letter>>,
    has_letters: AtomicBool,
    pub(super) asleep: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) bell: EventFd,
    poll: [AtomicU64; 3],
}

impl Mailbox {
    fn post(&self, letter: Letter) {
        self.letters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(letter);
        self.has_letters.store(true, Ordering::SeqCst);
        self.ring_bell();
    }

    /// Wakes the thread if it sleeps or is about to. Pairs with `fall_asleep`: both sides write
    /// first and look second, in one total order, so one of them sees the other.
    fn ring_bell(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && let Err(error) = self.bell.write(1)
        {
            tracing::error!(%error, "cannot wake an io-thread");
        }
    }

    /// Whether there is something in it.
    pub(super) fn has_mail(&self) -> bool {
        self.has_letters.load(Ordering::SeqCst) || self.stop.load(Ordering::SeqCst)
    }

    /// Says that the thread sleeps, unless there is work. Returns whether it may.
    pub(super) fn fall_asleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let awake = self.has_mail() || has_work();
        if awake {
            self.asleep.store(false, Ordering::SeqCst);
        }
        !awake
    }

    pub(super) fn next_letter(&self) -> Option<Letter> {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let letter = letters.pop_front();
        if letters.is_empty() {
            self.has_letters.store(false, Ordering::SeqCst);
        }
        letter
    }

    /// How the thread is to look for work; three numbers that are read one after the other.
    pub(super) fn poll_spec(&self) -> PollSpec {
        let [max, grow, shrink] = self.poll.each_ref().map(|one| one.load(Ordering::Relaxed));
        PollSpec {
            max: Duration::from_nanos(max),
            grow: u32::try_from(grow).unwrap_or(u32::MAX),
            shrink: u32::try_from(shrink).unwrap_or(u32::MAX),
        }
    }

    fn set_poll_spec(&self, spec: PollSpec) {
        let max = u64::try_from(spec.max.as_nanos()).unwrap_or(u64::MAX);
        let numbers = [max, spec.grow.into(), spec.shrink.into()];
        for (one, number) in self.poll.iter().zip(numbers) {
            one.store(number, Ordering::Relaxed);
        }
    }
}

impl Wake for Mailbox {
    fn wake(self: Arc<Self>) {
        self.ring_bell();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring_bell();
    }
}

/// The io-thread seen from itself: where a task starts operations and other tasks.
#[derive(Clone)]
pub struct Io {
    pub(super) ring: Rc<Ring>,
    pub(super) spawned: Rc<RefCell<VecDeque<LocalTask>>>,
    pub(super) looks: Rc<Looks>,
    stock: Option<Rc<Stock>>,
}

impl Io {
    pub(super) fn new(ring: Rc<Ring>) -> Self {
        Self {
            ring,
            spawned: Rc::default(),
            looks: Rc::default(),
            stock: None,
        }
    }

    /// Starts another task on this thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push_back(Box::pin(task));
    }

    /// Reads into `into` from `offset` on. Fewer bytes than asked for is no error.
    pub fn read(&self, file: &Arc<OpenFile>, offset: u64, into: Window<'_>) -> Op {
        self.ring.readv(file, offset, into)
    }

    /// Writes `from` at `offset`; `durable` waits until it would survive a power cut. Fewer bytes
    /// than asked for is no error.
    pub fn write(&self, file: &Arc<OpenFile>, offset: u64, from: Window<'_>, durable: bool) -> Op {
        self.ring.writev(file, offset, from, durable)
    }

    /// Makes completed writes durable.
    pub fn sync(&self, file: &Arc<OpenFile>) -> Op {
        self.ring.fdatasync(file)
    }

    /// fallocate(2) with its mode bits.
    pub fn allocate(&self, file: &Arc<OpenFile>, mode: i32, offset: u64, len: u64) -> Op {
        self.ring.fallocate(file, mode, offset, len)
    }

    /// The same thread, for a work of many steps: what they let go of is kept for the next ones, as
    /// long as the work lasts.
    #[must_use]
    pub fn with_stock(&self) -> Self {
        Self {
            stock: Some(Rc::default()),
            ..self.clone()
        }
    }

    /// Memory to read into and write from, with anything in it.
    pub(crate) fn buffer(&self, len: u64) -> io::Result<Lent> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        match &self.stock {
            Some(stock) => stock.lend(len),
            None => Lent::new(len),
        }
    }

    /// Rests for a while; dropping it early ends the rest.
    pub fn sleep(&self, rest: Duration) -> Timer {
        self.ring.timeout(rest)
    }

    /// Watches an eventfd, and keeps it until the watch ends.
    ///
    /// # Errors
    /// The ring refused it.
    pub fn watch(&self, eventfd: impl AsRawFd + 'static) -> io::Result<Watch> {
        self.ring.watch(Box::new(eventfd))
    }

    /// Something that the thread looks at before it sleeps: `has_come` is a quick look, from
    /// outside of any task, and may be wrong both ways.
    pub fn look(&self, has_come: impl Fn() -> bool + 'static) -> Look {
        Look::new(&self.looks, Box::new(has_come))
    }

    /// How many requests a task should start before it lets the thread tell the kernel of them.
    pub fn batch(&self) -> usize {
        self.ring.batch()
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Io")
    }
}

struct Thread {
    id: String,
    thread_id: i32,
    mailbox: Arc<Mailbox>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.mailbox.stop.store(true, Ordering::SeqCst);
        self.mailbox.ring_bell();
        let join = self
            .join
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(join) = join else { return };
        // The last handle may have lived in a task of the thread itself, which ends on its own.
        if join.thread().id() != thread::current().id() && join.join().is_err() {
            tracing::error!(id = %self.id, "io-thread ended by a panic");
        }
    }
}

/// The handle to an io-thread. The thread ends when the last clone is dropped, after the kernel
/// has let go of every buffer.
#[derive(Clone)]
pub struct IoThread(Arc<Thread>);

impl IoThread {
    /// Starts a thread with a ring of its own.
    ///
    /// # Errors
    /// The kernel has no io_uring for us, or no thread or fd is left.
    pub fn start(spec: IoThreadSpec) -> Result<Self, IoThreadError> {
        Self::start_from(&Rings::default(), spec)
    }

    /// Starts a thread whose ring comes from `rings` and goes back there.
    ///
    /// # Errors
    /// As [`IoThread::start`]; and if there is a stock, it is used up.
    pub fn start_from(rings: &Rings, spec: IoThreadSpec) -> Result<Self, IoThreadError> {
        let id = spec.id;
        let start_error = |source: io::Error| IoThreadError::Start {
            id: id.clone(),
            source,
        };
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| start_error(errno.into()))?;
        let mailbox = Arc::new(Mailbox {
            letters: Mutex::default(),
            has_letters: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            bell,
            poll: Default::default(),
        });
        mailbox.set_poll_spec(PollSpec::default());
        let (tell, told) = mpsc::sync_channel(1);
        let theirs = Arc::clone(&mailbox);
        let rings = rings.clone();
        let join = thread::Builder::new()
            .name(format!("iothread-{id}"))
            .spawn(move || life::run(&theirs, &rings, &tell))
            .map_err(start_error)?;
        match told.recv() {
            Ok(Ok(thread_id)) => {
                let join = Mutex::new(Some(join));
                Ok(Self(Arc::new(Thread {
                    id,
                    thread_id,
                    mailbox,
                    join,
                })))
            }
            Ok(Err(NoRing::OutOfStock)) => Err(IoThreadError::OutOfStock { id }),
            Ok(Err(NoRing::Refused(source))) => {
                let unavailable = matches!(
                    source.raw_os_error(),
                    Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)
                );
                Err(if unavailable {
                    IoThreadError::NoRing { id, source }
                } else {
                    IoThreadError::Start { id, source }
                })
            }
            Err(_) => Err(IoThreadError::Gone { id }),
        }
    }

    /// The id it was started with.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Has it look for work so from now on, before it sleeps.
    pub fn poll(&self, spec: PollSpec) {
        self.0.mailbox.set_poll_spec(spec);
    }

    /// How it looks for work.
    pub fn poll_spec(&self) -> PollSpec {
        self.0.mailbox.poll_spec()
    }

    /// The kernel's id of the thread, as `query-iothreads` shows it.
    pub fn thread_id(&self) -> i32 {
        self.0.thread_id
    }

    /// Starts the task that `make` returns, on the thread. `make` itself runs there too.
    pub fn spawn<F>(&self, make: impl FnOnce(Io) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        self.0.mailbox.post(Box::new(move |io| Box::pin(make(io))));
    }

    /// Runs the task that `make` returns and waits for its output. Never called on an io-thread.
    ///
    /// # Errors
    /// The thread ended before the task did.
    pub fn run<T, F>(&self, make: impl FnOnce(Io) -> F + Send + 'static) -> Result<T, IoThreadError>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (tell, told) = mpsc::sync_channel(1);
        self.spawn(move |io| {
            let task = make(io);
            async move {
                // The receiver waits below; if its thread is gone, so is who wanted the answer.
                drop(tell.send(task.await));
            }
        });
        told.recv().map_err(|_| IoThreadError::Gone {
            id: self.0.id.clone(),
        })
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IoThread").field(&self.0.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn thread(id: &str) -> IoThread {
        IoThread::start(IoThreadSpec { id: id.to_owned() }).expect("io-thread")
    }

    #[test]
    fn thread_runs_what_it_is_given_and_ends_with_its_last_handle() {
        let thread = thread("t0");
        assert_eq!(thread.id(), "t0");
        let other = thread.clone();
        let seen = other
            .run(|_| async { nix::unistd::gettid().as_raw() })
            .expect("answer");
        assert_eq!(seen, thread.thread_id());
        let mailbox = Arc::downgrade(&thread.0.mailbox);
        drop(thread);
        assert!(mailbox.upgrade().is_some(), "one handle is left");
        drop(other);
        assert!(
            mailbox.upgrade().is_none(),
            "the thread has ended and let go of its mailbox"
        );
    }

    #[test]
    fn watch_sees_signals_from_another_thread_until_it_is_dropped() {
        let thread = thread("t1");
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd"));
        let theirs = Arc::clone(&bell);
        let (tell, told) = mpsc::channel();
        thread.spawn(move |io| async move {
            let watch = io
                .watch(theirs.as_fd().try_clone_to_owned().expect("dup"))
                .expect("watch");
            for round in 0..3 {
                std::future::poll_fn(|cx| watch.poll_event(cx))
                    .await
                    .expect("event");
                tell.send(round).expect("listener");
            }
        });
        for round in 0..3 {
            bell.write(1).expect("signal");
            assert_eq!(told.recv().expect("seen"), round);
        }
        assert!(told.recv().is_err(), "the task has ended");
    }

    #[test]
    fn eventfd_signalled_before_the_watch_began_is_an_event_too() {
        let thread = thread("t2");
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd");
        bell.write(1).expect("signal");
        thread
            .run(move |io| async move {
                let watch = io.watch(bell).expect("watch");
                std::future::poll_fn(|cx| watch.poll_event(cx))
                    .await
                    .expect("event");
            })
            .expect("answer");
    }

    #[test]
    fn rest_lasts_as_long_as_asked_and_ends_with_its_dropping() {
        let thread = thread("t4");
        let rested = thread.run(|io| async move {
            let began = std::time::Instant::now();
            drop(io.sleep(Duration::from_secs(3600)));
            io.sleep(Duration::from_millis(20)).await.expect("a timer");
            began.elapsed()
        });
        assert!(rested.expect("answer") >= Duration::from_millis(20));
        // Ends at once: the long rest is over.
        drop(thread);
    }

    #[test]
    fn task_that_holds_the_last_handle_ends_its_own_thread() {
        let thread = thread("t3");
        let (tell, told) = mpsc::channel::<()>();
        let inner = thread.clone();
        thread.spawn(move |_| async move {
            drop(inner);
            drop(tell);
        });
        drop(thread);
        assert!(told.recv().is_err());
    }
}
