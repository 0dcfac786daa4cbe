//! Chardevs over real sockets, files and ptys.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fdset::{Door, FdRegistry, Scope, SocketAddress};

use super::*;
use crate::reactor::Reactor;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A frontend with as much room as it is given, that tells of everything.
struct Probe {
    room: Mutex<usize>,
    told: Mutex<Sender<Told>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Received(Vec<u8>),
    Writable,
    PeerChanged,
}

impl Probe {
    fn tell(&self, told: Told) {
        self.told.lock().unwrap().send(told).ok();
    }
}

impl Frontend for Probe {
    fn room(&self) -> usize {
        *self.room.lock().unwrap()
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        *self.room.lock().unwrap() -= bytes.len();
        self.tell(Told::Received(bytes.to_vec()));
        bytes.len()
    }

    fn writable(&self) {
        self.tell(Told::Writable);
    }

    fn peer_changed(&self) {
        self.tell(Told::PeerChanged);
    }
}

struct Device {
    probe: Arc<Probe>,
    told: Receiver<Told>,
    lease: ChardevLease,
}

impl Device {
    fn at(chardev: &Arc<Chardev>, room: usize) -> Self {
        let (tell, told) = mpsc::channel();
        let probe = Arc::new(Probe {
            room: Mutex::new(room),
            told: Mutex::new(tell),
        });
        let frontend: Arc<dyn Frontend> = Arc::clone(&probe) as _;
        let lease = chardev.attach(&frontend).unwrap();
        Self { probe, told, lease }
    }

    fn hear(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("silence")
    }

    /// Input until `count` bytes have come.
    fn hear_bytes(&self, count: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < count {
            if let Told::Received(bytes) = self.hear() {
                heard.extend(bytes);
            }
        }
        heard
    }

    fn wait_until_connected(&self, connected: bool) {
        while self.lease.is_connected() != connected {
            assert_eq!(self.hear(), Told::PeerChanged);
        }
    }

    fn make_room(&self, room: usize) {
        *self.probe.room.lock().unwrap() = room;
        self.lease.resume_input();
    }
}

fn door() -> Door {
    Door::new(Arc::new(FdRegistry::new()), Scope::Process)
}

fn spec(backend: BackendSpec) -> ChardevSpec {
    ChardevSpec { backend, log: None }
}

fn socket(address: SocketAddress, role: SocketRole) -> ChardevSpec {
    spec(BackendSpec::Socket(SocketSpec {
        address,
        role,
        nodelay: false,
    }))
}

fn at_path(path: &std::path::Path) -> SocketAddress {
    SocketAddress::Unix {
        path: path.to_owned(),
    }
}

fn open(spec: &ChardevSpec) -> Arc<Chardev> {
    Chardev::open("c0", spec, &door(), &Reactor::new()).unwrap()
}

/// A chardev whose peer is the other end of a socket pair.
fn paired() -> (Arc<Chardev>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let door = door();
    let passed = OwnedFd::from(theirs);
    door.registry()
        .add_named(
            Scope::Process,
            "peer",
            fdset::Handover::new(passed, fdset::Origin::CommandLine),
        )
        .unwrap();
    let address = SocketAddress::Fd {
        name: "peer".to_owned(),
    };
    let spec = socket(address, SocketRole::Client);
    let chardev = Chardev::open("c0", &spec, &door, &Reactor::new()).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (chardev, ours)
}

#[expect(clippy::disallowed_methods, reason = "the test is the other side")]
fn connect(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test looks at what was written"
)]
fn contents(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn bytes_go_both_ways_over_a_passed_socket() {
    let (chardev, mut peer) = paired();
    let device = Device::at(&chardev, 100);
    assert!(device.lease.is_connected());
    assert_eq!(device.lease.write(b"out"), 3);
    let mut seen = [0; 3];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"out");
    peer.write_all(b"in").unwrap();
    assert_eq!(device.hear_bytes(2), b"in");
}

