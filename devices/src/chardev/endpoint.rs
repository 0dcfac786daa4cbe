//! How a chardev's descriptors come in, and who its peers are.
//!
//! [`open_endpoint`] is the only place where this room opens anything. A monitor calls it too, and
//! keeps the endpoint; a chardev turns the endpoint into an `Origin`: the source of its peers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fdset::{
    Access, Answers, Connection, Door, Existing, Expected, FileType, Listener, OpenError, OpenFile,
    Request, Role, SocketAddress, Told, Wait, Wish,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::SocketAddrUnix;

use super::ChardevError;
use super::peer::Peer;
use super::spec::{BackendSpec, SocketRole, SocketSpec};
use super::terminal::Terminal;
use crate::reactor::Watched;

/// Permission bits of an output file that is created, before the umask.
const MODE: u32 = 0o666;

/// How often a pty without a user is looked at: the kernel tells nobody that its other end was
/// opened.
const PTY_INTERVAL: Duration = Duration::from_secs(1);

/// What a chardev or a monitor talks through. All descriptors are non-blocking.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket; its path is removed with it.
    Listener {
        /// The socket.
        listener: Listener,
        /// Where it listens.
        address: SocketAddress,
        /// Whether creation is to wait for the first peer.
        wait: bool,
    },
    /// A connected socket.
    Stream {
        /// The socket.
        stream: OpenFile,
        /// Where it leads.
        address: SocketAddress,
    },
    /// Nobody yet: we are to call, again and again.
    Caller {
        /// Whom.
        address: SocketAddress,
        /// How long after a loss or a failure.
        interval: Duration,
        /// Whether small packets are sent at once.
        nodelay: bool,
    },
    /// Files or standard streams.
    Pair {
        /// Where input comes from, if there is any.
        input: Option<OpenFile>,
        /// Where output goes.
        output: OpenFile,
        /// Gives a terminal its mode back when dropped.
        terminal: Option<Terminal>,
    },
    /// Our end of a pseudo-terminal. It reports a hang-up while nobody has the other end open.
    Pty {
        /// Our end.
        master: OpenFile,
        /// The path of the other end.
        path: String,
    },
    /// No descriptor at all: `null` and `ringbuf`.
    Nothing,
}

impl Endpoint {
    /// What `query-chardev` calls it while it has no peer.
    #[must_use]
    pub fn filename(&self) -> String {
        match self {
            Self::Listener { address, .. } => format!("disconnected:{address},server=on"),
            Self::Stream { address, .. } => address.to_string(),
            Self::Caller { address, .. } => format!("disconnected:{address}"),
            Self::Pair {
                terminal: Some(_), ..
            } => "stdio".to_owned(),
            Self::Pair { .. } => "file".to_owned(),
            Self::Pty { path, .. } => format!("pty:{path}"),
            Self::Nothing => "null".to_owned(),
        }
    }
}

/// Opens what the chardev `id` needs.
///
/// # Errors
/// A name cannot be opened, nobody answers at the address, or standard input is taken.
pub fn open_endpoint(
    id: &str,
    backend: &BackendSpec,
    door: &Door,
) -> Result<Endpoint, ChardevError> {
    let reason = reason(id);
    match backend {
        BackendSpec::Socket(socket) => open_socket(id, socket, door),
        BackendSpec::File {
            output,
            input,
            append,
        } => {
            let existing = if *append {
                Existing::Append
            } else {
                Existing::Truncate
            };
            let request = Request::new(output, Access::WriteOnly, Role::Chardev, &reason)
                .create(MODE, existing);
            let output = open_unblocked(id, &request, door)?;
            let input = match input {
                Some(name) => {
                    let request = Request::new(name, Access::ReadOnly, Role::Chardev, &reason);
                    Some(open_unblocked(id, &request.nonblocking(true), door)?)
                }
                None => None,
            };
            Ok(Endpoint::Pair {
                input,
                output,
                terminal: None,
            })
        }
        BackendSpec::Stdio { signal } => {
            let (input, output, terminal) = Terminal::claim(id, *signal, door)?;
            Ok(Endpoint::Pair {
                input: Some(input),
                output,
                terminal: Some(terminal),
            })
        }
        BackendSpec::Pty => open_pty(&reason, door),
        BackendSpec::Null | BackendSpec::Ringbuf { .. } => Ok(Endpoint::Nothing),
    }
}

fn reason(id: &str) -> String {
    format!("chardev '{id}'")
}

