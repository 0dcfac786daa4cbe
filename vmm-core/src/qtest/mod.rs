//! The qtest protocol: a program that tests drives the machine's buses and memory in place of its
//! CPUs (`-accel qtest`, `-qtest CHARDEV`).
//!
//! This room knows lines of text, buses and guest memory. It must never know a QMP command, a
//! device model or KVM.
//!
//! ```text
//!   tester ─► chardev ─► Qtest::receive: lines ─► Session::answer ─┬─ in*, out*  ─► ports
//!     ▲                                             (command.rs)   ├─ read, write ─► RAM or a BAR
//!     └─ chardev ◄─ backlog ◄─ one line for each ◄─────────────────┴─ clock_*: its own clock
//! ```
//!
//! The chardev's thread does it all. A tester that does not read its answers is not read from
//! until it does.
//!
//! Read next: [`command`].

mod command;
mod log;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::chardev::{Chardev, ChardevError, ChardevLease, Frontend};

pub use command::Target;
pub use log::Log;

use command::Session;

/// The longest line of a tester, in bytes: some write megabytes at once, in hexadecimal.
const LONGEST_LINE: usize = 64 << 20;
/// How much is taken at once.
const ROOM: usize = 64 << 10;

/// The server's side of a tester's connection.
pub struct Qtest {
    state: Mutex<State>,
    lease: OnceLock<ChardevLease>,
}

struct State {
    session: Session,
    log: Option<Log>,
    /// A line whose end has not come.
    partial: Vec<u8>,
    /// Answers that the tester has not taken.
    backlog: Vec<u8>,
}

impl Qtest {
    /// Serves whoever is at the other end of `chardev`, from now on.
    ///
    /// # Errors
    /// A device has the chardev.
    pub fn serve(chardev: &Arc<Chardev>, log: Option<Log>) -> Result<Arc<Self>, ChardevError> {
        let qtest = Arc::new(Self {
            state: Mutex::new(State {
                session: Session::new(None),
                log,
                partial: Vec::new(),
                backlog: Vec::new(),
            }),
            lease: OnceLock::new(),
        });
        let frontend: Arc<dyn Frontend> = Arc::clone(&qtest) as _;
        let lease = chardev.attach(&frontend)?;
        lease.set_open(true);
        // What came in between waits in the chardev for this.
        let lease = qtest.lease.get_or_init(|| lease);
        lease.resume_input();
        Ok(qtest)
    }

    /// Hands over what the tester drives.
    pub fn aim(&self, target: Target) {
        self.state().session.aim(target);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the tester takes of the answers; `true` if nothing is left.
    fn send(&self) -> bool {
        let Some(lease) = self.lease.get() else {
            return false;
        };
        let backlog = std::mem::take(&mut self.state().backlog);
        let sent = lease.write(&backlog);
        let rest = backlog.get(sent..).unwrap_or_default();
        self.state().backlog.splice(..0, rest.iter().copied());
        rest.is_empty()
    }
}

impl Frontend for Qtest {
    fn room(&self) -> usize {
        let is_free = self.lease.get().is_some() && self.state().backlog.is_empty();
        if is_free { ROOM } else { 0 }
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        self.state().take(bytes);
        self.send();
        bytes.len()
    }

    fn writable(&self) {
        if self.send()
            && let Some(lease) = self.lease.get()
        {
            lease.resume_input();
        }
    }

    fn peer_changed(&self) {
        let Some(lease) = self.lease.get() else {
            return;
        };
        let connected = lease.is_connected();
        let mut state = self.state();
        state.partial.clear();
        state.backlog.clear();
        if let Some(log) = &mut state.log {
            log.connection(connected);
        }
    }
}

impl State {
    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len().saturating_add(piece.len()) > LONGEST_LINE {
                self.partial.clear();
                self.answer("FAIL line too long".to_owned());
            }
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.partial);
                let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                if let Some(log) = &mut self.log {
                    log.received(&line);
                }
                let answer = self.session.answer(&line);
                self.answer(answer);
            }
        }
    }

    fn answer(&mut self, answer: String) {
        if let Some(log) = &mut self.log {
            log.sent(&answer);
        }
        self.backlog.extend_from_slice(answer.as_bytes());
        self.backlog.push(b'\n');
    }
}
