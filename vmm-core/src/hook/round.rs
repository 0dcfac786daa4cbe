//! The answers to one plan.
//!
//! Everything is asked for at once, except what is only a fallback: that is asked for when the
//! one before it is refused. When something fails without which nothing can go on, the rest is
//! given up, and the round is done.
//!
//! ```text
//!              ask               an answer
//!   Later ───────────► Asked ─────────────────► Done        the plan is done when all its steps
//!     │ the one before succeeds or fails for good  ▲         are
//!     └────────────────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::Instant;

use fdset::hook::{Finished, Ticket};
use fdset::{Answers, HookClient, HookError, Peer};

use crate::plan::Planned;

/// Where one step of a plan stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A fallback that may not be needed.
    Later,
    /// The manager has it.
    Asked(Ticket),
    /// There is an answer, or none is needed.
    Done,
}

/// A plan whose answers come in.
#[derive(Debug)]
pub struct Round {
    steps: Vec<(Planned, Step)>,
    answers: Arc<Answers>,
    command: Option<&'static str>,
    /// Who answers.
    peer: Option<Peer>,
    /// Something failed without which nothing can go on.
    failed: bool,
}

impl Round {
    /// A plan without a step yet, for `command` if there is one.
    #[must_use]
    pub fn new(command: Option<&'static str>) -> Self {
        Self {
            steps: Vec::new(),
            answers: Arc::new(Answers::new()),
            command,
            peer: None,
            failed: false,
        }
    }

    /// Adds `plan`, and asks for everything in it that is no fallback.
    pub fn ask(&mut self, client: &mut HookClient, plan: Vec<Planned>, now: Instant) {
        self.peer = client.peer();
        for planned in plan {
            let step = if planned.fallback {
                Step::Later
            } else {
                Step::Asked(client.ask(planned.wish.clone(), self.command, now))
            };
            self.steps.push((planned, step));
        }
    }

