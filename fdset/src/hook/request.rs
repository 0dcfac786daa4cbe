//! The states of one request to the open hook.
//!
//! ```text
//!               an fd that will do
//!        ┌────────────────────────────► Answered
//!        │      a refusal, a wrong answer, the end of the hook
//!      Sent ──────────────────────────► Failed
//!        │ │    the deadline
//!        │ └──────────────────────────► TimedOut   ┐ the hook still owes an answer,
//!        │      whoever asked gives up             │ which will be closed
//!        └────────────────────────────► Cancelled  ┘
//! ```

use std::os::fd::OwnedFd;

use super::HookError;

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// On its way, or with the manager.
    Sent,
    /// An fd came.
    Answered,
    /// None will come.
    Failed,
    /// None came in time.
    TimedOut,
    /// None is wanted any more.
    Cancelled,
}

/// What moves a request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An fd that will do.
    Fd,
    /// A refusal, or an answer that will not do.
    Fault,
    /// The connection is at its end.
    HookGone,
    /// The deadline.
    Deadline,
    /// Whoever asked gives up.
    GivenUp,
}

/// The drawing as a table.
pub(super) const TRANSITIONS: &[(State, Cause, State)] = &[
    (State::Sent, Cause::Fd, State::Answered),
    (State::Sent, Cause::Fault, State::Failed),
    (State::Sent, Cause::HookGone, State::Failed),
    (State::Sent, Cause::Deadline, State::TimedOut),
    (State::Sent, Cause::GivenUp, State::Cancelled),
];

impl State {
    /// The state after `cause`; `None` where the table has no such line.
    pub(super) fn after(self, cause: Cause) -> Option<Self> {
        TRANSITIONS
            .iter()
            .find(|(from, by, _)| (*from, *by) == (self, cause))
            .map(|(_, _, to)| *to)
    }

    /// Whether the manager may still answer.
    pub(super) fn is_owed(self) -> bool {
        matches!(self, Self::Sent | Self::TimedOut | Self::Cancelled)
    }
}

/// How a request ended.
pub(super) fn cause_of(outcome: &Result<OwnedFd, HookError>) -> Cause {
    match outcome {
        Ok(_) => Cause::Fd,
        Err(HookError::Refused(_) | HookError::Unfit { .. }) => Cause::Fault,
        Err(HookError::Gone(_)) => Cause::HookGone,
        Err(HookError::TimedOut(_)) => Cause::Deadline,
        Err(HookError::Cancelled) => Cause::GivenUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_once() {
        let causes = [
            Cause::Fd,
            Cause::Fault,
            Cause::HookGone,
            Cause::Deadline,
            Cause::GivenUp,
        ];
        for cause in causes {
            let end = State::Sent.after(cause).expect("every cause ends it");
            assert_ne!(end, State::Sent);
            for again in causes {
                assert_eq!(end.after(again), None);
            }
        }
    }

    #[test]
    fn an_answer_is_owed_until_it_came_or_the_hook_has_gone() {
        for (cause, owed) in [
            (Cause::Fd, false),
            (Cause::Fault, false),
            (Cause::HookGone, false),
            (Cause::Deadline, true),
            (Cause::GivenUp, true),
        ] {
            let end = State::Sent.after(cause).expect("an end");
            assert_eq!(end.is_owed(), owed, "{cause:?}");
        }
    }
}
