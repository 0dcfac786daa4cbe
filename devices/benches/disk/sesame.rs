//! Our own device, in this process, on an io-thread of its own.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use block::job::OnError;
use block::spec::{
    BackingSpec, CacheSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec,
    NodeOptions, NodeSpec, Qcow2Spec, RawSpec,
};
use block::{BlockGraph, IoThread, IoThreadSpec};
use devices::irq::Interrupt;
use devices::memory::{GuestMem, GuestMemView};
use devices::notice::NoticeSink;
use devices::virtio::blk::{VirtioBlk, VirtioBlkSpec};
use devices::virtio::device::{ActiveQueue, VirtioDevice};
use fdset::{Door, Role};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{AVAILABLE, DESCRIPTORS, SIZE, USED};

/// VIRTIO_RING_F_EVENT_IDX and VIRTIO_BLK_F_FLUSH.
const FEATURES: u64 = 1 << 29 | 1 << 9;

struct Call(EventFd);

impl Interrupt for Call {
    fn trigger(&self) {
        self.0.write(1).expect("an interrupt");
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What serves until it is dropped: first the disk, then what is below it.
pub(crate) struct Serving {
    _disk: VirtioBlk,
    graph: BlockGraph,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.graph.settle_all();
    }
}

pub(crate) fn start(
    door: &Door,
    file: &str,
    image: (&str, bool),
    view: &Arc<GuestMemView>,
    kick: &EventFd,
    call: &EventFd,
) -> Serving {
    let thread = IoThread::start(IoThreadSpec {
        id: "bench".to_owned(),
    })
    .expect("an io-thread");
    let mut graph = BlockGraph::new();
    graph.use_thread(thread.clone());
    let node = graph.add(door, spec(file, image)).expect("an image");
    let disk = VirtioBlk::new(VirtioBlkSpec {
        id: "disk".to_owned(),
        root: node.into(),
        serial: String::new(),
        queues: 1,
        queue_size: SIZE,
        logical_block_size: 512,
        physical_block_size: 512,
        geometry: None,
        write_cache: true,
        discard: false,
        write_zeroes: false,
        on_error: [OnError::Report; 2],
        iothreads: vec![thread],
        notices: NoticeSink::new(|notice| panic!("{notice:?}")),
    })
    .expect("a disk");
    disk.set_features(FEATURES);
    let mut queue = Queue::new(SIZE).expect("a queue");
    let low = |address: u64| Some(u32::try_from(address).expect("below 4 GiB"));
    queue.set_desc_table_address(low(DESCRIPTORS), Some(0));
    queue.set_avail_ring_address(low(AVAILABLE), Some(0));
    queue.set_used_ring_address(low(USED), Some(0));
    queue.set_ready(true);
    let active = ActiveQueue {
        queue,
        memory: GuestMem::from(Arc::clone(view)),
        kick: kick.try_clone().expect("an fd"),
        interrupt: Arc::new(Call(call.try_clone().expect("an fd"))),
    };
    disk.start_queue(0, active).expect("a queue");
    Serving { _disk: disk, graph }
}

fn spec(file: &str, (format, direct): (&str, bool)) -> NodeSpec {
    let options = NodeOptions {
        read_only: false,
        auto_read_only: false,
        discard: DiscardMode::Ignore,
        detect_zeroes: DetectZeroes::Off,
        cache: CacheSpec {
            direct,
            no_flush: false,
        },
    };
    let node = |name: &str, driver| NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some(name.to_owned()),
        options,
        driver,
    };
    let file = FileSpec {
        filename: file.to_owned(),
        role: Role::Image,
        locking: block::spec::Locking::Auto,
    };
    let child = ChildSpec::Inline(Box::new(node("file", DriverSpec::File(file))));
    let driver = match format {
        "raw" => DriverSpec::Raw(RawSpec {
            file: child,
            offset: 0,
            size: None,
        }),
        _ => DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file: child,
            data_file: None,
            backing: BackingSpec::Nothing,
            pass_discard: None,
            tuning: block::format::qcow2::Tuning::default(),
        })),
    };
    node("disk", driver)
}
