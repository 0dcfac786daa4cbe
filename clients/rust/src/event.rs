//! Events with their time.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use crate::Event;

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq)]
pub struct TimedEvent {
    /// By the server's clock.
    pub time: SystemTime,
    /// What happened.
    pub event: Event,
    /// What came with it, as it came: for programs that show or keep any event.
    pub data: Value,
}

/// An event as it comes.
#[derive(Debug, Deserialize)]
pub(crate) struct WireEvent {
    event: String,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
}

/// Each part is -1 where the server has no clock.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

impl WireEvent {
    /// Reads it as its name says. A server of another version may say more or less with a known
    /// name: then it is an unknown event, and the session goes on.
    pub(crate) fn read(self) -> TimedEvent {
        let since_epoch = self.timestamp.and_then(|time| {
            let seconds = Duration::from_secs(u64::try_from(time.seconds).ok()?);
            Some(seconds + Duration::from_micros(u64::try_from(time.microseconds).ok()?))
        });
        let time = since_epoch.and_then(|passed| SystemTime::UNIX_EPOCH.checked_add(passed));
        let event = Event::read(self.event.clone(), self.data.clone());
        TimedEvent {
            time: time.unwrap_or(SystemTime::UNIX_EPOCH),
            event: event.unwrap_or_else(|_| Event::Unknown {
                name: self.event,
                data: self.data.clone(),
            }),
            data: self.data,
        }
    }
}