fn open_socket(id: &str, socket: &SocketSpec, door: &Door) -> Result<Endpoint, ChardevError> {
    let mut address = socket.address.clone();
    let reason = reason(id);
    let hurry = |socket_fd: BorrowedFd<'_>| match socket.nodelay {
        true => fdset::set_nodelay(socket_fd)
            .map_err(|source| ChardevError::host(id, "sending small packets at once", source)),
        false => Ok(()),
    };
    match socket.role {
        SocketRole::Server { wait } => {
            let listener = fdset::listen(door, &address, Role::Chardev, &reason)?;
            hurry(listener.as_fd())?;
            // Port 0 stands for the one that it got.
            if let (SocketAddress::Inet { port, .. }, Some(local)) =
                (&mut address, listener.local())
            {
                *port = local.port();
            }
            Ok(Endpoint::Listener {
                listener,
                address,
                wait,
            })
        }
        SocketRole::Client => {
            let Connection { fd: stream, .. } =
                fdset::connect(door, &address, Wait::ForPeer, Role::Chardev, &reason)?;
            hurry(stream.as_fd())?;
            unblock(&stream)
                .map_err(|source| ChardevError::host(id, "unblocking its socket", source))?;
            Ok(Endpoint::Stream { stream, address })
        }
        SocketRole::Reconnecting(interval) => {
            if matches!(address, SocketAddress::Fd { .. }) {
                return Err(ChardevError::Conflict {
                    id: id.to_owned(),
                    problem: "a passed connection cannot be made again; \
                              leave reconnect-ms out or give a path",
                });
            }
            // It will call for as long as it lives; better said now than found out by silence.
            fdset::may_connect(door, &address, Role::Chardev, &reason)?;
            Ok(Endpoint::Caller {
                address,
                interval,
                nodelay: socket.nodelay,
            })
        }
    }
}

fn open_unblocked(id: &str, request: &Request<'_>, door: &Door) -> Result<OpenFile, ChardevError> {
    let file = fdset::open(door, request)?;
    unblock(&file).map_err(|source| ChardevError::host(id, "unblocking its file", source))?;
    Ok(file)
}

fn open_pty(reason: &str, door: &Door) -> Result<Endpoint, ChardevError> {
    let pty = fdset::pty(door, Role::Chardev, reason)?;
    Ok(Endpoint::Pty {
        master: pty.master,
        path: pty.path.to_string_lossy().into_owned(),
    })
}

