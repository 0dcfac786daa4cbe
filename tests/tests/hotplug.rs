//! Disks that come and go while the guest runs.
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
/// Linux waits 5 s after the attention button before it lets a slot go: rounds on several ports
/// wait together.
const PORTS: u32 = 10;
const ROUNDS: u32 = 10;
const GONE: Duration = Duration::from_secs(120);

/// Hands in a disk over the monitor, makes a node of it and plugs it in.
fn plug(vm: &mut Vm, id: &str, port: u32) -> Result<()> {
    let file = fds::disk(8 * MIB)?;
    let set = vm.qmp.execute_with("add-fd", json!({}), &[file.as_fd()])?;
    let filename = format!("/dev/fdset/{}", set["fdset-id"]);
    vm.execute(
        "blockdev-add",
        json!({"driver": "raw", "node-name": id, "file": {
            "driver": "file", "node-name": format!("{id}-file"), "filename": filename}}),
    )?;
    // The set lives on in the node that opened it; the name is not needed any more.
    vm.execute("remove-fd", json!({"fdset-id": set["fdset-id"]}))?;
    vm.execute(
        "device_add",
        json!({"driver": "virtio-blk-pci", "id": id, "drive": id, "serial": id,
            "bus": format!("port{port}")}),
    )?;
    Ok(())
}

/// Waits for the device to be gone and takes its node away.
fn unplugged(vm: &mut Vm, id: &str) -> Result<()> {
    let is_ours = |event: &Value| event["data"]["device"] == id;
    vm.qmp.event_where("DEVICE_DELETED", GONE, is_ours)?;
    vm.execute("blockdev-del", json!({"node-name": id}))?;
    Ok(())
}

