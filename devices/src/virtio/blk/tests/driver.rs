//! The other side of the queue: guest memory, a driver's rings, and what the device tells.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, mpsc};

use block::job::OnError;
use block::{IoThread, IoThreadSpec, NodeRef};
use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::irq::Interrupt;
use crate::memory::{GuestMem, GuestMemView};
use crate::notice::{Notice, NoticeSink};
use crate::virtio::blk::{VirtioBlk, VirtioBlkSpec};
use crate::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice};

pub(super) const QUEUE_SIZE: u16 = 64;
const MEMORY: usize = 4 << 20;
/// Where requests keep their headers, status bytes and data.
const HEADERS: u64 = 0x10_0000;
const STATUSES: u64 = 0x11_0000;
pub(super) const DATA: u64 = 0x20_0000;
/// What a status byte holds before the device wrote it.
const UNTOUCHED: u8 = 0xee;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Counts interrupts and lets the test wait for one.
pub(super) struct Bell {
    ring: mpsc::Sender<()>,
    count: AtomicUsize,
}

impl Interrupt for Bell {
    fn trigger(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // The test may have heard enough.
        let _ = self.ring.send(());
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What the device told its driver besides used buffers.
#[derive(Default)]
pub(super) struct Told {
    resets: Mutex<Vec<mpsc::Sender<()>>>,
    pub(super) broken: AtomicUsize,
    pub(super) config_changes: AtomicUsize,
}

impl DriverNotifier for Told {
    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.broken.fetch_add(1, Ordering::SeqCst);
        for listener in self.resets.lock().expect("listeners").drain(..) {
            let _ = listener.send(());
        }
    }
}

/// A machine with one disk.
pub(super) struct Rig {
    pub(super) memory: GuestMem,
    pub(super) disk: VirtioBlk,
    pub(super) told: Arc<Told>,
    pub(super) notices: mpsc::Receiver<Notice>,
}

pub(super) fn spec(node: NodeRef, queues: u16, notices: NoticeSink) -> VirtioBlkSpec {
    let thread = |id: &str| IoThread::start(IoThreadSpec { id: id.to_owned() });
    let iothreads = ["test0", "test1"].map(|id| thread(id).expect("io-thread"));
    VirtioBlkSpec {
        id: "vda".to_owned(),
        root: node.into(),
        serial: "serial-0".to_owned(),
        queues,
        queue_size: QUEUE_SIZE,
        logical_block_size: 512,
        physical_block_size: 4096,
        geometry: None,
        write_cache: true,
        discard: true,
        write_zeroes: true,
        on_error: [OnError::Report; 2],
        iothreads: iothreads.to_vec(),
        notices,
    }
}

impl Rig {
    pub(super) fn new(node: NodeRef, queues: u16) -> Self {
        Self::with_policy(node, queues, OnError::Report)
    }

    pub(super) fn with_policy(node: NodeRef, queues: u16, on_error: OnError) -> Self {
        let (tell, notices) = mpsc::channel();
        let sink = NoticeSink::new(move |notice| drop(tell.send(notice)));
        let spec = VirtioBlkSpec {
            on_error: [OnError::Report, on_error],
            ..spec(node, queues, sink)
        };
        let disk = VirtioBlk::new(spec).expect("disk");
        disk.set_features(disk.features() & !(1 << 29));
        let told = Arc::new(Told::default());
        disk.attach(Arc::clone(&told) as Arc<dyn DriverNotifier>);
        let view = GuestMemView::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        Self {
            memory: GuestMem::new(view),
            disk,
            told,
            notices,
        }
    }

    /// A view to build rings in; kept by the caller for the driver's life.
    pub(super) fn view(&self) -> Arc<GuestMemView> {
        self.memory.memory().into_inner()
    }

