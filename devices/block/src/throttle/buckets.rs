//! Leaky buckets: how long until one more request may go.
//!
//! ```text
//!        a request pours in what it counts, when it goes
//!            │
//!   level ─► ▓▓▓▓▓▓ ── above the size of the bucket: the next one waits until it is not
//!            └──┬──┘
//!               ▼ leaks `average` a second
//! ```
//!
//! A burst of some seconds has a second, small bucket, which leaks as fast as the burst may be: the
//! large one lets as much through as the burst is long, the small one not faster.
//!
//! Pure: the time is given, and only its differences count.

use std::time::Duration;

use super::limits::{Rate, ThrottleLimits};

/// The part of a second for which something goes through at once where no burst is set.
const AT_ONCE: f64 = 0.1;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It reads.
    Read,
    /// It writes, discards or zeroes.
    Write,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    average: f64,
    burst: f64,
    burst_seconds: f64,
    level: f64,
    burst_level: f64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        // Rates end long before the numbers that a float has exactly.
        Self {
            average: rate.average as f64,
            burst: rate.burst as f64,
            burst_seconds: rate.burst_seconds as f64,
            level: 0.0,
            burst_level: 0.0,
        }
    }

    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - self.average * seconds).max(0.0);
        self.burst_level = (self.burst_level - self.burst * seconds).max(0.0);
    }

    fn is_long_burst(&self) -> bool {
        self.burst_seconds > 1.0
    }

    /// Seconds until the next may go.
    fn wait(&self) -> f64 {
        if self.average == 0.0 {
            return 0.0;
        }
        let size = if self.burst == 0.0 {
            self.average * AT_ONCE
        } else {
            self.burst * self.burst_seconds
        };
        let wait = (self.level - size) / self.average;
        if wait > 0.0 || !self.is_long_burst() {
            return wait.max(0.0);
        }
        let wait = (self.burst_level - self.burst * AT_ONCE) / self.burst;
        wait.max(0.0)
    }

    fn pour(&mut self, units: f64) {
        if self.average == 0.0 {
            return;
        }
        self.level += units;
        if self.is_long_burst() {
            self.burst_level += units;
        }
    }
}

/// The buckets of a group.
#[derive(Debug)]
pub(super) struct Buckets {
    limits: ThrottleLimits,
    /// Total, read, write.
    bytes: [Bucket; 3],
    requests: [Bucket; 3],
    leaked: Duration,
}

impl Buckets {
    /// Empty buckets.
    pub(super) fn new(limits: ThrottleLimits, now: Duration) -> Self {
        let buckets = |rates: super::Rates| [rates.total, rates.read, rates.write].map(Bucket::new);
        Self {
            limits,
            bytes: buckets(limits.bytes),
            requests: buckets(limits.requests),
            leaked: now,
        }
    }

    pub(super) fn limits(&self) -> ThrottleLimits {
        self.limits
    }

    fn leak(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.leaked).as_secs_f64();
        self.leaked = self.leaked.max(now);
        for bucket in self.bytes.iter_mut().chain(&mut self.requests) {
            bucket.leak(seconds);
        }
    }

    /// How long until the next request of this direction may go; zero is now.
    pub(super) fn wait(&mut self, direction: Direction, now: Duration) -> Duration {
        self.leak(now);
        let of = own(direction);
        let both = [&self.bytes, &self.requests];
        let waits = both.map(|buckets| buckets[0].wait().max(buckets[of].wait()));
        Duration::try_from_secs_f64(waits[0].max(waits[1])).unwrap_or(Duration::MAX)
    }

    /// Counts a request that goes.
    pub(super) fn count(&mut self, direction: Direction, bytes: u64, now: Duration) {
        self.leak(now);
        let (len, size) = (bytes as f64, self.limits.request_size);
        let requests = if size != 0 && bytes > size {
            len / size as f64
        } else {
            1.0
        };
        for of in [0, own(direction)] {
            self.bytes[of].pour(len);
            self.requests[of].pour(requests);
        }
    }
}

