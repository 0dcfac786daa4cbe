//! What a device holds: the place at a chardev where back ends come and go.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rustix::net::SocketAddrUnix;

use super::VhostUserError;
use super::message::Protocol;
use super::orders::{Orders, Served};
use super::session::{News, Offer, Session, Wants};
use super::table::Table;
use super::talk::{ANSWER, Talk, hang_up};
use super::task::{Bell, Task};
use crate::chardev::{Chardev, ChardevLease, Frontend};
use crate::memory::GuestMemView;
use crate::reactor::Reactor;
use crate::vhost::{QueueServer, ServedQueue};

/// How long the first back end is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much longer than for an answer somebody waits who wants a queue back.
const SLACK: Duration = Duration::from_secs(1);

/// What a front end is made of, resolved.
#[derive(Debug)]
pub struct VhostUserSpec {
    /// Whose back end it is, for logs and errors: `netdev 'n'`, `device 'd'`.
    pub name: String,
    /// Where it comes from.
    pub chardev: Arc<Chardev>,
    /// How many queues it may be given.
    pub queues: usize,
    /// What is wanted of it.
    pub wants: Wants,
    /// The features in which it has no part: a driver may have them whatever it offers.
    pub apart: u64,
    /// The features that no driver may have though it offers them.
    pub never: u64,
    /// Where the conversation goes on.
    pub reactor: Reactor,
}

/// Who hears of a back end. On the reactor's thread.
pub trait Watcher: Send + Sync {
    /// One has come and told what it offers.
    fn came(&self) {}

    /// The one that had come is gone.
    fn left(&self) {}

    /// Its configuration space has changed.
    fn config_changed(&self) {}
}

/// The front end's side of vhost-user.
pub struct VhostUser {
    me: Weak<Self>,
    spec: VhostUserSpec,
    orders: Arc<Orders>,
    lease: OnceLock<ChardevLease>,
    current: Mutex<Option<Current>>,
    watcher: Mutex<Option<Weak<dyn Watcher>>>,
}

/// A connection.
struct Current {
    task: Arc<Task>,
    bell: Arc<Bell>,
    socket: Arc<OwnedFd>,
}

