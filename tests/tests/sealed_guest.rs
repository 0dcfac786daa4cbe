//! A guest whose VMM can open nothing any more.
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::sealed::{Rings, Strace, is_sealed};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(120);

/// Hands `file` over; the name that it can be opened by, and its set.
fn hand_in(vm: &mut Vm, file: &File) -> Result<(String, Value)> {
    let set = vm.qmp.execute_with("add-fd", json!({}), &[file.as_fd()])?;
    let set = set["fdset-id"].clone();
    Ok((format!("/dev/fdset/{set}"), set))
}

/// A disk comes by fd, is written and read, is snapshotted and committed, and goes.
fn add_use_and_remove_a_disk(vm: &mut Vm) -> Result<()> {
    let (filename, set) = hand_in(vm, &fds::image(8 * MIB)?)?;
    vm.execute("object-add", json!({"qom-type": "iothread", "id": "late"}))?;
    vm.execute(
        "blockdev-add",
        json!({"driver": "qcow2", "node-name": "late", "file": {
            "driver": "file", "node-name": "late-file", "filename": filename}}),
    )?;
    vm.execute(
        "device_add",
        json!({"driver": "virtio-blk-pci", "id": "late", "drive": "late", "serial": "late",
            "bus": "port0", "iothread": "late"}),
    )?;
    let disk = vm.guest()?.disk("late")?;
    let range = |seed: u64| json!({"disk": disk, "offset": seed * 2 * MIB, "length": 2 * MIB, "seed": seed});
    vm.guest()?.call("disk-write", range(0))?;
    snapshot_and_commit(vm, range(1), range(2))?;
    for seed in 0..3 {
        vm.guest()?.call("disk-verify", range(seed))?;
    }
    vm.execute("device_del", json!({"id": "late"}))?;
    let is_ours = |event: &Value| event["data"]["device"] == "late";
    vm.qmp.event_where("DEVICE_DELETED", SOON, is_ours)?;
    vm.execute("blockdev-del", json!({"node-name": "late"}))?;
    vm.execute("object-del", json!({"id": "late"}))?;
    vm.execute("remove-fd", json!({"fdset-id": set}))?;
    Ok(())
}

/// The guest writes once into the overlay, and once while that is committed to the disk again.
fn snapshot_and_commit(vm: &mut Vm, into_the_overlay: Value, while_committed: Value) -> Result<()> {
    let (filename, set) = hand_in(vm, &fds::image(8 * MIB)?)?;
    let snapshot = json!({"type": "blockdev-snapshot-sync", "data": {"node-name": "late",
        "snapshot-file": filename, "snapshot-node-name": "over", "format": "qcow2",
        "mode": "existing"}});
    vm.execute("transaction", json!({"actions": [snapshot]}))?;
    vm.guest()?.call("disk-write", into_the_overlay)?;
    vm.execute("block-commit", json!({"device": "over", "job-id": "home"}))?;
    vm.qmp.event("BLOCK_JOB_READY", SOON)?;
    vm.guest()?.call("disk-write", while_committed)?;
    vm.execute("block-job-complete", json!({"device": "home"}))?;
    let done = vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    ensure!(done["data"]["error"].is_null(), "{done}");
    vm.execute("remove-fd", json!({"fdset-id": set}))?;
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
    for call in ["ioctl", "io_uring_enter", "recvmsg", "sendmsg", "clone"] {
        assert!(calls.names().contains(call), "{call}");
    }
    assert!(calls.threads().len() > threads_at_first);
    for operation in rings.operations()? {
        assert!(OPERATIONS.contains(&operation.as_str()), "{operation}");
    }
    Ok(())
}
