//! A process without fds left: new clients are told so and let go, those who are there are served,
//! and all goes on when there are fds again.
//! In a program of its own, because the limit is the process's.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use fdset::{Door, FdRegistry, Role, Scope, SocketAddress, Wait};
use monitor::{Endpoint, MonitorSpec, Phase, Server, ServerSpec, Version};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use qapi_schema::MonitorId;

fn server(registry: Arc<FdRegistry>) -> Server {
    Server::new(ServerSpec {
        registry,
        version: Version {
            major: 10,
            minor: 0,
            micro: 0,
            package: "test".into(),
        },
        phase: Phase::Ready,
        wake_main: Box::new(|| ()),
        serve_now: Box::new(Some),
        out_of_band: Box::new(drop),
        quit: Box::new(|_| ()),
    })
}

/// Takes fds until there are no more.
fn take_all(fd: &OwnedFd) -> Vec<OwnedFd> {
    std::iter::from_fn(|| fd.try_clone().ok()).collect()
}

/// What comes in, line by line, without an fd of its own.
fn lines_of(socket: &UnixStream) -> impl FnMut() -> Option<String> {
    let mut lines = BufReader::new(socket).lines();
    move || lines.next().transpose().expect("readable")
}

fn processor_time() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let both = [used.user_time(), used.system_time()];
    both.into_iter()
        .map(|time| Duration::from_micros(time.num_microseconds().unsigned_abs()))
        .sum()
}

#[test]
fn who_finds_no_fd_left_is_told_and_who_is_served_stays_served() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).expect("a lower limit");
    let folder = tempfile::tempdir().expect("a folder");
    let address = SocketAddress::Unix {
        path: folder.path().join("qmp"),
    };
    let registry = Arc::new(FdRegistry::new());
    let door = Door::new(Arc::clone(&registry), Scope::Process);
    let listener = fdset::listen(&door, &address, Role::Monitor, "test").expect("a listener");
    let server = server(registry);
    let spec = MonitorSpec::new(MonitorId(0), Endpoint::Listener(listener));
    server.add_monitor(spec).expect("a monitor");
    let connect = || {
        let socket = fdset::connect(&door, &address, Wait::ForPeer, Role::Monitor, "test");
        UnixStream::from(socket.expect("a connection").fd.into_parts().0)
    };

    let first = connect();
    let mut next = lines_of(&first);
    let mut next = || next().expect("a line");
    assert!(next().starts_with("{\"QMP\""));
    (&first)
        .write_all(b"{'execute': 'qmp_capabilities'}")
        .expect("sent");
    assert!(next().starts_with("{\"return\""));

    let spare = OwnedFd::from(std::io::pipe().expect("a pipe").0);
    let mut taken = take_all(&spare);
    taken.pop();
    for _ in 0..3 {
        let turned_away = connect();
        let mut said = lines_of(&turned_away);
        let why = said().expect("a reason");
        assert!(why.contains("Too many open files"), "{why}");
        assert_eq!(said(), None, "and the end");
    }

    // Nobody waits and no fd is left: then there is nothing to do over and over.
    taken.extend(take_all(&spare));
    let before = processor_time();
    std::thread::sleep(Duration::from_millis(500));
    assert!(processor_time() - before < Duration::from_millis(250));

    let bytes = b"{'execute': 'add-fd', 'id': 1}";
    fdset::scm::send_with_fds(&first, bytes, &[spare.as_fd()]).expect("sent");
    let told = next();
    assert!(
        told.contains("\"id\": 1") && told.contains("too many open"),
        "{told}"
    );
    (&first)
        .write_all(b"{'execute': 'nope', 'id': 2}")
        .expect("sent");
    assert!(next().contains("\"id\": 2"));

    drop(taken);
    let late = connect();
    let greeting = lines_of(&late)().expect("a greeting");
    assert!(greeting.starts_with("{\"QMP\""), "{greeting}");
    server.shutdown();
}
