//! What a VM is started with: options, passed fds, what it boots.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use command_fds::{CommandFdExt, FdMapping};
use serde_json::json;

use super::{Vm, Vmm, read_lossy, variable, wait_exit};
use crate::fds;
use crate::guest::Guest;
use crate::qmp::Client;
use crate::stray;

/// The first number that passed fds get in the VMM.
const FIRST_FD: i32 = 20;
/// The number of the first fd that is left by socket activation.
const FIRST_LEFT: i32 = 3;
/// The shortest firmware that QEMU takes, and where it begins to run, before its end.
const FIRMWARE_LEN: usize = 64 << 10;
const RESET: usize = 16;
/// `cli`, `hlt`, and back to the latter.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

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
    /// Who drives the machine in place of its CPUs.
    tester: Option<UnixStream>,
    arguments: Vec<String>,
    passed: Vec<OwnedFd>,
    /// Fds by socket activation, with their names.
    left: Vec<(String, OwnedFd)>,
    /// Where the VMM runs.
    place: Option<PathBuf>,
    sets: u32,
    paused: bool,
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
            tester: None,
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

    /// Has the other end of `line` drive the machine in place of its CPUs, by the qtest protocol.
    pub fn tested_over(&mut self, line: UnixStream) {
        self.tester = Some(line);
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
            arguments.extend(self.accelerator(folder)?);
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

    fn accelerator(&mut self, folder: &Path) -> Result<Vec<String>> {
        let mut arguments = match self.tester.take() {
            Some(line) => self.tested(line, folder)?,
            None if self.vmm.is_qemu => vec!["-accel".to_owned(), "kvm".to_owned()],
            None => self.accelerated_by("kvm")?,
        };
        let cpus = self.cpus.to_string();
        let words = ["-cpu", "host", "-smp", &cpus, "-m", &self.memory];
        arguments.extend(words.map(str::to_owned));
        Ok(arguments)
    }

    fn accelerated_by(&mut self, name: &str) -> Result<Vec<String>> {
        let kvm = self.fdset(fds::open_rw(Path::new("/dev/kvm"))?);
        Ok(vec!["-accel".to_owned(), format!("{name},device={kvm}")])
    }

    /// A machine whose CPUs do nothing. Distributions build QEMU without the accelerator for this:
    /// its CPU finds a firmware that halts.
    fn tested(&mut self, line: UnixStream, folder: &Path) -> Result<Vec<String>> {
        let mut arguments = if self.vmm.is_qemu {
            let halting = folder.join("halting");
            let mut bytes = vec![0; FIRMWARE_LEN];
            bytes[FIRMWARE_LEN - RESET..][..HALT.len()].copy_from_slice(&HALT);
            fs::write(&halting, bytes)?;
            let halting = halting.display().to_string();
            ["-accel", "kvm", "-bios", &halting]
                .map(str::to_owned)
                .to_vec()
        } else {
            self.accelerated_by("qtest")?
        };
        // QEMU looks for a chardev of this name, whatever its option says.
        let line = format!("socket,id=qtest,fd={}", self.pass(line));
        let words = [
            "-chardev",
            &line,
            "-qtest",
            "chardev:qtest",
            "-qtest-log",
            "none",
        ];
        arguments.extend(words.map(str::to_owned));
        Ok(arguments)
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
