//! The pvpanic device on the ISA bus: one port through which a guest's kernel tells that it has
//! panicked (QEMU's `docs/specs/pvpanic`).

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::notice::{Notice, NoticeSink};

/// Where the port is.
pub const BASE: u64 = 0x505;
/// Event bit: the guest has panicked.
pub const PANICKED: u8 = 1 << 0;
/// Event bit: the guest's crash kernel takes over.
pub const CRASH_LOADED: u8 = 1 << 1;

/// The port.
#[derive(Debug)]
pub struct Pvpanic(NoticeSink);

impl Pvpanic {
    /// A port that reports to `notices`.
    #[must_use]
    pub const fn new(notices: NoticeSink) -> Self {
        Self(notices)
    }
}

impl Lifecycle for Pvpanic {}

impl BusDevice for Pvpanic {
    /// The events that the device understands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0);
        if events & PANICKED != 0 {
            self.0.send(Notice::GuestPanicked);
        }
        if events & CRASH_LOADED != 0 {
            self.0.send(Notice::GuestCrashLoaded);
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
        let port = Pvpanic::new(NoticeSink::new(move |notice| {
            sink.lock().unwrap().push(notice);
        }));
        let mut events = [0];
        port.read(0, &mut events);
        assert_eq!(events, [PANICKED | CRASH_LOADED]);
        port.write(0, &[0xfc]);
        port.write(0, &[PANICKED]);
        port.write(0, &[CRASH_LOADED]);
        assert_eq!(
            *heard.lock().unwrap(),
            [Notice::GuestPanicked, Notice::GuestCrashLoaded]
        );
    }
}
