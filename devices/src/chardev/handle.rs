//! The chardev itself, and the lease a device holds on it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fdset::{Door, OpenFile};

use super::endpoint::{self, Endpoint, Origin, open_endpoint};
use super::line::Line;
use super::logfile::LogFile;
use super::peer::Peer;
use super::ring::Ring;
use super::spec::{BackendSpec, ChardevSpec};
use super::{ChardevError, Frontend};
use crate::reactor::Reactor;

/// The most a ring buffer may hold, in bytes: it is memory of this process.
const MAX_RING: usize = 64 << 20;

/// Who sits at the device side.
#[derive(Default)]
pub(super) struct Seat {
    /// Taken while it is `Some`, even when the frontend itself has gone already.
    frontend: Mutex<Option<Weak<dyn Frontend>>>,
    open: AtomicBool,
}

impl Seat {
    /// The frontend, if there is one.
    pub(super) fn frontend(&self) -> Option<Arc<dyn Frontend>> {
        let seat = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        seat.as_ref()?.upgrade()
    }

    /// Whether the frontend says that somebody listens behind it.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    fn is_taken(&self) -> bool {
        let seat = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        seat.is_some()
    }

    /// Tells whether the seat was free.
    fn take(&self, frontend: Weak<dyn Frontend>) -> bool {
        let mut seat = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        if seat.is_some() {
            return false;
        }
        *seat = Some(frontend);
        true
    }

    fn leave(&self) {
        let mut seat = self.frontend.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = seat.take();
        drop(seat);
        drop(gone);
        self.open.store(false, Ordering::SeqCst);
    }
}

enum Backend {
    Null,
    Ring(Ring),
    Line(Arc<Line>),
}

/// A named connection to the host, with one place for a device.
pub struct Chardev {
    id: String,
    kind: &'static str,
    seat: Arc<Seat>,
    log: Option<LogFile>,
    backend: Backend,
}

impl Chardev {
    /// Opens what `spec` asks for. A waiting server returns when its first peer is there.
    ///
    /// # Errors
    /// Something cannot be opened, or the parts of the specification contradict each other.
    pub fn open(
        id: &str,
        spec: &ChardevSpec,
        door: &Door,
        reactor: &Reactor,
    ) -> Result<Arc<Self>, ChardevError> {
        let seat = Arc::new(Seat::default());
        let log = match &spec.log {
            Some(log) => Some(LogFile::open(id, log, door)?),
            None => None,
        };
        let backend = match &spec.backend {
            BackendSpec::Null => Backend::Null,
            BackendSpec::Ringbuf { size } if size.is_power_of_two() && *size <= MAX_RING => {
                Backend::Ring(Ring::new(*size))
            }
            BackendSpec::Ringbuf { size } => {
                return Err(ChardevError::RingSize {
                    id: id.to_owned(),
                    size: *size,
                });
            }
            other => {
                let endpoint = open_endpoint(id, other, door)?;
                let line = start_line(id, other.kind(), endpoint, door, &seat, reactor)?;
                Backend::Line(line)
            }
        };
        Ok(Arc::new(Self {
            id: id.to_owned(),
            kind: spec.backend.kind(),
            seat,
            log,
            backend,
        }))
    }

    /// Its id, which is also its label.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What kind it is: `socket`, `file`, `null`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// What `query-chardev` calls its other end: `unix:/run/x,server=on`, `pty:/dev/pts/3`,
    /// `null`, `disconnected:` before a socket without a peer.
    #[must_use]
    pub fn filename(&self) -> String {
        match &self.backend {
            Backend::Null | Backend::Ring(_) => self.kind.to_owned(),
            Backend::Line(line) => line.filename(),
        }
    }

    /// Whether its device says that somebody listens there: always for a serial line, for a
    /// channel while a guest program has it open.
    #[must_use]
    pub fn frontend_open(&self) -> bool {
        self.seat.is_open()
    }

    /// Whether a peer is connected. `null` and `ringbuf` always are.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &self.backend {
            Backend::Null | Backend::Ring(_) => true,
            Backend::Line(line) => line.is_connected(),
        }
    }

    /// Whether a device holds it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.seat.is_taken()
    }

    /// Gives the place at the device side to `frontend` until the lease is dropped. The frontend
    /// is held weakly: it may own its lease.
    ///
    /// # Errors
    /// Another device has the place.
    pub fn attach(
        self: &Arc<Self>,
        frontend: &Arc<dyn Frontend>,
    ) -> Result<ChardevLease, ChardevError> {
        if !self.seat.take(Arc::downgrade(frontend)) {
            return Err(ChardevError::InUse(self.id.clone()));
        }
        let lease = ChardevLease {
            chardev: Arc::clone(self),
        };
        lease.resume_input();
        Ok(lease)
    }

    /// Takes at most `limit` bytes out of a ring buffer, oldest first; `None` for other kinds.
    #[must_use]
    pub fn read_ring(&self, limit: usize) -> Option<Vec<u8>> {
        match &self.backend {
            Backend::Ring(ring) => Some(ring.read(limit)),
            Backend::Null | Backend::Line(_) => None,
        }
    }

    fn write(&self, bytes: &[u8]) -> usize {
        let taken = match &self.backend {
            Backend::Null => bytes.len(),
            Backend::Ring(ring) => {
                ring.write(bytes);
                bytes.len()
            }
            Backend::Line(line) => line.write(bytes),
        };
        if let Some(log) = &self.log {
            log.write(bytes.get(..taken).unwrap_or(bytes));
        }
        taken
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        if let Backend::Line(line) = &self.backend {
            line.close();
        }
    }
}

