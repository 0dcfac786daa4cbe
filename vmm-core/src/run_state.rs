//! The run state of the machine: what `query-status` says, and which change is allowed when.
//!
//! Pure: no thread, no KVM, no event. The VM's owner asks [`RunState::next`] and does what follows.
//!
//! ```text
//!                 cont                  stop
//!   prelaunch ───────────► running ◄──────────► paused
//!       │                  │ │ │ │    cont        ▲
//!       │ guest off        │ │ │ └─ io-error ─────┤ cont: running, reset: paused
//!       ▼                  │ │ └─── watchdog ─────┤ cont: running, reset: paused
//!   shutdown ◄─────────────┤ └── guest-panicked ──┤ cont: running, reset: paused
//!       │                  └── internal-error ────┤ only a reset leads out
//!       └───────────────── reset ─────────────────┘
//!   inmigrate: waits for an incoming machine state
//! ```

/// What the machine is doing, by QMP's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Built and not yet started (`-S`).
    Prelaunch,
    /// Waiting for its state (`-incoming`).
    Inmigrate,
    /// The vCPUs run.
    Running,
    /// Stopped by `stop`, or waiting for `cont` after a reset of a stopped machine.
    Paused,
    /// The guest powered itself off and `-no-shutdown` kept the process.
    Shutdown,
    /// Stopped on a guest's I/O error.
    IoError,
    /// The guest reported its own panic.
    GuestPanicked,
    /// A watchdog ran out.
    Watchdog,
    /// KVM could not go on with the guest.
    InternalError,
}

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// `cont`, or the start without `-S`.
    Start,
    /// `stop`.
    Stop,
    /// A reset, from the guest or from `system_reset`.
    Reset,
    /// The guest powered off, and the process stays.
    PowerOff,
    /// A guest's request failed and the device's policy is to stop.
    IoError,
    /// The guest's kernel panicked.
    Panic,
    /// A watchdog ran out.
    Watchdog,
    /// A vCPU cannot go on.
    InternalError,
}

use Change as C;
use RunState as S;

/// Every allowed change; what is not here is refused.
pub const TRANSITIONS: &[(RunState, Change, RunState)] = &[
    (S::Prelaunch, C::Start, S::Running),
    (S::Prelaunch, C::Stop, S::Prelaunch),
    (S::Prelaunch, C::Reset, S::Prelaunch),
    (S::Prelaunch, C::PowerOff, S::Shutdown),
    (S::Inmigrate, C::Stop, S::Inmigrate),
    (S::Inmigrate, C::Start, S::Inmigrate),
    (S::Inmigrate, C::Reset, S::Inmigrate),
    (S::Running, C::Start, S::Running),
    (S::Running, C::Stop, S::Paused),
    (S::Running, C::Reset, S::Running),
    (S::Running, C::PowerOff, S::Shutdown),
    (S::Running, C::IoError, S::IoError),
    (S::Running, C::Panic, S::GuestPanicked),
    (S::Running, C::Watchdog, S::Watchdog),
    (S::Running, C::InternalError, S::InternalError),
    (S::Paused, C::Start, S::Running),
    (S::Paused, C::Stop, S::Paused),
    (S::Paused, C::Reset, S::Paused),
    (S::Paused, C::PowerOff, S::Shutdown),
    (S::Paused, C::IoError, S::IoError),
    (S::Paused, C::Panic, S::GuestPanicked),
    (S::Paused, C::Watchdog, S::Watchdog),
    (S::Paused, C::InternalError, S::InternalError),
    (S::Shutdown, C::Stop, S::Shutdown),
    (S::Shutdown, C::Reset, S::Paused),
    (S::IoError, C::Start, S::Running),
    (S::IoError, C::Stop, S::IoError),
    (S::IoError, C::IoError, S::IoError),
    (S::IoError, C::Reset, S::Paused),
    (S::IoError, C::PowerOff, S::Shutdown),
    (S::GuestPanicked, C::Stop, S::GuestPanicked),
    (S::GuestPanicked, C::Start, S::Running),
    (S::GuestPanicked, C::Reset, S::Paused),
    (S::GuestPanicked, C::PowerOff, S::Shutdown),
    (S::GuestPanicked, C::Panic, S::GuestPanicked),
    (S::Watchdog, C::Stop, S::Watchdog),
    (S::Watchdog, C::Start, S::Running),
    (S::Watchdog, C::Reset, S::Paused),
    (S::Watchdog, C::PowerOff, S::Shutdown),
    (S::Watchdog, C::Watchdog, S::Watchdog),
    (S::InternalError, C::Stop, S::InternalError),
    (S::InternalError, C::Reset, S::Paused),
    (S::InternalError, C::InternalError, S::InternalError),
];

impl RunState {
    /// The state after `change`, or `None` where it is not allowed.
    pub fn next(self, change: Change) -> Option<Self> {
        TRANSITIONS
            .iter()
            .find(|(from, by, _)| *from == self && *by == change)
            .map(|(_, _, to)| *to)
    }

    /// Its name in QMP.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Inmigrate => "inmigrate",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Shutdown => "shutdown",
            Self::IoError => "io-error",
            Self::GuestPanicked => "guest-panicked",
            Self::Watchdog => "watchdog",
            Self::InternalError => "internal-error",
        }
    }

    /// Whether the vCPUs run in this state.
    pub fn is_running(self) -> bool {
        self == Self::Running
    }

    /// Whether `cont` needs a `system_reset` first.
    pub fn needs_reset(self) -> bool {
        matches!(self, Self::Shutdown | Self::InternalError)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHANGES: [Change; 8] = [
        C::Start,
        C::Stop,
        C::Reset,
        C::PowerOff,
        C::IoError,
        C::Panic,
        C::Watchdog,
        C::InternalError,
    ];

    #[test]
    fn the_table_names_each_change_once() {
        for (i, (from, by, _)) in TRANSITIONS.iter().enumerate() {
            assert!(
                !TRANSITIONS[..i]
                    .iter()
                    .any(|(f, b, _)| f == from && b == by),
                "{from:?} {by:?} stands twice"
            );
        }
    }

    #[test]
    fn a_machine_that_needs_a_reset_starts_only_after_one() {
        for state in [S::Shutdown, S::InternalError] {
            assert!(state.needs_reset());
            assert_eq!(state.next(C::Start), None);
            let reset = state.next(C::Reset).unwrap();
            assert_eq!(reset.next(C::Start), Some(S::Running));
        }
    }

    proptest! {
        #[test]
        fn no_sequence_of_changes_leaves_a_state_without_a_way_on(
            changes in proptest::collection::vec(proptest::sample::select(&CHANGES[..]), 0..64)
        ) {
            let mut state = S::Prelaunch;
            for change in changes {
                state = state.next(change).unwrap_or(state);
                let reset = state.next(C::Reset);
                prop_assert!(reset.is_some(), "{state:?} can not be reset");
                prop_assert!(state.next(C::Stop).is_some());
            }
        }

        #[test]
        fn stop_never_leaves_the_cpus_running(
            changes in proptest::collection::vec(proptest::sample::select(&CHANGES[..]), 0..64)
        ) {
            let state = changes.into_iter().fold(S::Prelaunch, |s, c| s.next(c).unwrap_or(s));
            prop_assert!(!state.next(C::Stop).unwrap().is_running());
        }
    }
}
