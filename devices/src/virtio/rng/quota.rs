//! How many random bytes a guest may take in a while. Pure: time is an argument.

use std::time::{Duration, Instant};

/// So many bytes in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes in one period.
    pub max_bytes: u64,
    /// The period.
    pub period: Duration,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        max_bytes: u64::MAX,
        period: Duration::from_secs(1),
    };
}

/// What is left of a [`Rate`]. A period begins with the first byte taken in it.
#[derive(Debug)]
pub struct Quota {
    rate: Rate,
    left: u64,
    refill: Option<Instant>,
}

impl Quota {
    /// A full quota.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            left: rate.max_bytes,
            refill: None,
        }
    }

    /// How many bytes may be taken at `now`, or how long to wait until some may.
    ///
    /// # Errors
    /// None are left; the time until the next period.
    pub fn left(&mut self, now: Instant) -> Result<u64, Duration> {
        if self.refill.is_some_and(|refill| refill <= now) {
            (self.left, self.refill) = (self.rate.max_bytes, None);
        }
        match self.refill {
            Some(refill) if self.left == 0 => Err(refill.saturating_duration_since(now)),
            None if self.left == 0 => Err(self.rate.period),
            _ => Ok(self.left),
        }
    }

    /// Notes that `count` bytes were taken at `now`.
    pub fn spend(&mut self, count: u64, now: Instant) {
        self.left = self.left.saturating_sub(count);
        if self.refill.is_none() {
            self.refill = now.checked_add(self.rate.period);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_quota_is_full_again_one_period_after_its_first_byte() {
        let rate = Rate {
            max_bytes: 10,
            period: Duration::from_secs(5),
        };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut quota = Quota::new(rate);
        assert_eq!(quota.left(after(0)), Ok(10));
        quota.spend(4, after(1));
        assert_eq!(quota.left(after(2)), Ok(6));
        quota.spend(6, after(2));
        assert_eq!(quota.left(after(2)), Err(Duration::from_secs(4)));
        assert_eq!(quota.left(after(6)), Ok(10));
    }

    #[test]
    fn an_unlimited_rate_never_ends() {
        let mut quota = Quota::new(Rate::UNLIMITED);
        let now = Instant::now();
        quota.spend(1 << 40, now);
        assert!(quota.left(now).is_ok());
    }
}
