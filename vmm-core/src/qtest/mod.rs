//! The qtest protocol: a program that tests drives the machine's buses and memory in place of its
//! CPUs (`-accel qtest`, `-qtest CHARDEV`).
//!
//! This room knows lines of text, buses and guest memory. It must never know a QMP command, a
//! device model or KVM.
//!
//! ```text
//!   tester ─► chardev ─► Qtest::receive: lines ─► Session::answer ─┬─ in*, out*  ─► ports
//!     ▲                                             (command.rs)   ├─ read, write ─► RAM or a BAR
//!     └─ chardev ◄─ backlog ◄─ one line for each ◄─────────────────┴─ clock_*: TestedClock
//!                      ▲
//!                      └─ "IRQ raise N" ◄─ irqs.rs ◄─ a device's line, intercepted
//! ```
//!
//! The chardev's thread does it all. A tester that does not read its answers is not read from
//! until it does; nor is one before the machine is there.
//!
//! Read next: [`command`], [`irqs`].

mod command;
mod irqs;
mod log;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use devices::chardev::{Chardev, ChardevError, ChardevLease, Frontend};
use devices::reactor::Reactor;
use devices::vm_clock::TestedClock;

pub use command::Target;
pub use irqs::{LineOf, TestedIrqs, TestedMsi};
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
    /// Whether the tester is listened to.
    admitted: AtomicBool,
    this: Weak<Self>,
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
    /// Connects to whoever is at the other end of `chardev`; they are listened to once they are
    /// [admitted](Self::admit). They move `clock`.
    ///
    /// # Errors
    /// A device has the chardev.
    pub fn serve(
        chardev: &Arc<Chardev>,
        log: Option<Log>,
        clock: Arc<TestedClock>,
    ) -> Result<Arc<Self>, ChardevError> {
        let qtest = Arc::new_cyclic(|this| Self {
            state: Mutex::new(State {
                session: Session::new(None, clock),
                log,
                partial: Vec::new(),
                backlog: Vec::new(),
            }),
            lease: OnceLock::new(),
            admitted: AtomicBool::new(false),
            this: this.clone(),
        });
        let frontend: Arc<dyn Frontend> = Arc::clone(&qtest) as _;
        let lease = chardev.attach(&frontend)?;
        lease.set_open(true);
        let _ = qtest.lease.set(lease);
        Ok(qtest)
    }

    /// Listens to the tester, who drives `target`: nothing, while there is no machine.
    pub fn admit(&self, target: Option<Target>, reactor: &Reactor) {
        if let Some(target) = target {
            let (this, reactor) = (self.this.clone(), reactor.clone());
            let on_news = move || {
                let this = this.clone();
                let tell = move || {
                    if let Some(qtest) = this.upgrade() {
                        qtest.tell_news();
                    }
                };
                // Without its thread there is no tester who could be told.
                let _ = reactor.run(tell);
            };
            if let Some(irqs) = &target.irqs {
                irqs.on_news(on_news);
            }
            self.state().session.aim(target);
        }
        self.admitted.store(true, Ordering::Release);
        if let Some(lease) = self.lease.get() {
            lease.resume_input();
        }
    }

    /// Tells of interrupts that came between two commands.
    fn tell_news(&self) {
        self.state().tell_news();
        self.send();
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
        let is_free = self.lease.get().is_some()
            && self.admitted.load(Ordering::Acquire)
            && self.state().backlog.is_empty();
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
                self.tell_news();
                self.answer(answer);
            }
        }
    }

    fn tell_news(&mut self) {
        for (pin, high) in self.session.take_news() {
            let level = if high { "raise" } else { "lower" };
            self.answer(format!("IRQ {level} {pin}"));
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