#[test]
fn input_waits_until_the_frontend_has_room() {
    let (chardev, mut peer) = paired();
    peer.write_all(b"abcdef").unwrap();
    let device = Device::at(&chardev, 2);
    assert_eq!(device.hear(), Told::Received(b"ab".to_vec()));
    device.make_room(3);
    assert_eq!(device.hear(), Told::Received(b"cde".to_vec()));
    device.make_room(9);
    assert_eq!(device.hear(), Told::Received(b"f".to_vec()));
}

#[test]
fn a_slow_peer_gets_everything_and_the_frontend_is_called_when_there_is_room() {
    let (chardev, mut peer) = paired();
    let device = Device::at(&chardev, 0);
    let block: Vec<u8> = (0..=255).cycle().take(32 << 10).collect();
    let mut sent = Vec::new();
    loop {
        let taken = device.lease.write(&block);
        sent.extend_from_slice(&block[..taken]);
        if taken < block.len() {
            break;
        }
        assert!(sent.len() < 16 << 20, "output has no bound");
    }
    assert_eq!(device.lease.write(b"x"), 0);
    let mut seen = vec![0; sent.len()];
    peer.read_exact(&mut seen).unwrap();
    assert!(seen == sent, "bytes were lost or mixed up");
    assert_eq!(device.hear(), Told::Writable);
    assert_eq!(device.lease.write(b"x"), 1);
}

#[test]
fn without_a_peer_output_is_taken_and_dropped() {
    let (chardev, peer) = paired();
    let device = Device::at(&chardev, 1);
    drop(peer);
    device.wait_until_connected(false);
    assert_eq!(device.lease.write(b"nobody"), 6);
}

#[test]
fn a_server_serves_one_peer_at_a_time_and_the_second_waits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let chardev = open(&socket(at_path(&path), SocketRole::Server { wait: false }));
    let name = format!("unix:{},server=on", path.display());
    assert_eq!(chardev.filename(), format!("disconnected:{name}"));
    let device = Device::at(&chardev, 100);
    let mut first = connect(&path);
    device.wait_until_connected(true);
    assert_eq!(chardev.filename(), name);
    let mut second = connect(&path);
    second.write_all(b"2").unwrap();
    first.write_all(b"1").unwrap();
    assert_eq!(device.hear_bytes(1), b"1");
    drop(first);
    assert_eq!(device.hear_bytes(1), b"2");
    assert_eq!(device.lease.write(b"!"), 1);
    let mut seen = [0];
    second.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"!");
    drop(device);
    drop(chardev);
    // The last event may still be under way on the reactor's thread.
    let waited = std::time::Instant::now();
    while path.exists() {
        assert!(waited.elapsed() < PATIENCE, "the path stays behind");
        std::thread::yield_now();
    }
}

#[test]
fn what_a_peer_sent_last_reaches_an_open_frontend_and_not_a_closed_one() {
    for (open_first, expected) in [(true, &b"lastnext"[..]), (false, &b"next"[..])] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let chardev = open(&socket(at_path(&path), SocketRole::Server { wait: false }));
        let device = Device::at(&chardev, 0);
        device.lease.set_open(open_first);
        let mut peer = connect(&path);
        device.wait_until_connected(true);
        peer.write_all(b"last").unwrap();
        drop(peer);
        device.wait_until_connected(false);
        let mut next = connect(&path);
        device.wait_until_connected(true);
        next.write_all(b"next").unwrap();
        device.make_room(100);
        assert_eq!(device.hear_bytes(expected.len()), expected);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test is the server")]
fn a_caller_calls_again_until_somebody_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let role = SocketRole::Reconnecting(Duration::from_millis(5));
    let chardev = open(&socket(at_path(&path), role));
    let device = Device::at(&chardev, 100);
    assert!(!device.lease.is_connected());
    for round in 0..3u8 {
        let listener = UnixListener::bind(&path).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(&[round]).unwrap();
        assert_eq!(device.hear_bytes(1), [round]);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_client_without_a_server_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spec = socket(at_path(&folder.path().join("s")), SocketRole::Client);
    let refused = Chardev::open("c0", &spec, &door(), &Reactor::new());
    assert!(matches!(refused, Err(ChardevError::Open(_))));
}

#[test]
fn a_file_and_a_log_hold_what_was_written_and_no_thread_runs_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let [output, log] = ["out", "log"].map(|name| folder.path().join(name));
    let spec = ChardevSpec {
        backend: BackendSpec::File {
            output: output.to_str().unwrap().to_owned(),
            input: None,
            append: true,
        },
        log: Some(LogSpec {
            name: log.to_str().unwrap().to_owned(),
            append: false,
        }),
    };
    let reactor = Reactor::new();
    for text in [b"one ", b"two "] {
        let chardev = Chardev::open("c0", &spec, &door(), &reactor).unwrap();
        assert_eq!(chardev.filename(), "file");
        let device = Device::at(&chardev, 1);
        assert_eq!(device.lease.write(text), 4);
    }
    assert_eq!(contents(&output), b"one two ");
    assert_eq!(contents(&log), b"two ");
    assert!(!reactor.is_started());
}

