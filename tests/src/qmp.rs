//! A small QMP client of our own: the tests must be able to say wrong things, too.
//!
//! ```text
//!   execute ──► {"execute":..,"id":7} (+ fds by SCM_RIGHTS) ──► socket
//!   reply   ◄── matched by id; events that come in between wait in a queue
//! ```
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::lines::Lines;

/// Far longer than any command takes, even in the lab.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which way a message went, for a [`Client::watch`]er.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From us to the VMM.
    Sent,
    /// From the VMM to us.
    Received,
}

/// A QMP error reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `GenericError`, `CommandNotFound`, `DeviceNotFound` and so on.
    pub class: String,
    /// The text for people.
    pub desc: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.desc)
    }
}

impl std::error::Error for Refusal {}

type Watcher = Box<dyn FnMut(Direction, &Value, usize)>;

/// One QMP session.
pub struct Client {
    stream: UnixStream,
    lines: Lines,
    events: VecDeque<Value>,
    next_id: u64,
    watcher: Option<Watcher>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client on a connected socket; nothing is said or read yet.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            lines: Lines::new(&stream)?,
            stream,
            events: VecDeque::new(),
            next_id: 1,
            watcher: None,
        })
    }

    /// A negotiated client of the monitor that listens at `path`, or is just about to.
    pub fn connect(path: &Path) -> Result<Self> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut client = Self::new(stream)?;
        client.negotiate()?;
        Ok(client)
    }

    /// Shows every message, with the number of fds that go with it.
    pub fn watch(&mut self, watcher: impl FnMut(Direction, &Value, usize) + 'static) {
        self.watcher = Some(Box::new(watcher));
    }

    /// Reads the greeting and negotiates; returns the greeting.
    pub fn negotiate(&mut self) -> Result<Value> {
        let greeting = self.receive(PATIENCE)?;
        ensure!(greeting["QMP"].is_object(), "no greeting: {greeting}");
        self.execute("qmp_capabilities", json!({}))?;
        Ok(greeting)
    }

    /// Runs a command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_with(command, arguments, &[])
    }

    /// Runs a command with fds attached.
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value> {
        self.attempt(command, arguments, fds)?
            .with_context(|| command.to_owned())
    }

    /// Runs a command that must be refused, and says how it was.
    pub fn refusal(&mut self, command: &str, arguments: Value) -> Result<Refusal> {
        self.refusal_with(command, arguments, &[])
    }

    /// The same with fds attached.
    pub fn refusal_with(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Refusal> {
        match self.attempt(command, arguments, fds)? {
            Err(refusal) => Ok(refusal),
            Ok(value) => bail!("{command} was not refused: {value}"),
        }
    }

    /// Runs a command that may be refused.
    pub fn attempt(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<Value, Refusal>> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"execute": command, "id": id});
        if arguments
            .as_object()
            .is_none_or(|members| !members.is_empty())
        {
            request["arguments"] = arguments;
        }
        if let Some(watcher) = &mut self.watcher {
            watcher(Direction::Sent, &request, fds.len());
        }
        self.send_raw(format!("{request}\n").as_bytes(), fds)?;
        let reply = self.reply(PATIENCE)?;
        ensure!(
            reply["id"] == id,
            "{command}: a reply to something else: {reply}"
        );
        Ok(outcome(&reply))
    }

    /// Sends bytes as they are, with fds attached to the first of them.
    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let mut control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(rest)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?;
            rest = &rest[sent..];
            control = &[];
        }
        Ok(())
    }

    /// The next reply, queueing events that come before it.
    pub fn reply(&mut self, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            let message = self.receive(deadline.saturating_duration_since(Instant::now()))?;
            if message["event"].is_string() {
                self.events.push_back(message);
            } else {
                return Ok(message);
            }
        }
    }

    /// The next event of that name, already queued or still to come; earlier others are dropped.
    pub fn event(&mut self, name: &str, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            let message = match self.events.pop_front() {
                Some(event) => event,
                None => self
                    .receive(deadline.saturating_duration_since(Instant::now()))
                    .with_context(|| format!("waiting for event {name}"))?,
            };
            if message["event"] == name {
                return Ok(message);
            }
        }
    }

    /// The next event of that name about which `wanted` says yes; all others stay queued.
    pub fn event_where(
        &mut self,
        name: &str,
        timeout: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        let matches = |event: &Value| event["event"] == name && wanted(event);
        loop {
            if let Some(index) = self.events.iter().position(matches) {
                return self.events.remove(index).context("it was just there");
            }
            let message = self
                .receive(deadline.saturating_duration_since(Instant::now()))
                .with_context(|| format!("waiting for event {name}"))?;
            self.events.push_back(message);
        }
    }

    /// The next message, whatever it is.
    pub fn receive(&mut self, timeout: Duration) -> Result<Value> {
        let Some(line) = self.lines.next(Instant::now() + timeout)? else {
            bail!("the monitor closed the connection");
        };
        let message = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        if let Some(watcher) = &mut self.watcher {
            watcher(Direction::Received, &message, 0);
        }
        Ok(message)
    }
}

/// What a reply says: the value, or how it was refused.
pub fn outcome(reply: &Value) -> Result<Value, Refusal> {
    let error = &reply["error"];
    if error.is_null() {
        return Ok(reply["return"].clone());
    }
    Err(Refusal {
        class: error["class"].as_str().unwrap_or_default().to_owned(),
        desc: error["desc"].as_str().unwrap_or_default().to_owned(),
    })
}
