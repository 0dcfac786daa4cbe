//! Devices that other programs serve. In a sealed process a share of files by virtiofsd, and a TPM by
//! swtpm: all that they are met by is handed in. And a disk by qemu-storage-daemon, which another one
//! goes on with.
#![expect(
    clippy::disallowed_methods,
    reason = "a test looks at the share from its other side"
)]
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ::guest::pattern;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, backends};

const MIB: u64 = 1 << 20;
/// Linux waits 5 s after the attention button before it lets a slot go.
const SOON: Duration = Duration::from_secs(120);

/// A guest with shared memory, a TPM and a free root port.
fn machine(tpm: UnixStream) -> Result<Vm> {
    let mut builder = Vm::builder()
        .machine("q35,memory-backend=mem")
        .root_ports(1);
    let tpm = format!("socket,id=tpm,fd={}", builder.pass(tpm));
    builder
        .args(["-open-policy", "sealed"])
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
        .args(["-chardev", &tpm, "-tpmdev", "emulator,id=tpm,chardev=tpm"])
        .args(["-device", "tpm-crb,tpmdev=tpm"])
        .start()
}

/// Hands the connection in and plugs the share onto it.
fn plug(vm: &mut Vm, connection: &UnixStream) -> Result<()> {
    let named = json!({"fdname": "share"});
    vm.qmp.execute_with("getfd", named, &[connection.as_fd()])?;
    let socket = json!({"addr": {"type": "fd", "data": {"str": "share"}}, "server": false});
    let backend = json!({"type": "socket", "data": socket});
    vm.execute("chardev-add", json!({"id": "share", "backend": backend}))?;
    let device = json!({"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share",
        "tag": "files", "bus": "port0"});
    vm.execute("device_add", device)?;
    Ok(())
}

fn unplug(vm: &mut Vm) -> Result<()> {
    vm.execute("device_del", json!({"id": "share"}))?;
    let is_ours = |event: &Value| event["data"]["device"] == "share";
    vm.qmp.event_where("DEVICE_DELETED", SOON, is_ours)?;
    vm.execute("chardev-remove", json!({"id": "share"}))?;
    Ok(())
}

fn text(vm: &mut Vm, path: &str) -> Result<String> {
    let text = vm.guest_port().call("read-file", json!({"path": path}))?;
    Ok(text.as_str().unwrap_or_default().trim().to_owned())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_uses_the_files_and_the_tpm_of_other_programs() -> Result<()> {
    let (share, state) = (tempfile::tempdir()?, tempfile::tempdir()?);
    fs::write(share.path().join("from-here"), "here")?;
    let (_tpm, control) = backends::swtpm(state.path())?;
    let mut vm = machine(control)?;
    vm.guest()?;
    // Nothing was measured into the registers of a new chip.
    let register = text(&mut vm, "/sys/class/tpm/tpm0/pcr-sha256/0")?;
    ensure!(register == "0".repeat(64), "{register}");
    let before = vm.usage()?;
    let (_files, connection) = backends::virtiofsd(share.path())?;
    plug(&mut vm, &connection)?;
    drop(connection);
    let wanted = json!({"tag": "files", "path": "/share", "seconds": 60});
    vm.guest_port().call("mount-share", wanted)?;
    ensure!(text(&mut vm, "/share/from-here")? == "here");
    let written = json!({"path": "/share/from-there", "text": "there"});
    vm.guest_port().call("write-file", written)?;
    ensure!(fs::read_to_string(share.path().join("from-there"))? == "there");
    vm.guest_port().call("unmount", json!({"path": "/share"}))?;
    unplug(&mut vm)?;
    let after = vm.settled_usage(before)?;
    ensure!(after.fds <= before.fds, "before {before}, after {after}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_disk_is_used_on_when_the_program_that_serves_it_is_killed() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(16 * MIB)?;
    let place = tempfile::tempdir()?;
    let path = place.path().join("socket");
    let first = backends::storage_daemon(image.path(), &path)?;
    let chardev = format!("socket,id=far,path={},reconnect-ms=100", path.display());
    let mut vm = Vm::builder()
        .machine("q35,memory-backend=mem")
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
        .args(["-chardev", &chardev])
        .args(["-device", "vhost-user-blk-pci,chardev=far"])
        .start()?;
    // The daemon calls all of its disks that.
    let disk = vm.guest()?.disk("vhost_user_blk")?;
    let before = json!({"disk": disk, "offset": 0, "length": 4 * MIB, "seed": 3});
    vm.guest_port().call("disk-write", before.clone())?;
    drop(first);
    let _second = backends::storage_daemon(image.path(), &path)?;
    vm.guest_port().call("disk-verify", before)?;
    let after = json!({"disk": disk, "offset": 8 * MIB, "length": 4 * MIB, "seed": 4});
    vm.guest_port().call("disk-write", after)?;
    let mut bytes = vec![0; usize::try_from(4 * MIB)?];
    for (seed, offset) in [(3, 0), (4, 8 * MIB)] {
        image.as_file().read_exact_at(&mut bytes, offset)?;
        ensure!(pattern::first_difference(&bytes, seed, offset).is_none());
    }
    vm.execute("quit", json!({}))?;
    ensure!(vm.wait_exit()?.success());
    // It may tell of the one that went, and of nothing else.
    let said = vm.stderr();
    let is_known = |line: &str| line.contains("the back end is left");
    ensure!(said.lines().all(is_known), "{said}");
    Ok(())
}