impl VhostUser {
    /// Takes the place at the chardev and waits for a back end that says what it offers: not
    /// longer than some seconds. Not to be called on the reactor's thread.
    ///
    /// # Errors
    /// The chardev is taken or no unix socket, or no back end comes that has what is needed.
    pub fn new(spec: VhostUserSpec) -> Result<Arc<Self>, VhostUserError> {
        if spec.chardev.kind() != "socket" {
            return Err(VhostUserError::NotUnix(spec.chardev.id().to_owned()));
        }
        let orders = Arc::new(Orders::new(spec.queues));
        let front = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            spec,
            orders,
            lease: OnceLock::new(),
            current: Mutex::new(None),
            watcher: Mutex::new(None),
        });
        let frontend: Arc<dyn Frontend> = Arc::clone(&front) as _;
        let lease = front.spec.chardev.attach(&frontend)?;
        if !is_unix(&lease)? {
            return Err(VhostUserError::NotUnix(front.spec.chardev.id().to_owned()));
        }
        lease.set_open(true);
        front.lease.get_or_init(|| lease);
        // On the thread where peers come and go.
        let me = Weak::clone(&front.me);
        let look = move || {
            if let Some(front) = me.upgrade()
                && front.current().is_none()
            {
                front.peer_changed();
            }
        };
        front.spec.reactor.run(look).map_err(no_descriptor)?;
        front
            .orders
            .wait_ready(PATIENCE)
            .map_err(|why| VhostUserError::NoBackend {
                name: front.spec.name.clone(),
                chardev: front.spec.chardev.id().to_owned(),
                seconds: PATIENCE.as_secs(),
                why,
            })?;
        Ok(front)
    }

    /// What the first back end offered; each that comes later has to offer as much.
    #[must_use]
    pub fn offer(&self) -> Offer {
        self.orders
            .offer()
            .map(|offer| Offer::clone(&offer))
            .unwrap_or_default()
    }

    /// Whether a back end is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.orders.is_ready()
    }

    /// The chardev's id.
    #[must_use]
    pub fn chardev(&self) -> &str {
        self.spec.chardev.id()
    }

    /// Whether a back end of `name` could reach this memory.
    ///
    /// # Errors
    /// It could not.
    pub fn check_memory(name: &str, view: &GuestMemView) -> Result<(), VhostUserError> {
        Table::new(view)
            .map(drop)
            .map_err(|source| VhostUserError::Memory {
                name: name.to_owned(),
                source,
            })
    }

    /// From now on `watcher` hears of back ends.
    pub fn watch(&self, watcher: Weak<dyn Watcher>) {
        let before = self.lock_watcher().replace(watcher);
        drop(before);
    }

    /// Fills `data` from the configuration space, as it was seen last.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.orders.read_config(offset, data);
    }

    /// Passes a driver's change of the configuration space on.
    pub fn write_config(&self, offset: u32, bytes: &[u8]) {
        self.orders.write_config(offset, bytes);
        self.order();
    }

    /// Has the back end make a card's address known, if it can.
    pub fn send_rarp(&self, mac: [u8; 6]) {
        self.orders.send_rarp(mac);
        self.order();
    }

    /// Has the back end look at the first `count` queues only; the others wait.
    pub fn use_queues(&self, count: usize) {
        self.orders.use_queues(count);
        self.order();
    }

    /// The device was reset: no request is under way any more.
    pub fn forget(&self) {
        self.orders.forget();
    }

    /// Orders have changed.
    fn order(&self) {
        let bell = self.current().as_ref().map(|one| Arc::clone(&one.bell));
        if let Some(bell) = bell {
            bell.ring();
        }
    }

    fn watcher(&self) -> Option<Arc<dyn Watcher>> {
        self.lock_watcher().as_ref().and_then(Weak::upgrade)
    }

    /// Begins to speak with whoever is at the other end. On the reactor's thread.
    fn begin(&self, socket: OwnedFd) -> io::Result<()> {
        let socket = Arc::new(socket);
        fdset::scm::expect_only_fds(&*socket);
        let bell = Arc::new(Bell::default());
        let Self { spec, .. } = self;
        let (name, reactor) = (&spec.name, &spec.reactor);
        let talk = Talk::new(name, Arc::clone(&socket), Arc::clone(&bell), reactor)?;
        self.orders.begin();
        let work = converse(
            Weak::clone(&self.me),
            talk,
            Arc::clone(&bell),
            Arc::clone(&socket),
        );
        let task = Task::spawn(reactor, Box::pin(work));
        let current = Current { task, bell, socket };
        let before = self.current().replace(current);
        drop(before);
        Ok(())
    }

    /// The connection is over. On the reactor's thread.
    fn end(&self, why: Option<String>) {
        if self.orders.end(why)
            && let Some(watcher) = self.watcher()
        {
            watcher.left();
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_watcher(&self) -> MutexGuard<'_, Option<Weak<dyn Watcher>>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the thread on which the back end's answers are read.
    fn is_on_reactor(&self) -> bool {
        self.spec.reactor.thread_id() == Some(nix::unistd::gettid().as_raw())
    }
}

/// A conversation from its beginning to its end. Its front end may go at any time.
async fn converse(front: Weak<VhostUser>, talk: Talk, bell: Arc<Bell>, socket: Arc<OwnedFd>) {
    let Some((wants, reactor, orders)) = front.upgrade().map(|front| {
        let spec = &front.spec;
        (spec.wants, spec.reactor.clone(), Arc::clone(&front.orders))
    }) else {
        return;
    };
    let error = match Session::greet(talk, bell, wants, &reactor).await {
        Ok(mut session) if orders.ready(&session.offer) => {
            if let Some(watcher) = front.upgrade().and_then(|front| front.watcher()) {
                watcher.came();
            }
            let tell = |News::Config(config)| {
                orders.set_config(config);
                if let Some(watcher) = front.upgrade().and_then(|front| front.watcher()) {
                    watcher.config_changed();
                }
            };
            session.serve(&orders, tell).await.into()
        }
        Ok(_) => Box::from("it offers less than the one before"),
        Err(error) => Box::<dyn std::error::Error + Send + Sync>::from(error),
    };
    let why = std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |all, cause| format!("{all}: {cause}"));
    if let Some(front) = front.upgrade() {
        tracing::warn!(
            name = front.spec.name,
            why,
            "vhost-user: the back end is left"
        );
        front.end(Some(why));
    }
    // Its chardev notices, and looks for the next.
    hang_up(&socket);
}

