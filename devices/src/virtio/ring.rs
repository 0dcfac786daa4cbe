//! A queue that is served on the reactor: take chains, read or fill them, give them back.
//!
//! The driver is hostile: a ring that leads outside memory, a descriptor loop or a chain that ends
//! in the middle is [`Broken`], and the slot serves it no more until the driver resets the device.
//! Nothing here allocates per chain.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Interest;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

use super::device::{ActiveQueue, VirtioError};
use crate::irq::Interrupt;
use crate::memory::{GuestMem, GuestMemView};
use crate::reactor::{Reactor, Ready, Registration};

/// Bytes of an element of the used ring (virtio 1.2, 2.7.8).
const ELEMENT: usize = 8;
/// How many chains are given back together at best: the driver sees them sooner than at the end of a
/// long batch, and its cache line of the index comes and goes less often than with each.
pub(super) const TOGETHER: usize = 32;

/// The driver broke the rules of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// One queue of a device, started or not.
#[derive(Default)]
pub(super) struct Slot {
    /// Owned by whoever holds the lock; held for the whole work on the ring, so that stopping
    /// waits for it.
    ring: Mutex<Option<Ring>>,
    watch: Mutex<Option<Registration>>,
}

impl Slot {
    /// Takes over the queue `index` and calls `handler` on the reactor's thread for each kick.
    pub(super) fn start(
        &self,
        index: usize,
        active: ActiveQueue,
        features: u64,
        reactor: &Reactor,
        handler: Arc<dyn Ready>,
    ) -> Result<(), VirtioError> {
        let ActiveQueue {
            mut queue,
            memory,
            kick,
            interrupt,
        } = active;
        if !queue.is_valid(&*memory.memory()) {
            return Err(VirtioError::BadRing { index });
        }
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        *self.ring() = Some(Ring {
            queue,
            memory,
            interrupt,
            broken: false,
        });
        // The eventfd is never read: each write is an edge of its own, and a count above zero
        // makes a rearm report at once.
        let watched = reactor.register(Arc::new(kick), Interest::READABLE, handler);
        match watched {
            Ok(watch) => {
                *self.watch() = Some(watch);
                Ok(())
            }
            Err(source) => {
                *self.ring() = None;
                Err(VirtioError::Backend {
                    index,
                    what: "watching its doorbell".to_owned(),
                    source,
                })
            }
        }
    }

    /// Gives the queue back; nothing touches it any more.
    pub(super) fn stop(&self) -> Option<QueueState> {
        self.stop_after(|_| ())
    }

    /// As [`stop`](Self::stop), with something done to the ring when nobody else sees it any more.
    pub(super) fn stop_after(&self, last: impl FnOnce(&mut Ring)) -> Option<QueueState> {
        let watch = self.watch().take();
        drop(watch);
        let mut ring = self.ring().take()?;
        last(&mut ring);
        Some(ring.queue.state())
    }

    /// Has the handler called again although the driver did not kick.
    pub(super) fn rearm(&self) -> io::Result<()> {
        match &*self.watch() {
            Some(watch) => watch.rearm(),
            None => Ok(()),
        }
    }

    /// Whether there is a queue.
    pub(super) fn is_started(&self) -> bool {
        self.ring().is_some()
    }

    /// Works on the ring and then tells the driver of used chains. `None` when the queue is not
    /// started or was found broken before.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&mut Ring, &GuestMemView) -> Result<T, Broken>,
    ) -> Option<Result<T, Broken>> {
        let mut slot = self.ring();
        let ring = slot.as_mut().filter(|ring| !ring.broken)?;
        let memory = ring.memory.memory();
        let next_used = ring.queue.next_used();
        let mut outcome = work(ring, &memory);
        if ring.queue.next_used() != next_used {
            match ring.wants_interrupt(&memory, next_used) {
                Ok(true) => ring.interrupt.trigger(),
                Ok(false) => {}
                Err(_) => outcome = Err(Broken),
            }
        }
        ring.broken = outcome.is_err();
        Some(outcome)
    }

    fn ring(&self) -> MutexGuard<'_, Option<Ring>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Option<Registration>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A started queue.
pub(super) struct Ring {
    queue: Queue,
    memory: GuestMem,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
}

