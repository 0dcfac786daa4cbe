//! A VM in a few lines: started with passed fds, driven over QMP, and ended with the books checked.
//!
//! ```text
//!   Vm::builder().cpus(2).disk("root", file).start()?
//!        │ every file becomes an fd of the child: -add-fd fd=N,set=M ─► /dev/fdset/M
//!        ▼
//!   Vm { qmp, guest, child }  ── shutdown_clean() ─► quit, exit status 0, nothing on stderr
//! ```
mod builder;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fds::Usage;
use crate::guest::Guest;
use crate::qmp::{Client, Refusal};

pub use self::builder::Builder;

/// How long a VMM may take to end.
const EXIT_TIME: Duration = Duration::from_secs(30);

/// The program under test.
#[derive(Clone, Debug)]
pub struct Vmm {
    /// Its binary.
    pub program: PathBuf,
    /// Whether it is the peer, QEMU, which cannot take everything as an fd.
    pub is_qemu: bool,
}

impl Vmm {
    /// The binary at `program`; QEMU is known by its name.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let is_qemu = program
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("qemu-system"));
        Self { program, is_qemu }
    }

    /// What `cargo xtask test` built, or what `SESAME_VMM` names.
    pub fn from_env() -> Result<Self> {
        Ok(Self::at(variable("SESAME_VMM")?))
    }
}

/// A path that `cargo xtask test` sets.
///
/// # Errors
/// It is not set.
pub fn variable(name: &str) -> Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set: guest tests are run by `cargo xtask test`"))
}

/// A running VMM.
#[derive(Debug)]
pub struct Vm {
    /// The monitor, negotiated.
    pub qmp: Client,
    guest: Guest,
    guest_is_up: bool,
    child: Child,
    folder: TempDir,
    is_qemu: bool,
    /// Whether the test has seen its end.
    is_over: bool,
}

impl Vm {
    /// A q35 with one CPU and 256 MiB that boots the test guest.
    pub fn builder() -> Builder {
        Builder::new(Vmm::from_env().expect("the VMM under test"))
            .boots(&variable("SESAME_GUEST_KERNEL").expect("the guest's kernel"))
            .initrd(&variable("SESAME_GUEST_INITRD").expect("the guest's initrd"))
    }

    /// A q35 with UEFI firmware whose variables are in that file, and nothing else to boot.
    pub fn with_firmware(variables: File) -> Result<Builder> {
        Builder::new(Vmm::from_env()?).firmware(variables)
    }

    /// A monitor without a guest: `-machine none`.
    pub fn monitor() -> Builder {
        Builder::new(Vmm::from_env().expect("the VMM under test")).machine("none")
    }

    /// A q35 that waits for `cont` and has nothing to boot.
    pub fn paused() -> Builder {
        Builder::new(Vmm::from_env().expect("the VMM under test")).stopped()
    }

    /// A guest with one free root port, booted, in a process that is sealed from the start.
    pub fn sealed_with_a_port() -> Result<Self> {
        Self::sealed_with(Self::builder())
    }

    /// The same, of a builder's guest.
    pub fn sealed_with(builder: Builder) -> Result<Self> {
        let builder = builder.root_ports(1);
        let mut vm = builder.args(["-open-policy", "sealed"]).start()?;
        vm.guest()?;
        Ok(vm)
    }

    /// The guest, booted.
    pub fn guest(&mut self) -> Result<&mut Guest> {
        if !self.guest_is_up {
            self.guest.wait_ready()?;
            self.guest_is_up = true;
        }
        Ok(&mut self.guest)
    }

    /// The guest as it is, booted or not.
    pub fn guest_port(&mut self) -> &mut Guest {
        self.guest_is_up = true;
        &mut self.guest
    }

    /// The VMM's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the VMM holds now.
    pub fn usage(&self) -> Result<Usage> {
        Ok(Usage::of(self.pid())?)
    }

    /// What the VMM holds once it no longer holds more than `most`, or after a few seconds anyway:
    /// threads and mappings go a moment after the reply that let go of them.
    pub fn settled_usage(&self, most: Usage) -> Result<Usage> {
        let start = Instant::now();
        loop {
            let usage = self.usage()?;
            let within = usage.fds <= most.fds
                && usage.threads <= most.threads
                && usage.mappings <= most.mappings;
            if within || start.elapsed() > Duration::from_secs(10) {
                return Ok(usage);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a QMP command.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.execute(command, arguments)
    }

    /// Runs a QMP command that must be refused.
    pub fn refusal(&mut self, command: &str, arguments: Value) -> Result<Refusal> {
        self.qmp.refusal(command, arguments)
    }

    /// What the guest wrote to its serial console.
    pub fn console(&self) -> String {
        read_lossy(&self.folder.path().join("console"))
    }

    /// Waits until the guest has written `text` to its serial console so many times.
    pub fn wait_for_console(&mut self, text: &str, times: usize, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while self.console().matches(text).count() < times {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "the VMM ended: {ended:?}");
            ensure!(start.elapsed() < patience, "no {text:?} on the console");
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// What the VMM wrote to its standard error.
    pub fn stderr(&self) -> String {
        read_lossy(&self.folder.path().join("stderr"))
    }

    /// Waits for the VMM to end by itself.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let status = wait_exit(&mut self.child)?;
        self.is_over = true;
        Ok(status)
    }

    /// Waits for the VMM to end with status 0 and nothing to complain about.
    pub fn exit_clean(mut self) -> Result<()> {
        let status = self.wait_exit()?;
        let stderr = self.stderr();
        ensure!(status.success(), "the VMM ended with {status}: {stderr}");
        // QEMU warns of a lab with fewer CPUs than the guest.
        ensure!(
            stderr.is_empty() || self.is_qemu,
            "the VMM complained: {stderr}"
        );
        Ok(())
    }

    /// Ends the VM by `quit`, however far the guest is.
    pub fn shutdown_clean(mut self) -> Result<()> {
        self.qmp.execute("quit", json!({}))?;
        self.exit_clean()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() || !self.is_over {
            let console = self.console();
            let lines: Vec<_> = console.lines().collect();
            eprintln!("--- the VMM's standard error:\n{}", self.stderr());
            eprintln!(
                "--- the guest's console ends:\n{}",
                lines[lines.len().saturating_sub(20)..].join("\n")
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_exit(child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(start.elapsed() < EXIT_TIME, "the VMM does not end");
        thread::sleep(Duration::from_millis(10));
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
