//! A monitor without a guest: how soon it answers, how much it weighs, how quick a round trip is.
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;
use tests::fds::proportional_size;
use tests::qmp::Client;
use tests::vm::Vmm;

use super::table::Row;

/// Round trips per turn.
const TRIPS: u32 = 2000;
/// Time to come to rest before it is weighed.
const REST: Duration = Duration::from_millis(300);

/// Takes turns with both programs.
pub(super) fn measure(pair: &[Vmm; 2], turns: usize) -> Result<Vec<Row>> {
    let mut start = [Vec::new(), Vec::new()];
    let mut size = [Vec::new(), Vec::new()];
    let mut trip = [Vec::new(), Vec::new()];
    let mut trip_on_one_cpu = [Vec::new(), Vec::new()];
    for _ in 0..turns {
        for (index, vmm) in pair.iter().enumerate() {
            let sample = sample(vmm).with_context(|| vmm.program.display().to_string())?;
            start[index].push(sample[0]);
            size[index].push(sample[1]);
            trip[index].push(sample[2]);
            trip_on_one_cpu[index].push(sample[3]);
        }
    }
    Ok(vec![
        Row::new("start to the first QMP answer", "ms", start, 1.0 / 8.0),
        Row::new("size (PSS) of an idle monitor", "MiB", size, 1.0 / 10.0),
        Row::new("query-status round trip", "us", trip, 1.0 / 6.0),
        Row::new(
            "query-status round trip on one CPU",
            "us",
            trip_on_one_cpu,
            1.0 / 6.0,
        ),
    ])
}

fn sample(vmm: &Vmm) -> Result<[f64; 4]> {
    let start = Instant::now();
    let (mut child, mut client) = spawn(vmm)?;
    client.negotiate()?;
    let first_answer = start.elapsed();
    thread::sleep(REST);
    let size = proportional_size(child.id())?;
    let trip = round_trip(&mut client)?;
    // Where CPUs are idle, most of a round trip is the waking of theirs, and in a virtual machine
    // that is long. On one CPU what is left is what the programs do.
    let everywhere = sched_getaffinity(Pid::this())?;
    let mut first = CpuSet::new();
    first.set(
        (0..CpuSet::count())
            .find(|&cpu| everywhere.is_set(cpu) == Ok(true))
            .unwrap_or(0),
    )?;
    for thread in fs::read_dir(format!("/proc/{}/task", child.id()))? {
        let id = thread?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(id), &first)?;
    }
    sched_setaffinity(Pid::from_raw(0), &first)?;
    let on_one_cpu = round_trip(&mut client);
    sched_setaffinity(Pid::from_raw(0), &everywhere)?;
    let on_one_cpu = on_one_cpu?;
    client.execute("quit", json!({}))?;
    child.wait()?;
    Ok([
        first_answer.as_secs_f64() * 1e3,
        mebibytes(size),
        trip.as_secs_f64() * 1e6,
        on_one_cpu.as_secs_f64() * 1e6,
    ])
}

fn round_trip(client: &mut Client) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..TRIPS {
        client.execute("query-status", json!({}))?;
    }
    Ok(start.elapsed() / TRIPS)
}

fn spawn(vmm: &Vmm) -> Result<(Child, Client)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(&vmm.program);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "none",
        ])
        .args([
            "-chardev",
            "socket,id=qmp,fd=20",
            "-mon",
            "chardev=qmp,mode=control",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .fd_mappings(vec![FdMapping {
            parent_fd: theirs.into(),
            child_fd: 20,
        }])?;
    Ok((command.spawn()?, Client::new(ours)?))
}

#[expect(clippy::cast_precision_loss, reason = "sizes of processes, for people")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
