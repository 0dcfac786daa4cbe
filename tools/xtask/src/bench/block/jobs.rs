//! Jobs: a delta over a base of the same length, moved down or up by a VMM without a machine.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::tests::qmp::Client;
use ::tests::vm::Vmm;
use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};

use super::super::mebibytes;
use super::super::table::{Bar, Row};
use super::BlockOptions;
use crate::shell::{run, step};

/// More than any job here takes.
const PATIENCE: Duration = Duration::from_secs(900);
/// Where the monitor's socket is in the child.
const MONITOR: i32 = 20;
/// One of so many clusters is in a sparse delta.
const SPARSE: u64 = 16;
const CLUSTER: u64 = 64 << 10;

/// What a delta holds.
#[derive(Clone, Copy, PartialEq)]
enum Delta {
    Sparse,
    Dense,
}

impl Delta {
    fn name(self) -> &'static str {
        match self {
            Self::Sparse => "sparse",
            Self::Dense => "dense",
        }
    }
}

/// The job from its command to when all of it is on the disk in seconds, and the process's most
/// memory in MiB.
#[derive(Default)]
struct Samples {
    time: [Vec<f64>; 2],
    memory: [Vec<f64>; 2],
}

pub(super) fn measure(pair: &[Vmm; 2], folder: &Path, options: &BlockOptions) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (job, bytes) in [("commit", Delta::Sparse), ("commit", Delta::Dense)]
        .into_iter()
        .chain([("stream", Delta::Sparse), ("stream", Delta::Dense)])
    {
        step(&format!("{job}, {}", bytes.name()));
        let mut samples = Samples::default();
        for _ in 0..options.disk_turns {
            for (index, vmm) in pair.iter().enumerate() {
                let chain = Chain::make(folder, options.job_mib, bytes, job)?;
                let (time, memory) = sample(vmm, &chain, folder, job)?;
                samples.time[index].push(time);
                samples.memory[index].push(memory);
            }
        }
        let name = format!("{job} of {} MiB, {}", options.job_mib, bytes.name());
        rows.push(Row::new(name, "s", samples.time, Bar::Share(1.0)));
        let name = "      most memory of the process";
        rows.push(Row::new(name, "MiB", samples.memory, Bar::Shown));
    }
    Ok(rows)
}

/// A base and what stands on it.
struct Chain {
    base: PathBuf,
    top: PathBuf,
}

impl Chain {
    /// The bytes are where the job finds them: in the upper image to commit, in the lower to stream.
    fn make(folder: &Path, mib: u64, delta: Delta, job: &str) -> Result<Self> {
        let chain = Self {
            base: folder.join("base.qcow2"),
            top: folder.join("top.qcow2"),
        };
        let create = |extra: &[&str], image: &Path| {
            run(Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .args(extra)
                .arg(image)
                .arg(format!("{mib}M")))
        };
        create(&[], &chain.base)?;
        let below = chain.base.display().to_string();
        create(&["-F", "qcow2", "-b", &below], &chain.top)?;
        let filled = if job == "commit" {
            &chain.top
        } else {
            &chain.base
        };
        let mut fill = Command::new("qemu-io");
        let len = mib << 20;
        match delta {
            Delta::Dense => {
                fill.args(["-c", &format!("write -q -P 7 0 {len}")]);
            }
            Delta::Sparse => {
                for number in 0..len / CLUSTER / SPARSE {
                    let at = number * SPARSE * CLUSTER;
                    fill.args(["-c", &format!("write -q -P 7 {at} {CLUSTER}")]);
                }
            }
        }
        run(fill.args(["-f", "qcow2"]).arg(filled))?;
        run(Command::new("sync").arg("-f").arg(folder))?;
        Ok(chain)
    }
}

fn sample(vmm: &Vmm, chain: &Chain, folder: &Path, job: &str) -> Result<(f64, f64)> {
    let (mut child, mut client) = start(vmm, &["-machine", "none"])?;
    for (name, file, backing) in [
        ("base", &chain.base, Value::Null),
        ("top", &chain.top, json!("base")),
    ] {
        let file = json!({"driver": "file", "filename": file});
        let node = json!({"driver": "qcow2", "node-name": name, "file": file, "backing": backing});
        client.execute("blockdev-add", node)?;
    }
    let start = Instant::now();
    let command = format!("block-{job}");
    client.execute(&command, json!({"device": "top", "job-id": "job"}))?;
    if job == "commit" {
        client.event("BLOCK_JOB_READY", PATIENCE)?;
        client.execute("block-job-complete", json!({"device": "job"}))?;
    }
    let end = client.event("BLOCK_JOB_COMPLETED", PATIENCE)?;
    // A stream of QEMU's ends before what it copied would survive a power cut; ours does not.
    run(Command::new("sync").arg("-f").arg(folder))?;
    let time = start.elapsed().as_secs_f64();
    ensure!(end["data"]["error"].is_null(), "the job failed: {end}");
    let memory = most_memory(child.id())?;
    client.execute("quit", json!({}))?;
    ensure!(child.wait()?.success(), "the VMM failed");
    Ok((time, memory))
}

/// A VMM with a monitor that is ours.
pub(super) fn start(vmm: &Vmm, options: &[&str]) -> Result<(Child, Client)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let child = Command::new(&vmm.program)
        .args(["-nodefaults", "-display", "none"])
        .args(options)
        .args(["-chardev", &format!("socket,id=qmp,fd={MONITOR}")])
        .args(["-mon", "chardev=qmp,mode=control"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .fd_mappings(vec![FdMapping {
            parent_fd: theirs.into(),
            child_fd: MONITOR,
        }])?
        .spawn()?;
    let mut client = Client::new(ours)?;
    client.negotiate()?;
    Ok((child, client))
}

/// The process's most resident memory, in MiB.
fn most_memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.context("no VmHWM")?.trim().trim_end_matches(" kB");
    Ok(mebibytes(kib.parse::<u64>()? << 10))
}
