//! From the netdev to the guest.
//!
//! ```text
//!   NetBackend::receive ─► the packet, in our buffer ─► wanted? ─► the guest's buffers, used together
//!                                     ▲ kept while the guest has no room
//! ```

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::card::{BATCH, Pause, VirtioNet, lock};
use super::features::has;
use super::returns;
use crate::memory::GuestMemView;
use crate::net::{HEADER, LONGEST, NetBackend, Received};
use crate::virtio::ring::{Broken, Chain, Ring, TOGETHER};

/// Where the header says how many buffers a packet fills.
const NUM_BUFFERS: usize = 10;

/// A packet on its way in.
pub(super) struct Inbound {
    buffer: Box<[u8]>,
    /// The packet that the guest had no room for, by its length; 0 for none.
    held: usize,
    /// The buffers that packets fill and the guest is not told of yet: their heads, and how much of
    /// each.
    used: Vec<(u16, u32)>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// The guest has it, or it can never have it.
    Done,
    /// The guest has too little room now.
    NoRoom,
}

impl Inbound {
    /// Room for a packet, for a queue of `size` entries.
    pub(super) fn new(size: u16) -> Self {
        Self {
            buffer: vec![0; LONGEST].into_boxed_slice(),
            held: 0,
            used: Vec::with_capacity(TOGETHER + usize::from(size)),
        }
    }

    /// Drops the packet that waits.
    pub(super) fn forget(&mut self) {
        self.held = 0;
    }

    /// Puts the packet into the buffer `first` and as many more as it takes.
    fn deliver(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemView,
        first: &Chain<'_>,
        mergeable: bool,
    ) -> Result<Delivery, Broken> {
        let before = self.used.len();
        if let Some(count) = self.buffer.get_mut(NUM_BUFFERS..HEADER) {
            // What nearly every packet needs.
            count.copy_from_slice(&1_u16.to_le_bytes());
        }
        let packet = self.buffer.get(..self.held).unwrap_or_default();
        let mut done = first.scatter(packet)?;
        if done < HEADER.min(packet.len()) {
            return Err(Broken);
        }
        self.used.push((first.head(), length(done)?));
        while done < packet.len() {
            let next = if mergeable { ring.next(memory)? } else { None };
            let count = self.used.len() - before;
            let Some(chain) = next else {
                self.used.drain(before..).for_each(|_| ring.put_back());
                // More than all its buffers, or than the only one that a packet may fill: never.
                return Ok(if mergeable && count < ring.size() {
                    Delivery::NoRoom
                } else {
                    Delivery::Done
                });
            };
            let rest = packet.get(done..).unwrap_or_default();
            let written = chain.scatter(rest)?;
            if written == 0 || count >= ring.size() {
                return Err(Broken);
            }
            self.used.push((chain.head(), length(written)?));
            done += written;
        }
        let buffers = self.used.len() - before;
        if buffers > 1 {
            let buffers = u16::try_from(buffers).map_err(|_| Broken)?;
            first.scatter_at(NUM_BUFFERS, &buffers.to_le_bytes())?;
        }
        if self.used.len() >= TOGETHER {
            returns(ring, memory, &mut self.used)?;
        }
        Ok(Delivery::Done)
    }
}

fn length(bytes: usize) -> Result<u32, Broken> {
    u32::try_from(bytes).map_err(|_| Broken)
}

impl VirtioNet {
    /// Fills the guest's buffers with what there is; `None` if the queue does not run.
    pub(super) fn receive(&self, pair: usize) -> Option<Result<Pause, Broken>> {
        if pair >= usize::from(self.used_pairs.load(Ordering::Acquire)) {
            return None;
        }
        let queues = self.pairs.get(pair)?;
        let backend = self.backend()?;
        queues.receive.with(|ring, memory| {
            let inbound = &mut *lock(&queues.inbound);
            let filled = self.fill(ring, memory, inbound, backend.as_ref(), pair);
            if filled.is_err() {
                // Among them may be part of a packet.
                inbound.used.clear();
            }
            returns(ring, memory, &mut inbound.used).and(filled)
        })
    }

    fn fill(
        &self,
        ring: &mut Ring,
        memory: &GuestMemView,
        inbound: &mut Inbound,
        backend: &dyn NetBackend,
        pair: usize,
    ) -> Result<Pause, Broken> {
        let mergeable = has(self.negotiated(), VIRTIO_NET_F_MRG_RXBUF);
        let is_up = self.is_up();
        for _ in 0..BATCH {
            let Some(first) = ring.next(memory)? else {
                return Ok(Pause::Idle);
            };
            if inbound.held == 0 {
                match backend.receive(pair, &mut inbound.buffer) {
                    Received::Packet(count) => inbound.held = count.min(inbound.buffer.len()),
                    Received::Nothing => {
                        ring.put_back();
                        return Ok(Pause::Idle);
                    }
                }
            }
            let packet = inbound.buffer.get(HEADER..inbound.held).unwrap_or_default();
            if !is_up || packet.is_empty() || !lock(&self.filter).wants(packet) {
                inbound.held = 0;
                ring.put_back();
                continue;
            }
            match inbound.deliver(ring, memory, &first, mergeable)? {
                Delivery::Done => inbound.held = 0,
                Delivery::NoRoom => return Ok(Pause::Idle),
            }
        }
        Ok(Pause::Batch)
    }
}
