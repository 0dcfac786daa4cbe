//! Sending and receiving whole messages over a socket that never blocks.
//!
//! An answer that does not come in time ends the connection: the socket is shut down, whoever waits
//! finds it so, and its chardev looks for the next back end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fdset::scm::{recv_with_fds, send_with_fds};
use mio::Interest;
use nix::sys::socket::{Shutdown, shutdown};

use super::message::{HEADER, Header, Message, Request, Wrong, encode};
use super::task::Bell;
use crate::reactor::{Reactor, Readiness, Ready, Registration, Timer};

/// How long a back end may take for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// More fds than any message brings.
const TOO_MANY_FDS: usize = 8;

/// Why a conversation has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum TalkError {
    /// The back end breaks the protocol.
    #[error("it breaks the protocol")]
    Wrong(#[from] Wrong),
    /// The connection failed.
    #[error("the connection is lost")]
    Io(#[from] io::Error),
    /// The back end has hung up.
    #[error("it has hung up")]
    Gone,
    /// It says something that nobody has asked for.
    #[error("it answers what nobody asked")]
    Unasked,
    /// More fds came than this process has room for.
    #[error("fds of it were lost: this process has no room for more")]
    FdsLost,
    /// It lacks something.
    #[error("{0}")]
    Lacks(String),
}

/// A message on its way in.
pub(super) struct Reader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    header: Option<Header>,
}

impl Reader {
    /// Of which nothing has come yet.
    pub(super) const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            fds: Vec::new(),
            header: None,
        }
    }

    /// Reads on; `None` when the rest of the message has not come yet.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, TalkError> {
        loop {
            let wanted = self.header.map_or(HEADER, |header| header.size);
            if self.bytes.len() == wanted
                && let Some(message) = self.complete()?
            {
                return Ok(Some(message));
            }
            let wanted = self.header.map_or(HEADER, |header| header.size);
            // Never more than this message, so that fds cannot be another's.
            let mut room = [0; HEADER + super::message::LONGEST];
            let missing = wanted.saturating_sub(self.bytes.len());
            let room = room.get_mut(..missing).unwrap_or_default();
            if room.is_empty() {
                continue;
            }
            let received = match recv_with_fds(socket, room) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.fds.extend(received.fds);
            if received.truncated {
                return Err(TalkError::FdsLost);
            }
            if received.bytes == 0 {
                return Err(TalkError::Gone);
            }
            if self.fds.len() > TOO_MANY_FDS {
                let request = self.header.map_or(0, |header| header.request);
                return Err(TalkError::Wrong(Wrong::Fds {
                    request,
                    wanted: 1,
                    came: self.fds.len(),
                }));
            }
            self.bytes
                .extend(room.get(..received.bytes).unwrap_or_default());
        }
    }

    /// What was wanted is there: the header, or the whole message.
    fn complete(&mut self) -> Result<Option<Message>, TalkError> {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(header) = self.header.take() else {
            let header = Header::read(bytes.try_into().unwrap_or_default())?;
            self.header = Some(header);
            return Ok(None);
        };
        Ok(Some(Message {
            header,
            payload: bytes,
            fds: std::mem::take(&mut self.fds),
        }))
    }
}

/// Ends the connection when an answer does not come in time.
struct Watchdog {
    name: String,
    socket: Arc<OwnedFd>,
    deadline: Mutex<Option<Instant>>,
}

impl Watchdog {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ready for Watchdog {
    fn ready(&self, _readiness: Readiness) {
        let is_late = self
            .lock()
            .is_some_and(|deadline| deadline <= Instant::now());
        if is_late {
            tracing::warn!(
                name = self.name,
                seconds = ANSWER.as_secs(),
                "vhost-user: the back end does not answer and is left"
            );
            hang_up(&self.socket);
        }
    }
}

/// Ends a connection: both ends and its chardev notice.
pub(super) fn hang_up(socket: &OwnedFd) {
    if let Err(error) = shutdown(socket.as_raw_fd(), Shutdown::Both) {
        // It has ended by itself.
        tracing::debug!(%error, "vhost-user: hanging up");
    }
}

/// One end of a connection to a back end.
pub(super) struct Talk {
    socket: Arc<OwnedFd>,
    bell: Arc<Bell>,
    reader: Reader,
    watchdog: Arc<Watchdog>,
    timer: Timer,
    /// Whether the back end answers whatever asks for it.
    pub(super) acknowledges: bool,
    _watch: Registration,
}

impl Talk {
    /// Watches `socket`; `bell` rings whenever there is something to read or room to write.
    pub(super) fn new(
        name: &str,
        socket: Arc<OwnedFd>,
        bell: Arc<Bell>,
        reactor: &Reactor,
    ) -> io::Result<Self> {
        let both = Interest::READABLE | Interest::WRITABLE;
        let handler: Arc<dyn Ready> = Arc::clone(&bell) as _;
        let watchdog = Arc::new(Watchdog {
            name: name.to_owned(),
            socket: Arc::clone(&socket),
            deadline: Mutex::new(None),
        });
        let handle: Arc<dyn Ready> = Arc::clone(&watchdog) as _;
        Ok(Self {
            _watch: reactor.register(Arc::clone(&socket) as _, both, handler)?,
            timer: reactor.timer(handle)?,
            socket,
            bell,
            reader: Reader::new(),
            watchdog,
            acknowledges: false,
        })
    }

    /// Asks and waits for the answer.
    pub(super) async fn ask(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Message, TalkError> {
        self.exchange(request, payload, fds, false).await
    }

    /// Says something, and waits until it was done if the back end can tell.
    pub(super) async fn tell(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), TalkError> {
        if self.acknowledges {
            let message = self.exchange(request, payload, fds, true).await?;
            return Ok(message.done(request)?);
        }
        self.watch_out();
        let sent = self.send(&encode(request, false, payload), fds).await;
        self.calm_down();
        sent
    }

    async fn exchange(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        wants_reply: bool,
    ) -> Result<Message, TalkError> {
        self.watch_out();
        self.send(&encode(request, wants_reply, payload), fds)
            .await?;
        let message = loop {
            if let Some(message) = self.reader.read(self.socket.as_fd())? {
                break message;
            }
            self.bell.wait().await;
        };
        self.calm_down();
        Ok(message)
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let (mut rest, mut fds) = (bytes, fds);
        while !rest.is_empty() {
            match send_with_fds(&*self.socket, rest, fds) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    fds = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.bell.wait().await,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Looks whether the back end has spoken out of turn, or gone.
    pub(super) fn is_quiet(&mut self) -> Result<(), TalkError> {
        match self.reader.read(self.socket.as_fd())? {
            None => Ok(()),
            Some(_) => Err(TalkError::Unasked),
        }
    }

    fn watch_out(&self) {
        *self.watchdog.lock() = Instant::now().checked_add(ANSWER);
        self.timer.arm(ANSWER);
    }

    fn calm_down(&self) {
        *self.watchdog.lock() = None;
    }
}
