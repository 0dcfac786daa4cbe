//! Rate limits: the first of a kind goes out at once, and of those that follow within the period
//! only the last, when the period is over. Pure: the clock is the caller's.
//!
//! ```text
//!   offered   a   b c            d       e
//!             │   │ │            │       │
//!   period    ├───────────┤├───────────┤ ┊ ├───────────┤
//!   sent      a            c            d  e       (b is replaced by c)
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::time::{Duration, Instant};

/// How long after one of a kind the next may go out.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Running<T> {
    until: Instant,
    held: Option<T>,
}

/// Who may go out when, by kind.
#[derive(Debug)]
pub(crate) struct Limiter<K, T> {
    running: HashMap<K, Running<T>>,
}

impl<K: Eq + Hash + Clone, T> Limiter<K, T> {
    /// Nothing has been sent.
    pub(crate) fn new() -> Self {
        Self {
            running: HashMap::new(),
        }
    }

    /// Offers one of `kind`: given back when it may go out at once, else held in place of the one
    /// that was held before.
    pub(crate) fn offer(&mut self, now: Instant, kind: K, item: T) -> Option<T> {
        match self.running.get_mut(&kind) {
            Some(running) => {
                running.held = Some(item);
                None
            }
            None => {
                let until = now + PERIOD;
                self.running.insert(kind, Running { until, held: None });
                Some(item)
            }
        }
    }

    /// Those whose period is over; for each a new one begins.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<T> {
        let mut due = Vec::new();
        self.running.retain(|_, running| {
            if running.until > now {
                return true;
            }
            running.until = now + PERIOD;
            let held = running.held.take();
            let goes_on = held.is_some();
            due.extend(held);
            goes_on
        });
        due
    }

    /// When to ask [`due`](Self::due) again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.running.values().map(|running| running.until).min()
    }

    /// All that is held, at the end.
    pub(crate) fn release(&mut self) -> Vec<T> {
        let running = mem::take(&mut self.running);
        running.into_values().filter_map(|one| one.held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(start: Instant, offset: u64) -> Instant {
        start + Duration::from_millis(offset)
    }

    #[test]
    fn the_first_goes_at_once_and_the_last_when_the_period_is_over() {
        let start = Instant::now();
        let mut limiter = Limiter::new();
        assert_eq!(limiter.offer(start, "x", 1), Some(1));
        assert_eq!(limiter.offer(ms(start, 10), "x", 2), None);
        assert_eq!(limiter.offer(ms(start, 20), "x", 3), None);
        assert_eq!(limiter.due(ms(start, 999)), Vec::<i32>::new());
        assert_eq!(limiter.deadline(), Some(start + PERIOD));
        assert_eq!(limiter.due(ms(start, 1000)), [3]);
        assert_eq!(limiter.offer(ms(start, 1500), "x", 4), None);
        assert_eq!(limiter.due(ms(start, 2000)), [4]);
    }

    #[test]
    fn after_a_period_without_any_the_next_goes_at_once() {
        let start = Instant::now();
        let mut limiter = Limiter::new();
        limiter.offer(start, "x", 1);
        assert_eq!(limiter.due(ms(start, 1000)), Vec::<i32>::new());
        assert_eq!(limiter.deadline(), None);
        assert_eq!(limiter.offer(ms(start, 1100), "x", 2), Some(2));
    }

    #[test]
    fn kinds_do_not_delay_each_other() {
        let start = Instant::now();
        let mut limiter = Limiter::new();
        for kind in ["x", "y"] {
            assert_eq!(limiter.offer(start, kind, kind), Some(kind));
        }
        limiter.offer(ms(start, 1), "x", "x2");
        assert_eq!(limiter.due(ms(start, 1000)), ["x2"]);
        assert_eq!(limiter.running.len(), 1, "y's period is forgotten");
    }

    #[test]
    fn at_the_end_what_is_held_comes_out() {
        let start = Instant::now();
        let mut limiter = Limiter::new();
        limiter.offer(start, "x", 1);
        limiter.offer(start, "x", 2);
        assert_eq!(limiter.release(), [2]);
        assert_eq!(limiter.deadline(), None);
    }
}
