//! From the netdev to the guest.
//!
//! ```text
//!   NetBackend::receive ─► the packet, in our buffer ─► wanted? ─► whose? ─► the guest's buffers,
//!        by one queue               ▲ kept while the guest has no room       used together
//! ```
//!
//! A packet is for the pair of the queue that it came by, unless the driver has set a table
//! ([`steering`](super::steering)). With one, each queue of the netdev waits for whoever its packet is
//! for; a packet for a queue that the driver did not start is dropped.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_RSS};

use super::card::{BATCH, Pause, VirtioNet, lock};
use super::features::has;
use super::header;
use super::returns;
use crate::memory::GuestMemView;
use crate::net::{HEADER, LONGEST, NetBackend, Received};
use crate::virtio::ring::{Broken, Chain, Ring, Slot, TOGETHER};

/// Where the header says how many buffers a packet fills.
const NUM_BUFFERS: usize = 10;

/// A packet on its way in.
pub(super) struct Inbound {
    buffer: Box<[u8]>,
    /// The packet that the guest had no room for, by its length; 0 for none.
    held: usize,
    /// The pair it goes to.
    target: usize,
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

/// Why packets no longer go into one of the guest's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// No others do either.
    Over(Pause),
    /// The next packet is for another one.
    Another,
}

impl Inbound {
    /// Room for a packet, for a queue of `size` entries.
    pub(super) fn new(size: u16) -> Self {
        Self {
            buffer: vec![0; LONGEST + header::HASH].into_boxed_slice(),
            held: 0,
            target: 0,
            used: Vec::with_capacity(TOGETHER + usize::from(size)),
        }
    }

    /// Drops the packet that waits.
    pub(super) fn forget(&mut self) {
        self.held = 0;
    }

    /// The packet without its header.
    fn packet(&self, course: &Course<'_>) -> &[u8] {
        let start = HEADER + course.room;
        self.buffer.get(start..self.held).unwrap_or_default()
    }

    /// Takes a packet in, with `room` bytes for a hash in its header.
    fn fetch(&mut self, backend: &dyn NetBackend, source: usize, room: usize) -> Received {
        let place = self.buffer.get_mut(room..).unwrap_or_default();
        let received = backend.receive(source, place);
        if let Received::Packet(count) = received {
            self.held = count.saturating_add(room).min(self.buffer.len());
            if room > 0 {
                self.buffer.copy_within(room..room + HEADER, 0);
            }
        }
        received
    }