    /// Whether something failed without which nothing can go on: there is no use in asking more.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Takes an answer in if it is one of this round's; otherwise gives it back.
    pub fn take(
        &mut self,
        client: &mut HookClient,
        finished: Finished,
        now: Instant,
    ) -> Option<Finished> {
        let asked = Step::Asked(finished.ticket);
        let Some(at) = self.steps.iter().position(|(_, step)| *step == asked) else {
            return Some(finished);
        };
        let error = finished.outcome.as_ref().err().cloned();
        self.put(at, finished.outcome);
        match error {
            None => self.skip_fallbacks(at, None),
            Some(HookError::Refused(_)) if self.has_fallback(at) => {
                if let Some((planned, step)) = self.steps.get_mut(at + 1) {
                    *step = Step::Asked(client.ask(planned.wish.clone(), self.command, now));
                }
            }
            Some(error) => {
                self.skip_fallbacks(at, Some(error));
                if self
                    .steps
                    .get(at)
                    .is_some_and(|(planned, _)| planned.required)
                {
                    self.failed = true;
                    self.give_up(client);
                }
            }
        }
        None
    }

    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|(_, step)| *step == Step::Done)
    }

    /// Gives up what is not answered; whoever opens it is told so.
    pub fn give_up(&mut self, client: &mut HookClient) {
        for at in 0..self.steps.len() {
            match self.steps.get(at).map(|(_, step)| *step) {
                Some(Step::Asked(ticket)) => client.cancel(ticket),
                Some(Step::Later) => {}
                Some(Step::Done) | None => continue,
            }
            self.put(at, Err(HookError::Cancelled));
        }
    }

    /// The answers, for a door.
    #[must_use]
    pub fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    fn put(&mut self, at: usize, outcome: Result<std::os::fd::OwnedFd, HookError>) {
        if let Some((planned, step)) = self.steps.get_mut(at) {
            let wish = &planned.wish;
            self.answers
                .put(&wish.name, wish.access, outcome, self.peer);
            *step = Step::Done;
        }
    }

    fn has_fallback(&self, at: usize) -> bool {
        let next = self.steps.get(at + 1);
        next.is_some_and(|(planned, _)| planned.fallback)
    }

    /// Ends the fallbacks of a step that needs none, or that has failed so that none would help.
    fn skip_fallbacks(&mut self, at: usize, error: Option<HookError>) {
        let mut next = at;
        while self.has_fallback(next) {
            next += 1;
            match &error {
                Some(error) => self.put(next, Err(error.clone())),
                None => {
                    if let Some((_, step)) = self.steps.get_mut(next) {
                        *step = Step::Done;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use fdset::scm::send_with_fds;
    use fdset::{Access, Door, Expected, FdRegistry, OpenError, Request, Role, Scope, Wish};

    use super::*;
    use crate::hook::wire::JsonLines;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn planned(name: &str, fallback: bool, required: bool) -> Planned {
        let request = Request::new(name, Access::ReadOnly, Role::Entropy, "object 'r'");
        Planned {
            wish: Wish::new(&request, Expected::Stream),
            fallback,
            required,
            node: None,
        }
    }

    /// A round and both ends of its hook.
    struct Stage {
        round: Round,
        client: HookClient,
        manager: UnixStream,
        now: Instant,
    }

    impl Stage {
        fn new(plan: Vec<Planned>) -> Self {
            let (ours, manager) = UnixStream::pair().expect("a pair");
            let mut client = HookClient::new(ours.into(), Box::new(JsonLines), PATIENCE);
            let mut round = Round::new(None);
            let now = Instant::now();
            round.ask(&mut client, plan, now);
            Self {
                round,
                client,
                manager,
                now,
            }
        }

        fn tend(&mut self, now: Instant) {
            for finished in self.client.attend(now) {
                // Like the hook's owner: what no round knows was given up.
                drop(self.round.take(&mut self.client, finished, now));
            }
        }

        fn answer(&mut self, line: &str, fds: &[BorrowedFd<'_>]) {
            let sent = send_with_fds(&self.manager, line.as_bytes(), fds).expect("sent");
            assert_eq!(sent, line.len());
            self.tend(self.now);
        }

        /// How many requests of this kind the manager has read since it was last asked.
        fn requests(&mut self, verb: &str) -> usize {
            let mut buffer = [0; 4096];
            let count = self.manager.read(&mut buffer).expect("requests");
            let text = str::from_utf8(&buffer[..count]).expect("text");
            text.matches(&format!("\"request\": \"{verb}\"")).count()
        }

        fn open(&self, name: &str) -> Result<(), OpenError> {
            let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process)
                .with_answers(Arc::clone(self.round.answers()));
            let request = Request::new(name, Access::ReadOnly, Role::Entropy, "object 'r'");
            fdset::open(&door, &request).map(drop)
        }
    }

    fn text(outcome: Result<(), OpenError>) -> String {
        QmpText(outcome.expect_err("no fd")).to_string()
    }

    /// An error with its causes, as clients see it.
    struct QmpText(OpenError);

    impl std::fmt::Display for QmpText {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            qapi_schema::QmpError::from_error(&self.0).fmt(f)
        }
    }

    #[test]
    fn a_fallback_is_asked_for_when_the_one_before_it_is_refused() {
        let mut stage = Stage::new(vec![
            planned("/a", false, true),
            planned("/b", true, true),
            planned("/c", true, true),
        ]);
        assert_eq!(stage.requests("open"), 1);
        stage.answer("{\"id\": 1, \"error\": \"no\"}\n", &[]);
        assert!(!stage.round.is_done());
        assert_eq!(stage.requests("open"), 1);
        let pipe = std::io::pipe().expect("a pipe").0;
        stage.answer("{\"id\": 2}\n", &[pipe.as_fd()]);
        assert!(stage.round.is_done());
        assert!(text(stage.open("/a")).ends_with("the open hook refuses: no"));
        assert!(stage.open("/b").is_ok());
        assert_eq!(
            stage.open("/c").expect_err("never asked").errno(),
            libc::ENOENT
        );
    }

    #[test]
    fn when_something_required_fails_the_rest_is_given_up() {
        let mut stage = Stage::new(vec![
            planned("/a", false, true),
            planned("/b", false, true),
            planned("/c", true, true),
        ]);
        stage.answer("{\"id\": 1, \"error\": \"no\"}\n", &[]);
        assert!(stage.round.is_done() && stage.round.has_failed());
        assert_eq!(stage.requests("cancel"), 1);
        for name in ["/b", "/c"] {
            assert!(text(stage.open(name)).ends_with("before the open hook answered"));
        }
        stage.tend(stage.now);
        assert_eq!(stage.client.pending(), 0);
    }

    #[test]
    fn what_is_not_required_fails_alone() {
        let mut stage = Stage::new(vec![
            planned("/a", false, false),
            planned("/b", false, true),
        ]);
        stage.answer("{\"id\": 1, \"error\": \"no\"}\n", &[]);
        assert!(!stage.round.is_done());
        let pipe = std::io::pipe().expect("a pipe").0;
        stage.answer("{\"id\": 2}\n", &[pipe.as_fd()]);
        assert!(stage.round.is_done());
        assert!(stage.open("/b").is_ok() && !stage.round.has_failed());
    }

    #[test]
    fn a_fallback_does_not_help_against_silence() {
        let mut stage = Stage::new(vec![planned("/a", false, true), planned("/b", true, true)]);
        stage.tend(stage.now + PATIENCE);
        assert!(stage.round.is_done());
        for name in ["/a", "/b"] {
            assert!(text(stage.open(name)).contains("did not answer within 10000 ms"));
        }
    }

    #[test]
    fn a_plan_of_nothing_is_done_at_once() {
        assert!(Stage::new(Vec::new()).round.is_done());
    }
}
