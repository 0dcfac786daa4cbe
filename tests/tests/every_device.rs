//! One guest with everything: two network cards, sockets, a share, a TPM, three disks and a CD. UEFI
//! firmware boots it; each device is used, before and after a reboot; all that can go goes, comes
//! again, and leaves nothing behind.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make what they hand in"
)]

use std::env;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use ::guest::pattern;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::backends::{self, ADDRESS, Outside, Program};
use tests::cable::Cable;
use tests::fds::Usage;
use tests::network::Peer;
use tests::vm::variable;
use tests::{Vm, fds, inspect};

const MIB: u64 = 1 << 20;
/// A few rounds tell of a leak; `SESAME_ROUNDS` asks for more.
const ROUNDS: u32 = 3;
/// Linux waits 5 s after the attention button before it lets a slot go.
const GONE: Duration = Duration::from_secs(120);
/// Firmware is slow where the processor is emulated, and other work is done there.
const FIRMWARE_TIME: Duration = Duration::from_secs(400);
const UP: &str = "guest-init: up";
const MAC: &str = "52:54:00:77:99:02";
const CD_SEED: u64 = 9;
/// Less than any process holds: who waits for it sees all go that goes.
const NOTHING: Usage = Usage {
    fds: 0,
    threads: 0,
    mappings: 0,
};
const DISKS: [&str; 3] = ["disk4", "disk5", "disk6"];
/// What is taken away, in this order: the drive before its controller.
const DEVICES: [&str; 9] = [
    "card", "passt", "sockets", "share", "disk4", "disk5", "disk6", "cd", "scsi",
];

/// What the guest's devices lead to.
struct Host {
    cable: Cable,
    outside: Outside,
    peer: Peer,
    shared: TempDir,
    cd: File,
}

impl Host {
    fn new() -> Result<Self> {
        let shared = tempfile::tempdir()?;
        std::fs::write(shared.path().join("hello"), "from this machine")?;
        let mut bytes = vec![0; usize::try_from(MIB)?];
        pattern::fill(&mut bytes, CD_SEED, 0);
        let cd = tempfile::NamedTempFile::new()?;
        std::fs::write(cd.path(), bytes)?;
        Ok(Self {
            cable: Cable::new(31, 4)?,
            outside: Outside::new()?,
            peer: Peer::vsock(7731)?,
            shared,
            cd: fds::open_ro(cd.path())?,
        })
    }

    /// Plugs everything in; the programs that serve some of it.
    fn plug(&self, vm: &mut Vm) -> Result<Vec<Program>> {
        self.cable.plug(vm, &json!({}))?;
        let (passt, connection) = self.outside.passt()?;
        named(vm, "passt", connection)?;
        let address = json!({"type": "fd", "str": "passt"});
        let netdev = json!({"type": "stream", "id": "passt", "addr": address});
        vm.execute("netdev_add", netdev)?;
        let card = json!({"driver": "virtio-net-pci", "netdev": "passt", "mac": MAC});
        device(vm, "passt", 1, card)?;
        named(vm, "vsock", fds::open_rw(Path::new("/dev/vhost-vsock"))?)?;
        let sockets = json!({"driver": "vhost-vsock-pci", "guest-cid": 31, "vhostfd": "vsock"});
        device(vm, "sockets", 2, sockets)?;
        let (files, connection) = backends::virtiofsd(self.shared.path())?;
        named(vm, "share", connection)?;
        let address = json!({"type": "fd", "data": {"str": "share"}});
        let socket = json!({"type": "socket", "data": {"addr": address, "server": false}});
        vm.execute("chardev-add", json!({"id": "share", "backend": socket}))?;
        let share = json!({"driver": "vhost-user-fs-pci", "chardev": "share", "tag": "share"});
        device(vm, "share", 3, share)?;
        for (port, id) in (4..).zip(DISKS) {
            node(vm, id, &fds::disk(MIB)?, false)?;
            let disk = json!({"driver": "virtio-blk-pci", "drive": id, "serial": id});
            device(vm, id, port, disk)?;
        }
        device(vm, "scsi", 7, json!({"driver": "virtio-scsi-pci"}))?;
        node(vm, "cd", &self.cd, true)?;
        let cd = json!({"driver": "scsi-cd", "id": "cd", "bus": "scsi.0", "drive": "cd"});
        vm.execute("device_add", cd)?;
        Ok(vec![passt, files])
    }

