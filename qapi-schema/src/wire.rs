//! What every command and event shares: errors with QMP's classes, the context a command runs in,
//! and where events go.

use std::fmt;
use std::os::fd::OwnedFd;

use serde::Serialize;

/// The error classes of QMP. Clients match on these; everything else is [`GenericError`](Self::GenericError).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorClass {
    /// Any error without a class of its own.
    GenericError,
    /// The command is unknown, or not allowed in this state of the session.
    CommandNotFound,
    /// The device exists but is not active.
    DeviceNotActive,
    /// No device, node or object has that name.
    DeviceNotFound,
    /// The host's KVM lacks something that the command needs.
    KVMMissingCap,
}

/// A command's failure, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QmpError {
    /// What kind of failure, for programs.
    pub class: ErrorClass,
    /// What failed and why, for people.
    pub desc: String,
}

impl QmpError {
    /// A failure without a class of its own.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// A failure of the given class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self {
            class,
            desc: desc.into(),
        }
    }

    /// `Device 'NAME' not found`, class `DeviceNotFound`.
    pub fn device_not_found(name: &str) -> Self {
        Self::new(
            ErrorClass::DeviceNotFound,
            format!("Device '{name}' not found"),
        )
    }

    /// `The command NAME has not been found`, class `CommandNotFound`.
    pub fn command_not_found(name: &str) -> Self {
        Self::new(
            ErrorClass::CommandNotFound,
            format!("The command {name} has not been found"),
        )
    }

    /// A failure told by an error and its causes, joined with `": "`.
    pub fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut desc = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            desc.push_str(": ");
            desc.push_str(&error.to_string());
            cause = error.source();
        }
        Self::generic(desc)
    }
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)
    }
}

impl std::error::Error for QmpError {}

/// One monitor (`-mon`, `-qmp`): the owner of fd names, which outlive its clients' connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MonitorId(pub u32);

/// One session of a client. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// The process behind a session, as the kernel noted it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPeer {
    /// Its process id.
    pub pid: u32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

/// What a running command may ask of the session it came from.
pub trait Context {
    /// The next fd that came with this request, in the order sent. Fds that nobody takes are
    /// closed when the request ends, and a request that left one behind is an error.
    fn take_fd(&mut self) -> Option<OwnedFd>;

    /// The monitor the request came over.
    fn monitor(&self) -> MonitorId;

    /// Whether the client may send that command too: asked for each command that is done inside
    /// another one.
    ///
    /// # Errors
    /// Why not.
    fn permits(&self, command: &str) -> Result<(), QmpError> {
        let _ = command;
        Ok(())
    }

    /// The session, where fd names belong to it and not to its monitor (`fd-scope=session`).
    fn session(&self) -> Option<SessionId> {
        None
    }

    /// Who is at the other end, where the connection tells: a unix socket does.
    fn peer(&self) -> Option<SessionPeer>;
}

/// Where events go: to every negotiated session.
pub trait EventSink: Send + Sync {
    /// Sends one event, stamped with the present time. Never blocks.
    fn emit(&self, event: crate::Event);
}
