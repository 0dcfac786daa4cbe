//! An fd on its way into the registry, with its story: what it is, who handed it over, and when.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::error::RegistryError;
use crate::kernel;
use crate::kind::{Kind, Nature};
use crate::ledger::{Place, Waiting};
use crate::registry::Scope;

/// The process at the other end of a connection, as the kernel noted it when they connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process id, as seen from our pid namespace; 0 when it is in none of ours.
    pub pid: u32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

impl Peer {
    /// Who is at the other end of `socket`; `None` where the kernel does not say: TCP, a tty.
    #[must_use]
    pub fn of(socket: impl AsFd) -> Option<Self> {
        let seen = getsockopt(&socket, PeerCredentials).ok()?;
        // What is not connected by a unix socket has no user, which the kernel writes as -1.
        (seen.uid() != u32::MAX).then(|| Self {
            pid: u32::try_from(seen.pid()).unwrap_or(0),
            uid: seen.uid(),
            gid: seen.gid(),
        })
    }

    /// The further groups of whoever is at the other end of `socket`; none where the kernel does
    /// not say.
    #[must_use]
    pub fn groups(socket: impl AsFd) -> Vec<u32> {
        kernel::peer_groups(socket.as_fd()).unwrap_or_default()
    }
}

/// Who handed an fd over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The parent process, by an option such as `-add-fd`.
    CommandLine,
    /// The parent process, by socket activation (`LISTEN_FDS`).
    Environment,
    /// The parent process, by leaving it open; no option names it.
    Inheritance,
    /// A client of a monitor.
    Monitor {
        /// The monitor's number.
        monitor: u32,
        /// The client, where its connection tells.
        peer: Option<Peer>,
    },
    /// The manager, by the open hook.
    Hook {
        /// The manager, where its connection tells.
        peer: Option<Peer>,
    },
    /// Whoever connected.
    Caller {
        /// Who that is, where the connection tells.
        peer: Option<Peer>,
    },
}

impl Origin {
    /// The process that handed it over, where that is known.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        match self {
            Self::CommandLine | Self::Environment | Self::Inheritance => None,
            Self::Monitor { peer, .. } | Self::Hook { peer } | Self::Caller { peer } => *peer,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::Environment => f.write_str("socket activation"),
            Self::Inheritance => f.write_str("inheritance"),
            Self::Monitor { monitor, .. } => write!(f, "monitor {monitor}"),
            Self::Hook { .. } => f.write_str("the open hook"),
            Self::Caller { .. } => f.write_str("whoever connected"),
        }?;
        match self.peer() {
            Some(peer) => write!(f, ", process {}, user {}", peer.pid, peer.uid),
            None => Ok(()),
        }
    }
}

/// An fd that was handed over.
#[derive(Debug)]
pub struct Handover {
    fd: OwnedFd,
    nature: Nature,
    origin: Origin,
    since: Instant,
    opened: bool,
    reported: bool,
    ends_with: Option<Scope>,
}

impl Handover {
    /// Takes note of `fd`, which came this moment.
    #[must_use]
    pub fn new(fd: OwnedFd, origin: Origin) -> Self {
        Self {
            nature: Nature::of(&fd),
            fd,
            origin,
            since: Instant::now(),
            opened: false,
            reported: false,
            ends_with: None,
        }
    }

    /// Lets it end with `scope`, unless somebody has taken it by then.
    #[must_use]
    pub fn bound_to(self, scope: Scope) -> Self {
        Self {
            ends_with: Some(scope),
            ..self
        }
    }

    /// The scope with which it ends.
    pub(crate) fn ends_with(&self) -> Option<Scope> {
        self.ends_with
    }

    /// Insists on the kind that was announced, if one was. An fd of another kind is closed.
    ///
    /// # Errors
    /// [`RegistryError::WrongKind`].
    pub fn announced_as(self, kind: Option<Kind>) -> Result<Self, RegistryError> {
        match kind {
            Some(announced) if announced != self.nature.kind => Err(RegistryError::WrongKind {
                announced,
                came: self.nature.kind,
            }),
            _ => Ok(self),
        }
    }

    /// What it is, as it was when it came.
    #[must_use]
    pub fn nature(&self) -> Nature {
        self.nature
    }

    /// Who handed it over.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// When it came.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it was ever opened.
    #[must_use]
    pub fn was_opened(&self) -> bool {
        self.opened
    }

    /// Notes that it was opened.
    pub(crate) fn note_open(&mut self) {
        self.opened = true;
    }

    /// Whether it waits to be opened, and nobody was told.
    pub(crate) fn awaits_report(&self) -> bool {
        !self.opened && !self.reported
    }

    /// Notes that somebody was told that it waits.
    pub(crate) fn note_report(&mut self) {
        self.reported = true;
    }

    /// The same for a list, which says that it waits at `place`.
    pub(crate) fn waiting(&self, place: Place) -> Waiting {
        Waiting {
            fd: self.fd.as_raw_fd(),
            place,
            nature: self.nature,
            origin: self.origin,
            since: self.since,
            opened: self.opened,
            ends_with: self.ends_with,
        }
    }

    /// The fd, without its story.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Handover {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Handover {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::watch::watched;

    #[test]
    fn the_peer_of_a_unix_socket_is_known_and_of_a_pipe_it_is_not() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let peer = Peer::of(&ours).expect("it is us");
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
        assert_eq!(Peer::of(watched().0), None);
    }

    #[test]
    fn an_fd_of_another_kind_than_announced_is_closed_and_the_error_says_both() {
        let (fd, watch) = watched();
        let error = Handover::new(fd, Origin::CommandLine)
            .announced_as(Some(Kind::Tap))
            .expect_err("a pipe");
        assert_eq!(
            error.to_string(),
            "The fd was announced as 'tap', but it is a pipe ('fifo') and was closed; \
             pass a tap interface, or announce what it is"
        );
        assert!(watch.is_closed());
    }

    #[test]
    fn an_fd_of_the_announced_kind_or_of_none_is_kept() {
        for kind in [Some(Kind::Fifo), None] {
            let (fd, watch) = watched();
            let kept = Handover::new(fd, Origin::CommandLine)
                .announced_as(kind)
                .expect("a pipe");
            assert_eq!(kept.nature().kind, Kind::Fifo);
            assert!(!watch.is_closed());
        }
    }
}
