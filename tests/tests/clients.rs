//! Our own clients, generated from the schema, against the program itself: fds, events, errors.
//! With a guest: `clients_guest.rs`.
#![expect(
    clippy::disallowed_methods,
    reason = "the client's end of a socket is connected by its user"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::process::Command;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use sesame_qmp::block_core::{
    BlockdevAdd, BlockdevDel, BlockdevOptions, BlockdevOptionsFile, BlockdevOptionsVariant,
    QueryNamedBlockNodes,
};
use sesame_qmp::control::{QueryQmpSchema, QueryVersion, Quit, SchemaInfoVariant};
use sesame_qmp::fds::{AddFd, FdKind, Getfd, QueryFdsets};
use sesame_qmp::qdev::DeviceDel;
use sesame_qmp::run_state::{QueryStatus, ShutdownCause};
use sesame_qmp::{Client, Error, ErrorClass, Event, TakesFd, asynchronous};
use tests::clients::{Listening, folder, go, node, program, python, said};
use tests::vm::variable;
use tests::{Vm, fds};

/// Far longer than any command takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_python_client_holds_a_whole_session() -> Result<()> {
    let mut client = python()?;
    client.arg(program("sesame_python.py")).arg("plain");
    Listening::start(Vm::monitor())?.session(&mut client)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_python_client_holds_a_whole_session_in_asyncio() -> Result<()> {
    let mut client = python()?;
    client.arg(program("sesame_python.py")).arg("asyncio");
    Listening::start(Vm::monitor())?.session(&mut client)
}

#[test]
#[ignore = "needs the Python of cargo xtask test"]
fn the_python_client_passes_its_own_tests() -> Result<()> {
    let tests = folder("python").join("tests");
    said(
        python()?
            .args(["-m", "unittest", "discover", "-s"])
            .arg(tests),
    )?;
    Ok(())
}

