//! What can go wrong.

use std::fmt;
use std::io;

use serde::Deserialize;

/// Why a command or the session failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused the command, or failed at it. The session goes on.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The socket failed.
    #[error("the connection to the QMP server failed")]
    Io(#[from] io::Error),
    /// The server ended the session.
    #[error("the QMP server ended the session")]
    Closed,
    /// Nothing came in the time set for it.
    #[error("the QMP server said nothing in time")]
    TimedOut,
    /// The server said what is not QMP, or not what the schema says.
    #[error("the server said what is not QMP: {said}")]
    Protocol {
        /// The beginning of what it said.
        said: String,
        /// What is wrong with it.
        #[source]
        why: Option<serde_json::Error>,
    },
}

impl Error {
    /// The error class, if the server refused the command.
    pub fn class(&self) -> Option<&ErrorClass> {
        match self {
            Self::Refused(refusal) => Some(&refusal.class),
            _ => None,
        }
    }

    pub(crate) fn protocol(said: &[u8], why: impl Into<Option<serde_json::Error>>) -> Self {
        /// How much of it is shown, in bytes.
        const SHOWN: usize = 120;
        let said = String::from_utf8_lossy(said.get(..SHOWN).unwrap_or(said)).into_owned();
        Self::Protocol {
            said,
            why: why.into(),
        }
    }
}

/// An error reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{command}: {desc}")]
pub struct Refusal {
    /// The command.
    pub command: String,
    /// What kind of failure.
    pub class: ErrorClass,
    /// What failed and why, for people.
    pub desc: String,
}

/// What kind of failure, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Any failure without a class of its own.
    GenericError,
    /// The command is unknown, or not allowed in this state of the session.
    CommandNotFound,
    /// The device exists but is not active.
    DeviceNotActive,
    /// No device, node or object has that name.
    DeviceNotFound,
    /// The host's KVM lacks something that the command needs.
    #[serde(rename = "KVMMissingCap")]
    KvmMissingCap,
    /// A class that this version does not know.
    #[serde(untagged)]
    Unknown(String),
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KvmMissingCap => f.write_str("KVMMissingCap"),
            Self::Unknown(name) => f.write_str(name),
            known => write!(f, "{known:?}"),
        }
    }
}
