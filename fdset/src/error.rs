//! What can go wrong: with the registry's commands, and with an open.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use crate::hook::HookError;
use crate::kind::{Kind, either};
use crate::lease::Identity;
use crate::policy::Policy;
use crate::request::{Access, Request, Role};
use crate::reserve::is_out_of_fds;
use crate::sets::FdsetId;

/// A registry command that was refused. The texts are the ones QMP clients match on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// An fd's name is empty or starts with a digit, which would read as a number.
    #[error("Parameter 'fdname' expects a name not starting with a digit")]
    BadName,
    /// No fd has this name.
    #[error("File descriptor named '{0}' not found")]
    NoSuchName(String),
    /// No set has this id.
    #[error("File descriptor named 'fdset-id:{0}' not found")]
    NoSuchSet(i64),
    /// The set has no such member.
    #[error("File descriptor named 'fdset-id:{set}, fd:{fd}' not found")]
    NoSuchMember {
        /// The set's id.
        set: i64,
        /// The fd number that was asked for.
        fd: i64,
    },
    /// Clients have left as much of something as they may.
    #[error("There are {limit} {what} already, which is the most; {fix} first")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
        /// What makes room.
        fix: &'static str,
    },
    /// A text is longer than anything needs.
    #[error("Parameter '{parameter}' has {came} bytes; the most is {limit}")]
    TooLong {
        /// Which.
        parameter: &'static str,
        /// Its length.
        came: usize,
        /// The most.
        limit: usize,
    },
    /// An fd is not what it was announced to be; it was closed.
    #[error(
        "The fd was announced as '{}', but it is {came} ('{}') and was closed; \
         pass {announced}, or announce what it is",
        .announced.name(), .came.name()
    )]
    WrongKind {
        /// What was announced.
        announced: Kind,
        /// What came.
        came: Kind,
    },
    /// A path cannot be an alias.
    #[error("Path '{path}' cannot be an alias: {problem}")]
    BadAlias {
        /// The path.
        path: String,
        /// Why.
        problem: &'static str,
    },
    /// Another set answers for the path.
    #[error(
        "Path '{path}' is an alias of fd set {set} already; take that back with remove-fd-alias first"
    )]
    AliasTaken {
        /// The path.
        path: String,
        /// The set that answers for it.
        set: FdsetId,
    },
    /// No set answers for the path.
    #[error("Path '{0}' is no alias; query-fd-aliases lists them")]
    NoSuchAlias(String),
    /// A set's id is negative.
    #[error("Parameter 'fdset-id' expects a non-negative value")]
    NegativeId,
}

/// Who wanted what: the beginning of every [`OpenError`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name as the caller gave it.
    pub name: String,
    /// The access wanted, where there is one to want.
    pub access: Option<Access>,
    /// What it was for.
    pub role: Role,
    /// For whom.
    pub reason: String,
}

impl Wanted {
    /// A wish without an access mode: a socket, a pty, a raw fd.
    pub(crate) fn new(name: impl Into<String>, role: Role, reason: &str) -> Self {
        Self {
            name: name.into(),
            access: None,
            role,
            reason: reason.to_owned(),
        }
    }
}

impl From<&Request<'_>> for Wanted {
    fn from(request: &Request<'_>) -> Self {
        Self {
            access: Some(request.access),
            ..Self::new(request.name, request.role, request.reason)
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Could not open '{}'", self.name)?;
        if let Some(access) = self.access {
            write!(f, " {access}")?;
        }
        write!(f, " as {}", self.role)?;
        if !self.reason.is_empty() {
            write!(f, " of {}", self.reason)?;
        }
        Ok(())
    }
}

