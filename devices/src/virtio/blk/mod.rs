//! virtio-blk: a disk of the guest over a node of the block graph.
//!
//! ```text
//!   transport ── start_queue ──► worker (a task on its io-thread) ── chain ──► request
//!       │                            ▲                                            │
//!       │ config, features           │ used ring, interrupt                       ▼
//!       ▼                            └───────────────── status ◄──── NodeRef::read, write, …
//!   VirtioBlk ── Disk (shared by all queues: root, serial, cache mode)
//! ```
//!
//! This room knows queues and blocks; it must never know what is behind a node (a file, a format),
//! nor the transport. Source of everything guest-visible: virtio 1.2, section 5.2.
//!
//! Read next: `request` (what a guest may ask), `worker` (how a queue runs and stops).

mod config;
mod request;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use block::job::OnError;
use block::{Account, BlockError, Histograms, IoThread, Limiter, NodeRef, Root, Totals};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use self::config::{BlkConfig, WRITEBACK_OFFSET};
pub use self::state::BlkState;

use self::request::{ID_LEN, MAX_RANGE_SECTORS, MAX_RANGES, Postponed, SECTOR};
use super::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError};
use super::waiting::Waiting;
use crate::failures::Failures;
use crate::geometry::Geometry;
use crate::notice::NoticeSink;
use crate::repeats::Repeats;

/// How many queues a disk can have.
pub const QUEUES: RangeInclusive<u16> = 1..=1024;
/// How many descriptors a queue can have, as powers of two: a request of one buffer takes three.
pub const QUEUE_SIZES: RangeInclusive<u16> = 4..=1024;

/// What a disk is made of, resolved.
#[derive(Clone, Debug)]
pub struct VirtioBlkSpec {
    /// The device's id or QOM path, for notices and logs.
    pub id: String,
    /// The node, attached in the graph by the caller, who detaches it after the device is gone.
    /// The disk is read-only if the node is.
    pub root: Root,
    /// What the guest sees as the serial number: its first 20 bytes.
    pub serial: String,
    /// How many queues, one of [`QUEUES`]; usually one per vCPU.
    pub queues: u16,
    /// Descriptors in each queue: a power of two, one of [`QUEUE_SIZES`]; usually 256.
    pub queue_size: u16,
    /// The guest's unit of addressing in bytes: a power of two, 512 to 32768. At least the node's
    /// request alignment.
    pub logical_block_size: u32,
    /// The unit the guest should write in, in bytes: a power of two, at least the logical one.
    pub physical_block_size: u32,
    /// What the guest is told of cylinders.
    pub geometry: Option<Geometry>,
    /// Whether the guest sees a write cache at first; it may change that.
    pub write_cache: bool,
    /// Whether discards are offered.
    pub discard: bool,
    /// Whether write-zeroes is offered.
    pub write_zeroes: bool,
    /// What is done when a read fails, and when anything else does.
    pub on_error: [OnError; 2],
    /// Where the queues run, in turns: at least one.
    pub iothreads: Vec<IoThread>,
    /// Where I/O errors are told.
    pub notices: NoticeSink,
}

/// Why a disk cannot be made of a spec.
#[derive(Debug, thiserror::Error)]
pub enum BlkSpecError {
    /// The node cannot be a disk.
    #[error(transparent)]
    Node(#[from] BlockError),
    /// A number out of range.
    #[error("Property 'virtio-blk-pci.{name}' takes {wanted}, not {came}")]
    Property {
        /// The property's name.
        name: &'static str,
        /// What it takes.
        wanted: &'static str,
        /// What came.
        came: u32,
    },
}

/// What all queues of a disk share.
#[derive(Debug)]
struct Disk {
    id: String,
    root: Root,
    serial: [u8; ID_LEN],
    block_size: u32,
    discard: bool,
    write_zeroes: bool,
    /// What the driver accepted.
    features: AtomicU64,
    /// The driver's `writeback` field.
    writeback: AtomicBool,
    failures: Failures,
    waiting: Waiting<Postponed>,
    driver: OnceLock<DriverLink>,
    /// What each queue was asked.
    accounts: Vec<Account>,
    /// How long requests took, where a client wants to know.
    histograms: Histograms,
    broken_queues: Repeats,
    /// Doorbells that an io-thread could not wait for.
    unwatched: Repeats,
}

struct DriverLink(Arc<dyn DriverNotifier>);

impl std::fmt::Debug for DriverLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DriverLink")
    }
}

impl Disk {
    /// The node it stands on, now.
    fn node(&self) -> NodeRef {
        self.root.node()
    }

    /// The byte offset of a sector, if the range lies on the disk and on its blocks.
    fn locate(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(len)?;
        let on_blocks = (offset | len).is_multiple_of(u64::from(self.block_size));
        (on_blocks && end <= self.node().len()).then_some(offset)
    }

