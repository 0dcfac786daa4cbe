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
    pub(crate) fn read(self) -> Result<TimedEvent, serde_json::Error> {
        let since_epoch = self.timestamp.and_then(|time| {
            let seconds = Duration::from_secs(u64::try_from(time.seconds).ok()?);
            Some(seconds + Duration::from_micros(u64::try_from(time.microseconds).ok()?))
        });
        let time = since_epoch.and_then(|passed| SystemTime::UNIX_EPOCH.checked_add(passed));
        Ok(TimedEvent {
            time: time.unwrap_or(SystemTime::UNIX_EPOCH),
            event: Event::read(self.event, self.data)?,
        })
    }
}
