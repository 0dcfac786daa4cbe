//! Devices that are nothing but queues and a configuration space of a back end's: disks and shares.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_FS};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::front::{VhostUser, Watcher};
use crate::reactor::Reactor;
use crate::state::{Empty, NothingToSave, StateError, Stateful};
use crate::vhost::{QueueServer, ServedQueues, ServedView};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};

/// Bytes of a disk's configuration space (virtio 1.2, 5.2.4), up to what erases secrets.
pub const BLK_CONFIG: usize = 60;
/// Where in it the number of queues is, two bytes.
const BLK_QUEUES: usize = 34;
/// Where in it the driver switches the write cache.
const BLK_WRITE_CACHE: u64 = 32;
/// Bytes of a share's name (virtio 1.2, 5.11.4).
pub const FS_TAG: usize = 36;

/// What every queue may have.
const RINGS: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What kind of device it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk: its configuration space is the back end's.
    Blk {
        /// Whether the driver may switch the write cache, if the back end can.
        config_wce: bool,
    },
    /// A share of files.
    Fs {
        /// Its name, of at most [`FS_TAG`] bytes.
        tag: String,
    },
}

impl Kind {
    const fn id(&self) -> u32 {
        match self {
            Self::Blk { .. } => VIRTIO_ID_BLOCK,
            Self::Fs { .. } => VIRTIO_ID_FS,
        }
    }

    /// What may be offered, as far as the back end offers it.
    fn features(&self, queues: usize) -> u64 {
        match self {
            Self::Fs { .. } => RINGS,
            Self::Blk { config_wce } => {
                let always = [
                    VIRTIO_BLK_F_SIZE_MAX,
                    VIRTIO_BLK_F_SEG_MAX,
                    VIRTIO_BLK_F_GEOMETRY,
                    VIRTIO_BLK_F_RO,
                    VIRTIO_BLK_F_BLK_SIZE,
                    VIRTIO_BLK_F_FLUSH,
                    VIRTIO_BLK_F_TOPOLOGY,
                    VIRTIO_BLK_F_DISCARD,
                    VIRTIO_BLK_F_WRITE_ZEROES,
                ];
                let features = always.iter().fold(RINGS, |all, bit| all | 1 << bit);
                let wce = u64::from(*config_wce) << VIRTIO_BLK_F_CONFIG_WCE;
                let several = u64::from(queues > 1) << VIRTIO_BLK_F_MQ;
                features | wce | several
            }
        }
    }
}

/// What a device is made of, resolved.
#[derive(Debug)]
pub struct VhostUserDeviceSpec {
    /// The device's name in the tree, for logs.
    pub id: String,
    /// What kind it is.
    pub kind: Kind,
    /// Who serves its queues.
    pub front: Arc<VhostUser>,
    /// The size of each of its queues.
    pub queue_sizes: Vec<u16>,
    /// Where eventfds are watched.
    pub reactor: Reactor,
}

/// A device whose back end is another process.
pub struct VhostUserDevice {
    spec: VhostUserDeviceSpec,
    offered: u64,
    queues: ServedQueues,
    features: AtomicU64,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
}

impl VhostUserDevice {
    /// A device whose driver has not come yet.
    #[must_use]
    pub fn new(spec: VhostUserDeviceSpec) -> Arc<Self> {
        let count = spec.queue_sizes.len();
        let device = Arc::new(Self {
            offered: spec.kind.features(count) & spec.front.offer().features,
            queues: ServedQueues::new(spec.reactor.clone(), count),
            spec,
            features: AtomicU64::new(0),
            driver: OnceLock::new(),
        });
        let watcher: Weak<dyn Watcher> = Arc::downgrade(&(Arc::clone(&device) as _));
        device.spec.front.watch(watcher);
        device
    }

    /// Whether its back end is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.spec.front.is_connected()
    }
}

impl Watcher for VhostUserDevice {
    /// The next one may have another disk.
    fn came(&self) {
        self.config_changed();
    }

    fn config_changed(&self) {
        if let (Kind::Blk { .. }, Some(driver)) = (&self.spec.kind, self.driver.get()) {
            driver.config_changed();
        }
    }
}

impl NothingToSave for VhostUserDevice {
    const KIND: &'static str = "vhost-user";
}

/// All but the negotiation is its back end's.
impl Stateful for VhostUserDevice {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl VirtioDevice for VhostUserDevice {
    fn device_type(&self) -> u16 {
        u16::try_from(self.spec.kind.id()).unwrap_or(0)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.spec.queue_sizes
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let count = self.spec.queue_sizes.len();
        let mut space = [0; BLK_CONFIG];
        match &self.spec.kind {
            Kind::Blk { .. } => {
                self.spec.front.read_config(0, &mut space);
                // Ours to say: the back end may have more than there are here.
                let queues = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
                for (to, from) in space.iter_mut().skip(BLK_QUEUES).zip(queues) {
                    *to = from;
                }
            }
            Kind::Fs { tag } => {
                let (name, rest) = space.split_at_mut(FS_TAG);
                for (to, from) in name.iter_mut().zip(tag.bytes()) {
                    *to = from;
                }
                let requests = u32::try_from(count.saturating_sub(1)).unwrap_or(1);
                for (to, from) in rest.iter_mut().zip(requests.to_le_bytes()) {
                    *to = from;
                }
            }
        }
        read_config(&space, offset, data);
    }

    /// Only the write cache of a disk is the driver's to switch.
    fn config_write(&self, offset: u64, data: &[u8]) {
        let may = self.features.load(Ordering::Acquire) & 1 << VIRTIO_BLK_F_CONFIG_WCE != 0;
        if let (Kind::Blk { .. }, true, BLK_WRITE_CACHE, [on]) =
            (&self.spec.kind, may, offset, data)
        {
            let place = u32::try_from(offset).unwrap_or(0);
            self.spec.front.write_config(place, &[u8::from(*on != 0)]);
        }
    }

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let count = self.spec.queue_sizes.len();
        let none = || VirtioError::NoSuchQueue { index, count };
        let driver = self.driver.get().filter(|_| index < count);
        let driver = Arc::clone(driver.ok_or_else(none)?);
        let features = self.features.load(Ordering::Acquire);
        let server = self.spec.front.as_ref();
        self.queues.start(server, index, queue, features, driver)
    }

    fn served_outside(&self) -> Option<u64> {
        let server: &dyn QueueServer = self.spec.front.as_ref();
        self.queues.any().then(|| server.features())
    }

    fn queue_outside(&self, index: usize) -> Option<ServedView> {
        self.queues.view(index)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        self.queues.stop(self.spec.front.as_ref(), index)
    }

    fn interrupt_moved(&self, index: usize) {
        self.queues.call_changed(self.spec.front.as_ref(), index);
    }

    fn memory_changed(&self) -> io::Result<()> {
        self.queues.memory_changed(self.spec.front.as_ref())
    }

    fn reset(&self) {
        self.features.store(0, Ordering::Release);
        self.spec.front.forget();
    }
}

impl fmt::Debug for VhostUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserDevice")
            .field("id", &self.spec.id)
            .finish_non_exhaustive()
    }
}