impl Ring {
    /// The next available chain. When there is none, the driver is asked to kick for the next.
    pub(super) fn next<'m>(
        &mut self,
        memory: &'m GuestMemView,
    ) -> Result<Option<Chain<'m>>, Broken> {
        if let Some(chain) = self.pop(memory)? {
            return Ok(Some(chain));
        }
        // A chain that came between the two questions would never be kicked for.
        match self.queue.enable_notification(memory) {
            Ok(false) => Ok(None),
            Ok(true) => self.pop(memory),
            Err(_) => Err(Broken),
        }
    }

    fn pop<'m>(&mut self, memory: &'m GuestMemView) -> Result<Option<Chain<'m>>, Broken> {
        let mut available = self.queue.iter(memory).map_err(|_| Broken)?;
        Ok(available.next().map(|descriptors| Chain { descriptors }))
    }

    /// How many chains are available, which stay so. When there is none, the driver is asked to kick
    /// for the next.
    pub(super) fn waiting(&mut self, memory: &GuestMemView) -> Result<u16, Broken> {
        let waiting = self.available(memory)?;
        if waiting > 0 {
            return Ok(waiting);
        }
        match self.queue.enable_notification(memory) {
            Ok(false) => Ok(0),
            Ok(true) => self.available(memory),
            Err(_) => Err(Broken),
        }
    }

    fn available(&self, memory: &GuestMemView) -> Result<u16, Broken> {
        let index = self.queue.avail_idx(memory, Ordering::Acquire);
        let index = index.map_err(|_| Broken)?.0;
        let count = index.wrapping_sub(self.queue.next_avail());
        match count <= self.queue.size() {
            true => Ok(count),
            false => Err(Broken),
        }
    }

    /// Makes the chain that was taken last the next one again.
    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// How many entries there are.
    pub(super) fn size(&self) -> usize {
        self.queue.size().into()
    }

    /// Gives several chains back, by their heads and how much was written into each: all of them
    /// appear to the driver at once, in this order.
    pub(super) fn add_used_together(
        &mut self,
        memory: &GuestMemView,
        chains: &[(u16, u32)],
    ) -> Result<(), Broken> {
        if chains.is_empty() {
            return Ok(());
        }
        let (ring, size) = (self.queue.used_ring(), self.queue.size().max(1));
        let mut next = self.queue.next_used();
        let mut rest = chains;
        while !rest.is_empty() {
            // What lies in one piece of the ring is written in one.
            let until_end = usize::from(size - next % size);
            let (now, later) = rest.split_at(rest.len().min(until_end).min(TOGETHER));
            let mut elements = [[0; ELEMENT]; TOGETHER];
            for (element, (head, written)) in elements.iter_mut().zip(now) {
                let (id, len) = element.split_at_mut(4);
                id.copy_from_slice(&u32::from(*head).to_le_bytes());
                len.copy_from_slice(&written.to_le_bytes());
            }
            let place = ring.checked_add(4 + ELEMENT as u64 * u64::from(next % size));
            let bytes = elements.get(..now.len()).unwrap_or_default().as_flattened();
            write(memory, GuestAddress(place.ok_or(Broken)?), bytes)?;
            next = next.wrapping_add(u16::try_from(now.len()).map_err(|_| Broken)?);
            rest = later;
        }
        let index = GuestAddress(ring.checked_add(2).ok_or(Broken)?);
        memory
            .store(next.to_le(), index, Ordering::Release)
            .map_err(|_| Broken)?;
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Whether the driver wants to hear of what was given back since `before` (virtio 1.2, 2.7.7).
    fn wants_interrupt(&self, memory: &GuestMemView, before: u16) -> Result<bool, Broken> {
        // What was given back must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let load = |offset: u64| -> Result<u16, Broken> {
            let at = GuestAddress(ring.checked_add(offset).ok_or(Broken)?);
            let value: u16 = memory.load(at, Ordering::Relaxed).map_err(|_| Broken)?;
            Ok(u16::from_le(value))
        };
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let wanted = load(4 + 2 * u64::from(self.queue.size()))?;
        let now = self.queue.next_used();
        let since_wanted = now.wrapping_sub(wanted).wrapping_sub(1);
        Ok(since_wanted < now.wrapping_sub(before))
    }

    /// Gives a chain back after `written` bytes were written into it.
    pub(super) fn add_used(
        &mut self,
        memory: &GuestMemView,
        chain: &Chain<'_>,
        written: usize,
    ) -> Result<(), Broken> {
        self.add_used_head(memory, chain.head(), written)
    }

    /// As [`add_used`](Self::add_used), of a chain that was kept by its [head](Chain::head).
    pub(super) fn add_used_head(
        &mut self,
        memory: &GuestMemView,
        head: u16,
        written: usize,
    ) -> Result<(), Broken> {
        let written = u32::try_from(written).map_err(|_| Broken)?;
        self.queue
            .add_used(memory, head, written)
            .map_err(|_| Broken)
    }
}

/// Copies bytes to the driver. Nearly always there is one region behind them: to prepare for several
/// takes longer than a short copy.
fn write(memory: &GuestMemView, place: GuestAddress, bytes: &[u8]) -> Result<(), Broken> {
    match memory.get_slice(place, bytes.len()) {
        Ok(slice) => {
            slice.copy_from(bytes);
            Ok(())
        }
        Err(_) => memory.write_slice(bytes, place).map_err(|_| Broken),
    }
}

/// A chain of buffers.
pub(super) struct Chain<'m> {
    descriptors: DescriptorChain<&'m GuestMemView>,
}

