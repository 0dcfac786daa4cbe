//! What the door costs: the one open beyond its dup, and the open hook beyond the manager's own
//! time. There is no peer that has either; they are compared with the bare thing in the same run.
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use tests::hook::Manager;
use tests::qmp::Client;

use super::microseconds;
use super::table::{Bar, Row};
use crate::project::cargo;
use crate::shell::output;

/// Opens of each kind.
const OPENS: usize = 500;

pub(super) fn measure(program: &Path) -> Result<Vec<Row>> {
    let text = output(cargo().args(["bench", "-q", "-p", "fdset", "--bench", "open"]))?;
    let open: Value = serde_json::from_str(text.trim()).context("the bench of fdset::open")?;
    let nanoseconds = |key: &str| {
        let time = open[key].as_u64().with_context(|| format!("no {key}"))?;
        Ok::<_, anyhow::Error>(vec![microseconds(Duration::from_nanos(time))])
    };
    let open = [nanoseconds("open")?, nanoseconds("dup")?];
    Ok(vec![
        Row::new(
            "fdset::open of a set, over its dup",
            "us",
            open,
            Bar::Above(2.0),
        ),
        Row::new(
            "blockdev-add by the hook, over by set",
            "us",
            hook(program)?,
            Bar::Above(100.0),
        ),
    ])
}

/// Times of `blockdev-add`: asking the open hook, without the time the manager took for itself,
/// and by a set.
fn hook(program: &Path) -> Result<[Vec<f64>; 2]> {
    let (ours, theirs) = UnixStream::pair()?;
    let (manager, connection) = UnixStream::pair()?;
    let mapping = |fd, child_fd| FdMapping {
        parent_fd: fd,
        child_fd,
    };
    let mut child = Command::new(program)
        .args(["-nodefaults", "-display", "none", "-machine", "none"])
        .args(["-chardev", "socket,id=qmp,fd=20"])
        .args(["-mon", "chardev=qmp,mode=control"])
        .args(["-open-hook", "fd=21"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .fd_mappings(vec![
            mapping(theirs.into(), 20),
            mapping(connection.into(), 21),
        ])?
        .spawn()?;
    let mut client = Client::new(ours)?;
    client.negotiate()?;
    let file = tempfile::tempfile()?;
    file.set_len(1 << 20)?;
    client.execute_with("add-fd", json!({"fdset-id": 1}), &[file.as_fd()])?;

    let own = thread::spawn(move || answer_all(manager, &file));
    let (mut asked, mut by_set) = (Vec::new(), Vec::new());
    for _ in 0..OPENS {
        asked.push(add_node(&mut client, "/nobody/passed/this")?);
        by_set.push(add_node(&mut client, "/dev/fdset/1")?);
    }
    client.execute("quit", json!({}))?;
    child.wait()?;
    let own = own.join().map_err(|_| anyhow!("the manager panicked"))??;
    let asked = asked
        .iter()
        .zip(own)
        .map(|(whole, own)| whole.saturating_sub(own));
    Ok([
        asked.map(microseconds).collect(),
        by_set.into_iter().map(microseconds).collect(),
    ])
}

/// Answers until nobody asks any more; the time of each answer.
fn answer_all(connection: UnixStream, file: &impl AsFd) -> Result<Vec<Duration>> {
    let mut manager = Manager::new(connection)?;
    let mut times = Vec::new();
    while let Ok(request) = manager.request() {
        let start = Instant::now();
        manager.give(&request, file.as_fd())?;
        times.push(start.elapsed());
    }
    Ok(times)
}

fn add_node(client: &mut Client, filename: &str) -> Result<Duration> {
    let node = json!({"driver": "file", "node-name": "n", "filename": filename});
    let start = Instant::now();
    client.execute("blockdev-add", node)?;
    let time = start.elapsed();
    client.execute("blockdev-del", json!({"node-name": "n"}))?;
    Ok(time)
}