fn is_unix(lease: &ChardevLease) -> Result<bool, VhostUserError> {
    let Some(socket) = lease.socket().map_err(no_descriptor)? else {
        // Who comes later is looked at then.
        return Ok(true);
    };
    Ok(speaks_unix(&socket))
}

fn speaks_unix(socket: &OwnedFd) -> bool {
    rustix::net::getsockname(socket).is_ok_and(|name| SocketAddrUnix::try_from(name).is_ok())
}

fn no_descriptor(source: io::Error) -> VhostUserError {
    VhostUserError::Chardev(crate::chardev::ChardevError::host(
        "vhost-user",
        "watching its socket",
        source,
    ))
}

impl Frontend for VhostUser {
    /// What comes is read by the session.
    fn room(&self) -> usize {
        0
    }

    fn receive(&self, _bytes: &[u8]) -> usize {
        0
    }

    fn peer_changed(&self) {
        let before = self.current().take();
        if let Some(Current { task, .. }) = before {
            task.end();
            self.end(None);
        }
        let Some(lease) = self.lease.get() else {
            return;
        };
        let begun = match lease.socket() {
            Ok(None) => return,
            Ok(Some(socket)) if !speaks_unix(&socket) => {
                tracing::warn!(
                    name = self.spec.name,
                    "vhost-user: the chardev's peer is at no unix socket"
                );
                return;
            }
            Ok(Some(socket)) => self.begin(socket),
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            tracing::error!(%error, name = self.spec.name, "vhost-user: no way to watch the back end");
        }
    }
}

impl QueueServer for VhostUser {
    fn features(&self) -> u64 {
        (self.offer().features | self.spec.apart) & !self.spec.never
    }

    fn could_reach(&self, memory: &GuestMemView) -> io::Result<()> {
        Self::check_memory(&self.spec.name, memory).map_err(io::Error::other)
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.orders.set_features(features);
        Ok(())
    }

    fn set_memory(&self, memory: &GuestMemView) -> io::Result<()> {
        let table = Table::new(memory).map_err(io::Error::other)?;
        self.orders.set_memory(table);
        self.order();
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: &ServedQueue<'_>) -> io::Result<()> {
        let call = queue.call.try_clone_to_owned()?;
        self.orders.start(index, Served::new(queue)?, call)?;
        self.order();
        Ok(())
    }

    fn set_call(&self, index: usize, call: BorrowedFd<'_>) -> io::Result<()> {
        self.orders.set_call(index, call.try_clone_to_owned()?);
        self.order();
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> io::Result<u16> {
        if !self.orders.stop(index) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.order();
        if !self.is_on_reactor()
            && let Some(base) = self.orders.wait_stopped(index, ANSWER + SLACK)
        {
            return Ok(base);
        }
        // Whatever it does with the rings from now on, nobody waits for it.
        if let Some(current) = &*self.current() {
            hang_up(&current.socket);
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        let current = self.current().take();
        if let Some(Current { task, socket, .. }) = current {
            // Nothing goes on that could outlive the place at the chardev.
            hang_up(&socket);
            if !self.is_on_reactor() {
                task.end();
            } else if let Err(error) = self.spec.reactor.run(move || task.end()) {
                // It may be the task itself that let go of the last reference, so it ends later.
                tracing::error!(%error, "vhost-user: dev-io cannot be woken");
            }
        }
    }
}

impl fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser")
            .field("name", &self.spec.name)
            .finish_non_exhaustive()
    }
}

impl Wants {
    /// What every device can make use of.
    pub const ORDINARY: Protocol = Protocol::MQ.union(Protocol::REPLY_ACK);
}
