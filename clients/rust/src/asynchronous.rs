//! The client that is polled, for whatever runtime there is.
//!
//! The runtime's part is a [`Socket`]: a non-blocking unix socket that wakes its task. With
//! tokio's `AsyncFd` it is this (the other function likewise, with `poll_write_ready_mut`):
//!
//! ```ignore
//! impl Socket for AsyncFd<UnixStream> {
//!     fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
//!         loop {
//!             let mut guard = ready!(self.poll_read_ready_mut(cx))?;
//!             if let Ok(result) = guard.try_io(|socket| sesame_qmp::receive(socket.get_ref(), buffer)) {
//!                 return Poll::Ready(result);
//!             }
//!         }
//!     }
//!     # ...
//! }
//! ```

use std::future::poll_fn;
use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use serde_json::Value;

use crate::command::{Command, IntoRequest};
use crate::control::VersionInfo;
use crate::error::Error;
use crate::event::TimedEvent;
use crate::inbox::{self, Inbox};

/// A connected socket of some runtime.
pub trait Socket {
    /// Receives bytes with [`crate::receive`]; none when the server has ended the session.
    ///
    /// # Errors
    /// The socket has failed.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends the beginning of `bytes`, and all `fds` with it, by [`crate::send`].
    ///
    /// # Errors
    /// The socket has failed.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Poll<io::Result<usize>>;
}

/// A QMP session. Any of its futures may be dropped before it is ready: a command that has begun
/// to be sent then runs all the same, and its reply is passed over.
///
/// Events wait as with [`crate::Client`].
#[derive(Debug)]
pub struct Client<S> {
    socket: S,
    inbox: Inbox,
    /// What is left of a request whose beginning is out.
    unsent: Vec<u8>,
}

impl<S: Socket> Client<S> {
    /// Takes over a connected socket and negotiates.
    ///
    /// # Errors
    /// The other end does not speak QMP.
    pub async fn new(socket: S) -> Result<Self, Error> {
        let mut client = Self {
            socket,
            inbox: Inbox::default(),
            unsent: Vec::new(),
        };
        while client.inbox.version().is_none() {
            client.receive().await?;
        }
        let (id, request) = client.inbox.negotiation();
        client.ask(id, request, &[]).await?;
        Ok(client)
    }

    /// What the server called itself in its greeting.
    pub fn version(&self) -> Option<&VersionInfo> {
        self.inbox.version()
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The server refused it ([`Error::Refused`]), or the session has failed.
    pub async fn execute<'fd, R: IntoRequest<'fd>>(
        &mut self,
        request: R,
    ) -> Result<<R::Command as Command>::Reply, Error> {
        let request = request.into_request();
        let (id, bytes) = self.inbox.request(&request)?;
        let value = self.ask(id, bytes, &request.fds).await?;
        inbox::read::<R::Command>(value)
    }

    /// Runs a command that this version may not know, with any arguments and fds.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn execute_any(
        &mut self,
        name: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, Error> {
        let (id, bytes) = self.inbox.any(name, arguments, false);
        self.ask(id, bytes, fds).await
    }

    /// The next event.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn next_event(&mut self) -> Result<TimedEvent, Error> {
        loop {
            if let Some(event) = self.inbox.event() {
                return Ok(event);
            }
            self.receive().await?;
        }
    }

    /// The next event of which `pick` makes something. The others stay.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn pick_event<T>(
        &mut self,
        mut pick: impl FnMut(&TimedEvent) -> Option<T>,
    ) -> Result<T, Error> {
        loop {
            if let Some(picked) = self.inbox.pick(&mut pick) {
                return Ok(picked);
            }
            self.receive().await?;
        }
    }

    /// How many events were dropped because nobody asked for them.
    pub fn lost_events(&self) -> u64 {
        self.inbox.lost()
    }

    async fn ask(
        &mut self,
        id: u64,
        request: Vec<u8>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, Error> {
        self.flush().await?;
        let sent = poll_fn(|cx| self.socket.poll_send(cx, &request, fds)).await?;
        self.unsent = request;
        self.unsent.drain(..sent);
        self.flush().await?;
        loop {
            if let Some(result) = self.inbox.reply(id) {
                return result;
            }
            self.receive().await?;
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        while !self.unsent.is_empty() {
            let sent = poll_fn(|cx| self.socket.poll_send(cx, &self.unsent, &[])).await?;
            self.unsent.drain(..sent);
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 1 << 12];
        let received = poll_fn(|cx| self.socket.poll_receive(cx, &mut buffer)).await?;
        match buffer.get(..received).unwrap_or_default() {
            [] => Err(Error::Closed),
            bytes => self.inbox.receive(bytes),
        }
    }
}
