//! The server as the rest of the process sees it: monitors are added, requests come out, events go
//! in.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use fdset::{FdRegistry, Listener, Peer, Reserve};
use mio::{Poll, Waker};
use qapi_schema::{EventSink, MonitorId};

use crate::builtin::{self, Version};
use crate::call::Call;
use crate::dispatch::{Phase, SharedPhase, permit};
use crate::door::Entrance;
use crate::events::{EventHub, EventLimits};
use crate::inbox::{Inbox, Pending, Queued};
use crate::io::{Io, NewMonitor, WAKER, Way};
use crate::line::{Bell, Key, Line, Manner, Note};
use crate::policy::{ClientPolicy, CommandPolicy, Rights};
use crate::print::Style;
use crate::tls::TlsServer;
use crate::transport::Port;

/// What is called when a client asks for the end; with where events go.
pub type Quit = Box<dyn Fn(&dyn EventSink) + Send + Sync>;

/// What a server needs from the process around it.
pub struct ServerSpec {
    /// Where `getfd` and `add-fd` put what they get.
    pub registry: Arc<FdRegistry>,
    /// What the greeting and `query-version` say.
    pub version: Version,
    /// Whether the machine is built already.
    pub phase: Phase,
    /// Wakes the main loop, which then calls [`Server::next_request`] until it gives `None`.
    /// Called on the thread `qmp-io`; must not block.
    pub wake_main: Box<dyn Fn() + Send + Sync>,
    /// Runs an in-band request here and now, if that takes no time and whoever owns the VM has
    /// nothing else to do; gives back any other, which then waits for the main loop. It saves the
    /// way through a second thread. Called on the thread `qmp-io`; must not block.
    pub serve_now: Box<dyn Fn(Call) -> Option<Call> + Send + Sync>,
    /// Runs a command that the schema marks `allow-oob` and that came by `exec-oob`. Called on the
    /// thread `qmp-io`; must not block.
    pub out_of_band: Box<dyn Fn(Call) + Send + Sync>,
    /// Notes that a client asked for the end of the process. Called on the thread that serves
    /// builtin commands; events emitted there precede the reply.
    pub quit: Quit,
}

/// One monitor (`-mon`, `-qmp`).
#[derive(Debug)]
pub struct MonitorSpec {
    /// Its number: whose fd names its clients see.
    pub id: MonitorId,
    /// What errors and the log call it.
    pub name: String,
    /// The layout of its messages.
    pub style: Style,
    /// How long what its clients hand over stays.
    pub fd_scope: FdScope,
    /// How what its clients say is encrypted, if it is.
    pub tls: Option<TlsServer>,
    /// Whom it serves.
    pub clients: ClientPolicy,
    /// What they may ask.
    pub commands: CommandPolicy,
    /// How its clients come.
    pub endpoint: Endpoint,
    /// Whether [`Server::add_monitor`] returns only when the first client is there (`wait=on`).
    /// Means nothing for a client that is there already.
    pub wait: bool,
}

impl MonitorSpec {
    /// A monitor with nothing special about it: messages in one line each, fds that stay, clients
    /// who may do everything.
    #[must_use]
    pub fn new(id: MonitorId, endpoint: Endpoint) -> Self {
        Self {
            id,
            name: format!("monitor{}", id.0),
            style: Style::Line,
            fd_scope: FdScope::Monitor,
            tls: None,
            clients: ClientPolicy::default(),
            commands: CommandPolicy::everything(),
            endpoint,
            wait: false,
        }
    }
}

/// How long the fds stay that clients hand over and nobody takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FdScope {
    /// They outlive a connection: a client that comes again finds them.
    #[default]
    Monitor,
    /// They are closed when the session ends.
    Session,
}

/// How a monitor's clients come.
#[derive(Debug)]
pub enum Endpoint {
    /// They connect, several at once and again and again; each has a session of its own.
    Listener(Listener),
    /// They open the other end of this pty, one after the other. Each begins a session; one that
    /// comes back is greeted within a second.
    Pty(OwnedFd),
    /// There is one, at the other end of this socket or character device. The session ends with
    /// the connection.
    Stream(OwnedFd),
    /// There is one, at the other end of two fds, such as standard input and output.
    Pair {
        /// Where requests come from.
        input: OwnedFd,
        /// Where answers go.
        output: OwnedFd,
    },
}

impl Endpoint {
    /// The way over which the kernel never tells who calls.
    fn hides_callers(&self) -> Option<&'static str> {
        match self {
            Self::Listener(listener) if listener.local().is_some() => Some("TCP"),
            Self::Stream(fd) if Peer::of(fd).is_none() => Some("this connection"),
            Self::Listener(_) | Self::Stream(_) => None,
            Self::Pty(_) => Some("a pty"),
            Self::Pair { .. } => Some("standard input and output"),
        }
    }
}

