//! Front ends and devices against back ends that behave, and back ends that do not.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fdset::scm::recv_with_fds;
use fdset::{Door, FdRegistry, Scope, SocketAddress};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::message::{F_PROTOCOL_FEATURES, HEADER, words};
use super::session::F_VERSION_1;
use super::table::tests::shared;
use super::*;
use crate::chardev::{BackendSpec, Chardev, ChardevSpec, SocketRole, SocketSpec};
use crate::memory::GuestMem;
use crate::reactor::Reactor;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, Notified, PATIENCE};

const IS_REPLY: u32 = 4;
const WANTS_REPLY: u32 = 8;
const FLUSH: u64 = 1 << 9;

/// What a back end answers otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Features without version 1.
    NoVersion,
    /// An fd with the first answer.
    Fd,
    /// An answer to another request.
    Request,
    /// A refusal of guest memory.
    Refusal,
    /// No answer at all when a queue is stopped, but a lost connection.
    Vanish,
    /// Bytes that nobody asked for.
    Chatter,
    /// None, but the configuration space is another each time.
    Changes,
}

/// A back end, as its own thread: tells each request as number and payload.
pub(crate) struct Backend {
    said: Receiver<(u32, Vec<u8>, Vec<OwnedFd>)>,
    speak: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    pub(crate) fn call(path: &Path, fault: Fault) -> Self {
        let start = Instant::now();
        let stream = loop {
            #[expect(clippy::disallowed_methods, reason = "the test is another process")]
            let stream = UnixStream::connect(path);
            match stream {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        let speak = stream.try_clone().expect("a descriptor");
        let (tell, said) = mpsc::channel();
        let thread = thread::spawn(move || answer_all(stream, fault, &tell));
        Self {
            said,
            speak,
            thread: Some(thread),
        }
    }

    /// The next request with this number; those before are of no interest.
    pub(crate) fn hear(&self, wanted: u32) -> (Vec<u8>, Vec<OwnedFd>) {
        loop {
            let (request, payload, fds) = self.said.recv_timeout(PATIENCE).expect("silence");
            if request == wanted {
                return (payload, fds);
            }
        }
    }

    pub(crate) fn words(&self, wanted: u32) -> Vec<u64> {
        let (payload, _) = self.hear(wanted);
        let (words, _) = payload.as_chunks();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.speak.shutdown(std::net::Shutdown::Both).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the back end's thread");
        }
    }
}

fn answer_all(mut stream: UnixStream, fault: Fault, tell: &Sender<(u32, Vec<u8>, Vec<OwnedFd>)>) {
    let mut head = [0; HEADER];
    let mut times = 0;
    loop {
        let Ok(received) = recv_with_fds(&stream, &mut head) else {
            return;
        };
        if received.bytes == 0 {
            return;
        }
        stream
            .read_exact(&mut head[received.bytes..])
            .expect("a header");
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four"));
        let (request, flags, size) = (number(0), number(4), number(8));
        let mut payload = vec![0; usize::try_from(size).expect("small")];
        stream.read_exact(&mut payload).expect("a payload");
        if request == 11 && fault == Fault::Vanish {
            stream
                .shutdown(std::net::Shutdown::Both)
                .expect("connected");
            return;
        }
        let answer = answer(request, &payload, fault).or_else(|| {
            let refusal = u64::from(request == 5 && fault == Fault::Refusal);
            (flags & WANTS_REPLY != 0).then(|| words(&[refusal]))
        });
        tell.send((request, payload, received.fds)).ok();
        if let Some(mut answer) = answer {
            if request == 24 && fault == Fault::Changes {
                times += 1;
                answer[12] = times;
            }
            reply(&stream, request, fault, &answer);
        }
        if request == 18 && fault == Fault::Chatter {
            stream.write_all(&[7; 40]).expect("connected");
        }
    }
}

fn answer(request: u32, payload: &[u8], fault: Fault) -> Option<Vec<u8>> {
    let features = F_PROTOCOL_FEATURES | F_VERSION_1 | FLUSH | 1 << 29 | 1 << 22;
    Some(match request {
        1 if fault == Fault::NoVersion => words(&[F_PROTOCOL_FEATURES]),
        1 => words(&[features]),
        // MQ, RARP, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD
        15 => words(&[1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12]),
        17 => words(&[4]),
        // It stands 5 chains after where it began.
        11 => words(&[u64::from(payload[0]) | 5 << 32]),
        24 => [&payload[..12], &[0x55; 60]].concat(),
        31 => [words(&[0x1000, 0]), payload[16..].to_vec()].concat(),
        _ => return None,
    })
}

fn reply(stream: &UnixStream, request: u32, fault: Fault, payload: &[u8]) {
    let request = if fault == Fault::Request { 99 } else { request };
    let len = u32::try_from(payload.len()).expect("small");
    let mut bytes: Vec<u8> = [request, 1 | IS_REPLY, len]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    bytes.extend(payload);
    let (near, _far) = UnixStream::pair().expect("a pair");
    use std::os::fd::AsFd;
    let fd = [near.as_fd()];
    let is_laden = request == 31 || fault == Fault::Fd;
    let fds: &[_] = if is_laden { &fd } else { &[] };
    // It may have been hung up on.
    fdset::scm::send_with_fds(stream, &bytes, fds).ok();
}

/// A listening chardev, and where.
struct Place {
    chardev: Arc<Chardev>,
    reactor: Reactor,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

/// A chardev that listens at `path`.
pub(crate) fn listening(path: &Path) -> ChardevSpec {
    ChardevSpec {
        backend: BackendSpec::Socket(SocketSpec {
            address: SocketAddress::Unix {
                path: path.to_owned(),
            },
            role: SocketRole::Server { wait: false },
            nodelay: false,
        }),
        log: None,
    }
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let spec = listening(&path);
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let reactor = Reactor::new();
    Place {
        chardev: Chardev::open("c", &spec, &door, &reactor).expect("a place to listen"),
        reactor,
        path,
        _folder: folder,
    }
}

fn front(place: &Place) -> Result<Arc<VhostUser>, VhostUserError> {
    VhostUser::new(VhostUserSpec {
        name: "device 'd'".to_owned(),
        chardev: Arc::clone(&place.chardev),
        queues: 2,
        wants: Wants {
            protocol: Wants::ORDINARY
                | Protocol::CONFIG
                | Protocol::BACKEND_REQ
                | Protocol::INFLIGHT_SHMFD,
            needed: Protocol::CONFIG,
            config: 60,
        },
        apart: 0,
        never: 0,
        reactor: place.reactor.clone(),
    })
}

struct Scene {
    place: Place,
    backend: Backend,
    device: Arc<VhostUserDevice>,
    driver: Arc<Notified>,
    memory: GuestMem,
}

fn scene(fault: Fault) -> Scene {
    let place = place();
    let backend = Backend::call(&place.path, fault);
    let front = front(&place).expect("a back end");
    let device = VhostUserDevice::new(VhostUserDeviceSpec {
        id: "d".to_owned(),
        kind: Kind::Blk { config_wce: false },
        front,
        queue_sizes: vec![16; 2],
        reactor: place.reactor.clone(),
    });
    let driver = Arc::new(Notified::default());
    device.attach(Arc::clone(&driver) as _);
    device.set_features(device.features());
    Scene {
        place,
        backend,
        device,
        driver,
        memory: GuestMem::new(shared()),
    }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_device_offers_what_its_back_end_offers_and_shows_its_configuration() {
    let scene = scene(Fault::None);
    assert_eq!(scene.device.features(), FLUSH | 1 << 29);
    let mut config = [0; 64];
    scene.device.config_read(0, &mut config);
    let mut wanted = [0x55; 64];
    wanted[34..36].copy_from_slice(&[2, 0]);
    wanted[60..].fill(0);
    assert_eq!(config, wanted);
}

#[test]
fn a_queue_is_given_with_memory_rings_and_eventfds_and_taken_back_where_it_stands() {
    let scene = scene(Fault::None);
    let mut queue = DriverQueue::new(&scene.memory, 0);
    queue.start(scene.device.as_ref(), 0);
    let features = FLUSH | 1 << 29 | F_VERSION_1 | F_PROTOCOL_FEATURES;
    assert_eq!(scene.backend.words(2), [features]);
    let (table, fds) = scene.backend.hear(5);
    assert_eq!((table.len(), fds.len()), (8 + 2 * 32, 2));
    let (_, memory) = scene.backend.hear(32);
    assert_eq!(memory.len(), 1, "for what is under way");
    assert_eq!(scene.backend.words(8), [16 << 32]);
    assert_eq!(scene.backend.words(10), [0]);
    assert_eq!(scene.backend.words(9).len(), 5);
    let (_, call) = scene.backend.hear(13);
    let (_, kick) = scene.backend.hear(12);
    assert_eq!((call.len(), kick.len()), (1, 1));
    assert_eq!(scene.backend.words(18), [1 << 32]);
    // The back end uses a chain and calls.
    queue.give_room(16);
    let used = GuestAddress(0x1000 + 0x800 + 2);
    let view = scene.memory.memory();
    view.write_obj(1_u16, used).expect("memory");
    nix::unistd::write(&call[0], &1_u64.to_ne_bytes()).expect("an eventfd");
    assert_eq!(queue.used_length(), 0);
    let state = scene.device.stop_queue(0).expect("it was started");
    assert_eq!((state.next_avail, state.next_used), (5, 1));
    scene.device.reset();
}

#[test]
fn the_next_back_end_is_told_everything_again_from_where_the_last_one_came() {
    let scene = scene(Fault::None);
    let Scene {
        place,
        backend,
        device,
        memory,
        ..
    } = scene;
    let queue = DriverQueue::new(&memory, 0);
    queue.start(device.as_ref(), 0);
    backend.hear(18);
    drop(backend);
    until("it is gone", || !device.is_connected());
    let used = GuestAddress(0x1000 + 0x800 + 2);
    memory.memory().write_obj(3_u16, used).expect("memory");
    let next = Backend::call(&place.path, Fault::None);
    let (known, fds) = next.hear(32);
    assert_eq!(
        (known.len(), fds.len()),
        (24, 1),
        "the memory of the one before"
    );
    assert_eq!(next.words(10), [3 << 32]);
    next.hear(18);
    assert!(device.is_connected());
    assert!(device.stop_queue(0).is_some());
}

#[test]
fn a_queue_of_a_back_end_that_vanishes_is_taken_back_where_the_guest_sees_it() {
    let scene = scene(Fault::Vanish);
    let queue = DriverQueue::new(&scene.memory, 0);
    queue.start(scene.device.as_ref(), 0);
    scene.backend.hear(18);
    let used = GuestAddress(0x1000 + 0x800 + 2);
    let view = scene.memory.memory();
    view.write_obj(2_u16, used).expect("memory");
    let state = scene.device.stop_queue(0).expect("it was started");
    assert_eq!((state.next_avail, state.next_used), (2, 2));
    assert_eq!(
        scene
            .driver
            .resets
            .load(std::sync::atomic::Ordering::SeqCst),
        0
    );
}

#[test]
fn a_back_end_that_breaks_the_protocol_is_left_and_the_next_one_taken() {
    for fault in [Fault::NoVersion, Fault::Fd, Fault::Request] {
        let place = place();
        let bad = Backend::call(&place.path, fault);
        let path = place.path.clone();
        let next = thread::spawn(move || {
            // Gone as soon as it was left.
            while bad.said.recv().is_ok() {}
            drop(bad);
            Backend::call(&path, Fault::None)
        });
        let front = front(&place).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(front.offer().queues, 4, "{fault:?}");
        drop(next.join().expect("the next one"));
    }
}

#[test]
fn a_back_end_that_refuses_memory_or_speaks_unasked_is_left() {
    for fault in [Fault::Refusal, Fault::Chatter] {
        let scene = scene(fault);
        let queue = DriverQueue::new(&scene.memory, 0);
        queue.start(scene.device.as_ref(), 0);
        until("it is left", || !scene.device.is_connected());
        let state = scene.device.stop_queue(0).expect("it was started");
        assert_eq!((state.next_avail, state.next_used), (0, 0));
    }
}

#[test]
fn a_change_of_the_configuration_space_is_read_when_the_back_end_tells() {
    struct Told(Mutex<Sender<()>>);
    impl Watcher for Told {
        fn config_changed(&self) {
            self.0.lock().expect("not poisoned").send(()).ok();
        }
    }
    let place = place();
    let backend = Backend::call(&place.path, Fault::Changes);
    let front = front(&place).expect("a back end");
    let (tell, told) = mpsc::channel();
    let watcher: Arc<dyn Watcher> = Arc::new(Told(Mutex::new(tell)));
    front.watch(Arc::downgrade(&watcher));
    let (_, channel) = backend.hear(21);
    let channel = channel.into_iter().next().expect("a socket");
    let mut config = [0; 4];
    front.read_config(0, &mut config);
    let before = config;
    // CONFIG_CHANGE_MSG, and it wants to know.
    let ask: Vec<u8> = [2u32, 1 | WANTS_REPLY, 0]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    nix::unistd::write(&channel, &ask).expect("connected");
    let mut answer = [0; 20];
    nix::unistd::read(&channel, &mut answer).expect("an answer");
    assert_eq!(&answer[12..], &[0; 8]);
    told.recv_timeout(PATIENCE).expect("it was told");
    front.read_config(0, &mut config);
    assert_ne!(config, before);
}

#[test]
fn a_chardev_that_carries_no_fds_is_refused() {
    let reactor = Reactor::new();
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let spec = ChardevSpec {
        backend: BackendSpec::Null,
        log: None,
    };
    let chardev = Chardev::open("n", &spec, &door, &reactor).expect("nothing to open");
    let place = Place {
        chardev,
        reactor,
        path: PathBuf::new(),
        _folder: tempfile::tempdir().expect("a folder"),
    };
    let error = front(&place).expect_err("no socket");
    assert!(error.to_string().contains("not a unix socket"), "{error}");
    assert!(!place.chardev.is_busy(), "the place was given back");
}

#[test]
fn the_last_owner_may_be_who_hears_that_the_back_end_left() {
    struct Owner(Mutex<Option<Arc<VhostUser>>>);
    impl Watcher for Owner {
        fn left(&self) {
            let front = self.0.lock().expect("not poisoned").take();
            drop(front);
        }
    }
    let place = place();
    let backend = Backend::call(&place.path, Fault::None);
    let front = front(&place).expect("a back end");
    let owner = Arc::new(Owner(Mutex::new(None)));
    let watcher: Arc<dyn Watcher> = Arc::clone(&owner) as _;
    front.watch(Arc::downgrade(&watcher));
    *owner.0.lock().expect("not poisoned") = Some(front);
    // It is the conversation that ends, before its chardev notices anything.
    (&backend.speak).write_all(&[7; 40]).expect("connected");
    let chardev = Arc::clone(&place.chardev);
    until("the place is given back", || !chardev.is_busy());
    // The thread of back ends is not stuck.
    let (tell, told) = mpsc::channel();
    place
        .reactor
        .run(move || tell.send(()).unwrap_or_default())
        .expect("it runs");
    told.recv_timeout(PATIENCE).expect("it goes on");
}
