//! A server chardev in a process that has no descriptor left. Alone in its binary, because the
//! limit is the whole process's.

#![expect(clippy::unwrap_used, reason = "a test ends where its setting fails")]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use devices::chardev::{BackendSpec, Chardev, ChardevSpec, Frontend, SocketRole, SocketSpec};
use devices::reactor::Reactor;
use fdset::{Door, FdRegistry, Scope, SocketAddress};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PATIENCE: Duration = Duration::from_secs(20);

struct Watcher(Mutex<Sender<()>>);

impl Frontend for Watcher {
    fn room(&self) -> usize {
        0
    }

    fn receive(&self, _bytes: &[u8]) -> usize {
        0
    }

    fn peer_changed(&self) {
        self.0.lock().unwrap().send(()).ok();
    }
}

/// Allows no number from the lowest free one on.
fn forbid_new_descriptors() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let free = UnixStream::pair().unwrap();
    let lowest = std::os::fd::AsRawFd::as_raw_fd(&free.0);
    drop(free);
    let lowest = u64::try_from(lowest).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, lowest, hard).unwrap();
    soft
}

#[test]
fn a_peer_that_finds_no_descriptor_is_accepted_when_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let spec = ChardevSpec {
        backend: BackendSpec::Socket(SocketSpec {
            address: SocketAddress::Unix { path: path.clone() },
            role: SocketRole::Server { wait: false },
            nodelay: false,
        }),
        log: None,
    };
    let reactor = Reactor::new();
    let chardev = Chardev::open("c0", &spec, &door, &reactor).unwrap();
    let (send, changes) = mpsc::channel();
    let frontend: Arc<dyn Frontend> = Arc::new(Watcher(Mutex::new(send)));
    let lease = chardev.attach(&frontend).unwrap();

    // The peer calls while the reactor is busy, so that the limit falls before it can accept.
    let (hold, held) = mpsc::channel::<()>();
    let (entered, has_entered) = mpsc::channel();
    reactor
        .run(move || {
            entered.send(()).unwrap();
            held.recv().ok();
        })
        .unwrap();
    has_entered.recv().unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test is the other side")]
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let before = forbid_new_descriptors();
    drop(hold);
    // A round through the reactor after the one in which it failed to accept.
    for _ in 0..2 {
        let (send, round) = mpsc::channel();
        reactor.run(move || send.send(()).unwrap()).unwrap();
        round.recv().unwrap();
    }
    assert!(!lease.is_connected());

    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, before, hard).unwrap();
    changes.recv_timeout(PATIENCE).expect("never accepted");
    assert_eq!(lease.write(b"hi"), 2);
    let mut seen = [0; 2];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hi");
}
