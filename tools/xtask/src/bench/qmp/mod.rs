//! A monitor, first without a guest: how soon it answers, how much it weighs, how quick a round trip is,
//! and how much it gets done when many ask at once.
//!
//! ```text
//!   turn 1: sesame, QEMU · turn 2: sesame, QEMU · ...        all samples of a row in one pot
//!             │ each time a new process
//!             ├─ subject.rs   one client: first answers, weight, round trips
//!             ├─ flood.rs     64 clients that never wait for an answer before they ask again
//!             └─ busy.rs      a guest that never rests, beside 100,000 commands a second
//! ```
mod busy;
mod flood;
mod subject;

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tests::fds::proportional_size;
use tests::vm::Vmm;

use super::table::{Bar, Row};
use super::{mebibytes, microseconds};
use subject::{Subject, Wire};

/// Round trips per turn.
const TRIPS: usize = 2000;
/// Schemas asked for per turn.
const SCHEMAS: usize = 20;
/// Time to come to rest before it is weighed.
const REST: Duration = Duration::from_millis(300);

const QUERY: &[u8] = b"{\"execute\": \"query-status\"}\n";
const SCHEMA: &[u8] = b"{\"execute\": \"query-qmp-schema\"}\n";
const HAND_OVER: &[u8] = b"{\"execute\": \"getfd\", \"arguments\": {\"fdname\": \"f\"}}\n";
const CLOSE: &[u8] = b"{\"execute\": \"closefd\", \"arguments\": {\"fdname\": \"f\"}}\n";

/// What is measured, in the order of [`sample`]: what, its unit, what is wanted.
const ROWS: [(&str, &str, Bar); 13] = [
    ("start to the greeting", "ms", Bar::Share(1.0 / 10.0)),
    ("start to the first answer", "ms", Bar::Share(1.0 / 8.0)),
    ("size (PSS) when idle", "MiB", Bar::Share(1.0 / 12.0)),
    ("query-status", "us", Bar::ShareOfBoth(1.0 / 8.0)),
    ("query-status on one CPU", "us", Bar::Share(1.0 / 6.0)),
    ("getfd and closefd of a file", "us", Bar::Share(1.0 / 8.0)),
    ("query-qmp-schema", "us", Bar::Share(1.0 / 50.0)),
    ("commands of 64 clients at once", "1/s", Bar::Times(10.0)),
    ("its CPU time for each", "us", Bar::Share(1.0 / 10.0)),
    ("the clients' CPU time for each", "us", Bar::Shown),
    (
        "commands beside a busy guest",
        "1/s",
        Bar::AtLeast(95_000.0),
    ),
    ("it loses of its pace by CPU time", "%", Bar::AtMost(2.0)),
    ("it loses of its pace by the clock", "%", Bar::AtMost(2.0)),
];

/// Of each row, what one turn gave.
type Samples = [Vec<f64>; ROWS.len()];

/// Takes turns with both programs.
pub(super) fn measure(pair: &[Vmm; 2], turns: usize) -> Result<Vec<Row>> {
    let mut samples = ROWS.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..turns {
        for (index, vmm) in pair.iter().enumerate() {
            let turn = sample(vmm).with_context(|| vmm.program.display().to_string())?;
            for (row, more) in samples.iter_mut().zip(turn) {
                row[index].extend(more);
            }
        }
    }
    let rows = ROWS.into_iter().zip(samples);
    Ok(rows
        .map(|((what, unit, bar), samples)| Row::new(what, unit, samples, bar))
        .collect())
}

fn sample(vmm: &Vmm) -> Result<Samples> {
    let start = Instant::now();
    let mut subject = Subject::start(vmm, 1)?;
    subject.client()?.greeted()?;
    let greeting = start.elapsed();
    subject.client()?.negotiate()?;
    let first_answer = start.elapsed();
    thread::sleep(REST);
    let size = proportional_size(subject.pid())?;
    let trips = times(TRIPS, || subject.client()?.time(QUERY, &[]))?;
    let on_one_cpu = on_one_cpu(&mut subject, |client| {
        times(TRIPS, || client.time(QUERY, &[]))
    })?;
    let file = tempfile::tempfile()?;
    let hand_overs = times(TRIPS, || {
        let client = subject.client()?;
        Ok(client.time(HAND_OVER, &[file.as_fd()])? + client.time(CLOSE, &[])?)
    })?;
    let schemas = times(SCHEMAS, || subject.client()?.time(SCHEMA, &[]))?;
    subject.quit()?;
    let flood = flood::measure(vmm)?;
    let busy = busy::measure(vmm)?;
    Ok([
        vec![greeting.as_secs_f64() * 1e3],
        vec![first_answer.as_secs_f64() * 1e3],
        vec![mebibytes(size)],
        trips,
        on_one_cpu,
        hand_overs,
        schemas,
        vec![flood.per_second],
        vec![flood.cpu_time],
        vec![flood.client_cpu_time],
        vec![busy.answers],
        vec![busy.per_cpu_time],
        vec![busy.per_second],
    ])
}

/// Microseconds of each of so many.
fn times(count: usize, mut one: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    (0..count).map(|_| one().map(microseconds)).collect()
}

/// Does `work` while this thread and all threads of a process share one CPU. Where CPUs are idle,
/// most of a round trip is the waking of theirs, and in a virtual machine that is long. On one CPU
/// what is left is what the programs do.
fn on_one_cpu<T>(subject: &mut Subject, work: impl FnOnce(&mut Wire) -> Result<T>) -> Result<T> {
    let everywhere = sched_getaffinity(Pid::this())?;
    let mut first = CpuSet::new();
    first.set(
        (0..CpuSet::count())
            .find(|&cpu| everywhere.is_set(cpu) == Ok(true))
            .unwrap_or(0),
    )?;
    let threads = subject.threads()?;
    let move_all = |cpus: &CpuSet| {
        for &thread in &threads {
            sched_setaffinity(thread, cpus)?;
        }
        sched_setaffinity(Pid::from_raw(0), cpus)
    };
    move_all(&first)?;
    let result = work(subject.client()?);
    move_all(&everywhere)?;
    result
}
