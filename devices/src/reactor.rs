//! The one thread on which chardevs and slow virtio queues wait: `dev-io`.
//!
//! A registration ties a file descriptor to a [`Ready`] handler; a timer is a registration without
//! one. Handlers run on the reactor's thread, one at a time, and never block. The reactor knows
//! neither chardevs nor queues.
//!
//! ```text
//!   any thread ── register(fd, handler) ─► table: token → handler        Registration
//!   any thread ── timer(handler).arm(t) ─► table: token → deadline       Timer
//!   any thread ── run(job) ──────────────► job queue ─┐
//!                                                     ▼
//!                     dev-io:  epoll_wait ─► handler.ready(..) ─► timers ─► jobs ─┐
//!                                 ▲──────────────────────────────────────────────┘
//! ```
//!
//! The thread starts with the first registration, timer or job: a VM without any has no such
//! thread. It ends when the last [`Reactor`] handle is dropped.
//!
//! Events are edge-triggered: a handler goes on until the descriptor would block, or asks for
//! another look with [`Registration::rearm`].

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use bitflags::bitflags;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

bitflags! {
    /// Why a handler is called.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Readiness: u8 {
        /// There is something to read, or the end of it.
        const READ = 1;
        /// Writing would not block.
        const WRITE = 2;
        /// The other side is gone for good, in both directions.
        const CLOSED = 4;
        /// The timer has run out.
        const TIMER = 8;
    }
}

/// What is called on the reactor's thread.
pub trait Ready: Send + Sync {
    /// Something happened. Must not block, and must tolerate a call without cause.
    fn ready(&self, readiness: Readiness);
}

/// Any descriptor the reactor can watch. The registration shares its ownership, so that the
/// number cannot be reused while it is registered.
pub type Watched = Arc<dyn AsRawFd + Send + Sync>;

type Job = Box<dyn FnOnce() + Send>;

/// Event slots per visit to the kernel; more only means another visit.
const EVENTS_PER_POLL: usize = 64;
const WAKE: Token = Token(0);

/// A handle on the reactor. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reactor(Arc<Owner>);

/// Starts the thread at first use and ends it with the last handle.
#[derive(Default)]
struct Owner {
    started: Mutex<Option<Started>>,
}

struct Started {
    core: Arc<Core>,
    /// The kernel's id of the thread.
    id: i32,
    thread: JoinHandle<()>,
}

/// What the thread and the registrations share.
struct Core {
    registry: Registry,
    waker: Waker,
    table: Mutex<Table>,
    /// Signalled when a handler has returned.
    returned: Condvar,
}

#[derive(Default)]
struct Table {
    handlers: HashMap<Token, Arc<dyn Ready>>,
    deadlines: HashMap<Token, Instant>,
    jobs: VecDeque<Job>,
    last_token: usize,
    /// Whose handler is being called now.
    running: Option<Token>,
    thread: Option<ThreadId>,
    stop: bool,
}

impl Reactor {
    /// A reactor whose thread does not run yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `handler` whenever `fd` becomes ready for `interest`, until the result is dropped.
    /// A descriptor that is ready already is reported once.
    ///
    /// # Errors
    /// The descriptor cannot be watched (`EPERM` for regular files), or the thread cannot start.
    pub fn register(
        &self,
        fd: Watched,
        interest: Interest,
        handler: Arc<dyn Ready>,
    ) -> io::Result<Registration> {
        let core = self.core()?;
        let token = core.insert(handler);
        // The handler can be called from here on.
        let watched = core
            .registry
            .register(&mut SourceFd(&fd.as_raw_fd()), token, interest);
        let slot = Slot { core, token };
        watched?;
        Ok(Registration { slot, fd, interest })
    }

