//! How a monitor's clients come, one after the other or many at once: by connecting to a socket,
//! or by opening the other end of a pty.
//!
//! Edge-triggered readiness tells once that somebody waits, so whoever cannot be let in now is
//! asked for again by the clock: [`Door::rests_until`]. Who cannot be served at all is told so in
//! one line and let go, also when this process has no fd left: one is kept in reserve for that.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use fdset::{Listener, Reserve, is_out_of_fds};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{FlushArg, tcflush};
use qapi_schema::QmpError;

use crate::line::Manner;
use crate::print::{Style, failure};
use crate::transport::{Outlet, Port};

/// How many clients one monitor serves at once.
const CLIENTS_PER_MONITOR: usize = 256;
/// How long a listener rests when its callers can be neither served nor told so.
const ACCEPT_REST: Duration = Duration::from_millis(200);
/// How long nothing more is told of a user who is not served, and calls again and again.
const STRANGER_REST: Duration = Duration::from_secs(1);
/// How many callers are turned away before the sessions have their turn.
const TURNED_AWAY_AT_ONCE: usize = 64;
/// How often to look whether somebody has opened a pty: the kernel does not tell.
const PTY_REST: Duration = Duration::from_secs(1);

/// What clients come through.
#[derive(Debug)]
pub(crate) enum Entrance {
    /// They connect. The reserve is made with the monitor, while there are fds.
    Listener(Listener, Reserve),
    /// They open the other end of this pty.
    Pty(Arc<Port>),
}

/// A monitor whose clients come and go.
#[derive(Debug)]
pub(crate) struct Door {
    /// What its sessions have alike.
    pub(crate) manner: Manner,
    entrance: Entrance,
    /// Told when the first client is there.
    first_client: Option<SyncSender<()>>,
    clients: usize,
    /// Refusals are told once, until there is room again.
    told_full: bool,
    /// Which user was turned away last, and when that may be told again.
    told_stranger: Option<(Option<u32>, Instant)>,
    rests_until: Option<Instant>,
}

impl Door {
    /// A door that nobody has come through.
    pub(crate) fn new(
        manner: Manner,
        entrance: Entrance,
        first_client: Option<SyncSender<()>>,
    ) -> Self {
        Self {
            manner,
            entrance,
            first_client,
            clients: 0,
            told_full: false,
            told_stranger: None,
            rests_until: None,
        }
    }

    /// When to ask for the next client although nobody knocks.
    pub(crate) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Ends the rest if its time has come; true when it was so.
    pub(crate) fn has_rested(&mut self, now: Instant) -> bool {
        self.rests_until.take_if(|until| *until <= now).is_some()
    }

    /// The fd that becomes readable when a client comes, where there is one.
    pub(crate) fn knocker(&self) -> Option<RawFd> {
        match &self.entrance {
            Entrance::Listener(listener, _) => Some(listener.as_raw_fd()),
            Entrance::Pty(_) => None,
        }
    }

    /// The next client who waits, if one does and may come in.
    pub(crate) fn admit(&mut self) -> Option<Arc<Port>> {
        if self.rests_until.is_some() {
            return None;
        }
        let port = match &self.entrance {
            Entrance::Listener(..) => self.accept()?,
            Entrance::Pty(_) if self.clients > 0 => return None,
            Entrance::Pty(port) if is_hung_up(port) => {
                self.rests_until = Some(Instant::now() + PTY_REST);
                return None;
            }
            Entrance::Pty(port) => Arc::clone(port),
        };
        self.clients += 1;
        Some(port)
    }

    /// Tells whoever waits for the first client that it is there.
    pub(crate) fn announce(&mut self) {
        if let Some(first_client) = self.first_client.take() {
            // Whoever waited may have given up.
            let _ = first_client.try_send(());
        }
    }

    /// Notes that a client has gone.
    pub(crate) fn part(&mut self) {
        self.clients = self.clients.saturating_sub(1);
        self.told_full = false;
        if let Entrance::Pty(port) = &self.entrance {
            // What the last client did not read is not for the next one.
            let _ = tcflush(port.as_fd(), FlushArg::TCIOFLUSH);
            self.rests_until = Some(Instant::now() + PTY_REST);
        }
    }

