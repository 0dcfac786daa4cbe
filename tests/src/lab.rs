//! The lab: a machine with a working KVM, made of software.
//!
//! ```text
//!   Lab::boot ──► qemu-system-x86_64 -accel tcg, an AMD CPU with SVM
//!                   ├─ kernel + initramfs (lab-init)
//!                   ├─ 9p: the host's root, read-only; the shared folders, writable
//!                   ├─ serial ──► console file, shown when the lab fails
//!                   └─ virtio-serial org.sesame.lab ──► socket pair ◄── Lab::run
//! ```
//!
//! One boot serves any number of commands. A lab CPU is 10 to 20 times slower than the host's:
//! compare only times that were taken in turns, and each in a fresh lab. Memory from which one
//! guest has run code is slow for the next: TCG looks at every write to it.
//!
//! What in the emulator's command line goes round a weakness of TCG says so in [`spawn`].
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::guest::frame::{self, Kind};
use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use serde_json::json;

use crate::artifacts::{self, Flavour, Kernel};
use crate::host_cpu;
use crate::initramfs;
use crate::tcg;

/// From power-on to a lab that takes commands; several times what it needs on a busy machine.
const BOOT_TIME: Duration = Duration::from_secs(120);
/// The number under which QEMU finds its end of the control socket.
const CONTROL_FD: i32 = 10;

/// All that TCG can do, but for the promise that string instructions are fast: TCG moves them
/// byte by byte, and a kernel that believes it clears pages that way. Hardware is fast at both.
const CPU: &str = "max,+svm,+npt,-erms,-fsrm";
/// `no_timer_check` and `tsc=reliable`: on a busy host both checks fail for no reason, and the
/// first of them ends in a panic.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check";

/// What lab to make.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// Memory of the lab machine in MiB.
    pub memory_mib: u32,
    /// Its CPUs.
    pub cpus: u32,
    /// Host folders that are writable in the lab, at their own paths.
    pub shares: Vec<PathBuf>,
    /// The static `lab-init`.
    pub init: PathBuf,
    /// Where the console goes.
    pub console: PathBuf,
    /// More QEMU arguments: a device to pass through, an IOMMU.
    pub devices: Vec<String>,
}

/// A running lab machine; powered off when dropped.
#[derive(Debug)]
pub struct Lab {
    qemu: Child,
    port: UnixStream,
    console: PathBuf,
}

/// The lab's kernel: a specially built one where it exists (`tests/lab/build-kernel`), else
/// Debian's.
pub fn kernel() -> Result<Kernel> {
    let built = [
        artifacts::cache()?.join("lab/bzImage"),
        PathBuf::from("/var/cache/kvm-lab/bzImage"),
    ];
    match built.into_iter().find(|path| path.exists()) {
        Some(image) => Ok(Kernel::monolithic(image)),
        None => artifacts::kernel(Flavour::Generic),
    }
}

impl Lab {
    /// Boots a lab and waits until it takes commands.
    pub fn boot(spec: &LabSpec) -> Result<Self> {
        let kernel = kernel()?;
        let image = initramfs::lab_image(&kernel, &spec.init, &share_lines(&spec.shares))?;
        if let Some(folder) = spec.console.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut initrd = tempfile::NamedTempFile::new()?;
        initrd.write_all(&image)?;
        File::create(&spec.console)?;
        let (port, theirs) = UnixStream::pair()?;
        let qemu = spawn(spec, &kernel.image, initrd.path(), theirs.into())?;
        let mut lab = Self {
            qemu,
            port,
            console: spec.console.clone(),
        };
        match lab.receive(Instant::now() + BOOT_TIME)? {
            (Kind::Ready, _) => Ok(lab),
            (kind, payload) => bail!(
                "the lab does not come up ({kind:?} {}); its console: {}",
                String::from_utf8_lossy(&payload),
                lab.console.display()
            ),
        }
    }

