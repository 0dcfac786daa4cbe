//! Process 1 of the lab machine: shows the host's root file system (read-only, by 9p) under a
//! private overlay, and runs in it what the host asks for, one command at a time.
//!
//! ```text
//!   /            initramfs: this program, /modules
//!   /low         the host's root, by 9p, read-only
//!   /up          tmpfs: everything the commands write
//!   /root        overlay of both; commands run in here
//!   /root/DIR    each folder shared writable, by 9p
//! ```
#![expect(
    clippy::disallowed_methods,
    reason = "a guest opens its own files: the rule of the one open is about the host"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use guest::boot::{self, mount_at};
use guest::frame::{self, Kind};
use guest::port;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::RebootMode;
use serde_json::Value;

/// The port the host listens on.
const PORT: &str = "org.sesame.lab";
/// 9p over virtio, with messages large enough that a program loads in a few of them.
const NINE_P: &str = "trans=virtio,version=9p2000.L,msize=512000";
const ROOT: &str = "/root";

fn main() {
    let error = match live() {
        Ok(()) => boot::leave(RebootMode::RB_POWER_OFF),
        Err(error) => error,
    };
    eprintln!("lab-init: {error}");
    let _ = boot::leave(RebootMode::RB_POWER_OFF);
}

fn live() -> io::Result<()> {
    boot::mount_kernel_filesystems()?;
    boot::load_modules(boot::AT_ONCE)?;
    let mut port = port::open(PORT)?;
    if let Err(error) = build_root() {
        frame::send(&mut port, Kind::Failed, error.to_string().as_bytes())?;
        return Err(error);
    }
    become_root()?;
    loopback_up();
    frame::send(&mut port, Kind::Ready, b"")?;
    serve(&port)
}

fn build_root() -> io::Result<()> {
    mount_at("9p", "root", "/low", &format!("ro,{NINE_P},cache=loose"))?;
    mount_at("tmpfs", "tmpfs", "/up", "size=75%")?;
    fs::create_dir_all("/up/u")?;
    fs::create_dir_all("/up/w")?;
    let layers = "lowerdir=/low,upperdir=/up/u,workdir=/up/w";
    mount_at("overlay", "overlay", ROOT, layers)?;
    mount_at("proc", "proc", "/root/proc", "")?;
    mount_at("sysfs", "sysfs", "/root/sys", "")?;
    let none: Option<&str> = None;
    mount(Some("/dev"), "/root/dev", none, MsFlags::MS_BIND, none)?;
    mount_at("devpts", "devpts", "/root/dev/pts", "ptmxmode=666")?;
    for folder in ["/root/dev/shm", "/root/run"] {
        mount_at("tmpfs", "tmpfs", folder, "mode=1777")?;
    }
    for share in shares()? {
        let (tag, folder) = share
            .split_once('=')
            .ok_or_else(|| io::Error::other(format!("lab share {share}: want TAG=FOLDER")))?;
        let target = format!("{ROOT}{folder}");
        mount_at("9p", tag, &target, &format!("{NINE_P},cache=mmap"))?;
    }
    Ok(())
}

/// Puts the new root over the old, and steps in. A chroot alone would not do: whoever enters a
/// mount namespace of the lab (libvirt does) gets its root, which must be this one.
fn become_root() -> io::Result<()> {
    std::env::set_current_dir(ROOT)?;
    let none: Option<&str> = None;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")
}

/// The host lists the writable shares as `TAG=FOLDER` lines in the initramfs.
fn shares() -> io::Result<Vec<String>> {
    Ok(fs::read_to_string("/shares")?
        .lines()
        .map(str::to_owned)
        .collect())
}

fn loopback_up() {
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .status();
    if !up.is_ok_and(|status| status.success()) {
        eprintln!("lab-init: lo stays down (no iproute2 on the host?)");
    }
}

fn serve(port: &File) -> io::Result<()> {
    // `Ready` was only taken by a host that is there: an end of file now means that it has gone,
    // and the lab goes with it.
    let mut port = port.try_clone()?;
    loop {
        match frame::receive(&mut port)? {
            (Kind::Run, payload) => match run(&mut port, &payload) {
                Ok(status) => frame::send(&mut port, Kind::Exit, status.to_string().as_bytes())?,
                Err(error) => frame::send(&mut port, Kind::Failed, error.to_string().as_bytes())?,
            },
            (Kind::Leave, _) => return Ok(()),
            (kind, _) => return Err(io::Error::other(format!("the host sent {kind:?}"))),
        }
    }
}

/// Runs one command and passes on what it prints; returns its exit status as a shell would.
fn run(port: &mut File, request: &[u8]) -> io::Result<i32> {
    let request: Value = serde_json::from_slice(request)?;
    let words = |key: &str| -> Vec<String> {
        let list = request[key].as_array().cloned().unwrap_or_default();
        list.iter()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let argv = words("argv");
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::other("no command"))?;
    let environment: BTreeMap<String, String> = request["env"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let (mut output, printed) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(request["cwd"].as_str().unwrap_or("/"))
        .stdin(Stdio::null())
        .stdout(printed.try_clone()?)
        .stderr(printed);
    let mut child = command
        .spawn()
        .map_err(|error| io::Error::other(format!("cannot run {program}: {error}")))?;
    // The command holds the pipe's other end: with it goes the last writer of this process.
    drop(command);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        frame::send(port, Kind::Output, buffer.get(..count).unwrap_or_default())?;
    }
    let status = child.wait()?;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