    /// Uses each.
    fn make_use(&self, vm: &mut Vm) -> Result<()> {
        self.cable.configure(vm)?;
        self.cable.use_it(vm, 64 << 10, 4)?;
        let guest = vm.guest_port();
        let card = guest.call("card-wait", json!({"mac": MAC, "seconds": 60}))?;
        let lease = guest.call("card-dhcp", json!({"card": card, "mac": MAC}))?;
        ensure!(lease["address"] == ADDRESS.to_string(), "{lease}");
        guest.call("vsock-wait", json!({"seconds": 60}))?;
        self.peer.exchange(guest, 64 << 10, 1)?;
        let share = json!({"tag": "share", "path": "/share", "seconds": 60});
        guest.call("mount-share", share)?;
        let hello = guest.call("read-file", json!({"path": "/share/hello"}))?;
        assert_eq!(hello, "from this machine");
        guest.call("unmount", json!({"path": "/share"}))?;
        for id in DISKS {
            let name = guest.disk(id)?;
            let range = json!({"disk": name, "offset": 0, "length": 64 << 10, "seed": 5});
            guest.call("disk-write", range.clone())?;
            guest.call("disk-verify", range)?;
        }
        guest.disk_of_size("", MIB)?;
        let range = json!({"disk": "sr0", "offset": 0, "length": MIB, "seed": CD_SEED});
        guest.call("disk-verify", range)?;
        let version = json!({"path": "/sys/class/tpm/tpm0/tpm_version_major"});
        assert_eq!(guest.call("read-file", version)?, "2\n");
        Ok(())
    }
}

fn named(vm: &mut Vm, name: &str, fd: impl Into<OwnedFd>) -> Result<()> {
    let fd = fd.into();
    vm.qmp
        .execute_with("getfd", json!({"fdname": name}), &[fd.as_fd()])?;
    Ok(())
}

fn device(vm: &mut Vm, id: &str, port: u32, mut options: Value) -> Result<()> {
    options["id"] = id.into();
    options["bus"] = format!("port{port}").into();
    vm.execute("device_add", options)?;
    Ok(())
}

fn node(vm: &mut Vm, id: &str, file: &File, read_only: bool) -> Result<()> {
    let set = vm.qmp.execute_with("add-fd", json!({}), &[file.as_fd()])?;
    let filename = format!("/dev/fdset/{}", set["fdset-id"]);
    let file = json!({"driver": "file", "filename": filename, "read-only": read_only});
    let node = json!({"driver": "raw", "node-name": id, "read-only": read_only, "file": file});
    vm.execute("blockdev-add", node)?;
    vm.execute("remove-fd", json!({"fdset-id": set["fdset-id"]}))?;
    Ok(())
}

/// Takes everything away, and what it led to.
fn unplug(vm: &mut Vm) -> Result<()> {
    for id in DEVICES {
        vm.execute("device_del", json!({"id": id}))?;
    }
    for id in DEVICES {
        let is_ours = |event: &Value| event["data"]["device"] == id;
        let gone = vm.qmp.event_where("DEVICE_DELETED", GONE, is_ours);
        gone.with_context(|| format!("{id} stays"))?;
    }
    for id in ["cable", "passt"] {
        vm.execute("netdev_del", json!({"id": id}))?;
    }
    for id in DISKS.iter().chain(&["cd"]) {
        vm.execute("blockdev-del", json!({"node-name": id}))?;
    }
    vm.execute("chardev-remove", json!({"id": "share"}))?;
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn everything_is_used_survives_a_reboot_and_comes_and_goes_without_a_trace() -> Result<()> {
    let rounds = match env::var("SESAME_ROUNDS") {
        Ok(text) => text.parse().context("SESAME_ROUNDS")?,
        Err(_) => ROUNDS,
    };
    let host = Host::new()?;
    let keys = tempfile::tempdir()?;
    let (_tpm, control) = backends::swtpm(keys.path())?;
    let mut builder = Vm::builder()
        .cpus(2)
        .root_ports(8)
        .memory("512")
        .machine("q35,memory-backend=ram")
        .firmware(fds::copy_of(&variable("SESAME_OVMF_VARS")?)?)?;
    let tpm = format!("socket,id=tpm,fd={}", builder.pass(control));
    let mut vm = builder
        .args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on"])
        .args(["-chardev", &tpm, "-tpmdev", "emulator,id=tpm,chardev=tpm"])
        .args(["-device", "tpm-crb,tpmdev=tpm"])
        .args(["-open-policy", "sealed"])
        .start()?;
    vm.wait_for_console(UP, 1, FIRMWARE_TIME)?;
    vm.guest()?;
    let first = host.plug(&mut vm)?;
    host.make_use(&mut vm)?;
    inspect::look_at_all(&mut vm)?;
    vm.guest()?.call("reboot", json!({}))?;
    vm.wait_for_console(UP, 2, FIRMWARE_TIME)?;
    vm.guest_port().wait_ready()?;
    host.make_use(&mut vm)?;
    unplug(&mut vm)?;
    drop(first);
    let before = vm.settled_usage(NOTHING)?;
    for round in 0..rounds {
        let serving = host.plug(&mut vm)?;
        host.make_use(&mut vm)
            .with_context(|| format!("round {round}"))?;
        unplug(&mut vm)?;
        drop(serving);
    }
    let after = vm.settled_usage(before)?;
    println!("before {rounds} rounds: {before}\nafter  {rounds} rounds: {after}");
    assert!(after.fds <= before.fds);
    assert!(after.threads <= before.threads);
    assert!(after.mappings <= before.mappings);
    vm.shutdown_clean()
}
