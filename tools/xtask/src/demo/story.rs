//! The demo's manager: it may open files, Sesame may not.
//!
//! ```text
//!   this program (root)                          sesame (nobody)
//!     opens /dev/kvm, kernel, initrd, log ──────► -add-fd fd=N,set=M
//!     socket pair ──────────────────────────────► -chardev socket,fd=N   the monitor
//!     opens disk.raw ── add-fd, SCM_RIGHTS ─────► /dev/fdset/9 ► blockdev-add ► device_add
//!     opens late.raw ── getfd, SCM_RIGHTS ──────► fd:late      ► the same, guest running
//! ```
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use guest::pattern;
use serde_json::{Value, json};
use tests::fds::{image, open_ro, open_rw};
use tests::guest::Guest;
use tests::qmp::Client;
use tests::vm::Vmm;

use super::show::Show;

const MIB: u64 = 1 << 20;
/// The account that owns nothing, on every Debian.
const NOBODY: u32 = 65534;
/// Long enough for Linux to give a slot up (5 s) or to power off, in a slow lab.
const SOON: Duration = Duration::from_secs(60);
const LETTER: &str = "written by the guest, through an fd\n";
const SEED: u64 = 2026;
/// How long a disk is.
const DISK: u64 = 64 * MIB;
/// How much the guest writes to the second disk, and where: first, and into its snapshot.
const WRITTEN: u64 = 4 * MIB;
const EARLY: u64 = MIB;
const LATER: u64 = 16 * MIB;
/// Where the files begin among the VMM's fds; the sockets come first and are in no set.
const FIRST_FD: i32 = 20;
const SOCKETS: usize = 2;

/// A VMM that was started with nothing but fds.
struct Machine {
    child: Child,
    qmp: Client,
    guest: Guest,
    is_sesame: bool,
}

pub(crate) fn tell(show: &Show, vmm: &Path, kernel: &Path, initrd: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    show.chapter("The manager makes two disks that only it can open");
    let disk = folder.path().join("disk.raw");
    let late = folder.path().join("late.raw");
    make_disks(&disk, &late)?;

    show.chapter("It starts sesame as nobody, paused, sealed, with every file as an fd");
    let mut machine = start(show, folder.path(), vmm, kernel, initrd)?;
    show.follow(&mut machine.qmp);
    machine.qmp.negotiate()?;
    if machine.is_sesame {
        show.note("it has given up the right to open anything, in every thread:");
        machine.qmp.execute("query-sandbox", json!({}))?;
    }
    show_process(show, &machine)?;

    show.chapter("It hands the disk over the monitor and plugs it in");
    add_disk(show, &mut machine, "disk", &disk, "port0")?;

    show.chapter("It lets the guest run: Debian's stock cloud kernel boots");
    machine.qmp.execute("cont", json!({}))?;
    let ready = machine.guest.wait_ready()?;
    show.note(&format!(
        "guest: Linux {} is up, init started {} ms after the kernel",
        ready["kernel"].as_str().unwrap_or_default(),
        ready["init-ns"].as_u64().unwrap_or_default() / 1_000_000
    ));

    show.chapter("The guest mounts the disk and writes to it");
    write_letter(show, &mut machine)?;

    show.chapter("A second disk arrives while the guest runs, and is used");
    add_disk(show, &mut machine, "late", &late, "port1")?;
    use_late_disk(show, &mut machine, EARLY)?;
    if machine.is_sesame {
        show.chapter("A snapshot of it is taken, written to, and committed, by fds alone");
        take_snapshot(show, &mut machine)?;
        use_late_disk(show, &mut machine, LATER)?;
        commit_snapshot(show, &mut machine)?;
    }
    show.chapter("The second disk goes again");
    remove_disk(show, &mut machine, "late")?;
    machine.qmp.execute("query-fdsets", json!({}))?;

    show.chapter("The power button is pressed, and the guest powers off");
    machine.qmp.execute("system_powerdown", json!({}))?;
    machine.qmp.event("SHUTDOWN", SOON)?;
    let status = machine.child.wait()?;
    show.note(&format!("sesame ended: {status}"));
    ensure!(status.success(), "sesame ended with {status}");

    show.chapter("On the host, the bytes are where the guest put them");
    let written: &[_] = if machine.is_sesame {
        &[EARLY, LATER]
    } else {
        &[EARLY]
    };
    verify(show, &disk, &late, written)?;
    let console = fs::read_to_string(folder.path().join("console.log"))?;
    ensure!(!console.is_empty(), "the console log is empty");
    show.note(&format!(
        "console log: {} bytes, through its fd",
        console.len()
    ));
    show.chapter("The main job is done");
    Ok(())
}