    /// A timer that calls `handler` each time it runs out.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn timer(&self, handler: Arc<dyn Ready>) -> io::Result<Timer> {
        let core = self.core()?;
        let token = core.insert(handler);
        Ok(Timer {
            slot: Slot { core, token },
        })
    }

    /// Runs `job` on the reactor's thread, after what is going on there now.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let core = self.core()?;
        core.table().jobs.push_back(Box::new(job));
        core.waker.wake()
    }

    /// Whether the thread runs.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Starts the thread unless it runs: for who must know all threads before he goes on.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn start(&self) -> io::Result<()> {
        self.core().map(drop)
    }

    /// The kernel's id of the thread, if it runs.
    #[must_use]
    pub fn thread_id(&self) -> Option<i32> {
        self.0.lock().as_ref().map(|started| started.id)
    }

    fn core(&self) -> io::Result<Arc<Core>> {
        let mut started = self.0.lock();
        if let Some(started) = &*started {
            return Ok(Arc::clone(&started.core));
        }
        let poll = Poll::new()?;
        let core = Arc::new(Core {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            table: Mutex::default(),
            returned: Condvar::new(),
        });
        let served = Arc::clone(&core);
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("dev-io".into())
            .spawn(move || {
                // Who asked waits for it.
                let _ = tell.send(nix::unistd::gettid().as_raw());
                served.serve(poll);
            })?;
        let id = told.recv().map_err(io::Error::other)?;
        *started = Some(Started {
            core: Arc::clone(&core),
            id,
            thread,
        });
        Ok(core)
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("started", &self.is_started())
            .finish()
    }
}

impl Owner {
    fn lock(&self) -> MutexGuard<'_, Option<Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(Started { core, thread, .. }) = self.lock().take() else {
            return;
        };
        core.table().stop = true;
        if let Err(error) = core.waker.wake() {
            tracing::error!(%error, "dev-io cannot be woken to end");
            return;
        }
        // The last handle may go down with a handler, on the thread itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("dev-io ended in a panic");
        }
    }
}

impl Core {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, handler: Arc<dyn Ready>) -> Token {
        let mut table = self.table();
        // Never reused, so an event that was read before a registration was dropped finds nobody.
        table.last_token = table.last_token.wrapping_add(1);
        let token = Token(table.last_token);
        table.handlers.insert(token, handler);
        token
    }

    /// Takes a handler away and waits until it is not running (unless it is the caller).
    fn remove(&self, token: Token) {
        let mut table = self.table();
        table.deadlines.remove(&token);
        let handler = table.handlers.remove(&token);
        let here = table.thread == Some(thread::current().id());
        while !here && table.running == Some(token) {
            table = self
                .returned
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(table);
        drop(handler);
    }

    fn serve(&self, mut poll: Poll) {
        self.table().thread = Some(thread::current().id());
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        while let Some(timeout) = self.next_timeout() {
            match poll.poll(&mut events, timeout.into()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "dev-io cannot wait for events and ends");
                    return;
                }
            }
            for event in events.iter().filter(|event| event.token() != WAKE) {
                self.call(event.token(), readiness(event));
            }
            // One look at the clock and at the queue: what a timer arms or a job adds now waits
            // until the descriptors had their turn.
            let now = Instant::now();
            while let Some(token) = self.next_expired(now) {
                self.call(token, Readiness::TIMER);
            }
            let waiting = self.table().jobs.len();
            for _ in 0..waiting {
                if let Some(job) = self.next_job() {
                    job();
                }
            }
        }
    }

    /// How long to wait for events, or `None` when it is time to end.
    fn next_timeout(&self) -> Option<Timeout> {
        let table = self.table();
        if table.stop {
            return None;
        }
        if !table.jobs.is_empty() {
            return Some(Timeout(Some(Duration::ZERO)));
        }
        let next = table.deadlines.values().min();
        Some(Timeout(next.map(|deadline| {
            deadline.saturating_duration_since(Instant::now())
        })))
    }

    fn next_expired(&self, now: Instant) -> Option<Token> {
        let mut table = self.table();
        let (&token, _) = table
            .deadlines
            .iter()
            .find(|(_, deadline)| **deadline <= now)?;
        table.deadlines.remove(&token);
        Some(token)
    }

    fn next_job(&self) -> Option<Job> {
        self.table().jobs.pop_front()
    }

    fn call(&self, token: Token, readiness: Readiness) {
        let mut table = self.table();
        let Some(handler) = table.handlers.get(&token).cloned() else {
            return;
        };
        table.running = Some(token);
        drop(table);
        handler.ready(readiness);
        // Dropped before the registration's owner goes on: it may be the last reference.
        drop(handler);
        self.table().running = None;
        self.returned.notify_all();
    }
}

