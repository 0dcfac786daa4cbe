//! A monitor without a guest: how soon it answers, how much it weighs, how quick a round trip is.
use std::fs;
use std::os::fd::AsFd;
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

use super::table::{Bar, Row};

/// Round trips per turn.
const TRIPS: u32 = 2000;
/// Time to come to rest before it is weighed.
const REST: Duration = Duration::from_millis(300);

/// What is measured, in the order of [`sample`]: what, unit, the share wanted.
const ROWS: [(&str, &str, f64); 5] = [
    ("start to the first QMP answer", "ms", 1.0 / 8.0),
    ("size (PSS) of an idle monitor", "MiB", 1.0 / 10.0),
    ("query-status round trip", "us", 1.0 / 6.0),
    ("query-status round trip on one CPU", "us", 1.0 / 6.0),
    ("getfd and closefd with a file", "us", 1.0 / 8.0),
];

/// Takes turns with both programs.
pub(super) fn measure(pair: &[Vmm; 2], turns: usize) -> Result<Vec<Row>> {
    let mut samples = ROWS.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..turns {
        for (index, vmm) in pair.iter().enumerate() {
            let sample = sample(vmm).with_context(|| vmm.program.display().to_string())?;
            for (row, number) in samples.iter_mut().zip(sample) {
                row[index].push(number);
            }
        }
    }
    let rows = ROWS.into_iter().zip(samples);
    Ok(rows
        .map(|((what, unit, share), samples)| Row::new(what, unit, samples, Bar::Share(share)))
        .collect())
}

fn sample(vmm: &Vmm) -> Result<[f64; ROWS.len()]> {
    let start = Instant::now();
    let (mut child, mut client) = spawn(vmm)?;
    client.negotiate()?;
    let first_answer = start.elapsed();
    thread::sleep(REST);
    let size = proportional_size(child.id())?;
    let query = |client: &mut Client| client.execute("query-status", json!({})).map(drop);
    let trip = round_trip(&mut client, query)?;
    let on_one_cpu = on_one_cpu(child.id(), || round_trip(&mut client, query))?;
    let file = tempfile::tempfile()?;
    let hand_over = |client: &mut Client| {
        let name = json!({"fdname": "f"});
        client.execute_with("getfd", name.clone(), &[file.as_fd()])?;
        client.execute("closefd", name).map(drop)
    };
    let handed_over = round_trip(&mut client, hand_over)?;
    client.execute("quit", json!({}))?;
    child.wait()?;
    Ok([
        first_answer.as_secs_f64() * 1e3,
        mebibytes(size),
        microseconds(trip),
        microseconds(on_one_cpu),
        microseconds(handed_over),
    ])
}

/// Does `work` while this thread and all threads of a process share one CPU. Where CPUs are idle,
/// most of a round trip is the waking of theirs, and in a virtual machine that is long. On one CPU
/// what is left is what the programs do.
fn on_one_cpu<T>(process: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let everywhere = sched_getaffinity(Pid::this())?;
    let mut first = CpuSet::new();
    first.set(
        (0..CpuSet::count())
            .find(|&cpu| everywhere.is_set(cpu) == Ok(true))
            .unwrap_or(0),
    )?;
    let move_all = |cpus: &CpuSet| {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let id = thread?.file_name().to_string_lossy().parse()?;
            sched_setaffinity(Pid::from_raw(id), cpus)?;
        }
        Ok::<_, anyhow::Error>(sched_setaffinity(Pid::from_raw(0), cpus)?)
    };
    move_all(&first)?;
    let result = work();
    move_all(&everywhere)?;
    result
}

fn round_trip(
    client: &mut Client,
    mut trip: impl FnMut(&mut Client) -> Result<()>,
) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..TRIPS {
        trip(client)?;
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

pub(super) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "sizes of processes, for people")]
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
