//! Programs of the distribution that serve a guest's devices, each over a connection that is handed
//! in: passt (user networking), virtiofsd (files), qemu-storage-daemon (a disk), swtpm (a TPM).
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt, FdMapping};

use crate::{network, tap};

/// The guest's address by passt, which is also the one that passt finds here.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The guest's router: passt leads what is meant for it to this machine itself.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The number that a program finds its socket under.
const SOCKET: i32 = 10;
/// Where QEMU's package has virtiofsd, and where a package of its own has it.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// A running program; ended when dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    fn start(mut command: Command, socket: impl Into<OwnedFd>) -> Result<Self> {
        command.stdin(Stdio::null()).fd_mappings(vec![FdMapping {
            parent_fd: socket.into(),
            child_fd: SOCKET,
        }])?;
        let name = command.get_program().to_owned();
        let child = command.spawn();
        let child = child.with_context(|| format!("run {}", name.display()))?;
        Ok(Self(child))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What passt gives a guest: an interface with a default route.
#[derive(Debug)]
pub struct Outside(#[expect(dead_code, reason = "the interface goes with it")] Vec<OwnedFd>);

impl Outside {
    /// Makes it; one at a time in this machine.
    pub fn new() -> Result<Self> {
        let tap = tap::queues("outside", 1)?;
        network::configure("outside", &format!("{ADDRESS}/24"))?;
        let router = ROUTER.to_string();
        network::ip(&["route", "add", "default", "via", &router, "dev", "outside"])?;
        Ok(Self(tap))
    }

    /// Starts a passt that serves one guest; the connection to it.
    pub fn passt(&self) -> Result<(Program, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("passt");
        command
            .args(["--foreground", "--quiet", "--one-off", "--ipv4-only"])
            .args(["--fd", &SOCKET.to_string()]);
        Ok((Program::start(command, theirs)?, ours))
    }
}

/// Starts a virtiofsd that shares `folder`; the connection to it.
pub fn virtiofsd(folder: &Path) -> Result<(Program, UnixStream)> {
    let place = tempfile::tempdir()?;
    let path = place.path().join("socket");
    let program = VIRTIOFSD.into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(program.context("no virtiofsd (package qemu-system-common)")?);
    command
        .args(["-f", &format!("--fd={SOCKET}"), "-o", "sandbox=chroot"])
        .args(["-o", &format!("source={}", folder.display())])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let program = Program::start(command, UnixListener::bind(&path)?)?;
    Ok((program, UnixStream::connect(path)?))
}

/// Starts a qemu-storage-daemon that serves the raw `image` as a disk to who calls at `path`, where
/// another one may have been before.
pub fn storage_daemon(image: &Path, path: &Path) -> Result<Program> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let file = format!("file,node-name=disk,filename={}", image.display());
    let export = format!("vhost-user-blk,id=disk,node-name=disk,addr.type=fd,addr.str={SOCKET}");
    let mut command = Command::new("qemu-storage-daemon");
    command
        .args(["--blockdev", &file])
        .args(["--export", &format!("{export},writable=on")]);
    Program::start(command, UnixListener::bind(path)?)
}

/// Starts a swtpm that keeps its state in `folder`; the connection for its control.
pub fn swtpm(folder: &Path) -> Result<(Program, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--tpmstate"])
        .arg(format!("dir={}", folder.display()))
        .args(["--ctrl", &format!("type=unixio,clientfd={SOCKET}")]);
    Ok((Program::start(command, theirs)?, ours))
}