    /// Accepts one connection, turning away those who cannot be served.
    fn accept(&mut self) -> Option<Arc<Port>> {
        for _ in 0..TURNED_AWAY_AT_ONCE {
            let Entrance::Listener(listener, _) = &self.entrance else {
                return None;
            };
            match fdset::accept(listener)
                .and_then(Port::of_caller)
                .and_then(|port| port.wrapped(self.manner.tls.as_ref()))
                .map(Arc::new)
            {
                Ok(port) if !self.knows(&port) => {}
                Ok(port) if self.clients < CLIENTS_PER_MONITOR => {
                    self.told_full = false;
                    return Some(port);
                }
                Ok(port) => {
                    let why = format!(
                        "This monitor serves {CLIENTS_PER_MONITOR} clients at once, and has them; \
                         close one connection first"
                    );
                    turn_away(&port, self.manner.style, &why);
                    self.tell_once(&why);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ if is_out_of_fds(&error) => {
                        let why = format!("This process can serve no more clients now: {error}");
                        if !self.turn_away_by_reserve(&why) {
                            return None;
                        }
                    }
                    _ => {
                        let monitor = &self.manner.rights.name;
                        tracing::warn!(monitor, %error, "a client cannot be accepted yet");
                        self.rests_until = Some(Instant::now() + ACCEPT_REST);
                        return None;
                    }
                },
            }
        }
        // More may wait, of whom no edge will tell.
        self.rests_until = Some(Instant::now());
        None
    }

    /// Whether the monitor serves a caller; one that it does not is told so, and the log.
    fn knows(&mut self, port: &Arc<Port>) -> bool {
        let rights = Arc::clone(&self.manner.rights);
        let Err(stranger) = rights.admit(&**port) else {
            return true;
        };
        turn_away(port, self.manner.style, &stranger);
        let user = stranger.peer.map(|peer| peer.uid);
        let now = Instant::now();
        let told = |(known, until): (Option<u32>, Instant)| known == user && until > now;
        if !self.told_stranger.is_some_and(told) {
            self.told_stranger = Some((user, now + STRANGER_REST));
            stranger.tell();
        }
        false
    }

    /// Accepts with the fd kept in reserve, tells why that is all, and has the fd back. When even
    /// that fails, the door rests; false then, and when nobody waits.
    fn turn_away_by_reserve(&mut self, why: &str) -> bool {
        let Entrance::Listener(listener, reserve) = &mut self.entrance else {
            return false;
        };
        let style = self.manner.style;
        let told = reserve.lend(|| {
            let port = fdset::accept(listener).and_then(Port::of_caller)?;
            turn_away(&Arc::new(port), style, &why);
            Ok(())
        });
        let is_whole = reserve.refill();
        // Without an fd the kernel does not even look whether somebody waits.
        if let Err(error) = &told
            && io::Error::kind(error) == io::ErrorKind::WouldBlock
        {
            return false;
        }
        self.tell_once(why);
        if told.is_err() || !is_whole {
            self.rests_until = Some(Instant::now() + ACCEPT_REST);
        }
        self.rests_until.is_none()
    }

    fn tell_once(&mut self, why: &str) {
        if !std::mem::replace(&mut self.told_full, true) {
            let (monitor, clients) = (&self.manner.rights.name, self.clients);
            tracing::warn!(monitor, clients, why, "clients are turned away");
        }
    }
}

/// Says why a caller is not served, and hangs up.
pub(crate) fn turn_away(port: &Arc<Port>, style: Style, why: &dyn fmt::Display) {
    let outlet = Outlet::new(Arc::clone(port));
    outlet.send(&failure(style, None, &QmpError::generic(why.to_string())));
    outlet.close();
}

/// Whether the other end of a pty is closed.
fn is_hung_up(port: &Port) -> bool {
    let mut polled = [PollFd::new(port.as_fd(), PollFlags::empty())];
    let told = poll(&mut polled, PollTimeout::ZERO);
    let hung_up = |polled: &PollFd<'_>| {
        polled
            .revents()
            .is_some_and(|revents| revents.contains(PollFlags::POLLHUP))
    };
    told.is_ok() && polled.iter().any(hung_up)
}
