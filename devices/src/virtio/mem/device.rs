//! The device: one queue, and which blocks are plugged.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::blocks::Blocks;
use super::request::{ANSWER_LEN, Answer, MemRequest, Named, Plugged, REQUEST_LEN, answer_bytes};
use crate::lifecycle::Lifecycle;
use crate::memory::{GuestMemView, Populate};
use crate::notice::{Notice, NoticeSink};
use crate::reactor::{Reactor, Readiness, Ready};
use crate::repeats::Repeats;
use crate::state::{SavedState, StateError, Stateful};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};
use crate::virtio::ring::{Broken, Chain, Ring, Slot};

/// Feature bits (virtio 1.2, 5.15.3).
const VIRTIO_MEM_F_ACPI_PXM: u32 = 0;
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// The queue for requests.
const QUEUE_SIZES: [u16; 1] = [128];
/// How many requests are served before other devices get their turn.
const BATCH: usize = 16;
/// How much more than was asked for the guest may look for blocks in, in bytes: its own blocks may
/// be larger, and some of them in use.
const SPARE: u64 = 256 << 20;

/// What the memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemSpec {
    /// What the device is called in notices.
    pub id: String,
    /// Where the region begins in guest memory, a multiple of `block`.
    pub address: u64,
    /// Its length in bytes, a multiple of `block`.
    pub size: u64,
    /// The bytes of a block, a power of two.
    pub block: u64,
    /// The NUMA node of the guest that it belongs to.
    pub node: Option<u16>,
    /// How much of it the guest is to use at first, in bytes.
    pub requested: u64,
    /// Whether the host's memory is taken when a block is plugged, and not at the first touch.
    pub prealloc: bool,
    /// Whether a guest must promise never to touch what is not plugged.
    pub inaccessible: bool,
}

/// What the device needs of its host.
pub struct MemHost {
    /// Who has the host's memory for the region.
    pub memory: Arc<dyn Populate>,
    /// The thread it runs on.
    pub reactor: Reactor,
    /// Where changes of the size are told.
    pub notices: NoticeSink,
}

/// Why the guest cannot be asked for a size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemError {
    /// It is no number of blocks.
    #[error("'requested-size' property must be multiple of 'block-size' (0x{block:x})")]
    Unaligned {
        /// The bytes of a block.
        block: u64,
    },
    /// There is not so much.
    #[error("'requested-size' cannot exceed the memory backend size (0x{size:x})")]
    TooLarge {
        /// The region's length in bytes.
        size: u64,
    },
    /// The guest was asked to let go of the device.
    #[error("'requested-size' cannot change while the device is being unplugged")]
    Leaving,
    /// The device cannot go yet.
    #[error(
        "virtio-mem device cannot get unplugged while some of its memory is still plugged or \
         requested: set 'requested-size' to 0 and wait until 'size' is 0"
    )]
    InUse,
}

/// What a snapshot keeps of it beside the negotiation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    /// How much the guest is to use, in bytes.
    pub requested: u64,
    /// How much it may look for blocks in, in bytes.
    pub usable: u64,
    /// The plugged blocks, by their numbers: the first of each run, and the one behind its last.
    pub plugged: Vec<(u64, u64)>,
}

impl SavedState for MemState {
    const KIND: &'static str = "virtio-mem";
    const VERSION: u32 = 1;
}

/// What changes.
struct Sizes {
    blocks: Blocks,
    requested: u64,
    usable: u64,
}

/// Memory by the block.
pub struct VirtioMem {
    me: Weak<Self>,
    spec: MemSpec,
    host: MemHost,
    slot: Slot,
    features: AtomicU64,
    /// Leaf lock: nothing is called with it.
    sizes: Mutex<Sizes>,
    leaving: AtomicBool,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
    refused: Repeats,
    stopped: Repeats,
}

