//! Packets into a chardev, each behind its length.
//!
//! What the chardev does not take waits here, one of the longest packets at most; a packet that comes
//! meanwhile is dropped and counted. Without a peer all is dropped.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{FilterError, Place};
use crate::chardev::{Chardev, ChardevLease, Frontend};
use crate::net::framing::{Frames, Outbox};
use crate::net::packet::Packet;
use crate::repeats::Repeats;

/// A chardev that packets go to.
pub(super) struct Outlet {
    id: String,
    frames: Frames,
    /// The netdev's packets have a header that says something.
    headed: bool,
    outbox: Mutex<Outbox>,
    lease: OnceLock<ChardevLease>,
    dropped: Repeats,
}

impl Outlet {
    /// Takes the place at `chardev` for the filter at `place`.
    pub(super) fn at(
        chardev: &Arc<Chardev>,
        place: &Place,
        frames: Frames,
    ) -> Result<Arc<Self>, FilterError> {
        let outlet = Arc::new(Self {
            id: place.id.clone(),
            frames,
            headed: place.is_headed(),
            outbox: Mutex::default(),
            lease: OnceLock::new(),
            dropped: Repeats::default(),
        });
        let frontend: Arc<dyn Frontend> = Arc::clone(&outlet) as _;
        let lease = chardev.attach(&frontend)?;
        lease.set_open(true);
        outlet.lease.set(lease).ok();
        Ok(outlet)
    }

    /// Sends a packet.
    pub(super) fn put(&self, packet: &Packet<'_>) {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match self.frames {
            Frames::Plain => outbox.put(packet),
            Frames::Headed => outbox.put_headed(packet, self.headed),
        };
        if kept {
            self.send(&mut outbox);
        } else if let Some(times) = self.dropped.note() {
            tracing::warn!(times, filter = %self.id, "a chardev's peer is too slow for packets");
        }
    }

    fn send(&self, outbox: &mut Outbox) {
        if let Some(lease) = self.lease.get() {
            let taken = lease.write(outbox.waiting());
            outbox.sent(taken);
        }
    }
}

impl Frontend for Outlet {
    /// What a peer says here waits for ever.
    fn room(&self) -> usize {
        0
    }

    fn receive(&self, _bytes: &[u8]) -> usize {
        0
    }

    fn writable(&self) {
        self.send(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
