//! The device status register as a state machine (virtio 1.2, 2.1 and 3.1).
//!
//! ```text
//!   Reset ── ACKNOWLEDGE ─► Noticed ── DRIVER ─► Driving ── FEATURES_OK ─► Agreed
//!     ▲                                             │                        │
//!     │ 0                                           └────── DRIVER_OK ───────┴─► Running
//!   (from anywhere)                 FAILED leads from anywhere to Failed
//! ```
//!
//! `DEVICE_NEEDS_RESET` is beside it: the device sets it, in any phase, and only a reset ends it.
//! A driver that goes from DRIVER to DRIVER_OK directly has accepted no features.

use bitflags::bitflags;

bitflags! {
    /// The bits of the register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// The driver has accepted the features, and the device agrees.
        const FEATURES_OK = 8;
        /// The device is broken until it is reset.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// How far the driver has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has looked.
    Reset,
    /// The guest knows the device.
    Noticed,
    /// It has a driver.
    Driving,
    /// Features are agreed.
    Agreed,
    /// Queues run.
    Running,
    /// The driver has given up.
    Failed,
}

/// What a new status bit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Note that the guest has noticed.
    Notice,
    /// Note the driver.
    Drive,
    /// Check the features.
    Agree,
    /// Start the queues.
    Run,
    /// Stop.
    Fail,
}

/// In which phase each bit may be set, and where that leads.
pub const TRANSITIONS: &[(Phase, Status, Step, Phase)] = &[
    (
        Phase::Reset,
        Status::ACKNOWLEDGE,
        Step::Notice,
        Phase::Noticed,
    ),
    (Phase::Noticed, Status::DRIVER, Step::Drive, Phase::Driving),
    (
        Phase::Driving,
        Status::FEATURES_OK,
        Step::Agree,
        Phase::Agreed,
    ),
    (Phase::Driving, Status::DRIVER_OK, Step::Run, Phase::Running),
    (Phase::Agreed, Status::DRIVER_OK, Step::Run, Phase::Running),
    (Phase::Reset, Status::FAILED, Step::Fail, Phase::Failed),
    (Phase::Noticed, Status::FAILED, Step::Fail, Phase::Failed),
    (Phase::Driving, Status::FAILED, Step::Fail, Phase::Failed),
    (Phase::Agreed, Status::FAILED, Step::Fail, Phase::Failed),
    (Phase::Running, Status::FAILED, Step::Fail, Phase::Failed),
];

impl Phase {
    /// How far a driver has come that left the register at `status`; `None` where none can leave it.
    #[must_use]
    pub fn of(status: Status) -> Option<Self> {
        let driver = status.difference(Status::NEEDS_RESET);
        let noticed = Status::ACKNOWLEDGE;
        let driving = noticed | Status::DRIVER;
        let agreed = driving | Status::FEATURES_OK;
        [
            (Status::empty(), Self::Reset),
            (noticed, Self::Noticed),
            (driving, Self::Driving),
            (agreed, Self::Agreed),
            (driving | Status::DRIVER_OK, Self::Running),
            (agreed | Status::DRIVER_OK, Self::Running),
        ]
        .into_iter()
        .flat_map(|(bits, phase)| [(bits, phase), (bits | Status::FAILED, Self::Failed)])
        .find_map(|(bits, phase)| (bits == driver).then_some(phase))
    }

    /// The first step that `written` asks for beyond `current`, with its bit and the phase it
    /// leads to. Several bits at once are several steps: call until there is none.
    #[must_use]
    pub fn step(self, current: Status, written: Status) -> Option<(Status, Step, Self)> {
        let new = written.difference(current);
        TRANSITIONS
            .iter()
            .find(|(from, bit, ..)| *from == self && new.contains(*bit))
            .map(|&(_, bit, step, to)| (bit, step, to))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(writes: &[u8]) -> (Phase, Status) {
        let mut phase = Phase::Reset;
        let mut status = Status::empty();
        for &written in writes {
            let written = Status::from_bits_truncate(written);
            while let Some((bit, _, to)) = phase.step(status, written) {
                status |= bit;
                phase = to;
            }
        }
        (phase, status)
    }

    #[test]
    fn a_well_behaved_driver_arrives() {
        assert_eq!(
            run(&[1, 3, 11, 15]),
            (Phase::Running, Status::from_bits_truncate(15))
        );
        assert_eq!(run(&[15]).0, Phase::Running);
    }

    #[test]
    fn steps_out_of_order_change_nothing() {
        assert_eq!(run(&[2]).0, Phase::Reset);
        assert_eq!(run(&[1, 4 | 8]).0, Phase::Noticed);
        assert_eq!(run(&[1, 3, 128, 15]).0, Phase::Failed);
    }

    #[test]
    fn no_driver_leaves_bits_without_those_that_come_before() {
        for bits in [2, 4, 8, 12, 5, 16, 32, 0xff] {
            assert_eq!(Phase::of(Status::from_bits_retain(bits)), None, "{bits}");
        }
    }

    proptest! {
        #[test]
        fn bits_are_only_added_and_queues_run_only_with_a_driver(
            writes in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let (phase, status) = run(&writes);
            if phase == Phase::Running {
                prop_assert!(status.contains(Status::ACKNOWLEDGE | Status::DRIVER | Status::DRIVER_OK));
            }
            prop_assert!(!status.contains(Status::NEEDS_RESET));
            prop_assert_eq!(Phase::of(status), Some(phase));
            prop_assert_eq!(Phase::of(status | Status::NEEDS_RESET), Some(phase));
        }
    }
}