impl VirtioMem {
    /// A region of which nothing is plugged.
    ///
    /// # Errors
    /// The requested size is no number of its blocks.
    pub fn new(spec: MemSpec, host: MemHost) -> Result<Arc<Self>, MemError> {
        check(&spec, spec.requested)?;
        let mut sizes = Sizes {
            blocks: Blocks::new(spec.size / spec.block.max(1)),
            requested: spec.requested,
            usable: 0,
        };
        sizes.usable = usable(&spec, &sizes, true);
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            spec,
            host,
            slot: Slot::default(),
            features: AtomicU64::new(0),
            sizes: Mutex::new(sizes),
            leaving: AtomicBool::new(false),
            driver: OnceLock::new(),
            refused: Repeats::default(),
            stopped: Repeats::default(),
        }))
    }

    /// What the memory is.
    #[must_use]
    pub fn spec(&self) -> &MemSpec {
        &self.spec
    }

    /// How many bytes are plugged.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.sizes().blocks.plugged() * self.spec.block
    }

    /// How many bytes the guest is to use.
    #[must_use]
    pub fn requested(&self) -> u64 {
        self.sizes().requested
    }

    /// Asks the guest to use so many bytes.
    ///
    /// # Errors
    /// It is no number of blocks, more than there is, or the device is about to go.
    pub fn set_requested(&self, bytes: u64) -> Result<(), MemError> {
        check(&self.spec, bytes)?;
        if self.leaving.load(Ordering::Acquire) {
            return Err(MemError::Leaving);
        }
        {
            let mut sizes = self.sizes();
            sizes.requested = bytes;
            sizes.usable = usable(&self.spec, &sizes, false);
        }
        if let Some(driver) = self.driver.get() {
            driver.config_changed();
        }
        Ok(())
    }

    /// The device is about to be unplugged: from now on nothing of it can be asked for.
    ///
    /// # Errors
    /// Some of it is in use, or asked for.
    pub fn leave(&self) -> Result<(), MemError> {
        let sizes = self.sizes();
        if sizes.requested != 0 || sizes.blocks.plugged() != 0 {
            return Err(MemError::InUse);
        }
        self.leaving.store(true, Ordering::Release);
        Ok(())
    }

    /// It is not unplugged after all.
    pub fn stay(&self) {
        self.leaving.store(false, Ordering::Release);
    }

    fn serve(&self) {
        let done = match self.slot.with(|ring, memory| self.work(ring, memory)) {
            None | Some(Ok(false)) => Ok(()),
            Some(Ok(true)) => self.slot.rearm(),
            Some(Err(Broken)) => {
                if let Some(driver) = self.driver.get() {
                    driver.needs_reset();
                }
                Ok(())
            }
        };
        if let Err(error) = done
            && let Some(times) = self.stopped.note()
        {
            tracing::error!(times, %error, "virtio-mem cannot go on");
        }
    }

    /// Serves a batch of requests; whether there may be more.
    fn work(&self, ring: &mut Ring, memory: &GuestMemView) -> Result<bool, Broken> {
        for _ in 0..BATCH {
            let Some(chain) = ring.next(memory)? else {
                return Ok(false);
            };
            let written = self.serve_one(&chain)?;
            ring.add_used(memory, &chain, written)?;
        }
        Ok(true)
    }

    /// A request that is none, or that leaves no room for its answer, breaks the device.
    fn serve_one(&self, chain: &Chain<'_>) -> Result<usize, Broken> {
        let mut bytes = [0; REQUEST_LEN];
        if chain.gather(0, &mut bytes)? < bytes.len() || chain.writable()? < ANSWER_LEN {
            return Err(Broken);
        }
        let request = MemRequest::parse(&bytes).ok_or(Broken)?;
        let (answer, state) = match request {
            MemRequest::Plug(named) => (self.plug(named), None),
            MemRequest::Unplug(named) => (self.unplug(named), None),
            MemRequest::UnplugAll => (self.unplug_all(), None),
            MemRequest::State(named) => self.state(named),
        };
        chain.scatter(&answer_bytes(answer, state))
    }

    fn plug(&self, named: Named) -> Answer {
        let Some(blocks) = self.find(named) else {
            return Answer::Error;
        };
        let len = (blocks.end - blocks.start) * self.spec.block;
        {
            let sizes = self.sizes();
            if !sizes.blocks.are_all(blocks.clone(), false) {
                return Answer::Error;
            }
            if sizes.blocks.plugged() * self.spec.block + len > sizes.requested {
                return Answer::Nack;
            }
        }
        if self.spec.prealloc
            && let Err(error) = self.host.memory.populate(named.address, len)
        {
            self.note_refusal("taken", &error);
            // What was taken of it is of no use.
            self.give_back(named.address, len);
            return Answer::Busy;
        }
        self.change(|sizes| sizes.blocks.set(blocks, true));
        Answer::Ack
    }

    fn unplug(&self, named: Named) -> Answer {
        let Some(blocks) = self.find(named) else {
            return Answer::Error;
        };
        if !self.sizes().blocks.are_all(blocks.clone(), true) {
            return Answer::Error;
        }
        let len = (blocks.end - blocks.start) * self.spec.block;
        if !self.give_back(named.address, len) {
            return Answer::Busy;
        }
        self.change(|sizes| sizes.blocks.set(blocks, false));
        Answer::Ack
    }

    fn unplug_all(&self) -> Answer {
        if !self.give_back(self.spec.address, self.spec.size) {
            return Answer::Busy;
        }
        self.change(|sizes| {
            sizes.blocks.clear();
            sizes.usable = usable(&self.spec, sizes, true);
        });
        Answer::Ack
    }

    fn state(&self, named: Named) -> (Answer, Option<Plugged>) {
        let Some(blocks) = self.find(named) else {
            return (Answer::Error, None);
        };
        let sizes = self.sizes();
        let plugged = if sizes.blocks.are_all(blocks.clone(), true) {
            Plugged::All
        } else if sizes.blocks.are_all(blocks, false) {
            Plugged::None
        } else {
            Plugged::Some
        };
        (Answer::Ack, Some(plugged))
    }

    /// The numbers of the blocks that a driver names; `None` unless they all are where it may look
    /// for blocks.
    fn find(&self, named: Named) -> Option<Range<u64>> {
        let block = self.spec.block;
        let offset = named.address.checked_sub(self.spec.address)?;
        if !offset.is_multiple_of(block) || named.count == 0 {
            return None;
        }
        let len = u64::from(named.count).checked_mul(block)?;
        let end = offset.checked_add(len)?;
        (end <= self.sizes().usable).then_some(offset / block..end / block)
    }

    /// Gives the host the memory of a range; whether it has it.
    fn give_back(&self, start: u64, len: u64) -> bool {
        match self.host.memory.reclaim(start, len) {
            Ok(()) => true,
            Err(error) => {
                self.note_refusal("given back", &error);
                false
            }
        }
    }

    fn note_refusal(&self, what: &'static str, error: &std::io::Error) {
        if let Some(times) = self.refused.note() {
            tracing::warn!(times, what, %error, "memory of virtio-mem stays as it is");
        }
    }

    /// Changes what is plugged, and tells of it.
    fn change(&self, change: impl FnOnce(&mut Sizes)) {
        let (before, after) = {
            let mut sizes = self.sizes();
            let before = sizes.blocks.plugged();
            change(&mut sizes);
            (before, sizes.blocks.plugged())
        };
        if before != after {
            self.host.notices.send(Notice::MemorySizeChange {
                device: self.spec.id.clone(),
                size: after * self.spec.block,
            });
        }
    }

    fn sizes(&self) -> MutexGuard<'_, Sizes> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `struct virtio_mem_config` (virtio 1.2, 5.15.4).
    fn config(&self) -> [u8; 56] {
        let sizes = self.sizes();
        let words = [
            self.spec.block,
            self.spec.node.unwrap_or(0).into(),
            self.spec.address,
            self.spec.size,
            sizes.usable,
            sizes.blocks.plugged() * self.spec.block,
            sizes.requested,
        ];
        let mut bytes = [0; 56];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

fn check(spec: &MemSpec, requested: u64) -> Result<(), MemError> {
    if !requested.is_multiple_of(spec.block) {
        return Err(MemError::Unaligned { block: spec.block });
    }
    if requested > spec.size {
        return Err(MemError::TooLarge { size: spec.size });
    }
    Ok(())
}

/// How much the guest may look for blocks in. It grows with what is asked for, and shrinks only
/// where nothing is plugged.
fn usable(spec: &MemSpec, sizes: &Sizes, may_shrink: bool) -> u64 {
    let wanted = match sizes.requested {
        0 => 0,
        requested => requested.saturating_add(SPARE).min(spec.size),
    };
    if may_shrink {
        wanted
    } else {
        wanted.max(sizes.usable)
    }
}

/// A kick of the queue.
struct Kick(Weak<VirtioMem>);

impl Ready for Kick {
    fn ready(&self, _readiness: Readiness) {
        if let Some(memory) = self.0.upgrade() {
            memory.serve();
        }
    }
}

/// The life of the machine that it is in: a reset by the driver alone leaves all blocks as they are.
impl Stateful for VirtioMem {
    type State = MemState;

    fn save(&self) -> MemState {
        let sizes = self.sizes();
        let runs = sizes.blocks.runs();
        MemState {
            requested: sizes.requested,
            usable: sizes.usable,
            plugged: runs.into_iter().map(|run| (run.start, run.end)).collect(),
        }
    }

    fn load(&self, state: MemState) -> Result<(), StateError> {
        let (size, count) = (self.spec.size, self.spec.size / self.spec.block.max(1));
        let mut last = 0;
        let ascending = state.plugged.iter().all(|&(start, end)| {
            let behind = std::mem::replace(&mut last, end);
            behind <= start && start < end && end <= count
        });
        if !ascending || state.requested > size || state.usable > size {
            return Err(MemState::refused(format!(
                "plugged, requested or usable: beyond the region of {count} blocks, {size} bytes"
            )));
        }
        let mut sizes = self.sizes();
        sizes.blocks.clear();
        for (start, end) in state.plugged {
            sizes.blocks.set(start..end, true);
        }
        sizes.requested = state.requested;
        sizes.usable = state.usable;
        Ok(())
    }
}

impl Lifecycle for VirtioMem {
    fn pause(&self) {}

    fn resume(&self) {}

    fn reset(&self) {
        self.stay();
        if self.unplug_all() != Answer::Ack {
            tracing::error!(id = %self.spec.id, "virtio-mem stays plugged");
        }
    }
}

impl VirtioDevice for VirtioMem {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_MEM).unwrap_or_default()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        [
            (VIRTIO_RING_F_INDIRECT_DESC, true),
            (VIRTIO_RING_F_EVENT_IDX, true),
            (VIRTIO_MEM_F_ACPI_PXM, self.spec.node.is_some()),
            (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE, self.spec.inaccessible),
        ]
        .into_iter()
        .filter(|(_, offered)| *offered)
        .fold(0, |features, (bit, _)| features | 1 << bit)
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        if index != 0 {
            return Err(VirtioError::NoSuchQueue { index, count: 1 });
        }
        let features = self.features.load(Ordering::SeqCst);
        let handler = Arc::new(Kick(Weak::clone(&self.me)));
        let reactor = &self.host.reactor;
        self.slot.start(index, queue, features, reactor, handler)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        (index == 0).then(|| self.slot.stop()).flatten()
    }

    fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
    }
}

impl fmt::Debug for VirtioMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioMem")
            .field("spec", &self.spec)
            .field("size", &self.size())
            .field("requested", &self.requested())
            .finish_non_exhaustive()
    }
}