/// `disk` with an ext4 file system, `late` empty; readable by their owner alone.
fn make_disks(disk: &Path, late: &Path) -> Result<()> {
    for path in [disk, late] {
        let file = File::create(path)?;
        file.set_len(DISK)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    let output = system("mkfs.ext4").args(["-q", "-F"]).arg(disk).output()?;
    ensure!(
        output.status.success(),
        "mkfs.ext4: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Starts the VMM: [`FIRST_FD`] and up are the files, in the order in which they are named here.
fn start(show: &Show, folder: &Path, vmm: &Path, kernel: &Path, initrd: &Path) -> Result<Machine> {
    let (monitor, monitor_end) = UnixStream::pair()?;
    let (agent, agent_end) = UnixStream::pair()?;
    let console = File::create(folder.join("console.log"))?;
    let vmm = Vmm::at(vmm);
    let mut files: Vec<(&str, OwnedFd)> = vec![
        ("the monitor's socket", monitor_end.into()),
        ("the guest agent's socket", agent_end.into()),
        ("console.log", console.into()),
        ("/dev/kvm", open_rw(Path::new("/dev/kvm"))?.into()),
        ("the kernel", open_ro(kernel)?.into()),
        ("the initrd", open_ro(initrd)?.into()),
    ];
    // QEMU 7.2, which can stand in here, takes neither KVM nor a kernel as an fd.
    let (accel, kernel, initrd) = if vmm.is_qemu {
        files.truncate(3);
        let path = |file: &Path| file.display().to_string();
        ("kvm".to_owned(), path(kernel), path(initrd))
    } else {
        let set = |number: u32| format!("/dev/fdset/{number}");
        (format!("kvm,device={}", set(2)), set(3), set(4))
    };
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    for (number, name) in (FIRST_FD..).zip(&names) {
        show.note(&format!("fd {number}: {name}"));
    }
    let mut arguments = machine_options(&accel, &kernel, &initrd);
    if !vmm.is_qemu {
        arguments.extend(["-open-policy", "sealed"].map(str::to_owned));
    }
    for set in 1..=names.len().saturating_sub(SOCKETS) {
        let number = usize::try_from(FIRST_FD)? + SOCKETS + set - 1;
        arguments.extend(["-add-fd".to_owned(), format!("fd={number},set={set}")]);
    }
    let program = match vmm.is_qemu {
        true => vmm.program.clone(),
        false => for_everyone(folder, &vmm.program)?,
    };
    show.note(&format!(
        "{} {}",
        vmm.program.display(),
        arguments.join(" ")
    ));
    let mut command = in_the_void(&program, !vmm.is_qemu);
    command.args(&arguments);
    let mappings = (FIRST_FD..)
        .zip(files)
        .map(|(child_fd, (_, parent_fd))| FdMapping {
            parent_fd,
            child_fd,
        })
        .collect();
    command.fd_mappings(mappings)?;
    Ok(Machine {
        child: command.spawn().context("start sesame")?,
        qmp: Client::new(monitor)?,
        guest: Guest::new(agent)?,
        is_sesame: !vmm.is_qemu,
    })
}

/// A program with nothing around it: no environment, no folder, no streams, and for root's sake
/// no rights.
fn in_the_void(program: &Path, as_nobody: bool) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if nix::unistd::geteuid().is_root() && as_nobody {
        // Setting the uid as root also drops all supplementary groups.
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// What the VMM is told, but for the fd sets: the options may name those before they are given.
fn machine_options(accel: &str, kernel: &str, initrd: &str) -> Vec<String> {
    let mut arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-S"].to_vec();
    for (option, value) in [
        ("-machine", "q35"),
        ("-accel", accel),
        ("-cpu", "host"),
        ("-smp", "2"),
        ("-m", "256"),
        ("-kernel", kernel),
        ("-initrd", initrd),
        ("-append", "console=ttyS0 panic=-1"),
        ("-chardev", "socket,id=monitor,fd=20"),
        ("-mon", "chardev=monitor,mode=control"),
        ("-chardev", "file,id=console,path=/dev/fdset/1"),
        ("-serial", "chardev:console"),
        ("-device", "virtio-serial-pci,id=ports"),
        ("-chardev", "socket,id=agent,fd=21"),
        (
            "-device",
            "virtserialport,bus=ports.0,chardev=agent,name=org.sesame.guest",
        ),
        ("-device", "pcie-root-port,id=port0,chassis=0,slot=1"),
        ("-device", "pcie-root-port,id=port1,chassis=0,slot=2"),
    ] {
        arguments.extend([option, value]);
    }
    arguments.into_iter().map(str::to_owned).collect()
}

/// A copy of the program where nobody may reach it: its own folder may be closed to others.
fn for_everyone(folder: &Path, program: &Path) -> Result<PathBuf> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
    let copy = folder.join("sesame");
    fs::copy(program, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// Who the process is and what it holds, as the kernel says.
fn show_process(show: &Show, machine: &Machine) -> Result<()> {
    let process = format!("/proc/{}", machine.child.id());
    let status = fs::read_to_string(format!("{process}/status"))?;
    for line in status
        .lines()
        .filter(|line| line.starts_with("Uid:") || line.starts_with("Groups:"))
    {
        show.note(&line.replace('\t', " "));
    }
    let mut held: Vec<_> = fs::read_dir(format!("{process}/fd"))?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|path| path.display().to_string())
        .filter(|name| name.starts_with('/'))
        .collect();
    held.sort();
    held.dedup();
    show.note(&format!("files it holds: {}", held.join(" ")));
    Ok(())
}

/// The guest mounts the first disk and leaves the letter there.
fn write_letter(show: &Show, machine: &mut Machine) -> Result<()> {
    let name = machine.guest.disk("disk")?;
    let mount = json!({"device": name, "kind": "ext4", "path": "/mnt"});
    ask(show, machine, "mount", mount)?;
    let letter = json!({"path": "/mnt/letter", "text": LETTER});
    ask(show, machine, "write-file", letter)?;
    ask(show, machine, "read-file", json!({"path": "/mnt/letter"}))?;
    ask(show, machine, "unmount", json!({"path": "/mnt"}))
}

/// The guest writes the pattern that [`verify`] looks for.
fn use_late_disk(show: &Show, machine: &mut Machine, offset: u64) -> Result<()> {
    let name = machine.guest.disk("late")?;
    let range = json!({"disk": name, "offset": offset, "length": WRITTEN, "seed": SEED});
    ask(show, machine, "disk-write", range.clone())?;
    ask(show, machine, "disk-verify", range)
}

/// Hands in an empty image, and has the guest's writes go there from now on.
fn take_snapshot(show: &Show, machine: &mut Machine) -> Result<()> {
    let overlay = image(DISK)?;
    show.hand("an empty qcow2 image");
    let name = json!({"fdname": "overlay"});
    machine
        .qmp
        .execute_with("getfd", name, &[overlay.as_fd()])?;
    let snapshot = json!({"type": "blockdev-snapshot-sync", "data": {"node-name": "late",
        "snapshot-file": "fd:overlay", "snapshot-node-name": "overlay", "format": "qcow2",
        "mode": "existing"}});
    machine
        .qmp
        .execute("transaction", json!({"actions": [snapshot]}))?;
    Ok(())
}

/// Brings what went to the image home to the disk, which the guest then writes to again.
fn commit_snapshot(show: &Show, machine: &mut Machine) -> Result<()> {
    let job = json!({"device": "overlay", "job-id": "home"});
    machine.qmp.execute("block-commit", job)?;
    machine.qmp.event("BLOCK_JOB_READY", SOON)?;
    machine.qmp.execute("job-complete", json!({"id": "home"}))?;
    let done = machine.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    ensure!(done["data"]["error"].is_null(), "the commit failed: {done}");
    show.note("late.raw holds it all, and the image is closed");
    Ok(())
}

/// Hands in a disk, makes a block node of it, and plugs it into a port.
fn add_disk(show: &Show, machine: &mut Machine, id: &str, path: &Path, port: &str) -> Result<()> {
    let file = open_rw(path)?;
    show.hand(&path.file_name().unwrap_or_default().display().to_string());
    let filename = if id == "late" && machine.is_sesame {
        let name = json!({"fdname": id});
        machine.qmp.execute_with("getfd", name, &[file.as_fd()])?;
        format!("fd:{id}")
    } else {
        let set = machine
            .qmp
            .execute_with("add-fd", json!({}), &[file.as_fd()])?;
        format!("/dev/fdset/{}", set["fdset-id"])
    };
    machine.qmp.execute(
        "blockdev-add",
        json!({"driver": "raw", "node-name": id, "file": {"driver": "file", "filename": filename}}),
    )?;
    machine.qmp.execute(
        "device_add",
        json!({"driver": "virtio-blk-pci", "id": id, "drive": id, "serial": id, "bus": port}),
    )?;
    Ok(())
}

/// Unplugs a disk: the guest is asked, and says when it has let go.
fn remove_disk(show: &Show, machine: &mut Machine, id: &str) -> Result<()> {
    machine.qmp.execute("device_del", json!({"id": id}))?;
    show.note("the guest's slot waits 5 s for a second thought, as hardware does");
    machine.qmp.event_where("DEVICE_DELETED", SOON, |event| {
        event["data"]["device"] == id
    })?;
    machine.guest.disk_gone(id)?;
    machine
        .qmp
        .execute("blockdev-del", json!({"node-name": id}))?;
    Ok(())
}

/// Asks the guest, and shows both sides.
fn ask(show: &Show, machine: &mut Machine, call: &str, arguments: Value) -> Result<()> {
    let answer = machine.guest.call(call, arguments.clone())?;
    show.note(&format!("guest: {call} {arguments} = {answer}"));
    Ok(())
}

/// The letter as debugfs reads it from the image, and the pattern at its place.
fn verify(show: &Show, disk: &Path, late: &Path, written: &[u64]) -> Result<()> {
    let check = system("e2fsck").args(["-f", "-n"]).arg(disk).output()?;
    ensure!(
        check.status.success(),
        "e2fsck: {}",
        String::from_utf8_lossy(&check.stdout)
    );
    let cat = system("debugfs")
        .args(["-R", "cat /letter"])
        .arg(disk)
        .output()?;
    let letter = String::from_utf8_lossy(&cat.stdout).into_owned();
    ensure!(letter == LETTER, "the letter reads {letter:?}");
    show.note(&format!(
        "disk.raw: e2fsck finds it clean, /letter says {letter:?}"
    ));
    let late = open_ro(late)?;
    let mut bytes = vec![0; usize::try_from(WRITTEN)?];
    for &offset in written {
        late.read_exact_at(&mut bytes, offset)?;
        let difference = pattern::first_difference(&bytes, SEED, offset);
        ensure!(
            difference.is_none(),
            "late.raw differs at byte {difference:?}"
        );
    }
    let mib = WRITTEN * written.len() as u64 / MIB;
    show.note(&format!(
        "late.raw: {mib} MiB of pattern, every byte as written"
    ));
    Ok(())
}

/// A program that administrators have on their path.
fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}
