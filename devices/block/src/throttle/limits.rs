//! What the limits of a group can be.

/// The highest rate: what QEMU takes.
const MAX_RATE: u64 = 1_000_000_000_000_000;

/// How much may go through in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// On average; 0 is no limit.
    pub average: u64,
    /// In a burst; 0: a tenth of a second of the average at once.
    pub burst: u64,
    /// For how many seconds a burst can last.
    pub burst_seconds: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            average: 0,
            burst: 0,
            burst_seconds: 1,
        }
    }
}

/// The rates of one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// For everything together.
    pub total: Rate,
    /// For reads.
    pub read: Rate,
    /// For writes, discards among them.
    pub write: Rate,
}

/// All limits of a group. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Bytes in a second.
    pub bytes: Rates,
    /// Requests in a second.
    pub requests: Rates,
    /// A larger request counts as several of this many bytes; 0: each counts as one.
    pub request_size: u64,
}

/// Why limits make no sense; the texts are those of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A rate for all excludes rates for some.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndPart,
    /// Sizes of requests only matter where requests are counted.
    #[error("iops size requires an iops value to be set")]
    SizeWithoutRequests,
    /// A rate is too high.
    #[error("bps/iops/max values must be within [0, {MAX_RATE}]")]
    TooHigh,
    /// A burst of no length.
    #[error("the burst length cannot be 0")]
    NoLength,
    /// A length without a burst.
    #[error("burst length set without burst rate")]
    LengthWithoutBurst,
    /// Burst and length together are too much.
    #[error("burst length too high for this burst rate")]
    LengthTooHigh,
    /// A burst without an average.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    BurstWithoutAverage,
    /// A burst that would be slower.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    BurstTooLow,
}

impl Rate {
    fn check(self) -> Result<(), LimitsError> {
        if self.average > MAX_RATE || self.burst > MAX_RATE {
            return Err(LimitsError::TooHigh);
        }
        if self.burst_seconds == 0 {
            return Err(LimitsError::NoLength);
        }
        if self.burst_seconds > 1 && self.burst == 0 {
            return Err(LimitsError::LengthWithoutBurst);
        }
        if self.burst != 0 && self.burst_seconds > MAX_RATE / self.burst {
            return Err(LimitsError::LengthTooHigh);
        }
        if self.burst != 0 && self.average == 0 {
            return Err(LimitsError::BurstWithoutAverage);
        }
        if self.burst != 0 && self.burst < self.average {
            return Err(LimitsError::BurstTooLow);
        }
        Ok(())
    }
}

impl Rates {
    fn all(self) -> [Rate; 3] {
        [self.total, self.read, self.write]
    }

    fn conflict(self) -> bool {
        let both = |of: fn(Rate) -> u64| {
            of(self.total) != 0 && (of(self.read) != 0 || of(self.write) != 0)
        };
        both(|rate| rate.average) || both(|rate| rate.burst)
    }

    fn any(self) -> bool {
        self.all().iter().any(|rate| rate.average != 0)
    }
}

impl ThrottleLimits {
    /// Whether anything is limited at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.bytes.any() || self.requests.any()
    }

    /// Whether the limits make sense together.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self) -> Result<(), LimitsError> {
        if self.bytes.conflict() || self.requests.conflict() {
            return Err(LimitsError::TotalAndPart);
        }
        if self.request_size != 0 && !self.requests.any() {
            return Err(LimitsError::SizeWithoutRequests);
        }
        let mut rates = self.bytes.all().into_iter().chain(self.requests.all());
        rates.try_for_each(Rate::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rate: Rate) -> Result<(), LimitsError> {
        let read = rate;
        let requests = Rates {
            read,
            ..Rates::default()
        };
        ThrottleLimits {
            requests,
            ..ThrottleLimits::default()
        }
        .check()
    }

    fn rate(average: u64, burst: u64, burst_seconds: u64) -> Rate {
        Rate {
            average,
            burst,
            burst_seconds,
        }
    }

    #[test]
    fn rates_that_make_no_sense_are_refused() {
        assert_eq!(check(rate(0, 0, 1)), Ok(()));
        assert_eq!(check(rate(10, 20, 60)), Ok(()));
        assert_eq!(check(rate(MAX_RATE + 1, 0, 1)), Err(LimitsError::TooHigh));
        assert_eq!(check(rate(10, 20, 0)), Err(LimitsError::NoLength));
        assert_eq!(check(rate(10, 0, 2)), Err(LimitsError::LengthWithoutBurst));
        assert_eq!(check(rate(1, MAX_RATE, 2)), Err(LimitsError::LengthTooHigh));
        assert_eq!(check(rate(0, 20, 1)), Err(LimitsError::BurstWithoutAverage));
        assert_eq!(check(rate(10, 9, 1)), Err(LimitsError::BurstTooLow));
    }

    #[test]
    fn a_total_excludes_parts_of_the_same_unit_only() {
        let mut limits = ThrottleLimits::default();
        limits.bytes.total.average = 1000;
        limits.requests.read.average = 10;
        assert_eq!(limits.check(), Ok(()));
        limits.bytes.write.average = 10;
        assert_eq!(limits.check(), Err(LimitsError::TotalAndPart));
    }

    #[test]
    fn a_size_of_requests_needs_a_limit_of_requests() {
        let mut limits = ThrottleLimits {
            request_size: 4096,
            ..ThrottleLimits::default()
        };
        assert_eq!(limits.check(), Err(LimitsError::SizeWithoutRequests));
        limits.requests.total.average = 5;
        assert_eq!(limits.check(), Ok(()));
    }
}
