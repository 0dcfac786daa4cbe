//! The open hook of a VM: who waits for the manager's answers, and what they ask.
//!
//! A command that would open what nobody passed is parked until the manager has answered; other
//! sessions, the guest and the main loop go on. The thread `main` owns all of it.
//!
//! ```text
//!   call ─► plan::command ─► what only a path names? ── nothing ─────────────► run it
//!                                   │ something, and a hook is set
//!                                   ▼
//!           parked: Call + Round ── one request for each ─► HookClient ─► manager
//!                │                                              │
//!                │◄──── tend: answers, refusals, deadlines ─────┘
//!                ├─ all in, and a header among them names more ─► asked for too, level by level
//!                ├─ all in ─► run it, with the answers in its door; what it leaves is closed
//!                ├─ its client has gone ─► the manager is told, nothing is run
//!                └─ the VM ends ─► an error
//! ```
//!
//! A connection that a chardev makes again has no command to park: its question comes as a letter,
//! and the answer goes back to the chardev ([`OpenHook::ask_for`]).
//!
//! A refusal is an answer too: the command runs into it at the open it is for, and says so in its
//! own words. Read next: [`round`] (the answers of one command), [`wire`] (how a line looks),
//! [`fdset::hook`] (the connection).

pub mod round;
mod wire;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fdset::hook::Finished;
use fdset::{Door, HookClient, OpenError, SocketAddress, Source, Told, look};
use monitor::Call;
use qapi_schema::QmpError;
use qapi_schema::open_hook::{OpenHookGone, OpenHookInfo, OpenHookState};

pub use wire::{JsonLines, wire_access, wire_existing, wire_kind, wire_role};

use self::round::Round;
use crate::letters::Question;
use crate::plan::{Planned, Step};

/// An open hook to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSpec {
    /// Where the manager is.
    pub address: SocketAddress,
    /// How long it may take to answer.
    pub timeout: Duration,
}

/// A command that waits for the manager.
#[derive(Debug)]
struct Parked {
    call: Call,
    round: Round,
    /// The plan, whose images name more once they can be read.
    steps: Vec<Step>,
}

/// The open hook, set or not.
#[derive(Default)]
pub struct OpenHook {
    client: Option<HookClient>,
    parked: Vec<Parked>,
    /// What is opened again without a command.
    loose: Vec<(Round, Told)>,
    /// The connection is new: the main loop does not watch it yet.
    unwatched: bool,
    /// Whether it is set, for who must not wait for the owner to find out.
    mark: Arc<AtomicBool>,
}

impl OpenHook {
    /// None is set; `mark` will always tell whether one is.
    #[must_use]
    pub fn new(mark: Arc<AtomicBool>) -> Self {
        Self {
            mark,
            ..Self::default()
        }
    }

    /// Sets the hook. One that was set before is left; what it owed fails.
    ///
    /// # Errors
    /// There is no connection to the manager; the hook before stays.
    pub fn set(&mut self, door: &Door, spec: &HookSpec, reason: &str) -> Result<(), OpenError> {
        let wire = Box::new(JsonLines);
        let client = HookClient::connect(door, &spec.address, wire, spec.timeout, reason)?;
        self.clear("another one was set");
        self.client = Some(client);
        self.mark.store(true, Ordering::Release);
        self.unwatched = true;
        Ok(())
    }

    /// Takes the hook away; what it owes fails, and `why` says so.
    pub fn clear(&mut self, why: &str) {
        if let Some(client) = &mut self.client {
            client.disconnect(why);
        }
        self.settle(Instant::now());
        self.client = None;
        self.mark.store(false, Ordering::Release);
    }

    /// How it does.
    #[must_use]
    pub fn query(&self) -> OpenHookInfo {
        let client = self.client.as_ref();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        OpenHookInfo {
            state: match client.map(HookClient::socket) {
                None => OpenHookState::Unset,
                Some(Some(_)) => OpenHookState::Connected,
                Some(None) => OpenHookState::Gone,
            },
            timeout_ms: client
                .map(|client| u32::try_from(client.timeout().as_millis()).unwrap_or(u32::MAX)),
            pending: count(client.map_or(0, HookClient::pending)),
            waiting: count(self.parked.len()),
        }
    }