/// Why a monitor cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// An fd is no place to talk to a client.
    #[error("monitor {}: the fd of its client cannot be used", monitor.0)]
    Port {
        /// The monitor.
        monitor: MonitorId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is to serve some users only, and cannot know who its clients are.
    #[error(
        "monitor '{name}': who calls over {way} cannot be known; leave out allow-uid and \
         allow-gid, or use a unix socket"
    )]
    Faceless {
        /// The monitor.
        name: String,
        /// How its clients come.
        way: &'static str,
    },
    /// The server's thread does not start.
    #[error("the thread qmp-io cannot be started")]
    Thread(#[from] io::Error),
    /// The server has been shut down.
    #[error("monitor {}: the QMP server has ended", monitor.0)]
    Ended {
        /// The monitor.
        monitor: MonitorId,
    },
}

/// What all threads share.
pub(crate) struct Shared {
    pub(crate) registry: Arc<FdRegistry>,
    pub(crate) version: Version,
    /// The greeting in wire form.
    pub(crate) greeting: String,
    pub(crate) phase: SharedPhase,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) events: Arc<EventHub>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) wake_main: Box<dyn Fn() + Send + Sync>,
    pub(crate) serve_now: Box<dyn Fn(Call) -> Option<Call> + Send + Sync>,
    pub(crate) out_of_band: Box<dyn Fn(Call) + Send + Sync>,
    pub(crate) quit: Quit,
    thread: Mutex<IoThread>,
}

/// `qmp-io` starts with the first monitor and ends once.
enum IoThread {
    NotStarted,
    Running {
        handle: JoinHandle<()>,
        /// The kernel's id of the thread.
        id: i32,
    },
    Ended,
}

impl Shared {
    /// Answers a request that this crate can answer itself; gives back any other.
    pub(crate) fn serve_builtin(&self, call: Call) -> Option<Call> {
        builtin::serve(self, call)
    }

    /// Makes a call of an in-band request whose turn it is; one that may not run in this phase is
    /// answered instead.
    pub(crate) fn call(&self, pending: Pending, line: Arc<Line>) -> Option<Call> {
        let permitted = permit(pending.command, self.phase.now());
        let call = Call::new(pending, line, Some(Arc::clone(&self.inbox)));
        match permitted {
            Ok(()) => Some(call),
            Err(error) => {
                call.finish(Err(error));
                None
            }
        }
    }

    fn ring(&self, key: Key) {
        self.bell.ring(Note::Attend(key));
    }

    fn thread(&self) -> MutexGuard<'_, IoThread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The QMP server. Clones are the same server.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

impl Server {
    /// A server without monitors, and so without a thread.
    #[must_use]
    pub fn new(spec: ServerSpec) -> Self {
        let bell = Arc::new(Bell::new());
        Self(Arc::new(Shared {
            registry: spec.registry,
            greeting: builtin::greeting(&spec.version),
            version: spec.version,
            phase: SharedPhase::new(spec.phase),
            inbox: Arc::new(Inbox::default()),
            events: Arc::new(EventHub::new(Arc::clone(&bell))),
            bell,
            wake_main: spec.wake_main,
            serve_now: spec.serve_now,
            out_of_band: spec.out_of_band,
            quit: spec.quit,
            thread: Mutex::new(IoThread::NotStarted),
        }))
    }

    /// Adds a monitor; with `wait`, returns when its first client is there.
    ///
    /// # Errors
    /// When an fd cannot be used, the thread cannot be started, or the server has ended.
    pub fn add_monitor(&self, spec: MonitorSpec) -> Result<(), MonitorError> {
        let monitor = spec.id;
        if !spec.clients.is_open()
            && let Some(way) = spec.endpoint.hides_callers()
        {
            let name = spec.name;
            return Err(MonitorError::Faceless { name, way });
        }
        let tls = spec.tls.clone();
        let port = |fd| {
            Port::new(fd)
                .and_then(|port| port.wrapped(tls.as_ref()))
                .map(Arc::new)
                .map_err(|source| MonitorError::Port { monitor, source })
        };
        let way = match spec.endpoint {
            Endpoint::Listener(listener) => Way::Door(Entrance::Listener(listener, Reserve::new())),
            Endpoint::Pty(master) => Way::Door(Entrance::Pty(port(master)?)),
            Endpoint::Stream(fd) => {
                let port = port(fd)?;
                Way::Connected {
                    input: Arc::clone(&port),
                    output: port,
                }
            }
            Endpoint::Pair { input, output } => Way::Connected {
                input: port(input)?,
                output: port(output)?,
            },
        };
        let (first_client, arrival) = sync_channel(1);
        let new = NewMonitor {
            manner: Manner {
                id: monitor,
                style: spec.style,
                fd_scope: spec.fd_scope,
                tls: spec.tls,
                rights: Arc::new(Rights {
                    name: spec.name,
                    clients: spec.clients,
                    commands: spec.commands,
                }),
            },
            way,
            first_client: spec.wait.then_some(first_client),
        };
        self.hand_over(monitor, new)?;
        if spec.wait {
            // The other end is dropped when nobody can come any more: then there is no waiting.
            let _ = arrival.recv();
        }
        Ok(())
    }

