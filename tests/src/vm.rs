//! A VM in a few lines: started with passed fds, driven over QMP, and ended with the books checked.
//!
//! ```text
//!   Vm::builder().cpus(2).disk("root", file).start()?
//!        │ every file becomes an fd of the child: -add-fd fd=N,set=M ─► /dev/fdset/M
//!        ▼
//!   Vm { qmp, guest, child }  ── shutdown_clean() ─► quit, exit status 0, nothing on stderr
//! ```
use std::env;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fds::{self, Usage};
use crate::guest::Guest;
use crate::qmp::{Client, Refusal};
use crate::stray;

/// The first number that passed fds get in the VMM.
const FIRST_FD: i32 = 20;
/// The number of the first fd that is left by socket activation.
const FIRST_LEFT: i32 = 3;
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

/// What to start. Without a kernel it is a monitor and a machine that does nothing.
#[derive(Debug)]
pub struct Builder {
    vmm: Vmm,
    machine: String,
    cpus: u32,
    memory: String,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: String,
    /// Whether firmware runs first, and with it a guest without `-kernel`.
    firmware: bool,
    /// Who is at the other end of the serial console.
    operator: Option<UnixStream>,
    arguments: Vec<String>,
    passed: Vec<OwnedFd>,
    /// Fds by socket activation, with their names.
    left: Vec<(String, OwnedFd)>,
    /// Where the VMM runs.
    place: Option<PathBuf>,
    sets: u32,
    paused: bool,
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
        let sealed = ["-open-policy", "sealed"];
        let mut vm = Self::builder().root_ports(1).args(sealed).start()?;
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

impl Builder {
    /// A q35 with one CPU and 256 MiB, and nothing to boot.
    pub fn new(vmm: Vmm) -> Self {
        Self {
            vmm,
            machine: "q35".to_owned(),
            cpus: 1,
            memory: "256".to_owned(),
            kernel: None,
            initrd: None,
            append: "console=ttyS0 quiet panic=-1".to_owned(),
            firmware: false,
            operator: None,
            arguments: Vec::new(),
            passed: Vec::new(),
            left: Vec::new(),
            place: None,
            sets: 0,
            paused: false,
        }
    }

    /// `-machine`.
    pub fn machine(mut self, machine: &str) -> Self {
        machine.clone_into(&mut self.machine);
        self
    }

    /// `-smp`.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// `-m`, in MiB or with a suffix.
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Boots this kernel.
    pub fn boots(mut self, kernel: &Path) -> Self {
        self.kernel = Some(kernel.to_owned());
        self
    }

    /// With this initramfs.
    pub fn initrd(mut self, initrd: &Path) -> Self {
        self.initrd = Some(initrd.to_owned());
        self
    }

    /// Boots by the distribution's UEFI firmware, which keeps its variables in that file. Both are
    /// handed in.
    pub fn firmware(mut self, variables: File) -> Result<Self> {
        let code = File::open(variable("SESAME_OVMF_CODE")?)?;
        for (unit, file, read_only) in [(0, code, true), (1, variables, false)] {
            let filename = self.fdset(file);
            let node = json!({
                "driver": "file", "node-name": format!("flash{unit}"), "filename": filename,
                "read-only": read_only,
            });
            let machine = format!("pflash{unit}=flash{unit}");
            self = self.args(["-blockdev", &node.to_string(), "-machine", &machine]);
        }
        self.firmware = true;
        Ok(self)
    }

    /// Adds words to the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append = format!("{} {words}", self.append);
        self
    }

    /// `-S`.
    pub fn stopped(mut self) -> Self {
        self.paused = true;
        self
    }

    /// More arguments, as they are.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Has what is typed at the other end of `line` come to the guest's console, and what the guest
    /// says there go to it as well.
    pub fn console_over(&mut self, line: UnixStream) {
        self.operator = Some(line);
    }

    /// Hands in an fd under a number of its own, for `fd=N` options.
    pub fn pass(&mut self, fd: impl Into<OwnedFd>) -> i32 {
        self.passed.push(fd.into());
        FIRST_FD + i32::try_from(self.passed.len()).unwrap_or(i32::MAX) - 1
    }

