//! Standard output: JSON for programs, lines for people.

use std::io::{self, Write};

use serde_json::{Value, json};
use sesame_qmp::TimedEvent;

use crate::clock;
use crate::failure::Failure;

/// How replies are written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Output {
    /// Indented, in several lines.
    pub(crate) pretty: bool,
}

impl Output {
    /// Writes a JSON value.
    pub(crate) fn json(self, value: &Value) -> Result<(), Failure> {
        if self.pretty {
            line(&format!("{value:#}"))
        } else {
            line(&value.to_string())
        }
    }
}

/// Writes a line at once.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(Failure::Output)
}

/// An event as it came over the wire.
pub(crate) fn wire(event: &TimedEvent) -> Value {
    let mut wire = json!({ "event": event.event.name() });
    if let Some(passed) = clock::since_epoch(event.time) {
        wire["timestamp"] =
            json!({ "seconds": passed.as_secs(), "microseconds": passed.subsec_micros() });
    }
    if !event.data.is_null() {
        wire["data"] = event.data.clone();
    }
    wire
}

/// An event in one line for people.
pub(crate) fn told(event: &TimedEvent) -> String {
    let time = clock::since_epoch(event.time).map_or_else(|| "-".to_owned(), clock::utc);
    let data = flat(&event.data);
    format!("{time} {}{data}", event.event.name())
}

/// ` key=value` for each member.
fn flat(data: &Value) -> String {
    match data {
        Value::Null => String::new(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| match value {
                Value::String(text) if !text.contains(' ') => format!(" {name}={text}"),
                other => format!(" {name}={other}"),
            });
            members.collect()
        }
        other => format!(" {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sesame_qmp::Event;
    use std::time::{Duration, SystemTime};

    #[test]
    fn an_event_is_told_in_one_line_and_kept_as_it_came() {
        let event = TimedEvent {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            event: Event::Stop,
            data: json!({"id": "d 0", "on": true, "path": "/m"}),
        };
        assert_eq!(
            told(&event),
            r#"1970-01-01T00:00:01.500Z STOP id="d 0" on=true path=/m"#
        );
        assert_eq!(
            wire(&event),
            json!({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 500_000},
                   "data": event.data})
        );
    }
}