/// Makes a descriptor non-blocking. Regular files are left alone: they never block in this sense,
/// and the flag would show in every process that shares them.
pub(crate) fn unblock(file: &OpenFile) -> io::Result<()> {
    if never_blocks(file)? {
        return Ok(());
    }
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// Whether a file is always ready, so that epoll refuses it.
pub(super) fn never_blocks(file: &OpenFile) -> io::Result<bool> {
    Ok(matches!(
        file.file_type()?,
        FileType::Regular | FileType::BlockDevice | FileType::Directory
    ))
}

/// Where a line's peers come from.
pub(super) enum Origin {
    /// The peer it began with, and nobody after it.
    Fixed {
        name: String,
        /// Held for its drop.
        _terminal: Option<Terminal>,
    },
    /// Whoever calls.
    Server {
        listener: Arc<Listener>,
        address: SocketAddress,
    },
    /// The one we call.
    Caller {
        door: Door,
        reason: String,
        address: SocketAddress,
        interval: Duration,
        nodelay: bool,
        /// The log knows that it may not call by itself.
        told: AtomicBool,
    },
    /// Whoever opens the other end.
    Pty { master: Arc<OpenFile>, name: String },
}

/// What looking for a peer gave.
pub(super) enum Accepted {
    /// One.
    Peer(Peer),
    /// One who has not answered yet.
    Calling(Peer),
    /// None before the open hook was asked for this.
    Asking(Wish),
    /// None; an event will tell of the next.
    Nobody,
    /// None; look again then.
    Later(Duration),
    /// None: it may not be called any more, but a connection to it may be handed in.
    Refused(OpenError),
    /// One is waiting, but there is no descriptor for it.
    OutOfDescriptors(io::Error),
}

impl Origin {
    /// What to watch for new peers.
    pub(super) fn listener(&self) -> Option<Watched> {
        match self {
            Self::Server { listener, .. } => Some(Arc::clone(listener) as Watched),
            Self::Fixed { .. } | Self::Caller { .. } | Self::Pty { .. } => None,
        }
    }

    /// Whether another peer may follow.
    pub(super) fn has_more_peers(&self) -> bool {
        !matches!(self, Self::Fixed { .. })
    }

    /// How long to wait after a peer has left; `None` to look at once.
    pub(super) fn pause_between_peers(&self) -> Option<Duration> {
        match self {
            Self::Fixed { .. } | Self::Server { .. } => None,
            Self::Caller { interval, .. } => Some(*interval),
            Self::Pty { .. } => Some(PTY_INTERVAL),
        }
    }

    /// The name in `query-chardev` while nobody is connected.
    pub(super) fn name_without_peer(&self) -> String {
        match self {
            Self::Fixed { name, .. } | Self::Pty { name, .. } => name.clone(),
            Self::Server { address, .. } => format!("disconnected:{address},server=on"),
            Self::Caller { address, .. } => format!("disconnected:{address}"),
        }
    }

    /// Looks for a peer without waiting for one.
    pub(super) fn next_peer(&self) -> Accepted {
        match self {
            Self::Fixed { .. } => Accepted::Nobody,
            Self::Server { listener, address } => accept(listener, address),
            Self::Caller {
                reason,
                address,
                interval,
                ..
            } => match address.open_name() {
                Some(name) => {
                    let request = Request::new(&name, Access::ReadWrite, Role::Chardev, reason);
                    Accepted::Asking(Wish::new(&request, Expected::ConnectedSocket))
                }
                None => Accepted::Later(*interval),
            },
            Self::Pty { master, name } => {
                if hung_up(master) {
                    Accepted::Later(PTY_INTERVAL)
                } else {
                    Accepted::Peer(Peer::duplex(Arc::clone(master), name.clone()))
                }
            }
        }
    }
}

impl Origin {
    /// Has the open hook asked for the peer to be called.
    pub(super) fn ask(&self, wish: Wish, told: Told) {
        if let Self::Caller { door, .. } = self {
            door.ask_again(wish, told);
        }
    }

    /// Calls the peer, or takes the connection to it that is among `answers`.
    pub(super) fn call(&self, answers: Arc<Answers>) -> Accepted {
        let Self::Caller {
            door,
            reason,
            address,
            interval,
            nodelay,
            told,
        } = self
        else {
            return Accepted::Nobody;
        };
        let door = door.clone().with_answers(answers);
        let accepted = call(&door, address, *nodelay, reason, *interval);
        let refused = matches!(accepted, Accepted::Refused(..));
        let was_told = told.swap(refused, Ordering::Relaxed);
        if let (Accepted::Refused(error), false) = (&accepted, was_told) {
            tracing::warn!(
                %error,
                "a chardev cannot call again by itself; it goes on when the open hook, an alias or \
                 a set gives it a connection"
            );
        }
        accepted
    }
}

fn accept(listener: &Listener, address: &SocketAddress) -> Accepted {
    loop {
        match fdset::accept(listener) {
            Ok(caller) => {
                let name = peer_name(&caller, address, ",server=on");
                return Accepted::Peer(Peer::duplex(Arc::new(caller), name));
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Accepted::Nobody,
                // The peer gave up while it waited, or a signal came: the next one may be there.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ => return Accepted::OutOfDescriptors(error),
            },
        }
    }
}

/// Calls once; when nobody answers, again later. A host name is resolved here, so a name server
/// that does not answer holds up the reactor: addresses in numbers are safer.
fn call(
    door: &Door,
    address: &SocketAddress,
    nodelay: bool,
    reason: &str,
    interval: Duration,
) -> Accepted {
    match fdset::connect(door, address, Wait::Not, Role::Chardev, reason) {
        Ok(Connection { fd, in_progress }) => {
            if nodelay && let Err(error) = fdset::set_nodelay(&fd) {
                tracing::warn!(%error, %address, "small packets to a peer are held back");
            }
            let name = peer_name(&fd, address, "");
            let peer = Peer::duplex(Arc::new(fd), name);
            if in_progress {
                Accepted::Calling(peer)
            } else {
                Accepted::Peer(peer)
            }
        }
        Err(error) => {
            if matches!(error, OpenError::NotPassed { .. }) {
                return Accepted::Refused(error);
            }
            tracing::debug!(%error, "a chardev's peer does not answer");
            Accepted::Later(interval)
        }
    }
}

fn hung_up(master: &OpenFile) -> bool {
    let mut wanted = [PollFd::new(master.as_fd(), PollFlags::empty())];
    let polled = poll(&mut wanted, PollTimeout::ZERO);
    polled.is_err()
        || wanted[0]
            .revents()
            .is_none_or(|events| events.contains(PollFlags::POLLHUP))
}

/// The name of a connected socket in `query-chardev`: `unix:PATH,server=on`, or both TCP ends.
pub(super) fn peer_name(socket: impl AsFd, address: &SocketAddress, suffix: &str) -> String {
    let Ok(local) = rustix::net::getsockname(&socket) else {
        return format!("{address}{suffix}");
    };
    if let (SocketAddress::Fd { .. }, Ok(unix)) = (address, SocketAddrUnix::try_from(local.clone()))
    {
        // What was passed says by itself where it is bound.
        let path = unix.path().map(|path| path.to_string_lossy().into_owned());
        return format!("unix:{}{suffix}", path.unwrap_or_default());
    }
    let remote = rustix::net::getpeername(&socket).ok().flatten();
    let ends = (
        std::net::SocketAddr::try_from(local),
        remote.map(std::net::SocketAddr::try_from),
    );
    match ends {
        (Ok(local), Some(Ok(remote))) => format!("tcp:{local}{suffix} <-> {remote}"),
        _ => format!("{address}{suffix}"),
    }
}