    /// Runs one command in `folder`; what it prints goes to `output`, standard error included.
    /// Returns its exit status as a shell would.
    pub fn run<S: AsRef<OsStr>>(
        &mut self,
        argv: &[S],
        folder: &Path,
        environment: &BTreeMap<String, String>,
        timeout: Duration,
        output: &mut dyn Write,
    ) -> Result<i32> {
        let argv: Vec<_> = argv
            .iter()
            .map(|word| word.as_ref().to_string_lossy().into_owned())
            .collect();
        let request = json!({"argv": argv, "cwd": folder, "env": environment}).to_string();
        frame::send(&mut self.port, Kind::Run, request.as_bytes())?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.receive(deadline)? {
                (Kind::Output, bytes) => {
                    output.write_all(&bytes)?;
                    output.flush()?;
                }
                (Kind::Exit, status) => {
                    return Ok(String::from_utf8_lossy(&status).parse()?);
                }
                (Kind::Failed, why) => bail!("{}", String::from_utf8_lossy(&why)),
                (kind, _) => bail!("the lab sent {kind:?} while a command ran"),
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<(Kind, Vec<u8>)> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.port
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match frame::receive(&mut self.port) {
            Ok(frame) => Ok(frame),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                bail!(
                    "the lab took too long; its console ends:\n{}",
                    self.console_end()
                )
            }
            Err(_) => {
                let status = self.qemu.wait()?;
                bail!(
                    "the lab died ({status}); its console ends:\n{}",
                    self.console_end()
                )
            }
        }
    }

    /// The last lines of the console; the whole of it stays in its file.
    fn console_end(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Nothing in the lab outlives it, so there is nothing to shut down in order.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn share_lines(shares: &[PathBuf]) -> String {
    shares
        .iter()
        .enumerate()
        .map(|(index, folder)| format!("share{index}={}\n", folder.display()))
        .collect()
}

/// Starts the emulator, with two precautions against a busy host.
///
/// *One CPU of the host* for all its threads (while the lab has one). QEMU's helpers for VMRUN and
/// #VMEXIT change the word of requested interrupts without the lock under which the timer thread
/// sets bits in it, so with two CPUs a timer interrupt is lost now and then. It stays in the
/// LAPIC's IRR where nothing looks, the next tick is armed by the one that is lost, and while the
/// guest's vCPU spins for another vCPU (`stop_machine`, a lock) the whole lab stands still. On one
/// CPU the threads take turns, and a turn all but never ends in the middle of that change.
///
/// *The counter's rate* is told: a kernel that counts it against the PIT while other programs have
/// the host's CPU can come out wrong by a factor of four, and with it every time-out in the lab.
fn spawn(spec: &LabSpec, kernel: &Path, initrd: &Path, control: OwnedFd) -> Result<Child> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35,kernel-irqchip=split", "-cpu", CPU])
        .args(["-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot"])
        .args(["-display", "none"])
        .args(["-smp", &spec.cpus.to_string()])
        .args(["-m", &spec.memory_mib.to_string()])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!(
            "{COMMAND_LINE} tsc_early_khz={}",
            host_cpu::tsc_khz()
        ))
        .arg("-serial")
        .arg(format!("file:{}", spec.console.display()))
        .arg("-chardev")
        .arg(format!("socket,id=control,fd={CONTROL_FD}"))
        .args(["-device", "virtio-serial-pci"])
        .args([
            "-device",
            "virtserialport,chardev=control,name=org.sesame.lab",
        ])
        .args(["-device", "virtio-rng-pci"]);
    share(&mut qemu, "root", Path::new("/"), true);
    for (index, folder) in spec.shares.iter().enumerate() {
        share(&mut qemu, &format!("share{index}"), folder, false);
    }
    if let Some(folder) = tcg::mended(&artifacts::cache()?)? {
        qemu.env("QEMU_MODULE_DIR", folder);
    }
    qemu.args(&spec.devices)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .fd_mappings(vec![FdMapping {
            parent_fd: control,
            child_fd: CONTROL_FD,
        }])?;
    let started = if spec.cpus == 1 {
        host_cpu::on_one_cpu(|| qemu.spawn())?
    } else {
        qemu.spawn()
    };
    started.context(
        "run qemu-system-x86_64, which the lab is made of (Debian: apt-get install qemu-system-x86)",
    )
}

fn share(qemu: &mut Command, tag: &str, folder: &Path, read_only: bool) {
    // QEMU's option syntax doubles a comma that is meant.
    let path = folder.display().to_string().replace(',', ",,");
    let rest = if read_only { ",readonly=on" } else { "" };
    qemu.arg("-virtfs").arg(format!(
        "local,path={path},mount_tag={tag},security_model=none,multidevs=remap{rest}"
    ));
}
