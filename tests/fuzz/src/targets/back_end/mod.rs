//! A back end of vhost-user that answers what it likes, comes and goes, while its device's queues
//! are started, stopped and called elsewhere.
//!
//! What must hold: no panic on any thread; nobody waits for it for longer than it is there; an
//! honest one that comes after it is told all that the device wants, and no more; no fd is left.
//!
//! ```text
//!   honest: offers ─► device ─► hostile: answers by the input ─► .. ─► honest: what was it told?
//!                       ▲ the input's orders, all the while
//! ```

mod peer;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use devices::chardev::{BackendSpec, Chardev, ChardevSpec, SocketRole, SocketSpec};
use devices::irq::Interrupt;
use devices::memory::{GuestMem, GuestMemView};
use devices::vhost_user::{
    Kind, Protocol, VhostUser, VhostUserDevice, VhostUserDeviceSpec, VhostUserSpec, Wants,
};
use devices::virtio::device::{ActiveQueue, DriverNotifier, VirtioDevice};
use fdset::{Door, FdRegistry, Scope, SocketAddress};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::peer::{BASE, Honest, Peer, Script};
use crate::board::{Nowhere, reactor};
use crate::fds::Watch;

/// How many queues there are, and how long each is.
const QUEUES: usize = 2;
const SIZE: u16 = 16;
/// Guest memory, all of it shared, and how much of it is a queue's.
const RAM: usize = 0x1_0000;
const STRIDE: u64 = 0x2000;
const USED: u64 = 0x1000;
/// How many back ends an input is worth, and how many orders for each.
const PEERS: usize = 4;
const ORDERS: usize = 12;
/// How long what must come may take: less than a back end has for an answer.
const SOON: Duration = Duration::from_secs(8);

pub(super) fn run(input: &[u8]) {
    // The thread and what it waits with stay.
    reactor().settle().expect("it runs");
    let watch = Watch::new();
    let mut input = Unstructured::new(input);
    // Input that ends early is an end like any other.
    let _ = converse(&mut input);
    reactor().settle().expect("it runs");
    watch.assert_nothing_is_left();
}

fn converse(input: &mut Unstructured<'_>) -> Result<()> {
    let honest = Honest::arbitrary(input)?;
    let place = Place::new();
    let first = Peer::call(&place.path, honest, Script::honest());
    let front = VhostUser::new(VhostUserSpec {
        name: "device 'd'".to_owned(),
        chardev: Arc::clone(&place.chardev),
        queues: QUEUES,
        wants: Wants {
            protocol: Protocol::all(),
            needed: Protocol::empty(),
            config: 60,
        },
        apart: 0,
        never: 0,
        reactor: reactor().clone(),
    });
    let front = front.expect("the first one is honest");
    assert_eq!(front.offer().features, honest.features);
    let mut scene = Scene::new(front);
    drop(first);
    let outcome = scene.suffer(input, &place, honest);
    scene.assert_told(&place, honest);
    outcome
}

/// A listening chardev, and where.
struct Place {
    chardev: Arc<Chardev>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let spec = ChardevSpec {
            backend: BackendSpec::Socket(SocketSpec {
                address: SocketAddress::Unix { path: path.clone() },
                role: SocketRole::Server { wait: false },
                nodelay: false,
            }),
            log: None,
        };
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let chardev = Chardev::open("c", &spec, &door, reactor());
        Self {
            chardev: chardev.expect("a place to listen"),
            path,
            _folder: folder,
        }
    }
}

/// Connects, as soon as the one before has been left.
fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < SOON, "{error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A driver that hears nothing.
struct Deaf;

impl DriverNotifier for Deaf {
    fn config_changed(&self) {}

    fn needs_reset(&self) {}
}

/// A device, and what its driver has done.
struct Scene {
    device: Arc<VhostUserDevice>,
    memory: GuestMem,
    started: [bool; QUEUES],
}

