//! A VMM that has no fd left: whoever comes is told so and let go, whoever is there is served, every
//! error says what would help, and with room again all goes on.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they call at the monitor's socket"
)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::qmp::Client;
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

struct Stage {
    vm: Vm,
    folder: tempfile::TempDir,
    disk: std::fs::File,
    names: usize,
    /// A caller who is there all the time.
    _caller: Client,
}

impl Stage {
    /// A monitor that callers can call, with one fd set and room for a few fds more.
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("qmp");
        let chardev = format!("socket,id=mon,path={},server=on,wait=off", path.display());
        let mut vm = Vm::monitor()
            .args(["-chardev", &chardev, "-mon", "chardev=mon,mode=control"])
            .start()?;
        let caller = Client::connect(&path)?;
        let disk = fds::disk(MIB)?;
        let set = json!({"fdset-id": 5});
        vm.qmp.execute_with("add-fd", set, &[disk.as_fd()])?;
        let limited = Command::new("prlimit")
            .args(["--nofile=64:", "--pid", &vm.pid().to_string()])
            .status()?;
        ensure!(limited.success(), "prlimit: {limited}");
        Ok(Self {
            vm,
            folder,
            disk,
            names: 0,
            _caller: caller,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// Hands over fds until no more can be received.
    fn fill(&mut self) -> Result<()> {
        loop {
            let name = json!({"fdname": format!("n{}", self.names)});
            let fd = [self.disk.as_fd()];
            if let Err(error) = self.vm.qmp.execute_with("getfd", name, &fd) {
                let text = format!("{error:#}");
                ensure!(text.contains("this process has too many open"), "{text}");
                return Ok(());
            }
            self.names += 1;
            ensure!(self.names < 64, "there is no end");
        }
    }

    fn take_back(&mut self) -> Result<()> {
        self.names -= 1;
        let name = json!({"fdname": format!("n{}", self.names)});
        self.vm.execute("closefd", name).map(drop)
    }

    /// Calls, and is told why that is in vain.
    fn call_in_vain(&self) -> Result<()> {
        let mut caller = Client::new(UnixStream::connect(self.path())?)?;
        let told = caller.receive(SOON)?;
        let text = told["error"]["desc"].as_str().unwrap_or_default();
        ensure!(text.contains("can serve no more clients now"), "{told}");
        ensure!(caller.receive(SOON).is_err(), "it is let go");
        Ok(())
    }

    /// Calls, is served, and has gone again.
    fn call(&mut self) -> Result<()> {
        let before = self.vm.usage()?;
        Client::connect(&self.path())?.execute("query-status", json!({}))?;
        let after = self.vm.settled_usage(before)?;
        ensure!(after.fds <= before.fds, "{after} after {before}");
        Ok(())
    }
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_vmm_without_an_fd_left_says_so_and_goes_on() -> Result<()> {
    starve(Stage::new()?)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_sealed_vmm_without_an_fd_left_does_the_same() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.vm.execute("seal", json!({"level": "sealed"}))?;
    starve(stage)
}

fn starve(mut stage: Stage) -> Result<()> {
    let before = stage.vm.usage()?;
    stage.call()?;
    stage.fill()?;
    for _ in 0..5 {
        stage.call_in_vain()?;
    }
    let node = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/5"});
    let refusal = stage.vm.refusal("blockdev-add", node.clone())?;
    ensure!(
        refusal
            .desc
            .contains("this process has no fd left; take some back"),
        "{}",
        refusal.desc
    );
    for _ in 0..4 {
        stage.take_back()?;
    }
    stage.vm.execute("blockdev-add", node)?;
    stage.call()?;
    stage.fill()?;
    stage.call_in_vain()?;
    while stage.names > 0 {
        stage.take_back()?;
    }
    stage
        .vm
        .execute("blockdev-del", json!({"node-name": "n"}))?;
    stage.call()?;
    assert_eq!(stage.vm.settled_usage(before)?.fds, before.fds);
    stage.vm.execute("quit", json!({}))?;
    ensure!(stage.vm.wait_exit()?.success(), "{}", stage.vm.stderr());
    let log = stage.vm.stderr();
    let lines = log.matches("clients are turned away").count();
    assert_eq!(lines, 2, "told once each time: {log}");
    Ok(())
}