    /// Whether a write must be durable when it completes: the driver switched the cache off, or
    /// cannot flush it (virtio 1.2, 5.2.6.2).
    fn is_writethrough(&self) -> bool {
        let features = self.features.load(Ordering::Relaxed);
        if has(features, VIRTIO_BLK_F_CONFIG_WCE) {
            !self.writeback.load(Ordering::Relaxed)
        } else {
            !has(features, VIRTIO_BLK_F_FLUSH)
        }
    }

    fn needs_reset(&self) {
        if let Some(DriverLink(driver)) = self.driver.get() {
            driver.needs_reset();
        }
    }
}

/// A queue that runs on its io-thread.
#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    /// The doorbell once more: a stop rings it, so that the worker looks.
    kick: EventFd,
    done: mpsc::Receiver<Queue>,
}

/// A virtio block device.
#[derive(Debug)]
pub struct VirtioBlk {
    disk: Arc<Disk>,
    spec: VirtioBlkSpec,
    queue_sizes: Vec<u16>,
    running: Mutex<Vec<Option<Running>>>,
}

impl VirtioBlk {
    /// Makes a disk. Its queues start when the driver enables them.
    ///
    /// # Errors
    /// A number out of range, or a node that cannot be a disk with these blocks.
    pub fn new(spec: VirtioBlkSpec) -> Result<Self, BlkSpecError> {
        check_numbers(&spec)?;
        spec.root.check_disk(spec.logical_block_size)?;
        let mut serial = [0; ID_LEN];
        for (to, from) in serial.iter_mut().zip(spec.serial.bytes()) {
            *to = from;
        }
        let writable = !spec.root.node().is_read_only();
        let disk = Disk {
            id: spec.id.clone(),
            root: spec.root.clone(),
            serial,
            block_size: spec.logical_block_size,
            discard: spec.discard && writable,
            write_zeroes: spec.write_zeroes && writable,
            features: AtomicU64::new(0),
            writeback: AtomicBool::new(spec.write_cache),
            failures: Failures::new(spec.id.clone(), spec.on_error, spec.notices.clone()),
            waiting: Waiting::default(),
            driver: OnceLock::new(),
            accounts: (0..spec.queues).map(|_| Account::new()).collect(),
            histograms: Histograms::default(),
            broken_queues: Repeats::default(),
            unwatched: Repeats::default(),
        };
        Ok(Self {
            disk: Arc::new(disk),
            queue_sizes: vec![spec.queue_size; usize::from(spec.queues)],
            running: Mutex::new((0..spec.queues).map(|_| None).collect()),
            spec,
        })
    }

    /// Tells the driver that the node's length has changed.
    pub fn capacity_changed(&self) {
        if let Some(DriverLink(driver)) = self.disk.driver.get() {
            driver.config_changed();
        }
    }

    /// The bytes of one of its blocks.
    pub fn block_size(&self) -> u32 {
        self.spec.logical_block_size
    }

    /// What it does about failures of its storage.
    pub fn failures(&self) -> &Failures {
        &self.disk.failures
    }

    /// What its reads and writes ask before they go.
    pub fn limiter(&self) -> &Limiter {
        self.disk.root.limiter()
    }

    /// The node it stands on.
    pub fn node(&self) -> NodeRef {
        self.disk.node()
    }

    /// What the guest has asked of it until now, over all queues.
    pub fn totals(&self) -> Totals {
        let accounts = self.disk.accounts.iter().map(Account::totals);
        accounts.fold(Totals::default(), Totals::and)
    }

    /// How long its requests took, where a client wants to know.
    pub fn histograms(&self) -> &Histograms {
        &self.disk.histograms
    }

    fn config(&self) -> BlkConfig {
        let block = self.spec.logical_block_size;
        let block_sectors = block / 512;
        let mut config = BlkConfig {
            capacity: (self.disk.node().len() / SECTOR).into(),
            seg_max: u32::from(self.spec.queue_size - 2).into(),
            blk_size: block.into(),
            physical_block_exp: exponent(self.spec.physical_block_size / block),
            min_io_size: 1.into(),
            writeback: self.disk.writeback.load(Ordering::Relaxed).into(),
            num_queues: self.spec.queues.into(),
            ..BlkConfig::default()
        };
        let ranges = u32::try_from(MAX_RANGES).unwrap_or(1);
        if let Some(geometry) = self.spec.geometry {
            config.cylinders = geometry.cylinders.into();
            (config.heads, config.sectors) = (geometry.heads, geometry.sectors);
        }
        if self.disk.discard {
            config.max_discard_sectors = MAX_RANGE_SECTORS.into();
            config.max_discard_seg = ranges.into();
            config.discard_sector_alignment = block_sectors.into();
        }
        if self.disk.write_zeroes {
            config.max_write_zeroes_sectors = MAX_RANGE_SECTORS.into();
            config.max_write_zeroes_seg = ranges.into();
            config.write_zeroes_may_unmap = 1;
        }
        config
    }

