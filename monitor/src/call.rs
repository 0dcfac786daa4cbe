//! One request while it runs, for whoever runs it.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fdset::Peer;
use qapi_schema::{CommandSpec, Context, MonitorId, QmpError, Reply, SessionId, SessionPeer};
use serde_json::Value;

use crate::inbox::{Inbox, Pending};
use crate::line::{Line, Note};
use crate::print;

/// A request that was admitted and now runs. It owns the fds that came with it: whichever way it
/// ends, they are taken or closed, and the client gets exactly one answer.
pub struct Call {
    /// The command.
    pub command: &'static CommandSpec,
    /// Its arguments: always a JSON object, not yet checked.
    pub arguments: Value,
    id: Option<Value>,
    fds: VecDeque<OwnedFd>,
    line: Arc<Line>,
    /// The inbox to report to; `None` out of band, or once the answer is sent.
    lane: Option<Arc<Inbox>>,
    answered: bool,
}

impl Call {
    /// A request to be run out of band, or in band when it is from an inbox.
    pub(crate) fn new(pending: Pending, line: Arc<Line>, lane: Option<Arc<Inbox>>) -> Self {
        Self {
            command: pending.command,
            arguments: pending.arguments,
            id: pending.id,
            fds: pending.fds.into(),
            line,
            lane,
            answered: false,
        }
    }

    /// Answers the client. A success that left fds behind becomes an error.
    pub fn finish(mut self, result: Result<Reply, QmpError>) {
        self.answer(result);
    }

    /// Back into the lane that it came from, to be run later.
    pub(crate) fn put_back(mut self) {
        self.answered = true;
        let pending = Pending {
            id: self.id.take(),
            command: self.command,
            arguments: self.arguments.take(),
            fds: std::mem::take(&mut self.fds).into(),
        };
        if let Some(inbox) = self.lane.take() {
            inbox.put_back(self.line.key, pending);
        }
    }

    /// Whether the client has gone for good, so that nobody will read the answer. A request that
    /// still waits for something may then be given up; `wake_main` is called when it happens.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.line.deserted.load(Ordering::Relaxed)
    }

    fn answer(&mut self, result: Result<Reply, QmpError>) {
        self.answered = true;
        let surplus = std::mem::take(&mut self.fds).len();
        let result = match result {
            Ok(_) if surplus > 0 => Err(QmpError::generic(format!(
                "Command '{}' has run, but left {surplus} file descriptor(s) that came with it \
                 unused; they were closed",
                self.command.name
            ))),
            other => other,
        };
        let style = self.line.style;
        let id = self.id.as_ref();
        let message = match &result {
            Ok(reply) => print::success(style, id, reply),
            Err(error) => print::failure(style, id, error),
        };
        // A few commands are silent when they succeed: their effect is the answer.
        if result.is_err() || self.command.success_response {
            self.line.send(&message);
        }
        if let Some(inbox) = self.lane.take()
            && inbox.finish(self.line.key)
        {
            self.line.bell.ring(Note::Attend(self.line.key));
        }
    }
}

impl Context for Call {
    fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    fn monitor(&self) -> MonitorId {
        self.line.monitor
    }

    fn permits(&self, command: &str) -> Result<(), QmpError> {
        self.line.rights.permit_named(command)
    }

    fn session(&self) -> Option<SessionId> {
        let line = &self.line;
        line.scope.is_some().then(|| line.key.session())
    }

    fn peer(&self) -> Option<SessionPeer> {
        self.line
            .peer
            .map(|Peer { pid, uid, gid }| SessionPeer { pid, uid, gid })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            let desc = format!("Command '{}' ended without an answer", self.command.name);
            self.answer(Err(QmpError::generic(desc)));
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("command", &self.command.name)
            .field("monitor", &self.line.monitor)
            .field("id", &self.id)
            .field("fds", &self.fds)
            .finish_non_exhaustive()
    }
}
