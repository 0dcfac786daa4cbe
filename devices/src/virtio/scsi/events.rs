//! The event queue: the driver's buffers wait for news (virtio 1.2, 5.6.6.3).

use std::sync::atomic::{AtomicBool, Ordering};

use super::units::Address;
use crate::memory::GuestMemView;
use crate::virtio::ring::{Broken, Ring, Slot};

/// The length of an event.
pub(super) const LEN: u32 = 16;

/// Events.
const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAM_CHANGE: u32 = 3;
/// Events before this one were lost.
const MISSED: u32 = 1 << 31;

/// What happened to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It came.
    Plugged,
    /// It went.
    Unplugged,
    /// The medium has another length.
    Resized,
}

impl Event {
    fn numbers(self) -> (u32, u32) {
        match self {
            Self::Plugged => (TRANSPORT_RESET, 1),
            Self::Unplugged => (TRANSPORT_RESET, 2),
            // The additional sense code and its qualifier: CAPACITY DATA HAS CHANGED.
            Self::Resized => (PARAM_CHANGE, 0x2a | 0x09 << 8),
        }
    }
}

/// The queue of events.
#[derive(Default)]
pub(super) struct EventQueue {
    pub(super) slot: Slot,
    pub(super) missed: AtomicBool,
}

impl EventQueue {
    /// Tells of an event, now if the driver gave a buffer; else it will be told that it missed one.
    pub(super) fn tell(&self, address: Address, event: Event) -> Result<(), Broken> {
        let (kind, reason) = event.numbers();
        self.put(kind, address.bytes(), reason)
    }

    /// The driver gave buffers.
    pub(super) fn refill(&self) -> Result<(), Broken> {
        if self.missed.load(Ordering::Acquire) {
            return self.put(NO_EVENT, [0; 8], 0);
        }
        Ok(())
    }

    /// Nobody missed anything: the driver begins anew.
    pub(super) fn reset(&self) {
        self.missed.store(false, Ordering::Release);
    }

    fn put(&self, kind: u32, lun: [u8; 8], reason: u32) -> Result<(), Broken> {
        let sent = self.slot.with(|ring, memory| {
            let missed = self.missed.swap(false, Ordering::AcqRel);
            let kind = if missed { kind | MISSED } else { kind };
            let mut bytes = [0; LEN as usize];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[4..12].copy_from_slice(&lun);
            bytes[12..].copy_from_slice(&reason.to_le_bytes());
            send(ring, memory, &bytes)
        });
        match sent {
            Some(Ok(true)) => Ok(()),
            // A driver that is not there yet finds its units by looking.
            None => Ok(()),
            Some(Ok(false)) => {
                self.missed.store(true, Ordering::Release);
                Ok(())
            }
            Some(Err(broken)) => Err(broken),
        }
    }
}

fn send(ring: &mut Ring, memory: &GuestMemView, event: &[u8]) -> Result<bool, Broken> {
    let Some(chain) = ring.next(memory)? else {
        return Ok(false);
    };
    let written = chain.scatter(event)?;
    ring.add_used(memory, &chain, written)?;
    Ok(true)
}