    /// A listener that hears when the device says that it is broken.
    pub(super) fn listen_for_reset(&self) -> mpsc::Receiver<()> {
        let (tell, told) = mpsc::channel();
        self.told.resets.lock().expect("listeners").push(tell);
        told
    }

    pub(super) fn start<'a>(&'a self, index: usize, view: &'a GuestMemView) -> Driver<'a> {
        let start = GuestAddress(0x1000 + 0x1000 * index as u64);
        let mock = MockSplitQueue::create(view, start, QUEUE_SIZE);
        let mut queue: Queue = mock.create_queue().expect("queue");
        // The mock's own place for the used ring overlaps its available ring.
        let used_ring = start.0 + 0x800;
        queue.set_used_ring_address(u32::try_from(used_ring).ok(), Some(0));
        let mut driver = Driver {
            rig: self,
            view,
            mock,
            used_ring,
            index,
            kick: None,
            bell: None,
            interrupt: None,
            next: 0,
            sent: 0,
        };
        driver.restart(queue);
        driver
    }

    pub(super) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("inside");
        bytes
    }

    pub(super) fn is_dirty(&self, address: u64) -> bool {
        let view = self.view();
        let (region, offset) = view.to_region_addr(GuestAddress(address)).expect("inside");
        region
            .bitmap()
            .dirty_at(usize::try_from(offset.0).expect("small"))
    }
}

/// One queue as its driver sees it.
pub(super) struct Driver<'a> {
    rig: &'a Rig,
    view: &'a GuestMemView,
    mock: MockSplitQueue<'a, GuestMemView>,
    used_ring: u64,
    index: usize,
    kick: Option<EventFd>,
    bell: Option<mpsc::Receiver<()>>,
    interrupt: Option<Arc<Bell>>,
    next: u16,
    sent: u16,
}

/// One buffer of a request.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    Out(u64, u32),
    In(u64, u32),
}