    /// Runs the VMM in that folder.
    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.place = Some(folder.to_owned());
        self
    }

    /// Leaves an fd by socket activation, as service managers do.
    pub fn listen(&mut self, name: &str, fd: impl Into<OwnedFd>) {
        self.left.push((name.to_owned(), fd.into()));
    }

    /// Hands in an fd as a set of its own, and returns the name that opens it.
    pub fn fdset(&mut self, fd: impl Into<OwnedFd>) -> String {
        let number = self.pass(fd);
        self.sets += 1;
        let set = self.sets;
        self.arguments.push("-add-fd".to_owned());
        self.arguments.push(format!("fd={number},set={set}"));
        format!("/dev/fdset/{set}")
    }

    /// A virtio-blk disk from a file; its node name, device id and serial are `id`.
    pub fn disk(self, id: &str, file: impl Into<OwnedFd>) -> Self {
        self.disk_with(id, file, "")
    }

    /// The same with more options of the device, each behind a comma.
    pub fn disk_with(mut self, id: &str, file: impl Into<OwnedFd>, options: &str) -> Self {
        let filename = self.fdset(file);
        let node = json!({
            "driver": "raw", "node-name": id,
            "file": {"driver": "file", "node-name": format!("{id}-file"), "filename": filename},
        });
        let device = format!("virtio-blk-pci,id={id},drive={id},serial={id}{options}");
        self.args(["-blockdev", &node.to_string(), "-device", &device])
    }

    /// Empty pcie-root-ports `port0`... for hot-plugged devices.
    pub fn root_ports(self, count: u32) -> Self {
        let ports = (0..count).flat_map(|index| {
            let port = format!(
                "pcie-root-port,id=port{index},chassis={0},slot={0}",
                index + 1
            );
            ["-device".to_owned(), port]
        });
        self.args(ports)
    }

    /// Starts the VMM and negotiates with its monitor.
    pub fn start(self) -> Result<Vm> {
        let folder = tempfile::tempdir()?;
        let is_qemu = self.vmm.is_qemu;
        let (monitor, monitor_end) = UnixStream::pair()?;
        let (agent, agent_end) = UnixStream::pair()?;
        let mut child = self
            .command(folder.path(), monitor_end, agent_end)?
            .spawn()
            .context("start the VMM")?;
        let mut qmp = Client::new(monitor)?;
        // The sessions' thread negotiates while the machine is still being built; the first command
        // is answered when it is.
        let up = |qmp: &mut Client| {
            qmp.negotiate()?;
            qmp.execute("query-status", json!({}))
        };
        if let Err(error) = up(&mut qmp) {
            let _ = child.kill();
            let _ = child.wait();
            bail!(
                "{error:#}; it said: {}",
                read_lossy(&folder.path().join("stderr"))
            );
        }
        Ok(Vm {
            qmp,
            guest: Guest::new(agent)?,
            guest_is_up: false,
            child,
            folder,
            is_qemu,
            is_over: false,
        })
    }

    /// Starts a VMM that must refuse to, and returns what it says.
    pub fn start_refused(self) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let (_monitor, monitor_end) = UnixStream::pair()?;
        let (_agent, agent_end) = UnixStream::pair()?;
        let mut child = self
            .command(folder.path(), monitor_end, agent_end)?
            .spawn()?;
        let status = wait_exit(&mut child);
        // Where it has started after all, it must not stay.
        let _ = child.kill();
        let _ = child.wait();
        ensure!(!status?.success(), "the VMM started");
        Ok(read_lossy(&folder.path().join("stderr")))
    }

    fn command(mut self, folder: &Path, monitor: UnixStream, agent: UnixStream) -> Result<Command> {
        let monitor = self.pass(monitor);
        let has_guest = self.kernel.is_some() || self.firmware;
        let boot = self.boot_arguments()?;
        let mut arguments = vec![
            "-nodefaults".to_owned(),
            "-no-user-config".to_owned(),
            "-display".to_owned(),
            "none".to_owned(),
            "-machine".to_owned(),
            self.machine.clone(),
            "-chardev".to_owned(),
            format!("socket,id=qmp,fd={monitor}"),
            "-mon".to_owned(),
            "chardev=qmp,mode=control".to_owned(),
        ];
        if self.machine != "none" {
            arguments.extend(self.accelerator()?);
        }
        if has_guest {
            let agent = self.pass(agent);
            let console = self.fdset(File::create(folder.join("console"))?);
            arguments.extend(boot);
            let console = match self.operator.take() {
                Some(line) => {
                    let line = self.pass(line);
                    format!("socket,id=console,fd={line},logfile={console}")
                }
                None => format!("file,id=console,path={console}"),
            };
            let words = [
                "-chardev",
                &console,
                "-serial",
                "chardev:console",
                "-device",
                "virtio-serial-pci,id=ports",
                "-chardev",
                &format!("socket,id=agent,fd={agent}"),
                "-device",
                "virtserialport,bus=ports.0,chardev=agent,name=org.sesame.guest",
            ];
            arguments.extend(words.map(str::to_owned));
        }
        if self.paused {
            arguments.push("-S".to_owned());
        }
        stray::keep_from_children();
        let mut command = self.program();
        if let Some(place) = &self.place {
            command.current_dir(place);
        }
        command
            .args(arguments)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("stderr"))?);
        let mappings = (FIRST_FD..)
            .zip(self.passed)
            .chain((FIRST_LEFT..).zip(self.left.into_iter().map(|(_, fd)| fd)))
            .map(|(child_fd, parent_fd)| FdMapping {
                parent_fd,
                child_fd,
            })
            .collect();
        command.fd_mappings(mappings)?;
        Ok(command)
    }

    /// The program; where fds are left for it, by a shell, which alone knows its process id.
    fn program(&self) -> Command {
        if self.left.is_empty() {
            return Command::new(&self.vmm.program);
        }
        let names: Vec<&str> = self.left.iter().map(|(name, _)| name.as_str()).collect();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(&self.vmm.program)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        shell
    }

    fn accelerator(&mut self) -> Result<Vec<String>> {
        let accelerator = if self.vmm.is_qemu {
            "kvm".to_owned()
        } else {
            let kvm = fds::open_rw(Path::new("/dev/kvm"))?;
            format!("kvm,device={}", self.fdset(kvm))
        };
        let cpus = self.cpus.to_string();
        let words = [
            "-accel",
            &accelerator,
            "-cpu",
            "host",
            "-smp",
            &cpus,
            "-m",
            &self.memory,
        ];
        Ok(words.map(str::to_owned).to_vec())
    }

    fn boot_arguments(&mut self) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let files = [
            ("-kernel", self.kernel.clone()),
            ("-initrd", self.initrd.clone()),
        ];
        for (option, path) in files {
            let Some(path) = path else { continue };
            let name = if self.vmm.is_qemu {
                path.display().to_string()
            } else {
                self.fdset(fds::open_ro(&path)?)
            };
            arguments.extend([option.to_owned(), name]);
        }
        if self.kernel.is_some() {
            arguments.extend(["-append".to_owned(), self.append.clone()]);
        }
        Ok(arguments)
    }
}
