//! A session by the crate `qapi` from crates.io, unchanged, on the socket named as argument.
//!
//! Run by `tests/tests/interop.rs`. Prints one line per thing seen; the last is "done".
//!
//! `qapi` sends no file descriptors, but it leaves the socket to its user. So an fd goes ahead of
//! its command, with a blank, as QEMU's own Python client does it.
//!
//! `qapi` writes a command piece by piece and the end of the line last. A server needs no end of
//! line: `quit` could be done before it is sent, and sending would fail. Behind a `BufWriter`, which
//! `qapi` flushes, every command goes out whole.
#![forbid(unsafe_code)]

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::time::Duration;

use qapi::qmp::{self, BlockdevOptions, BlockdevOptionsBase, BlockdevOptionsFile, SchemaInfo};
use qapi::{Command, ErrorClass, ExecuteError, Qmp, Stream};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;
type Session<'a> = Qmp<Stream<BufReader<&'a UnixStream>, BufWriter<&'a UnixStream>>>;

/// Far longer than any reply takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result {
    let path = env::args().nth(1).ok_or("usage: qapi_client SOCKET")?;
    let socket = UnixStream::connect(path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut session = Qmp::new(Stream::new(
        BufReader::new(&socket),
        BufWriter::new(&socket),
    ));
    queries(&mut session)?;
    refusals(&mut session)?;
    disks(&mut session, &socket)?;
    stop_and_go(&mut session)?;
    end(session)?;
    println!("done");
    Ok(())
}

/// Negotiates, and asks what can be asked.
fn queries(session: &mut Session<'_>) -> Result {
    let greeting = session.handshake()?;
    let version = session.execute(&qmp::query_version {})?;
    assert_eq!(version.qemu.major, greeting.version.qemu.major);
    println!("version {}", version.qemu.major);

    let status = session.execute(&qmp::query_status {})?;
    assert!(status.running && status.status == qmp::RunState::running);
    let schema = session.execute(&qmp::query_qmp_schema {})?;
    let of_add_fd = |one: &&SchemaInfo| matches!(one, SchemaInfo::command { base, .. } if base.name == "add-fd");
    assert_eq!(schema.iter().filter(of_add_fd).count(), 1);
    let commands = session.execute(&qmp::query_commands {})?;
    assert!(commands.iter().any(|one| one.name == "add-fd"));
    println!("a schema of {} entities", schema.len());
    Ok(())
}

/// Errors come back as their classes.
fn refusals(session: &mut Session<'_>) -> Result {
    let id = "d9".to_owned();
    refused(session, &qmp::device_del { id }, ErrorClass::DeviceNotFound)?;
    let fdname = "nobody".to_owned();
    refused(session, &qmp::closefd { fdname }, ErrorClass::GenericError)?;
    // A command of QEMU's that Sesame does not have.
    refused(
        session,
        &qmp::query_rocker {
            name: "sw1".to_owned(),
        },
        ErrorClass::CommandNotFound,
    )
}

fn refused<C: Command>(session: &mut Session<'_>, command: &C, class: ErrorClass) -> Result {
    match session.execute(command) {
        Err(ExecuteError::Qapi(error)) if error.class == class => {
            println!("refused: {}: {}", C::NAME, error.desc);
            Ok(())
        }
        Err(error) => Err(format!("{}: wanted {class:?}: {error:?}", C::NAME).into()),
        Ok(_) => Err(format!("{}: wanted {class:?}: it succeeded", C::NAME).into()),
    }
}

/// Two disks from fds: one by name, one in a set.
fn disks(session: &mut Session<'_>, socket: &UnixStream) -> Result {
    hand(socket, &empty_file("named")?)?;
    session.execute(&qmp::getfd {
        fdname: "disk".to_owned(),
    })?;
    session.execute(&file_node("named", "fd:disk"))?;

    hand(socket, &empty_file("in-set")?)?;
    let opaque = Some("from qapi".to_owned());
    let added = session.execute(&qmp::add_fd {
        fdset_id: None,
        opaque,
    })?;
    let sets = session.execute(&qmp::query_fdsets {})?;
    assert!(sets.iter().any(|set| set.fdset_id == added.fdset_id));
    session.execute(&file_node(
        "in-set",
        &format!("/dev/fdset/{}", added.fdset_id),
    ))?;

    for flat in [None, Some(true)] {
        let nodes = session.execute(&qmp::query_named_block_nodes { flat })?;
        let mut names: Vec<_> = nodes
            .iter()
            .filter_map(|node| node.node_name.as_deref())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["in-set", "named"]);
    }
    let resized = qmp::block_resize {
        node_name: Some("named".to_owned()),
        device: None,
        size: 2 << 20,
    };
    session.execute(&resized)?;
    for node_name in ["named", "in-set"] {
        session.execute(&qmp::blockdev_del {
            node_name: node_name.to_owned(),
        })?;
    }
    println!("two disks went through as fds");
    Ok(())
}

/// Sends an fd with a blank; the next command takes it.
fn hand(socket: &UnixStream, file: &File) -> io::Result<()> {
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(
        socket,
        &[IoSlice::new(b" ")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// A mebibyte of zeros without a name.
fn empty_file(name: &str) -> io::Result<File> {
    let path = env::temp_dir().join(format!("qapi-client-{}-{name}", process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(path)?;
    file.set_len(1 << 20)?;
    Ok(file)
}

fn file_node(node_name: &str, filename: &str) -> qmp::blockdev_add {
    let base = BlockdevOptionsBase {
        node_name: Some(node_name.to_owned()),
        auto_read_only: None,
        cache: None,
        detect_zeroes: None,
        discard: None,
        force_share: None,
        read_only: None,
    };
    let file = BlockdevOptionsFile {
        filename: filename.to_owned(),
        aio: None,
        aio_max_batch: None,
        drop_cache: None,
        locking: None,
        pr_manager: None,
        x_check_cache_dropped: None,
    };
    qmp::blockdev_add(BlockdevOptions::file { base, file })
}

/// Events come between the replies, and are kept.
fn stop_and_go(session: &mut Session<'_>) -> Result {
    session.execute(&qmp::stop {})?;
    assert_eq!(
        session.execute(&qmp::query_status {})?.status,
        qmp::RunState::paused
    );
    session.execute(&qmp::cont {})?;
    session.nop()?;
    let events: Vec<_> = session.events().collect();
    assert!(
        matches!(
            &events[..],
            [qmp::Event::STOP { .. }, qmp::Event::RESUME { .. }]
        ),
        "{events:?}"
    );
    println!("stopped, and went on");
    Ok(())
}

/// The last event comes before the connection ends.
fn end(mut session: Session<'_>) -> Result {
    session.execute(&qmp::quit {})?;
    match session.read_response::<qmp::quit>() {
        Err(ExecuteError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        other => return Err(format!("wanted the end of the connection: {other:?}").into()),
    }
    let events: Vec<_> = session.events().collect();
    let [qmp::Event::SHUTDOWN { data, .. }] = &events[..] else {
        return Err(format!("wanted SHUTDOWN: {events:?}").into());
    };
    assert!(!data.guest && data.reason == qmp::ShutdownCause::host_qmp_quit);
    Ok(())
}
