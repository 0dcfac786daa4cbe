//! Dates of seconds, and seconds of dates: the proleptic Gregorian calendar.

const DAY_SECONDS: i64 = 86_400;

/// A civil date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
    /// 1 Sunday to 7 Saturday.
    pub(super) weekday: u8,
}

impl Civil {
    /// The proleptic Gregorian date of seconds since 1970, by counting 400-year eras from the
    /// first of March of year 0, so that leap days come last.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY_SECONDS);
        let rest = seconds.rem_euclid(DAY_SECONDS);
        let from_march = days.saturating_add(719_468);
        let era = from_march.div_euclid(146_097);
        let day_of_era = from_march.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let small = |value: i64| u8::try_from(value).unwrap_or(0);
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: small(month),
            day: small(day),
            hour: small(rest / 3600),
            minute: small(rest / 60 % 60),
            second: small(rest % 60),
            weekday: small((days + 4).rem_euclid(7) + 1),
        }
    }

    pub(super) fn to_seconds(self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = self.year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY_SECONDS
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn dates_go_there_and_back(seconds in -1_000_000_000_000i64..1_000_000_000_000) {
            let civil = Civil::from_seconds(seconds);
            prop_assert!((1..=12).contains(&civil.month) && (1..=31).contains(&civil.day));
            prop_assert_eq!(civil.to_seconds(), seconds);
        }
    }
}
