//! Times as people write them, in UTC.

use std::time::{Duration, SystemTime};

/// How long after 1970 a time is; none for the server that has no clock.
pub(crate) fn since_epoch(time: SystemTime) -> Option<Duration> {
    let passed = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    (!passed.is_zero()).then_some(passed)
}

/// `2026-11-21T01:02:03.456Z`.
pub(crate) fn utc(since_epoch: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / DAY);
    let second = seconds % DAY;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since_epoch.subsec_millis()
    )
}

/// The date so many days after 1970-01-01. Years are counted from March, so that the leap day is
/// the last of its year, and in eras of 400 years, which are all alike.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_days_and_ends_of_years_are_right() {
        let wanted = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, wanted) in wanted {
            assert_eq!(utc(Duration::from_secs(seconds)), wanted);
        }
    }
}
