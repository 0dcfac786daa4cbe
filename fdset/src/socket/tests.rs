//! Both ends at once: what listens is what is connected to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use rustix::net::SocketAddrUnix;

use super::*;
use crate::error::OpenError;
use crate::registry::{Door, FdRegistry, Scope};
use crate::request::Role;
use crate::watch::passed;

fn door() -> Door {
    Door::new(Arc::new(FdRegistry::new()), Scope::Process)
}

fn listen_at(address: &SocketAddress) -> Result<Listener, OpenError> {
    listen(&door(), address, Role::Monitor, "-qmp")
}

fn connect_at(address: &SocketAddress, wait: Wait) -> Result<Connection, OpenError> {
    connect(&door(), address, wait, Role::Chardev, "chardev 'c'")
}

fn unix(path: &Path) -> SocketAddress {
    SocketAddress::Unix {
        path: path.to_owned(),
    }
}

/// A path whose directory goes with the first value.
fn free_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    (dir, path)
}

#[expect(clippy::disallowed_methods, reason = "plays another process")]
fn forget(path: &Path) {
    std::fs::remove_file(path).expect("it is there");
}

/// A socket file whose process is gone.
#[expect(clippy::disallowed_methods, reason = "plays another process")]
fn leave_stale(path: &Path) {
    let fd = stream_socket(AddressFamily::UNIX, Wait::Not).expect("a socket");
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes()).expect("short");
    rustix::net::bind(&fd, &address).expect("bound");
}

#[test]
fn a_unix_listener_serves_and_removes_its_path_at_the_end() {
    let (_dir, path) = free_path();
    let listener = listen_at(&unix(&path)).expect("a free path");
    assert_eq!(listener.path(), Some(path.as_path()));
    assert!(accept(&listener).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
    let connection = connect_at(&unix(&path), Wait::ForPeer).expect("it listens");
    assert!(!connection.in_progress);
    let mut served = UnixStream::from(accept(&listener).expect("one waits").into_parts().0);
    served.write_all(b"x").expect("connected");
    let mut byte = [0];
    UnixStream::from(connection.fd.into_parts().0)
        .read_exact(&mut byte)
        .expect("connected");
    assert_eq!(&byte, b"x");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let (_dir, path) = free_path();
    leave_stale(&path);
    let listener = listen_at(&unix(&path)).expect("replaced");
    connect_at(&unix(&path), Wait::Not).expect("it listens");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_still_answers_is_not_replaced() {
    let (_dir, path) = free_path();
    let _first = listen_at(&unix(&path)).expect("a free path");
    let error = listen_at(&unix(&path)).expect_err("taken");
    assert_eq!(error.errno(), nix::libc::EADDRINUSE);
    connect_at(&unix(&path), Wait::ForPeer).expect("the first still listens");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "plays another process")]
fn a_file_with_contents_is_never_taken_for_a_stale_socket() {
    let (_dir, path) = free_path();
    std::fs::write(&path, "contents").expect("made");
    let error = listen_at(&unix(&path)).expect_err("taken");
    assert_eq!(error.errno(), nix::libc::EADDRINUSE);
    assert!(path.exists());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "plays another process")]
