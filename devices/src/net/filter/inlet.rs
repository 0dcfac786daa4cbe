//! Packets out of a chardev, to whoever stands behind this filter.
//!
//! ```text
//!             a peer came                 what it sends is no packets
//!   Nothing ─────────────► Packets ──────────────────────────────────► Noise: dropped
//!                            ▲                                           │
//!                            └───────────── the next peer came ──────────┘
//! ```
//!
//! It reads as long as there is room on the way; a filter that is off does not read at all.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Chain, FilterError, Place};
use crate::chardev::{Chardev, ChardevLease, Frontend};
use crate::net::framing::{Frames, Inbox};
use crate::net::{HEADER, LONGEST};

/// How many packets are brought in before other devices get their turn.
const BATCH: usize = 256;

/// A chardev that packets come from.
pub(super) struct Inlet {
    place: Arc<Place>,
    wire: Mutex<Wire>,
    lease: OnceLock<ChardevLease>,
}

/// The bytes of the peer.
struct Wire {
    inbox: Inbox,
    /// What the peer sends is no packets.
    is_noise: bool,
    packet: Box<[u8]>,
}

impl Inlet {
    /// Takes the place at `chardev` for the filter at `place`.
    pub(super) fn at(
        chardev: &Arc<Chardev>,
        place: &Arc<Place>,
        frames: Frames,
    ) -> Result<Arc<Self>, FilterError> {
        let inlet = Arc::new(Self {
            place: Arc::clone(place),
            wire: Mutex::new(Wire {
                inbox: Inbox::new(frames),
                is_noise: false,
                packet: vec![0; LONGEST].into_boxed_slice(),
            }),
            lease: OnceLock::new(),
        });
        let frontend: Arc<dyn Frontend> = Arc::clone(&inlet) as _;
        // Not told to be open: what a peer left behind would come after the next peer's beginning.
        inlet.lease.set(chardev.attach(&frontend)?).ok();
        Ok(inlet)
    }

    /// There is room again, or the filter was switched on. On the reactor's thread.
    pub(super) fn go_on(&self) {
        if !self.place.is_on() {
            return;
        }
        self.bring_in();
        if let Some(lease) = self.lease.get() {
            lease.resume_input();
        }
    }

    /// Brings in what was read, as far as there is room.
    fn bring_in(&self) {
        let Some(chain) = self.place.chain.upgrade() else {
            return;
        };
        let mut wire = self.wire();
        for _ in 0..BATCH {
            if !self.has_room(&chain) || !wire.next_to(&chain, &self.place) {
                break;
            }
        }
        drop(wire);
        chain.brought_in();
    }

    fn has_room(&self, chain: &Chain) -> bool {
        let mut ways = self.place.queue.ways().iter();
        ways.all(|way| chain.has_room(*way, Some(&self.place)))
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// Brings in the next packet; whether there was one.
    fn next_to(&mut self, chain: &Chain, place: &Place) -> bool {
        match self.inbox.next(&mut self.packet) {
            Ok(Some(count)) => {
                if !place.is_headed() {
                    // Of these packets nobody has promised anything.
                    self.packet
                        .iter_mut()
                        .take(HEADER)
                        .for_each(|byte| *byte = 0);
                }
                let packet = self.packet.get(..count).unwrap_or_default();
                for way in place.queue.ways() {
                    chain.bring_in(*way, place, packet);
                }
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(
                    filter = %place.id, %error,
                    "a chardev's peer sends no packets: it is not listened to"
                );
                self.is_noise = true;
                self.inbox.clear();
                false
            }
        }
    }
}

impl Frontend for Inlet {
    fn room(&self) -> usize {
        let Some(chain) = self.place.chain.upgrade() else {
            return 0;
        };
        if !self.place.is_on() || !self.has_room(&chain) {
            return 0;
        }
        self.wire().inbox.room().len()
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut wire = self.wire();
            if wire.is_noise {
                return bytes.len();
            }
            let room = wire.inbox.room();
            let taken = bytes.len().min(room.len());
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
            wire.inbox.filled(taken);
            taken
        };
        self.bring_in();
        taken
    }

    fn peer_changed(&self) {
        let is_new = self.lease.get().is_some_and(ChardevLease::is_connected);
        if is_new {
            let mut wire = self.wire();
            // It begins with a packet of its own.
            wire.inbox.clear();
            wire.is_noise = false;
        }
    }
}
