//! Events on their way to every negotiated session, stamped and rate limited.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use qapi_schema::block_core::BlockErrorAction;
use qapi_schema::{Event, EventSink, compat, to_wire};
use serde::Serialize;

use crate::limit::Limiter;
use crate::line::{Bell, Key, Line, Note};
use crate::print::{Style, message};

/// When something happened, by the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Timestamp {
    seconds: u64,
    microseconds: u32,
}

impl Timestamp {
    fn now() -> Self {
        // A clock before 1970 is no reason to lose the event.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            microseconds: since.subsec_micros(),
        }
    }
}

/// An event as it goes out.
#[derive(Clone, Debug, Serialize)]
struct Stamped {
    timestamp: Timestamp,
    #[serde(flatten)]
    event: Event,
}

/// Which events are limited together: those of one name and of one device.
type LimitKey = (&'static str, String);

/// A clock that is not the host's.
struct LimitClock(Box<dyn Fn() -> Instant + Send + Sync>);

impl fmt::Debug for LimitClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LimitClock")
    }
}

/// The rate limits of events on a clock that somebody else looks at. Made by
/// [`Server::limit_by`](crate::Server::limit_by).
#[derive(Debug)]
pub struct EventLimits(pub(crate) Arc<EventHub>);

impl EventLimits {
    /// When an event that is held back may go out.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.0.limiter().deadline()
    }

    /// Sends those events whose time has come.
    pub fn send_due(&self, now: Instant) {
        self.0.send_due_by(now);
    }
}

/// Where events go.
#[derive(Debug)]
pub(crate) struct EventHub {
    listeners: Mutex<Vec<Arc<Line>>>,
    limiter: Mutex<Limiter<LimitKey, Stamped>>,
    /// The clock of the limits, where it is not the host's.
    clock: OnceLock<LimitClock>,
    bell: Arc<Bell>,
}

impl EventHub {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self {
            listeners: Mutex::new(Vec::new()),
            limiter: Mutex::new(Limiter::new()),
            clock: OnceLock::new(),
            bell,
        }
    }

    /// Sends events to one more session.
    pub(crate) fn add(&self, line: Arc<Line>) {
        self.listeners().push(line);
    }

    /// Sends no more events to a session.
    pub(crate) fn remove(&self, key: Key) {
        let dropped_without_lock: Vec<_> = self
            .listeners()
            .extract_if(.., |line| line.key == key)
            .collect();
        drop(dropped_without_lock);
    }

    /// From now on the limits hold by `clock`, and [`send_due`](Self::send_due) is idle.
    pub(crate) fn limit_by(&self, clock: Box<dyn Fn() -> Instant + Send + Sync>) {
        // A second clock would tear what runs by the first.
        let _ = self.clock.set(LimitClock(clock));
    }

    /// Sends those events whose time has come by the host's clock.
    pub(crate) fn send_due(&self, now: Instant) {
        if self.clock.get().is_none() {
            self.send_due_by(now);
        }
    }

    fn send_due_by(&self, now: Instant) {
        let due = self.limiter().due(now);
        due.iter().for_each(|stamped| self.send(stamped));
    }

    /// When to call [`send_due`](Self::send_due) again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let on_host = self.clock.get().is_none();
        on_host.then(|| self.limiter().deadline()).flatten()
    }

    /// Sends all events that wait for their time: the process ends.
    pub(crate) fn send_held(&self) {
        let held = self.limiter().release();
        held.iter().for_each(|stamped| self.send(stamped));
    }

    fn send(&self, stamped: &Stamped) {
        let listeners = self.listeners().clone();
        if listeners.is_empty() {
            return;
        }
        let text = match to_wire(stamped) {
            Ok(text) => text,
            Err(error) => {
                let event = stamped.event.name();
                tracing::error!(event, %error, "an event could not be written");
                return;
            }
        };
        for style in [Style::Line, Style::Pretty] {
            let mut of_style = listeners
                .iter()
                .filter(|line| line.style == style)
                .peekable();
            if of_style.peek().is_some() {
                let bytes = message(style, &[&text]);
                of_style.for_each(|line| line.send(&bytes));
            }
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter<LimitKey, Stamped>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for EventHub {
    fn emit(&self, event: Event) {
        if compat::hides(event.marks()) {
            return;
        }
        let key = limit_key(&event);
        let stamped = Stamped {
            timestamp: Timestamp::now(),
            event,
        };
        let Some(key) = key else {
            return self.send(&stamped);
        };
        let now = self
            .clock
            .get()
            .map_or_else(Instant::now, |clock| (clock.0)());
        let offered = self.limiter().offer(now, key, stamped);
        if let Some(stamped) = offered {
            self.send(&stamped);
            self.bell.ring(Note::Clock);
        }
    }
}

/// With which others an event is limited to one per second; `None`: it never is.
fn limit_key(event: &Event) -> Option<LimitKey> {
    let device = match event {
        Event::VserportChange(change) => change.id.clone(),
        // One that stopped the machine is never held back: a client must act on it.
        Event::BlockIoError(error) if error.action != BlockErrorAction::Stop => {
            error.qom_path.clone()
        }
        Event::MemoryDeviceSizeChange(change) => change.qom_path.clone(),
        // There is one balloon, and one policy for watchdogs.
        Event::BalloonChange(_) | Event::Watchdog(_) => String::new(),
        _ => return None,
    };
    Some((event.name(), device))
}

#[cfg(test)]
mod tests {
    use qapi_schema::block_core::{BlockIoError, IoOperationType};

    use super::*;

    #[test]
    fn an_error_that_stopped_the_machine_is_never_held_back() {
        let error = |action| {
            Event::BlockIoError(BlockIoError {
                qom_path: "/machine/peripheral/disk0".into(),
                device: String::new(),
                node_name: None,
                operation: IoOperationType::Read,
                action,
                nospace: None,
                reason: "broken".into(),
            })
        };
        assert_eq!(limit_key(&error(BlockErrorAction::Stop)), None);
        assert_eq!(
            limit_key(&error(BlockErrorAction::Report)),
            Some(("BLOCK_IO_ERROR", "/machine/peripheral/disk0".into()))
        );
        assert_eq!(limit_key(&Event::Stop), None);
    }

    #[test]
    fn limits_on_another_clock_are_over_when_that_says_so() {
        let start = Instant::now();
        let hub = Arc::new(EventHub::new(Arc::new(Bell::new())));
        hub.limit_by(Box::new(move || start));
        let limits = EventLimits(Arc::clone(&hub));
        let change = || {
            Event::VserportChange(qapi_schema::char::VserportChange {
                id: "port".into(),
                open: true,
            })
        };
        hub.emit(change());
        hub.emit(change());
        let due = limits.deadline().expect("one is held");
        assert!(due > start);
        assert_eq!(hub.deadline(), None, "nobody waits on the host's clock");
        hub.send_due(due);
        assert_eq!(limits.deadline(), Some(due));
        limits.send_due(due);
        assert!(limits.deadline().is_some_and(|next| next > due));
        limits.send_due(due + std::time::Duration::from_secs(2));
        assert_eq!(limits.deadline(), None, "nothing is held any more");
    }
}
