//! From the guest to the netdev.

use super::card::{BATCH, Pause, VirtioNet, lock};
use super::{header, returns};
use crate::memory::GuestMemView;
use crate::net::packet::Outside;
use crate::net::{HEADER, LONGEST, NetBackend, Pieces, Sent};
use crate::virtio::ring::{Broken, Ring, TOGETHER};

/// A packet on its way out, and those that are gone.
pub(super) struct Outbound {
    pieces: Pieces,
    /// The heads of packets that the guest is not told of yet.
    used: Vec<(u16, u32)>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            pieces: Pieces::default(),
            used: Vec::with_capacity(TOGETHER),
        }
    }
}

impl VirtioNet {
    /// Sends what the guest has given; `None` if the queue does not run.
    pub(super) fn transmit(&self, pair: usize) -> Option<Result<Pause, Broken>> {
        let queues = self.pairs.get(pair)?;
        let backend = self.backend_if_up();
        let room = header::room(self.negotiated());
        queues.transmit.with(|ring, memory| {
            let outbound = &mut *lock(&queues.outbound);
            let drained = outbound.drain(ring, memory, backend.as_deref(), pair, room);
            if let Some(backend) = &backend {
                backend.flush(pair);
            }
            returns(ring, memory, &mut outbound.used).and(drained)
        })
    }
}

impl Outbound {
    /// Sends packets, or drops them where there is no link. In their headers is `room` for hashes.
    fn drain(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemView,
        backend: Option<&dyn NetBackend>,
        pair: usize,
        room: usize,
    ) -> Result<Pause, Broken> {
        for _ in 0..BATCH {
            let Some(chain) = ring.next(memory)? else {
                return Ok(Pause::Idle);
            };
            let mut total = None;
            let packet = if room == 0 {
                let buffers = chain.readable();
                let buffers = buffers.map(|buffer| buffer.map_err(|Broken| Outside));
                self.pieces.gather(memory, buffers)
            } else {
                let buffers = header::without_hash(chain.readable(), total.insert(0));
                let buffers = buffers.map(|buffer| buffer.map_err(|Broken| Outside));
                self.pieces.gather(memory, buffers)
            };
            let packet = packet.map_err(|Outside| Broken)?;
            if total.unwrap_or(packet.len()) < HEADER + room {
                return Err(Broken);
            }
            if let Some(backend) = backend.filter(|_| packet.len() <= LONGEST)
                && backend.send(pair, &packet) == Sent::Full
            {
                ring.put_back();
                return Ok(Pause::Idle);
            }
            self.used.push((chain.head(), 0));
            if self.used.len() == TOGETHER {
                returns(ring, memory, &mut self.used)?;
            }
        }
        Ok(Pause::Batch)
    }
}
