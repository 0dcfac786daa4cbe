//! The manager's end of the open hook.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::qmp::Client;

/// No request and no end of the connection takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A manager that does what a test says.
#[derive(Debug)]
pub struct Manager(Client);

impl Manager {
    /// A manager, and the connection to hand in.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours)?, theirs.into()))
    }

    /// A manager at this end of a connection.
    pub fn new(stream: UnixStream) -> Result<Self> {
        Ok(Self(Client::new(stream)?))
    }

    /// The next request.
    pub fn request(&mut self) -> Result<Value> {
        self.0.receive(PATIENCE)
    }

    /// Answers a request with an fd.
    pub fn give(&mut self, request: &Value, fd: impl AsFd) -> Result<()> {
        self.answer(&json!({"id": request["id"]}), &[fd.as_fd()])
    }

    /// Answers a request with a refusal.
    pub fn refuse(&mut self, request: &Value, error: &str) -> Result<()> {
        self.answer(&json!({"id": request["id"], "error": error}), &[])
    }

    /// Sends any line with any fds.
    pub fn answer(&mut self, line: &Value, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(format!("{line}\n").as_bytes(), fds)
    }

    /// Sends anything.
    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.0.send_raw(bytes, fds)
    }
}