#[test]
fn a_file_can_bring_input() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    #[expect(clippy::disallowed_methods, reason = "the test prepares the input")]
    std::fs::write(&input, "hello").unwrap();
    let chardev = open(&spec(BackendSpec::File {
        output: "/dev/null".to_owned(),
        input: Some(input.to_str().unwrap().to_owned()),
        append: false,
    }));
    let device = Device::at(&chardev, 100);
    assert_eq!(device.hear_bytes(5), b"hello");
    assert_eq!(device.lease.write(b"x"), 1);
}

#[test]
fn a_pty_has_a_peer_while_its_other_end_is_open() {
    let door = door();
    let reactor = Reactor::new();
    let chardev = Chardev::open("c0", &spec(BackendSpec::Pty), &door, &reactor).unwrap();
    let name = chardev.filename();
    let path = name.strip_prefix("pty:").expect("a pty's name");
    let device = Device::at(&chardev, 100);
    assert_eq!(device.lease.write(b"to nobody"), 9);
    let request = fdset::Request::new(path, fdset::Access::ReadWrite, fdset::Role::Chardev, "");
    let (mut user, _) = fdset::open(&door, &request).unwrap().into_file();
    device.wait_until_connected(true);
    assert_eq!(device.lease.write(b"hi"), 2);
    let mut seen = [0; 2];
    user.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hi");
    user.write_all(b"yo").unwrap();
    assert_eq!(device.hear_bytes(2), b"yo");
    drop(user);
    device.wait_until_connected(false);
}

#[test]
fn a_ring_buffer_wants_a_power_of_two_and_gives_its_bytes_once() {
    let chardev = open(&spec(BackendSpec::Ringbuf { size: 8 }));
    let device = Device::at(&chardev, 0);
    assert_eq!(device.lease.write(b"0123456789"), 10);
    assert_eq!(chardev.read_ring(100).unwrap(), b"23456789");
    assert_eq!(chardev.filename(), "ringbuf");
    let odd = spec(BackendSpec::Ringbuf { size: 9 });
    let refused = Chardev::open("c0", &odd, &door(), &Reactor::new());
    assert!(matches!(
        refused,
        Err(ChardevError::RingSize { size: 9, .. })
    ));
}

#[test]
fn a_chardev_has_one_device_and_is_removed_only_without() {
    let chardevs = ChardevRegistry::new(Reactor::new());
    let null = spec(BackendSpec::Null);
    let chardev = chardevs.add("c0", &null, &door()).unwrap();
    let texts = |error: ChardevError| error.to_string();
    let again = chardevs.add("c0", &null, &door()).unwrap_err();
    assert_eq!(texts(again), "Chardev with id 'c0' already exists");
    let device = Device::at(&chardev, 0);
    let second: Arc<dyn Frontend> = Arc::clone(&device.probe) as _;
    let in_use = chardev.attach(&second).unwrap_err();
    assert_eq!(texts(in_use), "Device 'c0' is in use");
    let busy = chardevs.remove("c0").unwrap_err();
    assert_eq!(texts(busy), "Chardev 'c0' is busy");
    assert!(!chardev.frontend_open());
    device.lease.set_open(true);
    assert!(chardev.frontend_open());
    drop(device);
    assert!(!chardev.frontend_open());
    chardevs.remove("c0").unwrap();
    let gone = chardevs.remove("c0").unwrap_err();
    assert_eq!(texts(gone), "Chardev 'c0' not found");
}
