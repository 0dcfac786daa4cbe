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
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fdset::OpenFile;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::buffers::{Lent, Stock, Window};
use super::executor::TaskSet;
use super::ring::{Op, Ring, Timer, Watch};
use super::rings::{NoRing, Rings};

/// How many tasks run at once on one thread; more wait for their turn.
const MAX_TASKS: usize = 1 << 14;

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

type LocalTask = Pin<Box<dyn Future<Output = ()>>>;
type Letter = Box<dyn FnOnce(Io) -> LocalTask + Send>;

/// What other threads reach: letters in, and a bell.
struct Mailbox {
    letters: Mutex<VecDeque<Letter>>,
    has_letters: AtomicBool,
    asleep: AtomicBool,
    stop: AtomicBool,
    bell: EventFd,
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

    /// Says that the thread sleeps, unless there is work. Returns whether it may.
    fn fall_asleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let awake = self.has_letters.load(Ordering::SeqCst)
            || self.stop.load(Ordering::SeqCst)
            || has_work();
        if awake {
            self.asleep.store(false, Ordering::SeqCst);
        }
        !awake
    }

    fn next_letter(&self) -> Option<Letter> {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let letter = letters.pop_front();
        if letters.is_empty() {
            self.has_letters.store(false, Ordering::SeqCst);
        }
        letter
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
    ring: Rc<Ring>,
    spawned: Rc<RefCell<VecDeque<LocalTask>>>,
    stock: Option<Rc<Stock>>,
}

impl Io {
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
        });
        let (tell, told) = mpsc::sync_channel(1);
        let theirs = Arc::clone(&mailbox);
        let rings = rings.clone();
        let join = thread::Builder::new()
            .name(format!("iothread-{id}"))
            .spawn(move || run(&theirs, &rings, &tell))
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

/// The thread's whole life.
fn run(mailbox: &Arc<Mailbox>, rings: &Rings, tell: &mpsc::SyncSender<Result<i32, NoRing>>) {
    let (ring, bell) = match start(mailbox, rings) {
        Ok(started) => started,
        Err(error) => {
            drop(tell.send(Err(error)));
            return;
        }
    };
    drop(tell.send(Ok(nix::unistd::gettid().as_raw())));
    if let Err(error) = serve(mailbox, &ring, bell) {
        tracing::error!(%error, "io-thread: the ring is broken");
    }
    if let Err(error) = drain(&ring) {
        // The kernel may still write into memory we would free: better to leak the ring.
        tracing::error!(%error, "io-thread: operations are left in the kernel");
        std::mem::forget(ring);
    } else if let Some(ring) = Rc::into_inner(ring) {
        rings.give_back(ring.into_bare());
    }
}

fn start(mailbox: &Mailbox, rings: &Rings) -> Result<(Rc<Ring>, Watch), NoRing> {
    let bell = mailbox.bell.as_fd().try_clone_to_owned();
    let ring = Rc::new(Ring::new(rings.take()?));
    let watch = bell.and_then(|bell| ring.watch(Box::new(bell)));
    Ok((ring, watch.map_err(NoRing::Refused)?))
}

fn serve(mailbox: &Arc<Mailbox>, ring: &Rc<Ring>, bell: Watch) -> io::Result<()> {
    let io = Io {
        ring: Rc::clone(ring),
        spawned: Rc::default(),
        stock: None,
    };
    let mut tasks = TaskSet::<LocalTask>::new(MAX_TASKS, Waker::from(Arc::clone(mailbox)));
    io.spawn(rearm_for_ever(bell));
    loop {
        while let Some(letter) = mailbox.next_letter() {
            let task = letter(io.clone());
            io.spawned.borrow_mut().push_back(task);
        }
        admit(&io, &mut tasks);
        while tasks.next_done().is_some() {
            admit(&io, &mut tasks);
        }
        if mailbox.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        let has_work =
            || tasks.has_ready() || (!tasks.is_full() && !io.spawned.borrow().is_empty());
        let sleep = mailbox.fall_asleep(has_work);
        ring.enter(sleep)?;
        mailbox.asleep.store(false, Ordering::SeqCst);
        ring.reap();
    }
}

/// Moves spawned tasks into the set while it has room.
fn admit(io: &Io, tasks: &mut TaskSet<LocalTask>) {
    let mut spawned = io.spawned.borrow_mut();
    while !tasks.is_full()
        && let Some(task) = spawned.pop_front()
    {
        if let Err(task) = tasks.push(task) {
            spawned.push_front(task);
            return;
        }
    }
}

/// Sees that the bell goes on ringing: the kernel may end a multishot poll at any time.
async fn rearm_for_ever(bell: Watch) {
    loop {
        if let Err(error) = std::future::poll_fn(|cx| bell.poll_event(cx)).await {
            tracing::error!(%error, "io-thread: the bell cannot be watched");
            return;
        }
    }
}

/// Waits until the kernel has let go of everything.
fn drain(ring: &Ring) -> io::Result<()> {
    while !ring.is_idle() {
        ring.enter(true)?;
        ring.reap();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