impl Chain<'_> {
    /// Its name in the ring.
    pub(super) fn head(&self) -> u16 {
        self.descriptors.head_index()
    }

    /// Looks only whether it is well formed.
    pub(super) fn check(&self) -> Result<(), Broken> {
        self.writable().map(drop)
    }

    /// Where the device may write: addresses in guest memory, not looked at, and lengths.
    pub(super) fn rooms(&self) -> impl Iterator<Item = Result<(u64, u32), Broken>> + '_ {
        self.buffers(true)
            .map(|room| room.map(|room| (room.addr().0, room.len())))
    }

    /// Where the driver's bytes are.
    pub(super) fn readable(
        &self,
    ) -> impl Iterator<Item = Result<(GuestAddress, usize), Broken>> + '_ {
        self.buffers(false).map(|descriptor| {
            descriptor.map(|descriptor| (descriptor.addr(), descriptor.len() as usize))
        })
    }

    /// How many bytes the device may write.
    pub(super) fn writable(&self) -> Result<usize, Broken> {
        let mut total = 0usize;
        for descriptor in self.buffers(true) {
            total = total.saturating_add(descriptor?.len() as usize);
        }
        Ok(total)
    }

    /// Copies bytes of the driver, from `offset` on, into `out`; returns how many there were.
    pub(super) fn gather(&self, offset: usize, out: &mut [u8]) -> Result<usize, Broken> {
        let memory = self.descriptors.memory();
        let mut skip = offset;
        let mut copied = 0;
        for descriptor in self.buffers(false) {
            let descriptor = descriptor?;
            let len = descriptor.len() as usize;
            if skip >= len {
                skip -= len;
                continue;
            }
            let rest = out.get_mut(copied..).unwrap_or_default();
            let count = rest.len().min(len - skip);
            let from = skip as u64;
            let address = descriptor.addr().0.checked_add(from).ok_or(Broken)?;
            memory
                .read_slice(&mut rest[..count], GuestAddress(address))
                .map_err(|_| Broken)?;
            copied += count;
            skip = 0;
            if copied == out.len() {
                break;
            }
        }
        Ok(copied)
    }

    /// Copies `bytes` to the driver; returns how many fitted.
    pub(super) fn scatter(&self, bytes: &[u8]) -> Result<usize, Broken> {
        self.scatter_at(0, bytes)
    }

    /// The same, behind the first `offset` bytes of its room.
    pub(super) fn scatter_at(&self, offset: usize, bytes: &[u8]) -> Result<usize, Broken> {
        let memory = self.descriptors.memory();
        let mut skip = offset;
        let mut copied = 0;
        for descriptor in self.buffers(true) {
            let descriptor = descriptor?;
            let len = descriptor.len() as usize;
            if skip >= len {
                skip -= len;
                continue;
            }
            let rest = bytes.get(copied..).unwrap_or_default();
            let count = rest.len().min(len - skip);
            let address = descriptor.addr().0.checked_add(skip as u64);
            write(memory, GuestAddress(address.ok_or(Broken)?), &rest[..count])?;
            copied += count;
            skip = 0;
            if copied == bytes.len() {
                break;
            }
        }
        Ok(copied)
    }

    /// The buffers of one direction. The iterator of `virtio-queue` ends in silence where a chain
    /// loops or leads nowhere; that the last descriptor promised another one gives it away.
    fn buffers(&self, writable: bool) -> impl Iterator<Item = Result<Descriptor, Broken>> + '_ {
        let mut descriptors = self.descriptors.clone();
        let mut promised = true;
        std::iter::from_fn(move || match descriptors.next() {
            Some(descriptor) => {
                promised = descriptor.has_next();
                Some(Ok(descriptor))
            }
            None => std::mem::take(&mut promised).then_some(Err(Broken)),
        })
        .filter(move |descriptor| {
            descriptor.is_err()
                || descriptor
                    .as_ref()
                    .is_ok_and(|descriptor| descriptor.is_write_only() == writable)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::virtio::mock_driver::silent;

    const RINGS: usize = 0x1000;

    proptest! {
        /// Whatever lies where the rings are, reading them ends and touches only guest memory.
        #[test]
        fn no_contents_of_the_rings_break_the_device(
            rings in prop::collection::vec(any::<u8>(), RINGS),
            event_idx in any::<bool>(),
        ) {
            let ranges = [(GuestAddress(0), 0x10000)];
            let memory = GuestMem::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            let view = memory.memory();
            view.write_slice(&rings, GuestAddress(0x1000)).unwrap();
            let state = QueueState {
                max_size: 16,
                size: 16,
                ready: true,
                desc_table: 0x1000,
                avail_ring: 0x1400,
                used_ring: 0x1800,
                event_idx_enabled: event_idx,
                ..QueueState::default()
            };
            let mut ring = Ring {
                queue: Queue::try_from(state).unwrap(),
                memory: memory.clone(),
                interrupt: silent(),
                broken: false,
            };
            let mut bytes = [0; 64];
            for _ in 0..40 {
                let Ok(Some(chain)) = ring.next(&view) else { break };
                let _ = chain.writable();
                let _ = chain.gather(3, &mut bytes);
                let _ = chain.scatter(&bytes);
                if ring.add_used(&view, &chain, 1).is_err() {
                    break;
                }
            }
        }
    }
}
