//! Whatever a manager does or leaves undone, the guest goes on: its ticks are dots on a serial
//! line, written by a kernel of a few bytes, and counted while the trouble lasts.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tests::hook::{Manager, node};
use tests::qmp::{Client, outcome};
use tests::{Vm, fds, kernels};

const SOON: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// How far the guest counts from one tick to the next.
const TURNS: u32 = 2_000;
/// How many ticks show that it runs.
const ENOUGH: usize = 200;

/// A guest that ticks, and more sessions beside the VM's own.
struct Stage {
    vm: Vm,
    others: Vec<UnixStream>,
}

impl Stage {
    fn new(sessions: usize) -> Result<Self> {
        let mut kernel = tempfile::NamedTempFile::new()?;
        kernel.write_all(&kernels::ticking(TURNS))?;
        let mut builder = Vm::paused().boots(kernel.path());
        let mut others = Vec::new();
        for session in 0..sessions {
            let (ours, theirs) = UnixStream::pair()?;
            let number = builder.pass(theirs);
            builder = builder.args([
                "-chardev",
                &format!("socket,id=s{session},fd={number}"),
                "-mon",
                &format!("chardev=s{session},mode=control"),
            ]);
            others.push(ours);
        }
        let mut vm = builder.start()?;
        vm.execute("cont", json!({}))?;
        let mut stage = Self { vm, others };
        stage.ticks("when nothing is wrong")?;
        Ok(stage)
    }

    /// Waits for ticks that come from now on.
    fn ticks(&mut self, when: &str) -> Result<()> {
        let (start, first) = (Instant::now(), self.vm.console().len());
        loop {
            let ticks = self.vm.console().len() - first;
            if ticks >= ENOUGH {
                let rate = f64::from(u32::try_from(ticks)?) / start.elapsed().as_secs_f64();
                println!("{when}: {rate:.0} ticks a second");
                return Ok(());
            }
            ensure!(start.elapsed() < SOON, "{when}: {ticks} ticks, no more");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_hook_that_never_answers_or_dies_does_not_stop_the_guest() -> Result<()> {
    let mut stage = Stage::new(1)?;
    let mut other = Client::new(stage.others.remove(0))?;
    other.negotiate()?;
    let (mut manager, connection) = Manager::pair()?;
    let name = json!({"fdname": "hook"});
    other.execute_with("getfd", name, &[connection.as_fd()])?;
    drop(connection);
    let hook = json!({"fd": "hook", "timeout-ms": 600_000});
    other.execute("open-hook-set", hook)?;
    let request = json!({"execute": "blockdev-add", "arguments": node("n")});
    other.send_raw(format!("{request}\n").as_bytes(), &[])?;
    manager.request()?;
    stage.ticks("while the hook is silent")?;
    let state = stage.vm.execute("query-open-hook", json!({}))?;
    assert_eq!(state["pending"], 1, "it was silent all the time");
    drop(manager);
    stage.vm.qmp.event("OPEN_HOOK_GONE", SOON)?;
    stage.ticks("when the hook has died")?;
    outcome(&other.reply(SOON)?).expect_err("the hook has gone");
    stage.vm.shutdown_clean()
}

/// Sends a line over and over until it is told to stop; gives the number of bytes sent.
fn flood(
    mut stream: UnixStream,
    line: &'static [u8],
    reads: bool,
    stop: &Arc<AtomicBool>,
    sent: &Arc<AtomicUsize>,
) -> JoinHandle<()> {
    let (stop, sent) = (Arc::clone(stop), Arc::clone(sent));
    thread::spawn(move || {
        let lines = line.repeat(100);
        let mut answers = vec![0; 1 << 16];
        let _ = stream.set_nonblocking(true);
        while !stop.load(Ordering::Relaxed) {
            match stream.write(&lines) {
                Ok(bytes) => drop(sent.fetch_add(bytes, Ordering::Relaxed)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(_) => return,
            }
            while reads && stream.read(&mut answers).is_ok_and(|bytes| bytes > 0) {}
        }
    })
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn managers_that_flood_the_monitor_do_not_stop_the_guest() -> Result<()> {
    let mut stage = Stage::new(3)?;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let lines: [(&[u8], bool); 3] = [
        (
            b"{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-status\"}\n",
            true,
        ),
        (
            b"{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-qmp-schema\"}\n",
            false,
        ),
        (b"{]", true),
    ];
    let floods: Vec<_> = std::mem::take(&mut stage.others)
        .into_iter()
        .zip(lines)
        .map(|(stream, (line, reads))| flood(stream, line, reads, &stop, &sent))
        .collect();
    stage.ticks("while three managers flood the monitor")?;
    // Nor do they hold up a manager who behaves.
    let disk = fds::disk(MIB)?;
    let set = json!({"fdset-id": 1000});
    stage
        .vm
        .qmp
        .execute_with("add-fd", set.clone(), &[disk.as_fd()])?;
    stage.vm.execute("remove-fd", set)?;
    let bytes = sent.load(Ordering::Relaxed);
    stage.ticks("while they still do")?;
    // And the flood is still taken in, as fast as it is answered.
    let start = Instant::now();
    while sent.load(Ordering::Relaxed) == bytes {
        ensure!(start.elapsed() < SOON, "they stopped by themselves");
        thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        ensure!(flood.join().is_ok(), "a flood has panicked");
    }
    stage.vm.shutdown_clean()
}