/// What `Poll::poll` wants: a limit, or none.
struct Timeout(Option<Duration>);

impl From<Timeout> for Option<Duration> {
    fn from(timeout: Timeout) -> Self {
        timeout.0
    }
}

fn readiness(event: &mio::event::Event) -> Readiness {
    let mut readiness = Readiness::empty();
    readiness.set(
        Readiness::READ,
        event.is_readable() || event.is_read_closed(),
    );
    readiness.set(
        Readiness::WRITE,
        event.is_writable() || event.is_write_closed(),
    );
    readiness.set(
        Readiness::CLOSED,
        event.is_error() || (event.is_read_closed() && event.is_write_closed()),
    );
    readiness
}

/// A handler's place in the table.
struct Slot {
    core: Arc<Core>,
    token: Token,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.core.remove(self.token);
    }
}

/// A watched descriptor. Dropping it ends the watch; when the drop returns, the handler is not
/// running and will not be called again, except when the drop happens on the reactor's thread.
///
/// Do not drop it while holding a lock that the handler takes.
pub struct Registration {
    slot: Slot,
    fd: Watched,
    interest: Interest,
}

impl Registration {
    /// Has the handler called again if the descriptor is ready now.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn rearm(&self) -> io::Result<()> {
        self.slot.core.registry.reregister(
            &mut SourceFd(&self.fd.as_raw_fd()),
            self.slot.token,
            self.interest,
        )
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Before the slot: no new event can then be read for it.
        let fd = self.fd.as_raw_fd();
        if let Err(error) = self.slot.core.registry.deregister(&mut SourceFd(&fd)) {
            tracing::error!(%error, fd, "a descriptor cannot be taken out of epoll");
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("fd", &self.fd.as_raw_fd())
            .field("token", &self.slot.token)
            .finish_non_exhaustive()
    }
}

/// A timer. Dropping it gives the same guarantee as dropping a [`Registration`].
pub struct Timer {
    slot: Slot,
}

