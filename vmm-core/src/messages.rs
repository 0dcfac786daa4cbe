//! What the process says on standard error: one line for each thing that went wrong.
//!
//! `-msg timestamp=on,guest-name=on` puts the time and the guest's name before each line, as in
//! QEMU. The program's own log (`SESAME_LOG=debug`) goes the same way.

use std::fmt::{self, Display};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// The environment variable that says how much is logged: `error`, `warn` (without it), `info`,
/// `debug` or `trace`.
pub const LOG_VARIABLE: &str = "SESAME_LOG";

/// What a line begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageStyle {
    /// The time, in UTC, to the microsecond.
    pub timestamp: bool,
    /// The guest's name.
    pub guest: Option<String>,
}

static STYLE: OnceLock<MessageStyle> = OnceLock::new();

/// Sets what every line begins with, once, and starts the log.
pub fn start(style: MessageStyle) {
    let level = std::env::var(LOG_VARIABLE)
        .ok()
        .and_then(|level| level.parse().ok());
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level.unwrap_or(Level::WARN))
        .with_timer(Clock)
        .with_target(false)
        .with_ansi(false)
        .finish();
    // A second start keeps the first style and the first log.
    if STYLE.set(style).is_ok() {
        let _ = tracing::subscriber::set_global_default(log);
    }
}

/// Says one line as it is, where others match on it.
pub fn say(message: impl Display) {
    eprintln!("{}{message}", STYLE.get().cloned().unwrap_or_default());
}

/// Says one line.
pub fn report(message: impl Display) {
    eprintln!(
        "{}sesame: {message}",
        STYLE.get().cloned().unwrap_or_default()
    );
}

impl Display for MessageStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.timestamp {
            write!(f, "{} ", Utc::now())?;
        }
        match &self.guest {
            Some(guest) => write!(f, "{guest} "),
            None => Ok(()),
        }
    }
}

/// The log's clock: shows the time only where messages do.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        match STYLE.get() {
            Some(MessageStyle {
                timestamp: true, ..
            }) => write!(writer, "{}", Utc::now()),
            _ => Ok(()),
        }
    }
}

/// A moment, to be written as `2026-11-20T18:53:00.000000Z`.
struct Utc {
    seconds: u64,
    micros: u32,
}

impl Utc {
    fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            micros: since.subsec_micros(),
        }
    }
}

impl Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.seconds / 86_400, self.seconds % 86_400);
        // Days since 0000-03-01 in the proleptic calendar: leap days come last in such a year, so
        // months and years follow from divisions alone.
        let days = days + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let micros = self.micros;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates() {
        let at = |seconds| Utc { seconds, micros: 7 }.to_string();
        assert_eq!(at(0), "1970-01-01T00:00:00.000007Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000007Z");
        assert_eq!(at(1_795_200_779), "2026-11-20T18:52:59.000007Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000007Z");
    }

    #[test]
    fn a_line_begins_with_the_guest_where_that_is_asked_for() {
        let style = MessageStyle {
            timestamp: false,
            guest: Some("vm1".to_owned()),
        };
        assert_eq!(style.to_string(), "vm1 ");
        assert_eq!(MessageStyle::default().to_string(), "");
    }
}