/// Where the bucket of a direction is.
fn own(direction: Direction) -> usize {
    match direction {
        Direction::Read => 1,
        Direction::Write => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests of `bytes` go within so many seconds, if somebody always asks.
    fn gone(limits: ThrottleLimits, direction: Direction, bytes: u64, seconds: u64) -> u64 {
        let mut buckets = Buckets::new(limits, Duration::ZERO);
        let (mut now, mut gone) = (Duration::ZERO, 0);
        while now < Duration::from_secs(seconds) {
            let wait = buckets.wait(direction, now);
            if wait.is_zero() {
                buckets.count(direction, bytes, now);
                gone += 1;
                assert!(gone < 1_000_000, "no limit");
            }
            now += wait;
        }
        gone
    }

    fn requests(rate: Rate) -> ThrottleLimits {
        let mut limits = ThrottleLimits::default();
        limits.requests.total = rate;
        limits
    }

    #[test]
    fn on_average_as_many_requests_go_as_the_limit_says() {
        let limits = requests(Rate {
            average: 100,
            ..Rate::default()
        });
        let in_ten = gone(limits, Direction::Read, 512, 10);
        // A tenth of a second's worth, and the one that fills the bucket, go at once.
        assert!((1000..=1012).contains(&in_ten), "{in_ten}");
    }

    #[test]
    fn a_burst_goes_at_its_own_rate_for_its_length_and_then_no_more() {
        let rate = Rate {
            average: 10,
            burst: 100,
            burst_seconds: 5,
        };
        let in_two = gone(requests(rate), Direction::Write, 512, 2);
        assert!((200..=215).contains(&in_two), "{in_two}");
        let in_hundred = gone(requests(rate), Direction::Write, 512, 100);
        assert!((1490..=1515).contains(&in_hundred), "{in_hundred}");
    }

    #[test]
    fn a_burst_of_one_second_goes_at_once() {
        let rate = Rate {
            average: 10,
            burst: 200,
            burst_seconds: 1,
        };
        let mut buckets = Buckets::new(requests(rate), Duration::ZERO);
        let mut at_once = 0;
        while buckets.wait(Direction::Read, Duration::ZERO).is_zero() {
            buckets.count(Direction::Read, 512, Duration::ZERO);
            at_once += 1;
        }
        assert_eq!(at_once, 201);
    }

    #[test]
    fn a_limit_of_one_direction_is_none_of_the_other() {
        let mut limits = ThrottleLimits::default();
        limits.bytes.write.average = 1000;
        let mut buckets = Buckets::new(limits, Duration::ZERO);
        buckets.count(Direction::Write, 2100, Duration::ZERO);
        assert_eq!(
            buckets.wait(Direction::Write, Duration::ZERO),
            Duration::from_secs(2)
        );
        assert!(buckets.wait(Direction::Read, Duration::ZERO).is_zero());
        assert_eq!(
            buckets.wait(Direction::Write, Duration::from_secs(1)),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn a_large_request_counts_as_several() {
        let mut limits = requests(Rate {
            average: 10,
            ..Rate::default()
        });
        limits.request_size = 4096;
        let mut buckets = Buckets::new(limits, Duration::ZERO);
        buckets.count(Direction::Read, 11 * 4096, Duration::ZERO);
        assert_eq!(
            buckets.wait(Direction::Read, Duration::ZERO),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn time_that_goes_backwards_leaks_nothing() {
        let mut limits = ThrottleLimits::default();
        limits.bytes.total.average = 10;
        let mut buckets = Buckets::new(limits, Duration::from_secs(5));
        buckets.count(Direction::Read, 11, Duration::from_secs(5));
        let wait = buckets.wait(Direction::Write, Duration::from_secs(1));
        assert_eq!(wait, Duration::from_secs(1));
    }
}