impl fmt::Debug for Chardev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chardev")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

fn start_line(
    id: &str,
    kind: &str,
    endpoint: Endpoint,
    door: &Door,
    seat: &Arc<Seat>,
    reactor: &Reactor,
) -> Result<Arc<Line>, ChardevError> {
    if let Endpoint::Listener {
        listener,
        address,
        wait: true,
    } = &endpoint
    {
        tracing::info!(chardev = id, %address, "waiting for a connection");
        fdset::wait_for_caller(listener)
            .map_err(|source| ChardevError::host(id, "waiting for a peer", source))?;
    }
    let (origin, first) = origin_of(id, kind, endpoint, door);
    Line::start(origin, first, Arc::clone(seat), reactor.clone())
        .map_err(|source| ChardevError::host(id, "watching its descriptor", source))
}

/// Where a line's peers come from, and the peer it has from the beginning.
fn origin_of(id: &str, kind: &str, endpoint: Endpoint, door: &Door) -> (Origin, Option<Peer>) {
    match endpoint {
        Endpoint::Listener {
            listener, address, ..
        } => {
            let listener = Arc::new(listener);
            (Origin::Server { listener, address }, None)
        }
        Endpoint::Stream { stream, address } => {
            let name = endpoint::peer_name(&stream, &address, "");
            let peer = Peer::duplex(Arc::new(stream), name);
            let name = format!("disconnected:{address}");
            (fixed(name), Some(peer))
        }
        Endpoint::Caller {
            address,
            interval,
            nodelay,
        } => (
            Origin::Caller {
                door: door.clone(),
                reason: format!("chardev '{id}'"),
                address,
                interval,
                nodelay,
                told: false.into(),
            },
            None,
        ),
        Endpoint::Pair {
            input,
            output,
            terminal,
        } => {
            let name = kind.to_owned();
            let peer = Peer {
                input: input.map(Arc::new),
                output: Arc::new(output),
                name: name.clone(),
            };
            let origin = Origin::Fixed {
                name,
                _terminal: terminal,
            };
            (origin, Some(peer))
        }
        Endpoint::Pty { master, path } => {
            let name = format!("pty:{path}");
            let master: Arc<OpenFile> = Arc::new(master);
            (Origin::Pty { master, name }, None)
        }
        Endpoint::Nothing => (fixed(kind.to_owned()), None),
    }
}

fn fixed(name: String) -> Origin {
    Origin::Fixed {
        name,
        _terminal: None,
    }
}

/// A device's place at a chardev. Dropping it gives the place back; see [`Frontend`] for the one
/// call that may still be under way then.
pub struct ChardevLease {
    chardev: Arc<Chardev>,
}

impl ChardevLease {
    /// Sends `bytes` to the peer and the log; returns how many were taken. When it is fewer,
    /// [`Frontend::writable`] follows. Never blocks, from any thread; without a peer everything
    /// is taken and dropped.
    #[must_use]
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.chardev.write(bytes)
    }

    /// The frontend has room again after it had none.
    pub fn resume_input(&self) {
        if let Backend::Line(line) = &self.chardev.backend {
            line.resume_input();
        }
    }

    /// Tells whether somebody listens behind the frontend (`frontend-open`).
    pub fn set_open(&self, open: bool) {
        self.chardev.seat.open.store(open, Ordering::SeqCst);
    }

    /// Whether a peer is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.chardev.is_connected()
    }

    /// Another descriptor of the connected socket, for a frontend that speaks over it by itself
    /// because fds go along; `None` without a peer. The connection stays the chardev's: it ends
    /// when the socket is shut down. Such a frontend has [no room](Frontend::room), ever.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn socket(&self) -> std::io::Result<Option<OwnedFd>> {
        match &self.chardev.backend {
            Backend::Line(line) => line.duplicate(),
            Backend::Null | Backend::Ring(_) => Ok(None),
        }
    }

    /// The chardev.
    #[must_use]
    pub fn chardev(&self) -> &Arc<Chardev> {
        &self.chardev
    }
}

impl Drop for ChardevLease {
    fn drop(&mut self) {
        self.chardev.seat.leave();
    }
}

impl fmt::Debug for ChardevLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChardevLease")
            .field(&self.chardev.id)
            .finish()
    }
}