#[test]
#[ignore = "needs the Python of cargo xtask test"]
fn the_python_client_is_typed() -> Result<()> {
    let mut mypy = Command::new(variable("SESAME_PYTHON")?);
    mypy.current_dir(folder("python"))
        .args(["-m", "mypy", "--strict", "--no-incremental"])
        .args(["--cache-dir=/dev/null", "sesame_qmp", "examples"]);
    said(&mut mypy)?;
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_typescript_client_holds_a_whole_session() -> Result<()> {
    let mut builder = Vm::monitor();
    let disk = builder.fdset(fds::disk(1 << 20)?);
    Listening::start(builder)?.session(&mut node("plain", &disk)?)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_go_client_holds_a_whole_session() -> Result<()> {
    Listening::start(Vm::monitor())?.session(&mut go("plain")?)
}

#[test]
#[ignore = "needs the Go of cargo xtask test"]
fn the_go_client_passes_its_own_tests_and_is_formatted() -> Result<()> {
    for arguments in [["vet", "./..."], ["test", "./..."]] {
        said(Command::new("go").args(arguments).current_dir(folder("go")))?;
    }
    let ill = said(Command::new("gofmt").arg("-l").arg(folder("go")))?;
    ensure!(ill.is_empty(), "{ill}");
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_rust_client_holds_a_whole_session() -> Result<()> {
    let listening = Listening::start(Vm::monitor())?;
    let mut qmp = Client::connect(&listening.socket)?;
    qmp.set_timeout(PATIENCE);
    ensure!(qmp.execute(QueryVersion)? == *qmp.version());
    let schema = qmp.execute(QueryQmpSchema)?;
    let add_fd = schema.iter().find(|one| one.name == "add-fd");
    let add_fd = add_fd.context("add-fd is in the schema")?;
    ensure!(matches!(add_fd.meta_type, SchemaInfoVariant::Command(_)));

    let refused = qmp.execute(DeviceDel::new("d9")).err();
    let class = refused.as_ref().and_then(Error::class);
    ensure!(class == Some(&ErrorClass::DeviceNotFound), "{refused:?}");
    let unknown = qmp.execute_any("no-such-command", json!({}), &[]).err();
    let class = unknown.as_ref().and_then(Error::class);
    ensure!(class == Some(&ErrorClass::CommandNotFound), "{unknown:?}");

    let file = fds::disk(1 << 20)?;
    let getfd = Getfd {
        kind: Some(FdKind::File),
        ..Getfd::new("disk")
    };
    qmp.execute(getfd.with_fd(&file))?;
    let added = qmp.execute(AddFd::default().with_fd(&file))?;
    let sets = qmp.execute(QueryFdsets)?;
    ensure!(sets.iter().any(|set| set.fdset_id == added.fdset_id));
    qmp.execute(BlockdevAdd(disk_node("fd:disk")))?;
    let nodes = qmp.execute(QueryNamedBlockNodes::default())?;
    ensure!(nodes.len() == 1 && nodes[0].node_name.as_deref() == Some("disk"));
    qmp.execute(BlockdevDel::new("disk"))?;

    qmp.execute(Quit)?;
    let events: Vec<_> = qmp.events().collect::<Result<_, _>>()?;
    let last = events.last().context("an event")?;
    let Event::Shutdown(shutdown) = &last.event else {
        bail!("{events:?}");
    };
    ensure!(shutdown.reason == ShutdownCause::HostQmpQuit && !shutdown.guest);
    ensure!(matches!(
        qmp.execute(QueryStatus),
        Err(Error::Closed | Error::Io(_))
    ));
    listening.vm.exit_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_rust_client_needs_no_runtime_of_its_own() -> Result<()> {
    let listening = Listening::start(Vm::monitor())?;
    let socket = Polled(UnixStream::connect(&listening.socket)?);
    socket.0.set_nonblocking(true)?;
    let ready = socket.0.try_clone()?;
    let file = fds::disk(1 << 20)?;
    block_on(&ready, async {
        let mut qmp = asynchronous::Client::new(socket).await?;
        qmp.execute(Getfd::new("disk").with_fd(&file)).await?;
        qmp.execute(BlockdevAdd(disk_node("fd:disk"))).await?;
        let refused = qmp.execute(DeviceDel::new("d9")).await.err();
        let class = refused.as_ref().and_then(Error::class);
        ensure!(class == Some(&ErrorClass::DeviceNotFound), "{refused:?}");
        qmp.execute(Quit).await?;
        let reason = qmp.pick_event(|timed| match &timed.event {
            Event::Shutdown(shutdown) => Some(shutdown.reason),
            _ => None,
        });
        ensure!(reason.await? == ShutdownCause::HostQmpQuit);
        ensure!(matches!(qmp.next_event().await, Err(Error::Closed)));
        Ok(())
    })?;
    listening.vm.exit_clean()
}

fn disk_node(filename: &str) -> BlockdevOptions {
    let file = BlockdevOptionsFile::new(filename);
    BlockdevOptions {
        node_name: Some("disk".to_owned()),
        ..BlockdevOptions::new(BlockdevOptionsVariant::File(file))
    }
}

/// A socket of the smallest runtime there is: one task, which is asked again when the socket is
/// ready.
struct Polled(UnixStream);

impl asynchronous::Socket for Polled {
    fn poll_receive(
        &mut self,
        _: &mut TaskContext<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        pending(sesame_qmp::receive(&self.0, buffer))
    }

    fn poll_send(
        &mut self,
        _: &mut TaskContext<'_>,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Poll<io::Result<usize>> {
        pending(sesame_qmp::send(&self.0, bytes, fds))
    }
}

fn pending(result: io::Result<usize>) -> Poll<io::Result<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

fn block_on<T>(socket: &UnixStream, task: impl Future<Output = Result<T>>) -> Result<T> {
    let mut task = pin!(task);
    loop {
        if let Poll::Ready(done) = task
            .as_mut()
            .poll(&mut TaskContext::from_waker(Waker::noop()))
        {
            return done;
        }
        let mut interest = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE)?;
        ensure!(poll(&mut interest, patience)? > 0, "nothing came");
    }
}