fn an_empty_file_that_reserves_the_name_is_replaced_unless_it_has_another() {
    let (dir, path) = free_path();
    std::fs::write(&path, "").expect("made");
    let other = dir.path().join("other");
    std::fs::hard_link(&path, &other).expect("another name");
    listen_at(&unix(&path)).expect_err("somebody's file");
    std::fs::remove_file(&other).expect("it is there");
    let listener = listen_at(&unix(&path)).expect("replaced");
    connect_at(&unix(&path), Wait::Not).expect("it listens");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_path_that_another_process_took_over_stays() {
    let (_dir, path) = free_path();
    let ours = listen_at(&unix(&path)).expect("a free path");
    forget(&path);
    let theirs = listen_at(&unix(&path)).expect("free again");
    drop(ours);
    assert!(path.exists());
    drop(theirs);
    assert!(!path.exists());
}

#[test]
fn a_path_that_no_socket_can_have_is_refused() {
    let long = unix(Path::new(&"x".repeat(200)));
    assert_eq!(
        listen_at(&long).expect_err("too long").errno(),
        nix::libc::ENAMETOOLONG
    );
    assert!(connect_at(&long, Wait::Not).is_err());
}

#[test]
fn an_abstract_name_leaves_no_file() {
    let name = format!("fdset-test-{}", std::process::id());
    let address = SocketAddress::Abstract { name: name.clone() };
    let listener = listen_at(&address).expect("a free name");
    assert_eq!(listener.path(), None);
    connect_at(&address, Wait::ForPeer).expect("it listens");
    assert_eq!(address.to_string(), format!("unix:@{name}"));
}

#[test]
fn tcp_tells_the_port_it_got_and_connects_without_waiting() {
    let any_port = |port| SocketAddress::Inet {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let listener = listen_at(&any_port(0)).expect("a free port");
    let port = listener.local().expect("it is TCP").port();
    let connection = connect_at(&any_port(port), Wait::Not).expect("on its way");
    let mut writable = [PollFd::new(connection.fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut writable, PollTimeout::NONE).expect("an answer");
    finish_connect(&connection.fd).expect("connected");
    accept(&listener).expect("one waits");
    TcpStream::from(connection.fd.into_parts().0)
        .peer_addr()
        .expect("connected");
}

#[test]
fn a_refused_connection_names_who_wanted_it() {
    let (_dir, path) = free_path();
    leave_stale(&path);
    let error = connect_at(&unix(&path), Wait::ForPeer).expect_err("nobody listens");
    assert_eq!(error.errno(), nix::libc::ECONNREFUSED);
    assert!(
        error
            .to_string()
            .ends_with("as character device of chardev 'c'"),
        "{error}"
    );
}

#[test]
fn a_passed_socket_must_fit_its_use_and_survives_a_refusal() {
    let door = door();
    let name = |name: &str| SocketAddress::Fd {
        name: name.to_owned(),
    };
    let (_dir, path) = free_path();
    let listening = listen_at(&unix(&path)).expect("a free path");
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let pass = |name, fd: &dyn AsFd| {
        let copy = fd.as_fd().try_clone_to_owned().expect("an fd");
        door.registry()
            .add_named(Scope::Process, name, passed(copy))
            .expect("good name");
    };
    pass("listening", &listening);
    pass("connected", &ours);

    let refused = listen(&door, &name("connected"), Role::Monitor, "-qmp");
    assert!(refused.is_err_and(|e| e.to_string().contains("server=off")));
    let refused = connect(&door, &name("listening"), Wait::Not, Role::Monitor, "-qmp");
    assert!(refused.is_err_and(|e| e.to_string().contains("server=on")));

    let listener = listen(&door, &name("listening"), Role::Monitor, "-qmp").expect("fits");
    assert_eq!(listener.path(), None);
    let taken = connect(&door, &name("connected"), Wait::Not, Role::Monitor, "-qmp");
    let flags = fcntl(&taken.expect("fits").fd, FcntlArg::F_GETFL).expect("flags");
    assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
    drop(listener);
    assert!(path.exists(), "a passed listener's path is its manager's");
}

#[test]
fn a_passed_socket_answers_for_a_path_by_its_set_or_an_alias() {
    let door = door();
    let name = format!("sesame-alias-{}", std::process::id());
    let given = listen_at(&SocketAddress::Abstract { name }).expect("a listener");
    let copy = given.as_fd().try_clone_to_owned().expect("an fd");
    let (set, _) = door.registry().add(passed(copy), None, None);
    let path = "/nowhere/monitor.sock";
    door.registry().add_alias(path, set).expect("a path");
    for name in [path, "/dev/fdset/0"] {
        let address = SocketAddress::Unix { path: name.into() };
        let listener = listen(&door, &address, Role::Monitor, "-qmp").expect("it listens");
        assert_eq!(
            listener.path(),
            None,
            "what was passed is not ours to remove"
        );
        let error = connect(&door, &address, Wait::Not, Role::Chardev, "c").expect_err("listens");
        assert!(
            error.to_string().contains("a listening unix socket"),
            "{error}"
        );
    }
}

#[test]
fn what_a_listener_without_delay_accepts_has_none_either() {
    let any = SocketAddress::Inet {
        host: "127.0.0.1".to_owned(),
        port: 0,
    };
    let listener = listen_at(&any).expect("a free port");
    set_nodelay(&listener).expect("it is TCP");
    let address = SocketAddress::Inet {
        host: "127.0.0.1".to_owned(),
        port: listener.local().expect("TCP").port(),
    };
    let caller = connect_at(&address, Wait::ForPeer).expect("it listens");
    let nodelay = |socket: BorrowedFd<'_>| rustix::net::sockopt::tcp_nodelay(socket);
    assert_eq!(nodelay(caller.fd.as_fd()), Ok(false));
    let served = accept(&listener).expect("one waits");
    assert_eq!(nodelay(served.as_fd()), Ok(true));
}

#[test]
fn only_tcp_can_do_without_delay() {
    let (one, _other) = UnixStream::pair().expect("a pair");
    assert!(set_nodelay(&one).is_err());
}