/// An open that failed. Nothing was opened, and nothing that was passed is lost.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `fd:NAME`, and neither this monitor nor the command line has such a name.
    #[error("{wanted}: no fd has this name; pass one with getfd on the same monitor first")]
    NoSuchName {
        /// Who wanted what.
        wanted: Wanted,
    },
    /// `/dev/fdset/N`, and there is no set N.
    #[error("{wanted}: there is no fd set {set}; make it with add-fd first")]
    NoSuchSet {
        /// Who wanted what.
        wanted: Wanted,
        /// The id in the name.
        set: FdsetId,
    },
    /// `/dev/fdset/` followed by something that is no id.
    #[error("{wanted}: what follows /dev/fdset/ must be the decimal id of an fd set")]
    MalformedSet {
        /// Who wanted what.
        wanted: Wanted,
    },
    /// The set has no member with the wanted access mode.
    #[error("{wanted}: fd set {set} has {}; add one that was opened with {}", members(.came), wanted_flag(.wanted))]
    NoMember {
        /// Who wanted what.
        wanted: Wanted,
        /// The set.
        set: FdsetId,
        /// Its members and what each can do; `None` is an `O_PATH` fd.
        came: Vec<(RawFd, Option<Access>)>,
    },
    /// Several of the set's members would do, and are different files; the role takes one.
    #[error(
        "{wanted}: fd set {set} has different files for that ({}), and nothing tells which is \
         meant: give each file a set of its own", files(.came)
    )]
    SeveralFiles {
        /// Who wanted what.
        wanted: Wanted,
        /// The set.
        set: FdsetId,
        /// Those members and which file each is.
        came: Vec<(RawFd, Option<Identity>)>,
    },
    /// The named fd cannot do what is wanted. The name survives.
    #[error("{wanted}: the fd is {}; pass one that was opened with {}", came_text(.came), wanted_flag(.wanted))]
    WrongAccess {
        /// Who wanted what.
        wanted: Wanted,
        /// What the fd can do; `None` is an `O_PATH` fd.
        came: Option<Access>,
    },
    /// What was found is of a kind that the role cannot use. A named fd survives.
    #[error("{wanted}: it is {came}; needed is {}", either(.needed))]
    WrongKind {
        /// Who wanted what.
        wanted: Wanted,
        /// What it is.
        came: Kind,
        /// What would do.
        needed: Vec<Kind>,
    },
    /// The thing is there but is not what the role needs.
    #[error("{wanted}: {problem}")]
    Unfit {
        /// Who wanted what.
        wanted: Wanted,
        /// What was needed, what came, and the fix.
        problem: String,
    },
    /// The open hook was asked and gave none; the source says why.
    #[error("{wanted}")]
    Hook {
        /// Who wanted what.
        wanted: Wanted,
        /// Why.
        #[source]
        source: Box<HookError>,
    },
    /// The policy opens only what was handed in.
    #[error("{wanted}: the open policy is '{}': only fds that were handed in are opened; pass one \
             with add-fd or getfd and give '/dev/fdset/N' or 'fd:NAME'", policy.as_str())]
    NotPassed {
        /// Who wanted what.
        wanted: Wanted,
        /// The policy.
        policy: Policy,
    },
    /// It is there, but this process has no number left for it.
    #[error(
        "{wanted}: this process has no fd left; take some back with remove-fd or closefd, or start \
         it with a higher limit (RLIMIT_NOFILE)"
    )]
    NoFdLeft {
        /// Who wanted what.
        wanted: Wanted,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The kernel refused; the source says why.
    #[error("{wanted}")]
    Os {
        /// Who wanted what.
        wanted: Wanted,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Wraps a refusal of the kernel.
    pub(crate) fn os(wanted: Wanted, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if is_out_of_fds(&source) {
            return Self::NoFdLeft { wanted, source };
        }
        Self::Os { wanted, source }
    }

    /// Wraps a fault in what was found.
    pub(crate) fn unfit(wanted: Wanted, problem: impl Into<String>) -> Self {
        Self::Unfit {
            wanted,
            problem: problem.into(),
        }
    }

    /// The error number that `open(2)` would have given: callers that tell a missing file from a
    /// forbidden one ask here, whichever source the file was to come from.
    #[must_use]
    pub fn errno(&self) -> i32 {
        use nix::errno::Errno;
        match self {
            Self::NoSuchName { .. } | Self::NoSuchSet { .. } => Errno::ENOENT as i32,
            Self::NoMember { .. } | Self::WrongAccess { .. } => Errno::EACCES as i32,
            Self::NotPassed { .. } => Errno::EPERM as i32,
            Self::Hook { source, .. } => source.errno(),
            Self::MalformedSet { .. }
            | Self::WrongKind { .. }
            | Self::SeveralFiles { .. }
            | Self::Unfit { .. } => Errno::EINVAL as i32,
            Self::Os { source, .. } | Self::NoFdLeft { source, .. } => {
                source.raw_os_error().unwrap_or(Errno::EIO as i32)
            }
        }
    }
}

fn wanted_flag(wanted: &Wanted) -> &'static str {
    wanted.access.map_or("the right mode", Access::flag_name)
}

fn came_text(came: &Option<Access>) -> String {
    came.map_or_else(|| "O_PATH".to_owned(), |access| access.to_string())
}

fn members(came: &[(RawFd, Option<Access>)]) -> String {
    if came.is_empty() {
        return "no fd".to_owned();
    }
    let each: Vec<String> = came
        .iter()
        .map(|(fd, access)| format!("fd {fd} ({})", came_text(access)))
        .collect();
    format!("only {}", each.join(", "))
}

fn files(came: &[(RawFd, Option<Identity>)]) -> String {
    let each: Vec<String> = came
        .iter()
        .map(|(fd, identity)| match identity {
            Some(Identity { dev, ino }) => format!("fd {fd}: device {dev} inode {ino}"),
            None => format!("fd {fd}: unknown"),
        })
        .collect();
    each.join(", ")
}
