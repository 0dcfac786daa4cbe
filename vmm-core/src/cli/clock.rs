//! `-rtc`: what the real-time clock shows.

use devices::legacy::RtcDrive;
use qapi_schema::cli::RtcOptions;

use super::config::{RtcBase, RtcSpec};
use super::error::Problem;

pub(super) fn resolve(options: &RtcOptions) -> Result<RtcSpec, Problem> {
    let base = match options.base.as_deref() {
        None | Some("utc") => RtcBase::Utc,
        Some("localtime") => RtcBase::Localtime,
        Some(text) => RtcBase::Start(seconds(text).ok_or_else(|| {
            Problem::new(format!(
                "base={text}: invalid datetime format; wanted utc, localtime, \
                 2026-01-31T23:59:59 or 2026-01-31"
            ))
        })?),
    };
    let drive = match options.clock.as_deref() {
        None | Some("host") => RtcDrive::Host,
        Some("rt") => RtcDrive::Rt,
        Some("vm") => RtcDrive::Vm,
        Some(other) => {
            let problem = format!("clock={other}: wanted host, rt or vm");
            return Err(Problem::new(problem));
        }
    };
    match options.driftfix.as_deref() {
        // Time is read, not counted: no lost tick has to be made up for by slewing.
        None | Some("none" | "slew") => Ok(RtcSpec { base, drive }),
        Some(other) => Err(Problem::new(format!(
            "driftfix={other}: wanted none or slew"
        ))),
    }
}

/// Seconds since 1970 of `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SS`.
fn seconds(text: &str) -> Option<i64> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, numbers(time, ':', [2, 2, 2])?),
        None => (text, [0, 0, 0]),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = time;
    let days = days_of(year, month)?;
    let fits = (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    fits.then(|| ((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

/// Three numbers of exactly so many digits.
fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut out = [0; 3];
    for (slot, digits) in out.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *slot = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> Option<i64> {
    match month {
        2 => Some(if is_leap(year) { 29 } else { 28 }),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    }
}

/// Days from 1970-01-01 to the first of the month, in the proleptic Gregorian calendar.
fn days_before(year: i64, month: i64) -> i64 {
    let before = year - 1;
    let leap_days = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    let to_year = before * 365 + leap_days - 719_162;
    let to_month: i64 = (1..month).filter_map(|month| days_of(year, month)).sum();
    to_year + to_month
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_counted_from_1970() {
        assert_eq!(seconds("1970-01-01"), Some(0));
        assert_eq!(seconds("1970-01-01T00:01:01"), Some(61));
        assert_eq!(seconds("2000-03-01"), Some(951_868_800));
        assert_eq!(seconds("2026-01-01T00:00:00"), Some(1_767_225_600));
        assert_eq!(seconds("1969-12-31T23:59:59"), Some(-1));
    }

    #[test]
    fn days_that_are_not_in_the_calendar_are_no_dates() {
        for text in [
            "2026-02-29",
            "2026-13-01",
            "2026-1-1",
            "2026-01-01T24:00:00",
            "now",
            "",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