impl Driver<'_> {
    /// Enables the queue (again), as it stands.
    pub(super) fn restart(&mut self, queue: Queue) {
        let kick = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let (ring, bell) = mpsc::channel();
        let interrupt = Arc::new(Bell {
            ring,
            count: AtomicUsize::new(0),
        });
        self.interrupt = Some(Arc::clone(&interrupt));
        let active = ActiveQueue {
            queue,
            memory: self.rig.memory.clone(),
            kick: kick.try_clone().expect("dup"),
            interrupt,
        };
        self.rig
            .disk
            .start_queue(self.index, active)
            .expect("start");
        kick.write(1).expect("kick");
        self.kick = Some(kick);
        self.bell = Some(bell);
    }

    fn number(&self, chain: u16) -> u64 {
        u64::from(chain) + 0x100 * self.index as u64
    }

    /// Where the status byte of the n-th request is.
    fn status_address(&self, chain: u16) -> u64 {
        STATUSES + self.number(chain)
    }

    /// Makes raw descriptors available, without a kick.
    pub(super) fn offer_raw(&mut self, descriptors: &[(u64, u32, u16, u16)]) {
        let raw: Vec<RawDescriptor> = descriptors
            .iter()
            .map(|&(address, len, flags, next)| {
                RawDescriptor::from(Descriptor::new(address, len, flags, next))
            })
            .collect();
        self.mock
            .add_desc_chains(&raw, self.next)
            .expect("room in the table");
        self.next += u16::try_from(raw.len()).expect("small");
        self.sent += 1;
    }

    /// Makes one chain of pieces available, without a kick.
    pub(super) fn offer_pieces(&mut self, pieces: &[Piece]) {
        let last = pieces.len() - 1;
        let descriptors: Vec<_> = pieces
            .iter()
            .zip(self.next + 1..)
            .enumerate()
            .map(|(i, (piece, next))| {
                let more = if i == last { 0 } else { NEXT };
                match *piece {
                    Piece::Out(address, len) => (address, len, more, next),
                    Piece::In(address, len) => (address, len, more | WRITE, next),
                }
            })
            .collect();
        self.offer_raw(&descriptors);
    }

    /// Writes a header and clears the status byte of the next request; returns both addresses.
    pub(super) fn prepare(&self, kind: u32, sector: u64) -> (u64, u64) {
        let header = HEADERS + 16 * self.number(self.sent);
        let status = self.status_address(self.sent);
        let view = self.view;
        view.write_obj(kind.to_le(), GuestAddress(header))
            .expect("inside");
        view.write_obj(0u32, GuestAddress(header + 4))
            .expect("inside");
        view.write_obj(sector.to_le(), GuestAddress(header + 8))
            .expect("inside");
        view.write_obj(UNTOUCHED, GuestAddress(status))
            .expect("inside");
        (header, status)
    }

    /// Makes one ordinary request available, without a kick.
    pub(super) fn offer(&mut self, kind: u32, sector: u64, data: &[Piece]) {
        let (header, status) = self.prepare(kind, sector);
        let mut pieces = vec![Piece::Out(header, 16)];
        pieces.extend_from_slice(data);
        pieces.push(Piece::In(status, 1));
        self.offer_pieces(&pieces);
    }

    pub(super) fn kick(&self) {
        self.kick.as_ref().expect("started").write(1).expect("kick");
    }

    /// Kicks as Linux does: where the device wants it (virtio 1.2, 2.7.10).
    pub(super) fn kick_if_wanted(&self) {
        fence(Ordering::SeqCst);
        let flags: u16 = self
            .view
            .read_obj(GuestAddress(self.used_ring))
            .expect("inside");
        if u32::from(u16::from_le(flags)) & VRING_USED_F_NO_NOTIFY == 0 {
            self.kick();
        }
    }

    pub(super) fn used(&self) -> u16 {
        let index: u16 = self
            .view
            .read_obj(GuestAddress(self.used_ring + 2))
            .expect("inside");
        u16::from_le(index)
    }

    /// Waits until everything offered was used.
    pub(super) fn wait(&self) {
        self.wait_for(self.sent);
    }

    pub(super) fn wait_for(&self, used: u16) {
        while self.used() < used {
            self.hear();
        }
    }

    /// Waits for one interrupt.
    pub(super) fn hear(&self) {
        self.bell
            .as_ref()
            .expect("started")
            .recv()
            .expect("the device lives");
    }

    /// How often the device interrupted since the queue was enabled.
    pub(super) fn interrupts(&self) -> usize {
        self.interrupt
            .as_ref()
            .map_or(0, |bell| bell.count.load(Ordering::SeqCst))
    }

    /// Asks for an interrupt when the used index passes `used` (VIRTIO_F_EVENT_IDX).
    pub(super) fn ask_after(&self, used: u16) {
        let place = self.mock.avail_addr().0 + 4 + 2 * u64::from(QUEUE_SIZE);
        self.view
            .write_obj(used.to_le(), GuestAddress(place))
            .expect("inside");
    }

    /// The status byte of the n-th request.
    pub(super) fn status(&self, chain: u16) -> u8 {
        self.view
            .read_obj(GuestAddress(self.status_address(chain)))
            .expect("inside")
    }

    /// Sends one request and returns its status.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> u8 {
        let chain = self.sent;
        self.offer(kind, sector, data);
        self.kick();
        self.wait();
        self.status(chain)
    }

    /// The length the device reported for the n-th used buffer.
    pub(super) fn used_len(&self, n: u64) -> u32 {
        let place = GuestAddress(self.used_ring + 4 + 8 * n + 4);
        u32::from_le(self.view.read_obj(place).expect("inside"))
    }

    /// Stops the queue and returns it as it stands.
    pub(super) fn stop(&mut self) -> Queue {
        let state = self.rig.disk.stop_queue(self.index).expect("was started");
        let mut queue = Queue::try_from(state).expect("valid state");
        queue.set_ready(true);
        queue
    }
}
