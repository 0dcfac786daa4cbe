//! When a thread with nothing to do looks about before it sleeps, and for how long.
//!
//! To sleep and to be woken costs a thread some microseconds of CPU time, and in a virtual machine
//! tens of them; work that is there sooner is cheaper to wait for with open eyes. Whether it will
//! be is not known, but what has lately been is:
//!
//! ```text
//!            slept, for at most the longest window          found by looking: stays
//!       ┌──────────────────────────────────────────┐            ┌──┐
//!   ┌───┴──┐   1st step, then times `grow`      ┌──▼────────────┴──▼┐
//!   │ none │ ─────────────────────────────────► │ window, at most   │
//!   │      │ ◄───────────────────────────────── │ `max`             │
//!   └─▲──┬─┘   divided by `shrink`, until small └──▲────────────────┘
//!     │  │          looked in vain                 │
//!     │  └─ slept for little more, GAP times: try ─┤ found: the longest window
//!     └──────────── in vain: twice the gap ────────┘
//! ```
//!
//! The try is there because a sleep seems longer than the wait was, by the time that waking takes.
//!
//! Only time goes in and only time comes out: this room knows no clock and no ring.

use std::time::Duration;

/// The first window after none.
const FIRST: Duration = Duration::from_micros(4);
/// A sleep of at most so many of the longest windows may have been a short wait and a slow waking.
const LITTLE_MORE: u32 = 4;
/// After how many such sleeps a window is tried, at first and at most.
const GAPS: (u32, u32) = (16, 4096);
/// The factors where none are given.
const FACTOR: u32 = 2;

/// How an io-thread looks for work before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollSpec {
    /// The longest that it looks about; zero: it sleeps at once.
    pub max: Duration,
    /// By which factor its time for that grows; 0 leaves it to the thread.
    pub grow: u32,
    /// By which divisor its time for that shrinks; 0 leaves it to the thread.
    pub shrink: u32,
}

impl Default for PollSpec {
    fn default() -> Self {
        Self {
            max: Duration::from_nanos(32_768),
            grow: 0,
            shrink: 0,
        }
    }
}

/// What one thread has learnt.
#[derive(Debug)]
pub(super) struct Polling {
    window: Duration,
    /// How many sleeps are left until a window is tried.
    until_try: u32,
    gap: u32,
}

impl Default for Polling {
    fn default() -> Self {
        Self {
            window: Duration::ZERO,
            until_try: GAPS.0,
            gap: GAPS.0,
        }
    }
}

impl Polling {
    /// For how long to look about this time.
    pub(super) fn window(&self, spec: &PollSpec) -> Duration {
        match self.until_try {
            0 => spec.max,
            _ => self.window.min(spec.max),
        }
    }

    /// Work came after `idle`, of which `looked` was spent looking about: all of it if that is how
    /// the work was found.
    pub(super) fn learn(&mut self, spec: &PollSpec, looked: Duration, idle: Duration) {
        let found = idle <= looked;
        let tried = self.until_try == 0;
        if found {
            if tried {
                self.window = spec.max;
            }
            (self.gap, self.until_try) = (GAPS.0, GAPS.0);
        } else if tried {
            self.gap = (self.gap * 2).min(GAPS.1);
            self.until_try = self.gap;
        } else if idle <= spec.max {
            self.grow(spec);
        } else {
            self.shrink(spec);
            if self.window.is_zero() && idle <= spec.max * LITTLE_MORE {
                self.until_try -= 1;
            }
        }
    }

    fn grow(&mut self, spec: &PollSpec) {
        self.window = match self.window {
            Duration::ZERO => FIRST,
            window => window.saturating_mul(factor(spec.grow)),
        }
        .min(spec.max);
    }

    fn shrink(&mut self, spec: &PollSpec) {
        self.window /= factor(spec.shrink);
        if self.window < FIRST {
            self.window = Duration::ZERO;
        }
    }
}

fn factor(given: u32) -> u32 {
    match given {
        0 => FACTOR,
        _ => given,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: PollSpec = PollSpec {
        max: Duration::from_micros(32),
        grow: 0,
        shrink: 0,
    };

    /// One wait: work comes `wait` after there was none, and waking takes `waking`.
    fn wait(polling: &mut Polling, spec: &PollSpec, wait: u64, waking: u64) -> Duration {
        let (wait, waking) = (Duration::from_micros(wait), Duration::from_micros(waking));
        let window = polling.window(spec);
        if wait <= window {
            polling.learn(spec, wait, wait);
        } else {
            polling.learn(spec, window, wait + waking);
        }
        window
    }

    #[test]
    fn window_grows_step_by_step_until_short_waits_fit_and_no_further() {
        let mut polling = Polling::default();
        let windows: Vec<_> = (0..6)
            .map(|_| wait(&mut polling, &SPEC, 10, 1).as_micros())
            .collect();
        assert_eq!(windows, [0, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn thread_whose_waits_are_long_never_looks_about() {
        let mut polling = Polling::default();
        for _ in 0..10_000 {
            assert_eq!(wait(&mut polling, &SPEC, 1000, 40), Duration::ZERO);
        }
    }

    #[test]
    fn looking_ends_soon_after_the_guest_has_gone_quiet() {
        let mut polling = Polling::default();
        for _ in 0..5 {
            wait(&mut polling, &SPEC, 30, 1);
        }
        let wasted: Duration = (0..100).map(|_| wait(&mut polling, &SPEC, 5000, 1)).sum();
        assert_eq!(wasted, Duration::from_micros(32 + 16 + 8 + 4));
    }

    #[test]
    fn short_waits_are_found_out_although_waking_takes_longer_than_any_window() {
        let mut polling = Polling::default();
        let windows = (0..20).map(|_| wait(&mut polling, &SPEC, 20, 50));
        assert_eq!(windows.filter(|window| window.is_zero()).count(), 16);
        assert_eq!(wait(&mut polling, &SPEC, 20, 50), SPEC.max);
    }

    #[test]
    fn tries_that_find_nothing_become_rare() {
        let mut polling = Polling::default();
        let windows = (0..10_000).map(|_| wait(&mut polling, &SPEC, 100, 20));
        let tries = windows.filter(|window| !window.is_zero()).count();
        assert_eq!(tries, 9, "after 16, 32, 64 and so on up to 4096 sleeps");
    }

    #[test]
    fn given_factors_are_kept_to_and_no_time_at_all_means_never() {
        let spec = PollSpec {
            grow: 4,
            shrink: 8,
            ..SPEC
        };
        let mut polling = Polling::default();
        let windows: Vec<_> = [10, 10, 10, 5000, 5000]
            .map(|time| wait(&mut polling, &spec, time, 1).as_micros())
            .into();
        assert_eq!(windows, [0, 4, 16, 16, 0]);
        let never = PollSpec {
            max: Duration::ZERO,
            ..SPEC
        };
        for time in [0, 1, 10, 100] {
            assert_eq!(
                wait(&mut Polling::default(), &never, time, 1),
                Duration::ZERO
            );
        }
    }
}
