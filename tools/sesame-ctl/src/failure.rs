//! What can go wrong, and the exit status that tells a script which of it did.

use std::io;

use sesame_qmp::{Error, ErrorClass, Refusal};

/// Why the program did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The words make no command; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// No such command; nothing was sent.
    #[error("{0}")]
    NoSuchCommand(String),
    /// The VM refused the command.
    #[error("{0} ({class})", class = .0.class)]
    Refused(Refusal),
    /// There is no session.
    #[error("no session with '{socket}'")]
    Connect {
        /// Where it was looked for.
        socket: String,
        /// Why.
        #[source]
        why: Error,
    },
    /// The session ended or broke.
    #[error("the session with the VM is over")]
    Lost(#[source] Error),
    /// Nothing came in the time of `--timeout`.
    #[error("{0} took longer than --timeout")]
    TimedOut(String),
    /// A job that was waited for did not succeed.
    #[error("{0}")]
    Job(String),
    /// Replies of a replayed script were not those it has.
    #[error("{0}")]
    Differs(String),
    /// A file of this side cannot be opened, read or written.
    #[error("{what}")]
    File {
        /// What was tried with which file.
        what: String,
        /// Why not.
        #[source]
        why: io::Error,
    },
    /// Nobody reads the output any more, as when `head` has enough.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
}

impl Failure {
    /// The exit status: the table of `docs/sesame-ctl.md`.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Refused(refusal) => match refusal.class {
                ErrorClass::GenericError => 1,
                ErrorClass::CommandNotFound => 3,
                ErrorClass::DeviceNotFound => 4,
                ErrorClass::DeviceNotActive => 5,
                ErrorClass::KvmMissingCap => 6,
                _ => 7,
            },
            Self::Usage(_) => 2,
            Self::NoSuchCommand(_) => 3,
            Self::Connect { .. } | Self::Lost(_) => 8,
            Self::TimedOut(_) => 9,
            Self::Job(_) => 10,
            Self::Differs(_) => 11,
            Self::File { .. } | Self::Output(_) => 12,
        }
    }

    /// What came of `doing`, in words of this program.
    pub(crate) fn of(doing: &str, error: Error) -> Self {
        match error {
            Error::Refused(refusal) => Self::Refused(refusal),
            Error::TimedOut => Self::TimedOut(doing.to_owned()),
            other => Self::Lost(other),
        }
    }

    /// Whether the session is of no more use.
    pub(crate) fn ends_session(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Connect { .. })
    }

    /// The failure with its causes, in one line.
    pub(crate) fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line.replace('\n', " ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_class_has_its_exit_status() {
        let refused = |class| {
            let refusal = Refusal {
                command: "c".to_owned(),
                class,
                desc: "no".to_owned(),
            };
            Failure::Refused(refusal).status()
        };
        assert_eq!(refused(ErrorClass::GenericError), 1);
        assert_eq!(refused(ErrorClass::CommandNotFound), 3);
        assert_eq!(refused(ErrorClass::DeviceNotFound), 4);
        assert_eq!(refused(ErrorClass::DeviceNotActive), 5);
        assert_eq!(refused(ErrorClass::KvmMissingCap), 6);
        assert_eq!(refused(ErrorClass::Unknown("New".to_owned())), 7);
    }

    #[test]
    fn a_failure_is_one_line_with_its_causes() {
        let failure = Failure::Connect {
            socket: "s".to_owned(),
            why: io::Error::other("two\nlines").into(),
        };
        let line = failure.line();
        assert!(line.starts_with("no session with 's': "), "{line}");
        assert!(line.ends_with("two lines"), "{line}");
    }
}