/// An image that is handed in over the monitor, as a set.
fn image(vm: &mut Vm) -> Result<String> {
    let image = fds::image(8 * MIB)?;
    let set = vm.qmp.execute_with("add-fd", json!({}), &[image.as_fd()])?;
    Ok(format!("/dev/fdset/{}", set["fdset-id"]))
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_disk_on_two_iothreads_is_limited_snapshotted_under_load_and_goes_again() -> Result<()> {
    let mut vm = Vm::builder().cpus(2).root_ports(1).start()?;
    vm.guest()?;
    let filename = image(&mut vm)?;
    let file = json!({"driver": "file", "filename": filename});
    let node = json!({"driver": "qcow2", "node-name": "base", "file": file});
    vm.execute("blockdev-add", node)?;
    for id in ["io0", "io1"] {
        vm.execute("object-add", json!({"qom-type": "iothread", "id": id}))?;
    }
    let mut device = json!({"driver": "virtio-blk-pci", "id": "wide", "drive": "base",
        "serial": "wide", "bus": "port0", "num-queues": 2,
        "iothread-vq-mapping": [{"iothread": "io0", "vqs": [2]}, {"iothread": "io1"}]});
    vm.refusal("device_add", device.clone())?;
    device["iothread-vq-mapping"] = json!([{"iothread": "io1"}, {"iothread": "io0"}]);
    vm.execute("device_add", device)?;
    let refused = vm.refusal("object-del", json!({"id": "io0"}))?;
    assert!(refused.desc.contains("in use"), "{}", refused.desc);
    let limits = json!({"id": "wide", "bps": 0, "bps_rd": 0, "bps_wr": 512 << 20, "iops": 0,
        "iops_rd": 0, "iops_wr": 0, "group": "slow"});
    vm.execute("block_set_io_throttle", limits)?;
    vm.execute(
        "block-latency-histogram-set",
        json!({"id": "/machine/peripheral/wide/virtio-backend", "boundaries": [1_u64 << 40]}),
    )?;
    let disk = vm.guest()?.disk("wide")?;
    for round in 0..3 {
        let range = json!({"disk": disk, "offset": round * MIB, "length": 2 * MIB, "seed": round});
        vm.guest()?.call("disk-write", range.clone())?;
        let overlay = image(&mut vm)?;
        vm.execute(
            "blockdev-snapshot-sync",
            json!({"device": "wide", "snapshot-file": overlay, "format": "qcow2",
                "snapshot-node-name": format!("over{round}"), "mode": "existing"}),
        )?;
        vm.guest()?.call("disk-verify", range)?;
    }
    let blocks = vm.execute("query-block", json!({}))?;
    let media = blocks.as_array().into_iter().flatten();
    let mut media = media.map(|block| block["inserted"].clone());
    let inserted = media.find(|it| it["node-name"] == "over2");
    let inserted = inserted.unwrap_or_default();
    assert_eq!(inserted["group"], "slow");
    assert_eq!(inserted["bps_wr"], 512 << 20);
    let stats = vm.execute("query-blockstats", json!({}))?;
    let stats = stats.as_array().into_iter().flatten().cloned();
    let stats = stats.map(|one| one["stats"].clone());
    let ours = |one: &Value| one["wr_latency_histogram"]["bins"][0].as_u64() > Some(0);
    assert_eq!(stats.filter(ours).count(), 1);
    vm.execute("device_del", json!({"id": "wide"}))?;
    vm.qmp.event_where("DEVICE_DELETED", GONE, |event| {
        event["data"]["device"] == "wide"
    })?;
    for id in ["io0", "io1"] {
        vm.execute("object-del", json!({"id": id}))?;
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_disk_hot_added_from_an_fd_is_used_and_goes_again() -> Result<()> {
    let mut vm = Vm::builder().root_ports(1).start()?;
    vm.guest()?;
    plug(&mut vm, "late", 0)?;
    let guest = vm.guest()?;
    let disk = guest.disk("late")?;
    let range = json!({"disk": disk, "offset": 0, "length": 2 * MIB, "seed": 42});
    guest.call("disk-write", range.clone())?;
    guest.call("disk-verify", range)?;
    vm.execute("device_del", json!({"id": "late"}))?;
    unplugged(&mut vm, "late")?;
    vm.guest()?.disk_gone("late")?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_hundred_rounds_leave_nothing_behind() -> Result<()> {
    let mut vm = Vm::builder().cpus(2).root_ports(PORTS).start()?;
    vm.guest()?;
    // The first round may grow what is then kept: arenas, tables, the guest's own allocations.
    round(&mut vm)?;
    let before = vm.usage()?;
    for _ in 0..ROUNDS {
        round(&mut vm)?;
    }
    let after = vm.settled_usage(before)?;
    println!("before {} rounds: {before}", ROUNDS * PORTS);
    println!("after  {} rounds: {after}", ROUNDS * PORTS);
    assert!(after.fds <= before.fds);
    assert!(after.threads <= before.threads);
    assert!(after.mappings <= before.mappings);
    assert_eq!(
        vm.execute("query-fdsets", json!({}))?
            .as_array()
            .map(Vec::len),
        Some(sets(&vm))
    );
    vm.shutdown_clean()
}

/// Sets handed in on the command line: kernel, initrd, console and /dev/kvm, or only the console.
fn sets(_vm: &Vm) -> usize {
    let vmm = tests::vm::Vmm::from_env().expect("the VMM under test");
    if vmm.is_qemu { 1 } else { 4 }
}

/// One disk on each port: in, seen by the guest, out.
fn round(vm: &mut Vm) -> Result<()> {
    let ids: Vec<_> = (0..PORTS).map(|port| format!("disk{port}")).collect();
    for (port, id) in (0..).zip(&ids) {
        plug(vm, id, port)?;
    }
    for id in &ids {
        let disk = vm.guest()?.disk(id)?;
        let range = json!({"disk": disk, "offset": 0, "length": 4096, "seed": 7});
        vm.guest()?.call("disk-write", range)?;
    }
    for id in &ids {
        vm.execute("device_del", json!({"id": id}))?;
    }
    for id in &ids {
        unplugged(vm, id)?;
    }
    Ok(())
}