    /// Hands a monitor to `qmp-io`, and starts that unless it runs.
    fn hand_over(&self, monitor: MonitorId, new: NewMonitor) -> Result<(), MonitorError> {
        let note = Note::Add(Box::new(new));
        let mut thread = self.0.thread();
        match *thread {
            IoThread::Running { .. } => {
                self.0.bell.ring(note);
                return Ok(());
            }
            IoThread::Ended => return Err(MonitorError::Ended { monitor }),
            IoThread::NotStarted => {}
        }
        let poll = Poll::new()?;
        self.0.bell.connect(Waker::new(poll.registry(), WAKER)?);
        let io = Io::new(Arc::clone(&self.0), poll);
        // Before the thread begins: then it greets at once, and nobody has to wake it for that.
        self.0.bell.ring(note);
        let (tell, told) = sync_channel(1);
        let handle = thread::Builder::new()
            .name("qmp-io".into())
            .spawn(move || {
                // Who asked waits for it.
                let _ = tell.send(nix::unistd::gettid().as_raw());
                io.run();
            })?;
        let id = told.recv().map_err(io::Error::other)?;
        *thread = IoThread::Running { handle, id };
        Ok(())
    }

    /// What the greeting says.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.0.version
    }

    /// The kernel's id of `qmp-io`, while it runs.
    #[must_use]
    pub fn thread_id(&self) -> Option<i32> {
        match *self.0.thread() {
            IoThread::Running { id, .. } => Some(id),
            IoThread::NotStarted | IoThread::Ended => None,
        }
    }

    /// The next in-band request, sessions taking turns. A session's next request comes after the
    /// one before is [finished](Call::finish); those of other sessions do not wait for it.
    #[must_use]
    pub fn next_request(&self) -> Option<Call> {
        loop {
            let popped = self.0.inbox.pop()?;
            let key = popped.line.key;
            if popped.resume {
                self.0.ring(key);
            }
            match popped.queued {
                Queued::Refused(refusal) => {
                    refusal.answer(&popped.line);
                    if self.0.inbox.finish(key) {
                        self.0.ring(key);
                    }
                }
                Queued::Run(pending) => {
                    if let Some(call) = self.0.call(pending, popped.line) {
                        return Some(call);
                    }
                }
            }
        }
    }

    /// Answers a request for a command of the schema modules `control` and `fds`; gives back any
    /// other, which is the caller's to run.
    #[must_use]
    pub fn serve_builtin(&self, call: Call) -> Option<Call> {
        self.0.serve_builtin(call)
    }

    /// Holds the rate limits of events by `clock` from now on; who owns the clock looks at the
    /// result when it moves.
    pub fn limit_by(
        &self,
        clock: impl Fn() -> std::time::Instant + Send + Sync + 'static,
    ) -> EventLimits {
        self.0.events.limit_by(Box::new(clock));
        EventLimits(Arc::clone(&self.0.events))
    }

    /// Where events go.
    #[must_use]
    pub fn events(&self) -> Arc<dyn EventSink> {
        Arc::clone(&self.0.events) as Arc<dyn EventSink>
    }

    /// Says how far the machine is, from the next command on.
    pub fn set_phase(&self, phase: Phase) {
        self.0.phase.set(phase);
    }

    /// Sends everything that waits, ends all sessions and the thread. Clients that do not read
    /// have half a second; then their connections are cut. Later calls do nothing.
    pub fn shutdown(&self) {
        let thread = std::mem::replace(&mut *self.0.thread(), IoThread::Ended);
        if let IoThread::Running { handle, .. } = thread {
            self.0.bell.ring(Note::Stop);
            if handle.join().is_err() {
                tracing::error!("the thread qmp-io has panicked");
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("version", &self.0.version)
            .field("inbox", &self.0.inbox)
            .finish_non_exhaustive()
    }
}
