//! A guest that never rests while its VMM is asked 100,000 times a second: how much of its progress
//! it loses, by its own ticks.
//!
//! ```text
//!   CPU 0:  the clients, qmp-io, the main loop            CPU 1:  the vCPU, alone
//!
//!   one turn:   quiet ── flooded ── quiet                 lost = 1 - flooded / mean of both quiets
//! ```
//!
//! Each side has a CPU, so that what the guest loses is what the VMM's threads take from each other
//! (locks, interrupts, exits that wait), and not what two threads on one CPU must. Whatever else
//! runs on this machine may still stand in the vCPU's way, the more so when the flood drives it
//! from CPU 0: time for which the vCPU could run and had no CPU counts on no clock.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::kernels;
use ::tests::vm::{Builder, Vm, Vmm};
use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;

use super::subject::{Spent, Wire, threads};
use super::{QUERY, REST};

/// The calling thread, for the kernel.
const THIS_THREAD: Pid = Pid::from_raw(0);
const CLIENTS: usize = 4;
/// Requests that one client has on their way.
const BATCH: usize = 25;
/// From one batch of each client to the next: 100,000 commands a second.
const PERIOD: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(600);
/// How far the guest counts from one tick to the next: a thousand or more ticks in a window, even
/// where KVM interprets its guests.
const TURNS: u32 = 400;
/// More than any firmware takes.
const BOOT_TIME: Duration = Duration::from_secs(60);

/// What one guest lost.
pub(super) struct Busy {
    /// Percent of the ticks in each second of the vCPU's CPU time.
    pub(super) per_cpu_time: f64,
    /// Percent of the ticks in each second, without those for which it had no CPU.
    pub(super) per_second: f64,
    /// Answers per second meanwhile.
    pub(super) answers: f64,
}

/// Floods the monitor of one new guest.
pub(super) fn measure(vmm: &Vmm) -> Result<Busy> {
    let everywhere = sched_getaffinity(THIS_THREAD)?;
    let [ours, the_guests] = two_of(&everywhere)?;
    let mut stage = Stage::new(vmm)?;
    stage.place(&ours, &the_guests)?;
    sched_setaffinity(THIS_THREAD, &ours)?;
    // The kernel's count of a thread's queueing jumps when the thread changes its CPU.
    thread::sleep(REST);
    let busy = stage.measure();
    sched_setaffinity(THIS_THREAD, &everywhere)?;
    stage.vm.shutdown_clean()?;
    busy
}

/// A guest that ticks, and the clients that flood its monitor.
struct Stage {
    vm: Vm,
    clients: Vec<Wire>,
    vcpu: Pid,
    /// Bytes of an answer.
    answer: usize,
}

/// Where the guest is.
struct Progress {
    time: Instant,
    vcpu: Spent,
    ticks: usize,
}

/// How fast it got there.
#[derive(Clone, Copy)]
struct Pace {
    per_cpu_time: f64,
    per_second: f64,
}

impl Stage {
    fn new(vmm: &Vmm) -> Result<Self> {
        let mut kernel = tempfile::NamedTempFile::new()?;
        kernel.write_all(&kernels::ticking(TURNS))?;
        let mut builder = Builder::new(vmm.clone()).boots(kernel.path());
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let (ours, theirs) = UnixStream::pair()?;
            let number = builder.pass(theirs);
            builder = builder.args([
                "-chardev",
                &format!("socket,id=busy{client},fd={number}"),
                "-mon",
                &format!("chardev=busy{client},mode=control"),
            ]);
            clients.push(Wire::new(ours));
        }
        let mut vm = builder.start()?;
        let mut answer = 0;
        for client in &mut clients {
            client.greeted()?;
            client.negotiate()?;
            answer = client.ask(QUERY, &[])?;
        }
        let cpus = vm.execute("query-cpus-fast", json!({}))?;
        let vcpu = cpus[0]["thread-id"].as_i64().context("no vCPU")?;
        let start = Instant::now();
        while vm.console().is_empty() {
            ensure!(start.elapsed() < BOOT_TIME, "the guest does not tick");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self {
            vm,
            clients,
            vcpu: Pid::from_raw(i32::try_from(vcpu)?),
            answer,
        })
    }

    /// Gives the vCPU a CPU, and all other threads another.
    fn place(&self, others: &CpuSet, vcpu: &CpuSet) -> Result<()> {
        for thread in threads(self.vm.pid())? {
            let cpus = if thread == self.vcpu { vcpu } else { others };
            sched_setaffinity(thread, cpus)?;
        }
        Ok(())
    }

    fn measure(&mut self) -> Result<Busy> {
        let quiet = |_: &mut Self| {
            thread::sleep(WINDOW);
            Ok(0.0)
        };
        let (before, _) = self.pace(quiet)?;
        let (flooded, answers) = self.pace(Self::flood)?;
        let (after, _) = self.pace(quiet)?;
        let lost = |of: fn(Pace) -> f64| {
            let undisturbed = f64::midpoint(of(before), of(after));
            100.0 * (1.0 - of(flooded) / undisturbed)
        };
        Ok(Busy {
            per_cpu_time: lost(|pace| pace.per_cpu_time),
            per_second: lost(|pace| pace.per_second),
            answers,
        })
    }

    /// How fast the guest goes on during `work`, and what came of that.
    fn pace<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<(Pace, T)> {
        let before = self.progress()?;
        let result = work(self)?;
        let after = self.progress()?;
        let ticks = f64::from(u32::try_from(after.ticks - before.ticks)?);
        let running = after.vcpu.running.saturating_sub(before.vcpu.running);
        let queueing = after.vcpu.queueing.saturating_sub(before.vcpu.queueing);
        let time = (after.time - before.time).saturating_sub(queueing);
        let pace = Pace {
            per_cpu_time: ticks / running.as_secs_f64(),
            per_second: ticks / time.as_secs_f64(),
        };
        Ok((pace, result))
    }

    fn progress(&self) -> Result<Progress> {
        Ok(Progress {
            ticks: self.vm.console().len(),
            time: Instant::now(),
            vcpu: Spent::of(self.vm.pid(), self.vcpu)?,
        })
    }

    /// Asks at the wanted rate, or as fast as the answers come; gives the answers per second.
    fn flood(&mut self) -> Result<f64> {
        let batch = QUERY.repeat(BATCH);
        let mut answers = vec![0; BATCH * self.answer];
        let (start, mut rounds) = (Instant::now(), 0);
        while start.elapsed() < WINDOW {
            for client in &mut self.clients {
                client.stream.write_all(&batch)?;
            }
            for client in &mut self.clients {
                client.stream.read_exact(&mut answers)?;
            }
            rounds += 1;
            thread::sleep((PERIOD * rounds).saturating_sub(start.elapsed()));
        }
        let asked = f64::from(rounds) * f64::from(u32::try_from(BATCH * CLIENTS)?);
        Ok(asked / start.elapsed().as_secs_f64())
    }
}

/// The first and the last CPU out of `allowed`.
fn two_of(allowed: &CpuSet) -> Result<[CpuSet; 2]> {
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true));
    let (first, last) = (cpus.next(), cpus.next_back());
    let one = |cpu: Option<usize>| -> Result<CpuSet> {
        let mut one = CpuSet::new();
        one.set(cpu.context("a guest and its monitor want two CPUs")?)?;
        Ok(one)
    };
    Ok([one(first)?, one(last)?])
}
