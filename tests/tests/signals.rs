//! A process that is told to end while it waits for its first client.
#![expect(
    clippy::disallowed_methods,
    reason = "the test cleans up what it looks at"
)]
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::vm::Vmm;

/// Long enough for a start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the chardev is for.
const USES: [&[&str]; 2] = [
    &["-machine", "none", "-mon", "chardev=first,mode=control"],
    &["-machine", "none"],
];

/// Starts a process that listens on `path` and waits there.
fn start(path: &Path, options: &[&str], said: &Path) -> Result<Child> {
    let chardev = format!("socket,id=first,server=on,wait=on,path={}", path.display());
    let child = Command::new(Vmm::from_env()?.program)
        .args(["-nodefaults", "-chardev", &chardev])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(said)?)
        .spawn()?;
    Ok(child)
}

fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_process_that_waits_for_its_first_client_ends_when_it_is_told_to() -> Result<()> {
    for options in USES {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let folder = tempfile::tempdir()?;
            let (path, said) = (folder.path().join("socket"), folder.path().join("said"));
            let mut child = start(&path, options, &said)?;
            wait_until("it does not listen", || Ok(path.exists()))?;
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
            let ended = wait_until("it goes on waiting", || Ok(child.try_wait()?.is_some()));
            let _ = child.kill();
            let status = child.wait()?;
            let said = std::fs::read_to_string(&said)?;
            ended?;
            println!("{options:?} {signal}: {status}: {said}");
            ensure!(status.code() == Some(1), "{status}: {said}");
            ensure!(said.contains("first"), "{said}");
            ensure!(!path.exists(), "the socket stays behind");
        }
    }
    Ok(())
}
