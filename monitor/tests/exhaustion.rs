//! A process without fds left: clients wait or are told, and all goes on when there are fds again.
//! In a program of its own, because the limit is the process's.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use fdset::{Door, FdRegistry, Role, Scope, SocketAddress, Wait};
use monitor::{Endpoint, MonitorSpec, Phase, Server, ServerSpec, Style, Version};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
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
        out_of_band: Box::new(drop),
        quit: Box::new(|| ()),
    })
}

/// Takes fds until there are no more.
fn take_all(fd: &OwnedFd) -> Vec<OwnedFd> {
    std::iter::from_fn(|| fd.try_clone().ok()).collect()
}

#[test]
fn clients_and_fds_that_find_no_room_are_served_when_there_is_some() {
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
    let spec = MonitorSpec {
        id: MonitorId(0),
        style: Style::Line,
        endpoint: Endpoint::Listener(listener),
        wait: false,
    };
    server.add_monitor(spec).expect("a monitor");
    let connect = || {
        let socket = fdset::connect(&door, &address, Wait::ForPeer, Role::Monitor, "test");
        UnixStream::from(socket.expect("a connection").fd.into_parts().0)
    };

    let mut first = connect();
    let mut answers = BufReader::new(first.try_clone().expect("a duplicate")).lines();
    let mut next = || answers.next().expect("a line").expect("readable");
    assert!(next().starts_with("{\"QMP\""));
    first
        .write_all(b"{'execute': 'qmp_capabilities'}")
        .expect("sent");
    assert!(next().starts_with("{\"return\""));

    let spare = OwnedFd::from(std::io::pipe().expect("a pipe").0);
    let mut taken = take_all(&spare);
    taken.pop();
    let second = connect();
    let bytes = b"{'execute': 'add-fd', 'id': 1}";
    fdset::scm::send_with_fds(&first, bytes, &[spare.as_fd()]).expect("sent");
    let told = next();
    assert!(
        told.contains("\"id\": 1") && told.contains("too many open"),
        "{told}"
    );

    drop(taken);
    let mut greeting = String::new();
    BufReader::new(&second)
        .read_line(&mut greeting)
        .expect("readable");
    assert!(
        greeting.starts_with("{\"QMP\""),
        "the one who waited is let in"
    );
    first
        .write_all(b"{'execute': 'nope', 'id': 2}")
        .expect("sent");
    assert!(next().contains("\"id\": 2"));
    server.shutdown();
}