impl Scene {
    fn new(front: Arc<VhostUser>) -> Self {
        let device = VhostUserDevice::new(VhostUserDeviceSpec {
            id: "d".to_owned(),
            kind: Kind::Blk { config_wce: true },
            front,
            queue_sizes: vec![SIZE; QUEUES],
            reactor: reactor().clone(),
        });
        device.attach(Arc::new(Deaf));
        device.set_features(device.features());
        let file = tempfile::tempfile().expect("a file");
        file.set_len(RAM as u64).expect("room on the disk");
        let range = (GuestAddress(0), RAM, Some(FileOffset::new(file, 0)));
        let view = GuestMemView::from_ranges_with_files([range]);
        Self {
            device,
            memory: GuestMem::new(view.expect("a mapping")),
            started: [false; QUEUES],
        }
    }

    /// Back ends that do what the input says, and a driver that does the same.
    fn suffer(
        &mut self,
        input: &mut Unstructured<'_>,
        place: &Place,
        honest: Honest,
    ) -> Result<()> {
        for _ in 0..PEERS {
            if input.is_empty() {
                break;
            }
            let length = input.int_in_range(0..=64)?;
            let script = Script::new(input.bytes(length.min(input.len()))?);
            let _peer = Peer::call(&place.path, honest, script);
            for _ in 0..input.int_in_range(0..=ORDERS)? {
                self.order(input)?;
            }
        }
        Ok(())
    }

    fn order(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let index = input.int_in_range(0..=QUEUES - 1)?;
        match input.int_in_range(0..=7)? {
            0 | 1 if !self.started[index] => self.start(index),
            0..=2 => self.stop(index),
            3 => self.device.interrupt_moved(index),
            4 => self.device.memory_changed().expect("the same memory"),
            5 => self.device.config_write(32, &[input.arbitrary()?]),
            6 => self.device.config_read(0, &mut [0; 80]),
            _ => {
                // As a transport resets a device.
                (0..QUEUES).for_each(|index| self.stop(index));
                self.device.reset();
                self.device.set_features(self.device.features());
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize) {
        let base = STRIDE * (index as u64 + 1);
        let state = QueueState {
            max_size: SIZE,
            size: SIZE,
            ready: true,
            desc_table: base,
            avail_ring: base + 0x800,
            used_ring: base + USED,
            ..QueueState::default()
        };
        let view = self.memory.memory();
        view.write_obj(0_u16, GuestAddress(base + USED + 2))
            .expect("inside");
        let queue = ActiveQueue {
            queue: Queue::try_from(state).expect("a state"),
            memory: self.memory.clone(),
            kick: EventFd::new(EFD_NONBLOCK).expect("an eventfd"),
            interrupt: Arc::new(Nowhere) as Arc<dyn Interrupt>,
        };
        self.device.start_queue(index, queue).expect("only orders");
        self.started[index] = true;
    }

    fn stop(&mut self, index: usize) {
        let start = Instant::now();
        let stopped = self.device.stop_queue(index);
        assert!(start.elapsed() < SOON, "it was waited for");
        assert_eq!(stopped.is_some(), self.started[index], "of queue {index}");
        self.started[index] = false;
    }

    /// An honest back end is told of the queues that run, and gives them back.
    fn assert_told(&mut self, place: &Place, honest: Honest) {
        let peer = Peer::call(&place.path, honest, Script::honest());
        let told = Arc::clone(&peer.told);
        let wanted = self.started;
        let is_told = || {
            let told = lock(&told);
            self.device.is_connected() && told.enabled == wanted
        };
        let start = Instant::now();
        while !is_told() {
            let told = lock(&told);
            assert!(start.elapsed() < SOON, "wanted {wanted:?}, told {told:?}");
            drop(told);
            thread::sleep(Duration::from_millis(1));
        }
        let regions = usize::from(wanted.contains(&true));
        assert_eq!(lock(&told).regions, regions, "guest memory");
        for (index, runs) in wanted.into_iter().enumerate() {
            let stopped = self.device.stop_queue(index);
            let next = stopped.map(|state| state.next_avail);
            assert_eq!(next, runs.then_some(BASE), "where queue {index} stands");
        }
        assert_eq!(lock(&told).enabled, [false; QUEUES]);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics")
}
