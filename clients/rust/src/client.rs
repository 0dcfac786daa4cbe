//! The client that waits: one thread, one command at a time.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::command::{Command, IntoRequest};
use crate::control::VersionInfo;
use crate::error::Error;
use crate::event::TimedEvent;
use crate::inbox::{self, Inbox};
use crate::socket;

/// A QMP session over a unix socket.
///
/// Events that come while a command runs wait to be asked for: at most 4096, of which then the
/// oldest are dropped (see [`Client::lost_events`]).
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    inbox: Inbox,
    version: VersionInfo,
    timeout: Option<Duration>,
}

impl Client {
    /// Connects to a monitor and negotiates.
    ///
    /// # Errors
    /// Nobody listens there, or it does not speak QMP.
    #[expect(
        clippy::disallowed_methods,
        reason = "a client connects; only the product itself opens nothing"
    )]
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::new(UnixStream::connect(path)?)
    }

    /// Takes over a connected socket and negotiates.
    ///
    /// # Errors
    /// The other end does not speak QMP.
    pub fn new(socket: UnixStream) -> Result<Self, Error> {
        let mut inbox = Inbox::default();
        let mut buffer = [0; 1 << 12];
        let version = loop {
            if let Some(version) = inbox.version() {
                break version.clone();
            }
            let received = socket::receive(&socket, &mut buffer)?;
            let bytes = buffer.get(..received).unwrap_or_default();
            if bytes.is_empty() {
                return Err(Error::Closed);
            }
            inbox.receive(bytes)?;
        };
        let mut client = Self {
            socket,
            inbox,
            version,
            timeout: None,
        };
        let (id, request) = client.inbox.negotiation();
        client.ask(id, &request, &[])?;
        Ok(client)
    }

    /// Sets how long a command may take, from now on. One that takes longer fails, and its reply,
    /// should it come, is passed over.
    pub fn set_timeout(&mut self, timeout: impl Into<Option<Duration>>) {
        self.timeout = timeout.into();
    }

    /// What the server called itself in its greeting.
    pub fn version(&self) -> &VersionInfo {
        &self.version
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The server refused it ([`Error::Refused`]), or the session has failed.
    pub fn execute<'fd, R: IntoRequest<'fd>>(
        &mut self,
        request: R,
    ) -> Result<<R::Command as Command>::Reply, Error> {
        let request = request.into_request();
        let (id, bytes) = self.inbox.request(&request)?;
        let value = self.ask(id, &bytes, &request.fds)?;
        inbox::read::<R::Command>(value)
    }

    /// Runs a command that this version may not know, with any arguments and fds.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub fn execute_any(
        &mut self,
        name: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, Error> {
        let (id, bytes) = self.inbox.any(name, arguments, false);
        self.ask(id, &bytes, fds)
    }

    /// The next event, for which it waits so long, or for ever.
    ///
    /// # Errors
    /// None came in time, or the session has ended.
    pub fn next_event(
        &mut self,
        timeout: impl Into<Option<Duration>>,
    ) -> Result<TimedEvent, Error> {
        self.pick_event(timeout, |event| Some(event.clone()))
    }

    /// The next event of which `pick` makes something. The others stay.
    ///
    /// ```no_run
    /// # fn f(qmp: &mut sesame_qmp::Client) -> Result<(), sesame_qmp::Error> {
    /// use sesame_qmp::Event;
    ///
    /// let reason = qmp.pick_event(None, |timed| match &timed.event {
    ///     Event::Shutdown(shutdown) => Some(shutdown.reason),
    ///     _ => None,
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// None came in time, or the session has ended.
    pub fn pick_event<T>(
        &mut self,
        timeout: impl Into<Option<Duration>>,
        mut pick: impl FnMut(&TimedEvent) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = deadline(timeout.into());
        loop {
            if let Some(picked) = self.inbox.pick(&mut pick) {
                return Ok(picked);
            }
            self.receive(deadline)?;
        }
    }

    /// All events from now on, until the session ends.
    pub fn events(&mut self) -> Events<'_> {
        Events(self)
    }

    /// Takes in what the server has sent and returns at once; what came is then there for
    /// [`Client::take_event`]. For those who poll the socket (see [`AsFd`]) beside other things.
    ///
    /// # Errors
    /// The session has ended or failed.
    pub fn receive_ready(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 1 << 14];
        loop {
            match socket::receive_ready(&self.socket, &mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                received => match buffer.get(..received?).unwrap_or_default() {
                    [] => return Err(Error::Closed),
                    bytes => self.inbox.receive(bytes)?,
                },
            }
        }
    }

    /// The oldest event that has come and that nobody has taken.
    pub fn take_event(&mut self) -> Option<TimedEvent> {
        self.inbox.event()
    }

    /// How many events were dropped because nobody asked for them.
    pub fn lost_events(&self) -> u64 {
        self.inbox.lost()
    }

    fn ask(&mut self, id: u64, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Value, Error> {
        let deadline = deadline(self.timeout);
        self.send(request, fds)?;
        loop {
            if let Some(result) = self.inbox.reply(id) {
                return result;
            }
            self.receive(deadline)?;
        }
    }

    fn send(&mut self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let sent = socket::send(&self.socket, bytes, fds)?;
            bytes = bytes.get(sent..).unwrap_or_default();
            fds = &[];
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut buffer = [0; 1 << 14];
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Error::TimedOut);
        }
        self.socket.set_read_timeout(left)?;
        let received = socket::receive(&self.socket, &mut buffer).map_err(in_time)?;
        match buffer.get(..received).unwrap_or_default() {
            [] => Err(Error::Closed),
            bytes => self.inbox.receive(bytes),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// A socket with a time limit says that it would block.
fn in_time(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::TimedOut,
        _ => error.into(),
    }
}

/// The events of a session, until it ends.
#[derive(Debug)]
pub struct Events<'c>(&'c mut Client);

impl Iterator for Events<'_> {
    type Item = Result<TimedEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.0.next_event(None) {
            Err(Error::Closed) => None,
            other => Some(other),
        }
    }
}
