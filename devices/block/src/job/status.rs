//! How far a job is, and what it takes in which state: pure.
//!
//! ```text
//!                      ┌─► paused ──┐            ┌─► standby ─┐
//!                      │            ▼            │            ▼
//!   created ───────► running ──────────────────► ready ───────┤
//!      │                │                          │          │
//!      │                └────────────┬─────────────┘          │
//!      │                             ▼                        │
//!      │          failed or       waiting  (for the others of its transaction)
//!      │          cancelled          │
//!      ▼                             ▼
//!    null                         pending  (for job-finalize, unless automatic)
//!      ▲                             │
//!      │       aborting ◄── any of them: failed, cancelled
//!      │          │                  │
//!      │          └──────────────────┤
//!      │                             ▼
//!      └───────────────────────── concluded  (for job-dismiss, unless automatic)
//! ```

use std::fmt;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// Made and not started.
    Created,
    /// At work.
    Running,
    /// Told to wait.
    Paused,
    /// Done but for what changes meanwhile.
    Ready,
    /// Ready, and told to wait.
    Standby,
    /// Done, while others of its transaction are not.
    Waiting,
    /// Done, until it is told to finalize.
    Pending,
    /// Failed or cancelled, and cleaning up.
    Aborting,
    /// At its end.
    Concluded,
    /// Gone.
    Null,
}

use JobStatus::{
    Aborting, Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Waiting,
};

/// Which state may follow which.
pub const TRANSITIONS: [(JobStatus, &[JobStatus]); 10] = [
    (Created, &[Running, Paused, Aborting, Null]),
    (Running, &[Paused, Ready, Waiting, Aborting]),
    (Paused, &[Running]),
    (Ready, &[Standby, Waiting, Aborting]),
    (Standby, &[Ready]),
    (Waiting, &[Pending, Aborting]),
    (Pending, &[Aborting, Concluded]),
    (Aborting, &[Concluded]),
    (Concluded, &[Null]),
    (Null, &[]),
];

impl JobStatus {
    /// The name in QMP.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Created => "created",
            Running => "running",
            Paused => "paused",
            Ready => "ready",
            Standby => "standby",
            Waiting => "waiting",
            Pending => "pending",
            Aborting => "aborting",
            Concluded => "concluded",
            Null => "null",
        }
    }

    /// Whether `next` may follow.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        TRANSITIONS
            .iter()
            .any(|(from, to)| *from == self && to.contains(&next))
    }

    /// Whether a job in this state takes `verb`.
    #[must_use]
    pub fn takes(self, verb: JobVerb) -> bool {
        VERBS
            .iter()
            .any(|(known, states)| *known == verb && states.contains(&self))
    }

    /// Whether nothing of its work is left to do.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Waiting | Pending | Aborting | Concluded | Null)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one can tell a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobVerb {
    /// End without a result.
    Cancel,
    /// Wait.
    Pause,
    /// Go on.
    Resume,
    /// Go no faster than so many bytes in a second.
    SetSpeed,
    /// Leave the ready state.
    Complete,
    /// Make the result so.
    Finalize,
    /// Be forgotten.
    Dismiss,
}

impl JobVerb {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Cancel,
        Self::Pause,
        Self::Resume,
        Self::SetSpeed,
        Self::Complete,
        Self::Finalize,
        Self::Dismiss,
    ];
}

/// Which states take which verb.
pub const VERBS: [(JobVerb, &[JobStatus]); 7] = [
    (
        JobVerb::Cancel,
        &[Created, Running, Paused, Ready, Standby, Waiting, Pending],
    ),
    (JobVerb::Pause, &[Created, Running, Paused, Ready, Standby]),
    (JobVerb::Resume, &[Created, Running, Paused, Ready, Standby]),
    (
        JobVerb::SetSpeed,
        &[Created, Running, Paused, Ready, Standby],
    ),
    (JobVerb::Complete, &[Ready]),
    (JobVerb::Finalize, &[Pending]),
    (JobVerb::Dismiss, &[Concluded]),
];

impl fmt::Display for JobVerb {
    /// The name that error texts have.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "set-speed",
            Self::Complete => "complete",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_state_is_reached_and_every_state_leads_to_the_end() {
        for (state, _) in TRANSITIONS {
            let reached = TRANSITIONS.iter().any(|(_, to)| to.contains(&state));
            assert!(reached || state == Created, "{state}");
            let mut seen = vec![state];
            let mut at = 0;
            while let Some(from) = seen.get(at).copied() {
                at += 1;
                for (to, _) in TRANSITIONS {
                    if from.may_become(to) && !seen.contains(&to) {
                        seen.push(to);
                    }
                }
            }
            assert!(seen.contains(&Null), "{state} never ends");
        }
    }

    #[test]
    fn each_verb_stands_once_and_an_ended_job_only_takes_what_ends_it_further() {
        for verb in JobVerb::ALL {
            let rows = VERBS.iter().filter(|(known, _)| *known == verb);
            assert_eq!(rows.count(), 1, "{verb}");
        }
        for state in [Aborting, Null] {
            assert!(JobVerb::ALL.iter().all(|verb| !state.takes(*verb)));
        }
        assert!(Concluded.takes(JobVerb::Dismiss) && !Concluded.takes(JobVerb::Cancel));
        assert!(Ready.takes(JobVerb::Complete) && !Running.takes(JobVerb::Complete));
    }

    proptest! {
        /// A job that has ended its work never works again.
        #[test]
        fn there_is_no_way_back_to_work(steps in prop::collection::vec(0..10usize, 0..30)) {
            let mut state = Created;
            let mut ended = false;
            for step in steps {
                let next = TRANSITIONS[step].0;
                if state.may_become(next) {
                    state = next;
                }
                prop_assert!(!ended || state.has_ended());
                ended |= state.has_ended();
            }
        }
    }
}
