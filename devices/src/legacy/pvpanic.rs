//! The pvpanic device on the ISA bus: one port through which a guest's kernel tells that it has
//! panicked (QEMU's `docs/specs/pvpanic`).

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};
use crate::state::{Empty, NothingToSave, StateError, Stateful};

/// Where the port is.
pub const BASE: u64 = 0x505;
/// Event bit: the guest has panicked.
pub const PANICKED: u8 = 1 << 0;
/// Event bit: the guest's crash kernel takes over.
pub const CRASH_LOADED: u8 = 1 << 1;

/// Event bit: the guest has shut down in good order, and nobody needs to look at its disks.
pub const SHUT_DOWN: u8 = 1 << 2;
/// All events.
pub const EVENTS: u8 = PANICKED | CRASH_LOADED | SHUT_DOWN;

/// The port.
#[derive(Debug)]
pub struct Pvpanic {
    notices: NoticeSink,
    events: u8,
}

impl Pvpanic {
    /// A port that reports those of `events` that there are to `notices`.
    #[must_use]
    pub const fn new(notices: NoticeSink, events: u8) -> Self {
        Self {
            notices,
            events: events & EVENTS,
        }
    }
}

impl NothingToSave for Pvpanic {
    const KIND: &'static str = "pvpanic";
}

impl Stateful for Pvpanic {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl Lifecycle for Pvpanic {}

impl BusDevice for Pvpanic {
    /// The events that the device understands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.events;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0) & self.events;
        for (event, notice) in [
            (PANICKED, Notice::GuestPanicked),
            (CRASH_LOADED, Notice::GuestCrashLoaded),
            (SHUT_DOWN, Notice::GuestPvShutdown),
        ] {
            if events & event != 0 {
                self.notices.send(notice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn each_event_is_reported_and_unknown_bits_are_not() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let notices = NoticeSink::new(move |notice| {
            sink.lock().unwrap().push(notice);
        });
        let port = Pvpanic::new(notices.clone(), 0xff);
        let mut events = [0];
        port.read(0, &mut events);
        assert_eq!(events, [EVENTS]);
        port.write(0, &[0xf8]);
        for event in [PANICKED, CRASH_LOADED, SHUT_DOWN] {
            port.write(0, &[event]);
        }
        let all = [
            Notice::GuestPanicked,
            Notice::GuestCrashLoaded,
            Notice::GuestPvShutdown,
        ];
        assert_eq!(*heard.lock().unwrap(), all);
        let panics_only = Pvpanic::new(notices, PANICKED);
        panics_only.write(0, &[SHUT_DOWN | CRASH_LOADED]);
        assert_eq!(heard.lock().unwrap().len(), all.len());
    }
}