    /// Puts the packet into the buffer `first` and as many more as it takes.
    fn deliver(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemView,
        first: &Chain<'_>,
        course: &Course<'_>,
    ) -> Result<Delivery, Broken> {
        let mergeable = course.mergeable;
        let before = self.used.len();
        if let Some(count) = self.buffer.get_mut(NUM_BUFFERS..HEADER) {
            // What nearly every packet needs.
            count.copy_from_slice(&1_u16.to_le_bytes());
        }
        let packet = self.buffer.get(..self.held).unwrap_or_default();
        let mut done = first.scatter(packet)?;
        if done < (HEADER + course.room).min(packet.len()) {
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

/// What holds for all packets of a batch.
struct Course<'a> {
    backend: &'a dyn NetBackend,
    /// By which queue of the netdev they come.
    source: usize,
    mergeable: bool,
    /// Bytes for a hash in their headers.
    room: usize,
    /// Whether they may be for other queues than the source's.
    steered: bool,
    is_up: bool,
    /// How many more are moved before others get their turn.
    left: usize,
}

impl VirtioNet {
    /// A queue has buffers: brings it what may be for it.
    pub(super) fn refill(&self, pair: usize) -> Option<Result<Pause, Broken>> {
        if !self.is_steered() {
            return self.receive(pair);
        }
        let mut outcome = Some(Ok(Pause::Idle));
        for source in 0..usize::from(self.used_pairs.load(Ordering::Acquire)) {
            match self.receive(source) {
                None | Some(Ok(Pause::Idle)) => {}
                Some(Ok(Pause::Batch)) => outcome = Some(Ok(Pause::Batch)),
                broken @ Some(Err(Broken)) => return broken,
            }
        }
        outcome
    }

    /// Has the queues looked at again although nobody kicked.
    pub(super) fn receiver_to_rearm(&self, pair: usize) -> Option<&Slot> {
        let steered = self.is_steered();
        let mut started = self.pairs.iter().map(|pair| &pair.receive);
        if steered {
            started.find(|slot| slot.is_started())
        } else {
            started.nth(pair)
        }
    }

    /// Fills the guest's buffers with what there is in a queue of the netdev; `None` if no queue of
    /// the guest runs that it may be for.
    pub(super) fn receive(&self, source: usize) -> Option<Result<Pause, Broken>> {
        if source >= usize::from(self.used_pairs.load(Ordering::Acquire)) {
            return None;
        }
        let own = self.pairs.get(source)?;
        let backend = self.backend()?;
        let features = self.negotiated();
        let mut course = Course {
            backend: backend.as_ref(),
            source,
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            room: header::room(features),
            steered: self.is_steered(),
            is_up: self.is_up(),
            left: BATCH,
        };
        let inbound = &mut *lock(&own.inbound);
        if inbound.held > 0 {
            // The driver may have changed its mind since.
            self.keep_wanted(inbound, &course);
        }
        loop {
            let mut receivers = self.pairs.iter().map(|pair| &pair.receive);
            let runs = if course.steered {
                receivers.any(Slot::is_started)
            } else {
                own.receive.is_started()
            };
            if !runs {
                return None;
            }
            if inbound.held == 0
                && let Err(pause) = self.next_wanted(inbound, &mut course)
            {
                return Some(Ok(pause));
            }
            let target = &self.pairs.get(inbound.target)?.receive;
            let turn = target.with(|ring, memory| {
                let filled = self.fill(ring, memory, inbound, &mut course);
                if filled.is_err() {
                    // Among them may be part of a packet.
                    inbound.used.clear();
                }
                returns(ring, memory, &mut inbound.used).and(filled)
            });
            match turn {
                Some(Ok(Turn::Over(pause))) => return Some(Ok(pause)),
                Some(Ok(Turn::Another)) => {}
                Some(Err(Broken)) => return Some(Err(Broken)),
                None if course.steered => inbound.forget(),
                None => return None,
            }
        }
    }

    /// Fills the buffers of one queue until a packet is for another one.
    fn fill(
        &self,
        ring: &mut Ring,
        memory: &GuestMemView,
        inbound: &mut Inbound,
        course: &mut Course<'_>,
    ) -> Result<Turn, Broken> {
        let target = inbound.target;
        while inbound.target == target {
            let Some(first) = ring.next(memory)? else {
                return Ok(Turn::Over(Pause::Idle));
            };
            match inbound.deliver(ring, memory, &first, course)? {
                Delivery::Done => inbound.forget(),
                Delivery::NoRoom => return Ok(Turn::Over(Pause::Idle)),
            }
            if let Err(pause) = self.next_wanted(inbound, course) {
                return Ok(Turn::Over(pause));
            }
        }
        Ok(Turn::Another)
    }

    /// Takes in the next packet that the guest wants.
    fn next_wanted(&self, inbound: &mut Inbound, course: &mut Course<'_>) -> Result<(), Pause> {
        while course.left > 0 {
            course.left -= 1;
            match inbound.fetch(course.backend, course.source, course.room) {
                Received::Packet(_) => {}
                Received::Nothing => return Err(Pause::Idle),
            }
            if self.keep_wanted(inbound, course) {
                return Ok(());
            }
        }
        Err(Pause::Batch)
    }

    /// Finds the way of a packet that the guest wants, and drops another; whether it is kept.
    fn keep_wanted(&self, inbound: &mut Inbound, course: &Course<'_>) -> bool {
        let packet = inbound.packet(course);
        if course.is_up && !packet.is_empty() && lock(&self.filter).wants(packet) {
            self.aim(inbound, course);
            return true;
        }
        inbound.forget();
        false
    }

    /// Finds out which pair the packet is for, and tells its hash.
    fn aim(&self, inbound: &mut Inbound, course: &Course<'_>) {
        inbound.target = course.source;
        if !course.steered && course.room == 0 {
            return;
        }
        let aim = lock(&self.steering).aim(inbound.packet(course), course.source);
        inbound.target = aim.pair;
        let room = inbound.buffer.iter_mut().skip(HEADER).take(course.room);
        for (to, from) in room.zip(header::fields(aim.hash)) {
            *to = from;
        }
    }

    /// Whether the driver has set which queue packets go to.
    fn is_steered(&self) -> bool {
        has(self.negotiated(), VIRTIO_NET_F_RSS) && lock(&self.steering).ways().is_some()
    }
}
