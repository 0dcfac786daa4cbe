//! A process that has no fd left. Alone in its test binary, because the limit is the process's.

use std::io::{ErrorKind, Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use fdset::scm::{MAX_FDS, recv_with_fds, send_with_fds};
use fdset::{Access, Door, FdRegistry, Handover, Origin, Request, Role, Scope, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Takes every fd that is left but `spare`.
fn exhaust(spare: usize) -> Vec<OwnedFd> {
    let source = std::io::stdout();
    let mut taken = Vec::new();
    while let Ok(fd) = source.as_fd().try_clone_to_owned() {
        taken.push(fd);
    }
    taken.truncate(taken.len() - spare);
    taken
}

#[test]
fn running_out_of_fds_is_reported_and_leaks_nothing() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).expect("lowered");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Monitor(0));
    let (mut watch, writer) = pipe().expect("a pipe");
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
    let (_, number) = door.registry().add(
        Handover::new(
            writer.as_fd().try_clone_to_owned().expect("an fd"),
            Origin::CommandLine,
        ),
        None,
        None,
    );
    let request = Request::new("/dev/fdset/0", Access::WriteOnly, Role::Snapshot, "a test");

    // Ten come, four fit: the four are handed over, the loss is told, the stream goes on.
    let taken = exhaust(4);
    send_with_fds(&theirs, b"ab", &[writer.as_fd(); 10]).expect("sent");
    let received = recv_with_fds(&ours, &mut [0; 8]).expect("not fatal");
    assert_eq!((received.bytes, received.fds.len()), (2, 4));
    assert!(received.truncated);

    // With nothing left, an open by set says why and counts no lease.
    let error = open(&door, &request).expect_err("no fd left");
    assert_eq!(error.errno(), nix::libc::EMFILE);
    let text = error.to_string();
    assert!(
        text.contains("no fd left; take some back with remove-fd"),
        "{text}"
    );

    // And a full message brings nothing but the news.
    send_with_fds(&theirs, b"c", &[writer.as_fd(); MAX_FDS]).expect("sent");
    let nothing = recv_with_fds(&ours, &mut [0; 8]).expect("not fatal");
    assert_eq!((nothing.bytes, nothing.fds.len()), (1, 0));
    assert!(nothing.truncated);

    drop((received, taken));
    theirs.write_all(b"d").expect("the connection lives");
    ours.read_exact(&mut [0]).expect("the connection lives");
    drop(open(&door, &request).expect("fds are back"));
    door.registry()
        .remove(0, Some(number.into()))
        .expect("it is there");
    assert!(door.registry().query().is_empty(), "no lease was counted");
    drop(writer);
    let end = watch.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Ok::<usize, ErrorKind>(0), "every copy was closed");
}