    fn running(&self) -> MutexGuard<'_, Vec<Option<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_numbers(spec: &VirtioBlkSpec) -> Result<(), BlkSpecError> {
    let block = |size: u32| size.is_power_of_two() && (512..=32768).contains(&size);
    let threads = spec.iothreads.len();
    let checks = [
        (
            "iothread",
            "at least one io-thread",
            u32::try_from(threads).unwrap_or(u32::MAX),
            threads > 0,
        ),
        (
            "num-queues",
            "1 to 1024",
            spec.queues.into(),
            QUEUES.contains(&spec.queues),
        ),
        (
            "queue-size",
            "a power of two from 4 to 1024",
            spec.queue_size.into(),
            spec.queue_size.is_power_of_two() && QUEUE_SIZES.contains(&spec.queue_size),
        ),
        (
            "logical_block_size",
            "a power of two from 512 to 32768",
            spec.logical_block_size,
            block(spec.logical_block_size),
        ),
        (
            "physical_block_size",
            "a power of two from logical_block_size to 32768",
            spec.physical_block_size,
            block(spec.physical_block_size) && spec.physical_block_size >= spec.logical_block_size,
        ),
    ];
    match checks.into_iter().find(|(.., fits)| !fits) {
        None => Ok(()),
        Some((name, wanted, came, _)) => Err(BlkSpecError::Property { name, wanted, came }),
    }
}

fn exponent(power: u32) -> u8 {
    u8::try_from(power.trailing_zeros()).unwrap_or(0)
}

fn bit(feature: u32) -> u64 {
    1 << feature
}

fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}

impl VirtioDevice for VirtioBlk {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_BLOCK).unwrap_or(2)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_CONFIG_WCE)
            | bit(VIRTIO_RING_F_INDIRECT_DESC)
            | bit(VIRTIO_RING_F_EVENT_IDX);
        let optional = [
            (self.spec.queues > 1, VIRTIO_BLK_F_MQ),
            (self.disk.node().is_read_only(), VIRTIO_BLK_F_RO),
            (self.disk.discard, VIRTIO_BLK_F_DISCARD),
            (self.disk.write_zeroes, VIRTIO_BLK_F_WRITE_ZEROES),
            (self.spec.geometry.is_some(), VIRTIO_BLK_F_GEOMETRY),
        ];
        for (offered, feature) in optional {
            if offered {
                features |= bit(feature);
            }
        }
        features
    }

    fn set_features(&self, features: u64) {
        self.disk.features.store(features, Ordering::Relaxed);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let at = WRITEBACK_OFFSET
            .checked_sub(offset)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(value) = at.and_then(|at| data.get(at))
            && has(
                self.disk.features.load(Ordering::Relaxed),
                VIRTIO_BLK_F_CONFIG_WCE,
            )
        {
            self.disk.writeback.store(value & 1 != 0, Ordering::Relaxed);
        }
    }

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        if self.disk.driver.set(DriverLink(driver)).is_err() {
            tracing::error!(device = %self.disk.id, "attached to a second transport: ignored");
        }
    }

    fn start_queue(&self, index: usize, mut active: ActiveQueue) -> Result<(), VirtioError> {
        let count = self.queue_sizes.len();
        if index >= count {
            return Err(VirtioError::NoSuchQueue { index, count });
        }
        let mut threads = self.spec.iothreads.iter().cycle();
        let thread = threads
            .nth(index)
            .ok_or(VirtioError::NoSuchQueue { index, count })?;
        if !active.queue.is_valid(&*active.memory.memory()) {
            return Err(VirtioError::BadRing { index });
        }
        let features = self.disk.features.load(Ordering::Relaxed);
        active
            .queue
            .set_event_idx(has(features, VIRTIO_RING_F_EVENT_IDX));
        let kick = active
            .kick
            .try_clone()
            .map_err(|source| VirtioError::Backend {
                index,
                what: "duplicate the doorbell".to_owned(),
                source,
            })?;
        let (tell, done) = mpsc::sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (disk, theirs) = (Arc::clone(&self.disk), Arc::clone(&stop));
        thread.spawn(move |io| async move {
            let queue = worker::run(io, disk, index, active, theirs).await;
            // Nobody waits if the whole device is gone.
            drop(tell.send(queue));
        });
        if let Some(slot) = self.running().get_mut(index) {
            *slot = Some(Running { stop, kick, done });
        }
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        let running = self.running().get_mut(index).and_then(Option::take)?;
        running.stop.store(true, Ordering::Release);
        if let Err(error) = running.kick.write(1) {
            tracing::error!(device = %self.disk.id, queue = index, %error, "cannot wake a queue");
        }
        let _hurry = self.disk.root.hurry();
        running.done.recv().ok().map(|queue| queue.state())
    }

    fn reset(&self) {
        self.disk.waiting.forget();
        self.disk.features.store(0, Ordering::Relaxed);
        self.disk
            .writeback
            .store(self.spec.write_cache, Ordering::Relaxed);
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        for index in 0..self.queue_sizes.len() {
            self.stop_queue(index);
        }
    }
}
