//! A guest whose VMM can open nothing any more.
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tests::sealed::{Rings, Strace, is_sealed};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(120);

/// A disk comes by fd, is written and read, and goes.
fn add_use_and_remove_a_disk(vm: &mut Vm) -> Result<()> {
    let file = fds::disk(8 * MIB)?;
    let set = vm.qmp.execute_with("add-fd", json!({}), &[file.as_fd()])?;
    let filename = format!("/dev/fdset/{}", set["fdset-id"]);
    vm.execute("object-add", json!({"qom-type": "iothread", "id": "late"}))?;
    vm.execute(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "late", "file": {
            "driver": "file", "node-name": "late-file", "filename": filename}}),
    )?;
    vm.execute(
        "device_add",
        json!({"driver": "virtio-blk-pci", "id": "late", "drive": "late", "serial": "late",
            "bus": "port0", "iothread": "late"}),
    )?;
    let guest = vm.guest()?;
    let disk = guest.disk("late")?;
    let range = json!({"disk": disk, "offset": 0, "length": 2 * MIB, "seed": 42});
    guest.call("disk-write", range.clone())?;
    guest.call("disk-verify", range)?;
    vm.execute("device_del", json!({"id": "late"}))?;
    let is_ours = |event: &Value| event["data"]["device"] == "late";
    vm.qmp.event_where("DEVICE_DELETED", SOON, is_ours)?;
    vm.execute("blockdev-del", json!({"node-name": "late"}))?;
    vm.execute("object-del", json!({"id": "late"}))?;
    vm.execute("remove-fd", json!({"fdset-id": set["fdset-id"]}))?;
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_running_guest_is_sealed_and_notices_nothing() -> Result<()> {
    let mut vm = Vm::builder()
        .cpus(2)
        .root_ports(1)
        .disk("root", fds::disk(8 * MIB)?)
        .start()?;
    vm.guest()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    add_use_and_remove_a_disk(&mut vm)?;
    vm.execute("stop", json!({}))?;
    vm.execute("cont", json!({}))?;
    vm.guest()?.call("time", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_boots_restarts_and_goes_in_a_process_sealed_from_the_start() -> Result<()> {
    let mut vm = Vm::builder()
        .root_ports(1)
        .disk("root", fds::disk(8 * MIB)?)
        .args(["-open-policy", "sealed"])
        .start()?;
    let disk = vm.guest()?.disk("root")?;
    let range = json!({"disk": disk, "offset": 0, "length": MIB, "seed": 3});
    vm.guest()?.call("disk-write", range)?;
    add_use_and_remove_a_disk(&mut vm)?;
    vm.execute("system_reset", json!({}))?;
    vm.qmp.event("RESET", SOON)?;
    vm.guest_port().wait_ready()?;
    vm.execute("system_powerdown", json!({}))?;
    vm.qmp.event("SHUTDOWN", SOON)?;
    vm.exit_clean()
}

/// What the engine asks rings for; the kernel has restricted each to these.
const OPERATIONS: &[&str] = &[
    "READV",
    "WRITEV",
    "FSYNC",
    "FALLOCATE",
    "TIMEOUT",
    "POLL_ADD",
    "ASYNC_CANCEL",
];

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn strace_sees_no_forbidden_call_in_the_life_of_a_sealed_guest() -> Result<()> {
    let rings = Rings::watch()?;
    let mut vm = Vm::builder()
        .stopped()
        .root_ports(1)
        .disk("root", fds::disk(8 * MIB)?)
        .args(["-open-policy", "sealed"])
        .start()?;
    assert!(is_sealed(&vm.execute("query-sandbox", json!({}))?));
    let strace = Strace::attach(vm.pid())?;
    let threads_at_first = vm.usage()?.threads;
    vm.execute("cont", json!({}))?;
    add_use_and_remove_a_disk(&mut vm)?;
    vm.execute("system_reset", json!({}))?;
    vm.qmp.event("RESET", SOON)?;
    vm.guest_port().wait_ready()?;
    vm.execute("system_powerdown", json!({}))?;
    vm.qmp.event("SHUTDOWN", SOON)?;
    vm.exit_clean()?;
    let calls = strace.finish()?;
    println!(
        "{} calls: {:?}; rings: {:?}",
        calls.count(),
        calls.names(),
        rings.operations()?
    );
    assert_eq!(calls.forbidden(), None);
    // It saw the guest run, the disks work, and a thread that began after the seal.
    for call in ["ioctl", "io_uring_enter", "recvmsg", "sendto", "clone"] {
        assert!(calls.names().contains(call), "{call}");
    }
    assert!(calls.threads().len() > threads_at_first);
    for operation in rings.operations()? {
        assert!(OPERATIONS.contains(&operation.as_str()), "{operation}");
    }
    Ok(())
}
