//! The device: its name for the guest, and queues that are somebody else's.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use crate::reactor::Reactor;
use crate::state::{Empty, NothingToSave, StateError, Stateful};
use crate::vhost::{QueueServer, ServedQueues, ServedView};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice, VirtioError, read_config};

/// In, out, events.
const QUEUES: [u16; 3] = [128; 3];
/// The first queue that is not the server's.
const EVENTS: usize = 2;
/// Sockets that keep the borders of messages (virtio 1.2, 5.10.3).
const F_SEQPACKET: u64 = 1 << 1;
/// What is offered where the server can do it.
const FEATURES: u64 = F_SEQPACKET | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What a device is made of, resolved.
pub struct VirtioVsockSpec {
    /// The device's name in the tree, for logs.
    pub id: String,
    /// What the guest is called: one of [`CIDS`](super::CIDS).
    pub cid: u32,
    /// Whether sockets that keep the borders of messages are offered, if the server has them.
    pub seqpacket: bool,
    /// Who serves its queues.
    pub server: Arc<dyn QueueServer>,
    /// Where eventfds are watched.
    pub reactor: Reactor,
}

/// A guest's end of the sockets between it and this machine.
pub struct VirtioVsock {
    spec: VirtioVsockSpec,
    queues: ServedQueues,
    /// The queue for events, while it is started.
    events: Mutex<Option<ActiveQueue>>,
    features: AtomicU64,
    driver: OnceLock<Arc<dyn DriverNotifier>>,
}

impl VirtioVsock {
    /// A device whose driver has not come yet.
    #[must_use]
    pub fn new(spec: VirtioVsockSpec) -> Arc<Self> {
        Arc::new(Self {
            queues: ServedQueues::new(spec.reactor.clone(), EVENTS),
            spec,
            events: Mutex::default(),
            features: AtomicU64::new(0),
            driver: OnceLock::new(),
        })
    }

    /// What the guest is called.
    pub fn cid(&self) -> u32 {
        self.spec.cid
    }

    fn events(&self) -> MutexGuard<'_, Option<ActiveQueue>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NothingToSave for VirtioVsock {
    const KIND: &'static str = "vhost-vsock";
}

/// Its connections are the kernel's, and end with this process.
impl Stateful for VirtioVsock {
    type State = Empty<Self>;

    fn save(&self) -> Empty<Self> {
        Empty::default()
    }

    fn load(&self, _state: Empty<Self>) -> Result<(), StateError> {
        Ok(())
    }
}

impl VirtioDevice for VirtioVsock {
    fn device_type(&self) -> u16 {
        u16::try_from(VIRTIO_ID_VSOCK).unwrap_or(19)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        let wanted = if self.spec.seqpacket {
            FEATURES
        } else {
            FEATURES & !F_SEQPACKET
        };
        wanted & self.spec.server.features()
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let cid = u64::from(self.spec.cid).to_le_bytes();
        read_config(&cid, offset, data);
    }

    /// A guest is called what it is called.
    fn config_write(&self, _offset: u64, _data: &[u8]) {}

    fn attach(&self, driver: Arc<dyn DriverNotifier>) {
        self.driver.set(driver).ok();
    }

    fn start_queue(&self, index: usize, queue: ActiveQueue) -> Result<(), VirtioError> {
        let count = QUEUES.len();
        let none = || VirtioError::NoSuchQueue { index, count };
        if index == EVENTS {
            *self.events() = Some(queue);
            return Ok(());
        }
        let driver = self.driver.get().filter(|_| index < EVENTS);
        let driver = Arc::clone(driver.ok_or_else(none)?);
        let features = self.features.load(Ordering::Acquire);
        self.queues
            .start(self.spec.server.as_ref(), index, queue, features, driver)
    }

    fn served_outside(&self) -> Option<u64> {
        self.queues.any().then(|| self.spec.server.features())
    }

    fn queue_outside(&self, index: usize) -> Option<ServedView> {
        self.queues.view(index)
    }

    fn stop_queue(&self, index: usize) -> Option<QueueState> {
        if index == EVENTS {
            let events = self.events().take()?;
            return Some(events.queue.state());
        }
        self.queues.stop(self.spec.server.as_ref(), index)
    }

    fn interrupt_moved(&self, index: usize) {
        self.queues.call_changed(self.spec.server.as_ref(), index);
    }

    fn memory_changed(&self) -> io::Result<()> {
        self.queues.memory_changed(self.spec.server.as_ref())
    }

    fn reset(&self) {
        self.features.store(0, Ordering::Release);
    }
}

impl fmt::Debug for VirtioVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioVsock")
            .field("id", &self.spec.id)
            .field("cid", &self.spec.cid)
            .finish_non_exhaustive()
    }
}