impl Timer {
    /// Has the handler called once, `after` from now; replaces an earlier deadline.
    pub fn arm(&self, after: Duration) {
        let Slot { core, token } = &self.slot;
        // A deadline beyond the clock's range is none.
        let Some(deadline) = Instant::now().checked_add(after) else {
            return;
        };
        core.table().deadlines.insert(*token, deadline);
        if let Err(error) = core.waker.wake() {
            tracing::error!(%error, "dev-io cannot be woken for a timer");
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("token", &self.slot.token)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    struct Tell<T>(Mutex<mpsc::Sender<T>>, fn(Readiness) -> T);

    impl<T: Send> Ready for Tell<T> {
        fn ready(&self, readiness: Readiness) {
            let told = (self.1)(readiness);
            self.0.lock().expect("no panic").send(told).ok();
        }
    }

    fn tell() -> (Arc<dyn Ready>, mpsc::Receiver<Readiness>) {
        let (send, receive) = mpsc::channel();
        (
            Arc::new(Tell(Mutex::new(send), |readiness| readiness)),
            receive,
        )
    }

    #[test]
    fn the_thread_starts_with_the_first_registration_and_ends_with_the_last_handle() {
        let reactor = Reactor::new();
        assert!(!reactor.is_started());
        let (handler, _told) = tell();
        let timer = reactor.timer(handler).unwrap();
        assert!(reactor.is_started());
        drop(reactor);
        // Without a thread the timer's drop has nobody to wait for.
        timer.arm(Duration::ZERO);
        drop(timer);
    }

    #[test]
    fn a_readable_descriptor_reaches_its_handler_and_a_rearm_repeats_it() {
        let reactor = Reactor::new();
        let (mut here, there) = UnixStream::pair().unwrap();
        let (handler, told) = tell();
        let registration = reactor
            .register(Arc::new(there), Interest::READABLE, handler)
            .unwrap();
        here.write_all(b"x").unwrap();
        assert_eq!(told.recv().unwrap(), Readiness::READ);
        registration.rearm().unwrap();
        assert_eq!(told.recv().unwrap(), Readiness::READ);
        drop(here);
        assert!(told.recv().unwrap().contains(Readiness::CLOSED));
    }

    #[test]
    fn timers_and_jobs_run_on_the_thread() {
        let reactor = Reactor::new();
        let (handler, told) = tell();
        let timer = reactor.timer(handler).unwrap();
        timer.arm(Duration::from_millis(1));
        assert_eq!(told.recv().unwrap(), Readiness::TIMER);
        let (send, name) = mpsc::channel();
        reactor
            .run(move || {
                send.send(thread::current().name().map(str::to_owned))
                    .unwrap()
            })
            .unwrap();
        assert_eq!(name.recv().unwrap().as_deref(), Some("dev-io"));
    }

    #[test]
    fn a_regular_file_is_refused() {
        let reactor = Reactor::new();
        let (handler, _told) = tell();
        let file = tempfile::tempfile().unwrap();
        let error = reactor
            .register(Arc::new(file), Interest::READABLE, handler)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    /// Stays in its handler until told to leave, and counts what it began and ended.
    struct Slow {
        entered: Mutex<mpsc::Sender<()>>,
        leave: Mutex<mpsc::Receiver<()>>,
        ended: AtomicUsize,
    }

    impl Ready for Slow {
        fn ready(&self, _readiness: Readiness) {
            self.entered.lock().expect("no panic").send(()).ok();
            self.leave.lock().expect("no panic").recv().ok();
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_dropped_registration_waits_for_its_running_handler_and_is_never_called_again() {
        let reactor = Reactor::new();
        let (mut here, there) = UnixStream::pair().unwrap();
        let (entered, has_entered) = mpsc::channel();
        let (let_go, leave) = mpsc::channel();
        let slow = Arc::new(Slow {
            entered: Mutex::new(entered),
            leave: Mutex::new(leave),
            ended: AtomicUsize::new(0),
        });
        let handler: Arc<dyn Ready> = Arc::clone(&slow) as _;
        let registration = reactor
            .register(Arc::new(there), Interest::READABLE, handler)
            .unwrap();
        here.write_all(b"x").unwrap();
        has_entered.recv().unwrap();
        let watcher = Arc::clone(&slow);
        let dropper = thread::spawn(move || {
            drop(registration);
            watcher.ended.load(Ordering::SeqCst)
        });
        let_go.send(()).unwrap();
        assert_eq!(dropper.join().unwrap(), 1, "the drop returned too early");
        here.write_all(b"y").unwrap_err();
        // A round through the thread: an event read before the drop would have been handled.
        let (send, round) = mpsc::channel();
        reactor.run(move || send.send(()).unwrap()).unwrap();
        round.recv().unwrap();
        assert!(has_entered.try_recv().is_err());
    }

    /// Drops its own registration from inside its handler.
    #[derive(Default)]
    struct Suicidal(Mutex<Option<Registration>>, Mutex<Option<mpsc::Sender<()>>>);

    impl Ready for Suicidal {
        fn ready(&self, _readiness: Readiness) {
            let own = self.0.lock().expect("no panic").take();
            drop(own);
            if let Some(done) = self.1.lock().expect("no panic").take() {
                done.send(()).ok();
            }
        }
    }

    #[test]
    fn a_handler_may_drop_its_own_registration() {
        let reactor = Reactor::new();
        let (mut here, there) = UnixStream::pair().unwrap();
        let (send, done) = mpsc::channel();
        let handler = Arc::new(Suicidal::default());
        *handler.1.lock().unwrap() = Some(send);
        let registration = reactor
            .register(
                Arc::new(there),
                Interest::READABLE,
                Arc::clone(&handler) as _,
            )
            .unwrap();
        *handler.0.lock().unwrap() = Some(registration);
        here.write_all(b"x").unwrap();
        done.recv().unwrap();
    }
}