    /// Whether one is set, working or not.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.client.is_some()
    }

    /// What the hook is to be asked of `steps` that were not settled before; they are now.
    #[must_use]
    pub fn questions(&self, door: &Door, steps: &mut [Step]) -> Vec<Planned> {
        let mut questions = Vec::new();
        for step in steps {
            if let Step::Open(planned) = step {
                if self.is_set() && look(door, &planned.wish.request()).source == Source::Path {
                    questions.push(planned.clone());
                }
                *step = Step::Settled(planned.clone());
            }
        }
        questions
    }

    /// Asks for all of `plan` as a part of `round`.
    pub fn ask(&mut self, round: &mut Round, plan: Vec<Planned>) {
        if let Some(client) = &mut self.client {
            round.ask(client, plan, Instant::now());
        }
    }

    /// Keeps a call until the answers are in that `round` waits for.
    pub fn park(&mut self, call: Call, round: Round, steps: Vec<Step>) {
        self.parked.push(Parked { call, round, steps });
    }

    /// Asks for what is opened again without a command, and tells when the answer is in.
    pub fn ask_for(&mut self, question: Question) {
        let Question { wish, told } = question;
        if !self.is_set() {
            return told(Arc::default());
        }
        let mut round = Round::new(None);
        self.ask(&mut round, vec![Planned::of(wish)]);
        self.loose.push((round, told));
    }

    /// Looks at everything that may have happened; `own` takes what it knows first.
    pub fn tend(&mut self, now: Instant, own: Option<&mut Round>) {
        let Some(client) = &mut self.client else {
            return;
        };
        let rounds = self.parked.iter_mut().map(|parked| &mut parked.round);
        let loose = self.loose.iter_mut().map(|(round, _)| round);
        let mut rounds: Vec<&mut Round> = rounds.chain(loose).chain(own).collect();
        for finished in client.attend(now) {
            let mut left: Option<Finished> = Some(finished);
            for round in &mut rounds {
                left = left.and_then(|finished| round.take(client, finished, now));
            }
            // What is left was given up: its fd is closed here.
        }
        for (round, told) in self.loose.extract_if(.., |(round, _)| round.is_done()) {
            told(Arc::clone(round.answers()));
        }
    }

    /// That the manager has gone by itself, once.
    pub fn take_departure(&mut self) -> Option<OpenHookGone> {
        let departure = self.client.as_mut()?.take_departure()?;
        Some(OpenHookGone {
            reason: departure.reason,
            unanswered: u64::try_from(departure.unanswered).unwrap_or(u64::MAX),
        })
    }

    /// The next parked call that can go on, with its answers and its plan.
    pub fn next_ready(&mut self) -> Option<(Call, Round, Vec<Step>)> {
        let at = self
            .parked
            .iter()
            .position(|parked| parked.round.is_done())?;
        let Parked { call, round, steps } = self.parked.remove(at);
        Some((call, round, steps))
    }

    /// Gives up what the clients who asked for it no longer wait for.
    pub fn drop_deserted(&mut self) {
        while let Some(at) = self.parked.iter().position(|it| it.call.is_deserted()) {
            self.cancel(at, "its client has gone");
        }
    }

    /// Gives everything up: the VM ends.
    pub fn end(&mut self) {
        while !self.parked.is_empty() {
            self.cancel(0, "the process ends");
        }
        self.clear("the process ends");
    }

    /// When to [`tend`](Self::tend) although nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.client.as_ref()?.deadline(now)
    }

    /// A new connection that the main loop is to watch; told once.
    pub fn take_unwatched(&mut self) -> Option<RawFd> {
        if !std::mem::take(&mut self.unwatched) {
            return None;
        }
        Some(self.client.as_ref()?.socket()?.as_raw_fd())
    }

    /// Notes that the connection cannot be used after all.
    pub fn give_up(&mut self, why: &str) {
        if let Some(client) = &mut self.client {
            client.disconnect(why);
        }
    }

    fn settle(&mut self, now: Instant) {
        self.tend(now, None);
    }

    fn cancel(&mut self, at: usize, why: &str) {
        let Parked {
            call, mut round, ..
        } = self.parked.remove(at);
        if let Some(client) = &mut self.client {
            round.give_up(client);
        }
        round.answers().close();
        let command = call.command.name;
        tracing::debug!(
            command,
            why,
            "a command that waits for the open hook is cancelled"
        );
        call.finish(Err(QmpError::generic(format!(
            "Command '{command}' was cancelled while it waited for the open hook: {why}"
        ))));
    }
}
