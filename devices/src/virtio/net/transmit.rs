//! From the guest to the netdev.

use super::card::{BATCH, Pause, VirtioNet, lock};
use crate::memory::GuestMemView;
use crate::net::packet::Outside;
use crate::net::{HEADER, LONGEST, NetBackend, Pieces, Sent};
use crate::virtio::ring::{Broken, Ring};

impl VirtioNet {
    /// Sends what the guest has given; `None` if the queue does not run.
    pub(super) fn transmit(&self, pair: usize) -> Option<Result<Pause, Broken>> {
        let queues = self.pairs.get(pair)?;
        let backend = self.backend_if_up();
        queues.transmit.with(|ring, memory| {
            let pieces = &mut *lock(&queues.outbound);
            drain(ring, memory, pieces, backend.as_deref(), pair)
        })
    }
}

/// Sends packets, or drops them where there is no link.
fn drain(
    ring: &mut Ring,
    memory: &GuestMemView,
    pieces: &mut Pieces,
    backend: Option<&dyn NetBackend>,
    pair: usize,
) -> Result<Pause, Broken> {
    for _ in 0..BATCH {
        let Some(chain) = ring.next(memory)? else {
            return Ok(Pause::Idle);
        };
        let buffers = chain
            .readable()
            .map(|buffer| buffer.map_err(|Broken| Outside));
        let packet = pieces.gather(memory, buffers).map_err(|Outside| Broken)?;
        if packet.len() < HEADER {
            return Err(Broken);
        }
        if let Some(backend) = backend.filter(|_| packet.len() <= LONGEST)
            && backend.send(pair, &packet) == Sent::Full
        {
            ring.put_back();
            return Ok(Pause::Idle);
        }
        ring.add_used(memory, &chain, 0)?;
    }
    Ok(Pause::Batch)
}
