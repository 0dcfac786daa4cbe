//! Memory that comes and goes while the guest runs.
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// What a memory device is made of here.
const REGION: u64 = 512 * MIB;

/// A guest with room for more memory and free ports, booted, in a sealed process.
fn start() -> Result<Vm> {
    let mut vm = Vm::builder()
        .memory("256,slots=2,maxmem=2G")
        .append("memhp_default_state=online_movable")
        .root_ports(2)
        .start()?;
    vm.guest()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    Ok(vm)
}

/// Hands a memfd in and makes it a memory backend of this name; our own handle on it.
fn hand_in(vm: &mut Vm, id: &str, size: u64) -> Result<File> {
    let memory = fds::memfd(size)?;
    let ours = File::from(memory.try_clone()?);
    let name = format!("fd-of-{id}");
    let given = json!({"fdname": name});
    vm.qmp.execute_with("getfd", given, &[memory.as_fd()])?;
    let backend = json!({"qom-type": "memory-backend-file", "id": id, "size": size,
        "share": true, "mem-path": format!("fd:{name}")});
    vm.execute("object-add", backend)?;
    Ok(ours)
}

/// The bytes of the host's memory that are behind it.
fn taken(memory: &File) -> Result<u64> {
    Ok(memory.metadata()?.blocks() * 512)
}

fn total(vm: &mut Vm) -> Result<u64> {
    let memory = vm.guest()?.call("memory", json!({}))?;
    memory["total"].as_u64().context("a number")
}

fn unplug(vm: &mut Vm, id: &str) -> Result<()> {
    vm.execute("device_del", json!({"id": id}))?;
    let is_ours = |event: &Value| event["data"]["device"] == id;
    vm.qmp.event_where("DEVICE_DELETED", PATIENCE, is_ours)?;
    Ok(())
}

/// Asks for a size and waits until the guest has done as it was asked.
fn resize(vm: &mut Vm, size: u64) -> Result<()> {
    let value = json!({"path": "vmem", "property": "requested-size", "value": size});
    vm.execute("qom-set", value)?;
    let is_last = |event: &Value| event["data"]["size"] == size;
    let event = vm
        .qmp
        .event_where("MEMORY_DEVICE_SIZE_CHANGE", PATIENCE, is_last)?;
    assert_eq!(event["data"]["qom-path"], "/machine/peripheral/vmem");
    let summary = vm.execute("query-memory-size-summary", json!({}))?;
    assert_eq!(summary["plugged-memory"], size);
    Ok(())
}

/// Memory by the block: plugged in, used, given back, unplugged.
fn by_the_block(vm: &mut Vm, before: u64) -> Result<()> {
    let host = hand_in(vm, "blocks", REGION)?;
    let device = json!({"driver": "virtio-mem-pci", "id": "vmem", "bus": "port0",
        "memdev": "blocks", "requested-size": 0, "node": 0});
    vm.execute("device_add", device)?;
    let listed = vm.execute("query-memory-devices", json!({}))?;
    assert_eq!(listed[0]["type"], "virtio-mem");
    let data = &listed[0]["data"];
    assert_eq!(
        (&data["size"], &data["max-size"]),
        (&json!(0), &json!(REGION))
    );
    assert_eq!(data["memdev"], "/objects/blocks");
    resize(vm, 256 * MIB)?;
    let grown = json!({"least": before + 200 * MIB, "most": before + 256 * MIB});
    vm.guest()?.call("memory-wait", grown)?;
    // More than there was before it came.
    let kept = vm
        .guest()?
        .call("memory-touch", json!({"bytes": 280 * MIB}))?;
    assert_eq!(kept, true);
    let most = taken(&host)?;
    ensure!(most > 64 * MIB, "the guest has used only {most} bytes");
    let refused = vm.refusal("device_del", json!({"id": "vmem"}))?;
    assert!(refused.desc.contains("still plugged"), "{refused:?}");
    resize(vm, 0)?;
    let shrunk = json!({"least": 0, "most": before + MIB});
    vm.guest()?.call("memory-wait", shrunk)?;
    assert_eq!(taken(&host)?, 0, "the host has it back");
    unplug(vm, "vmem")?;
    vm.execute("object-del", json!({"id": "blocks"}))?;
    Ok(())
}

/// A module: plugged in, used, and let go by the guest.
fn in_a_place(vm: &mut Vm, before: u64) -> Result<()> {
    const SIZE: u64 = 256 * MIB;
    let host = hand_in(vm, "module", SIZE)?;
    let device = json!({"driver": "pc-dimm", "id": "dimm", "memdev": "module", "node": 0});
    vm.execute("device_add", device)?;
    let listed = vm.execute("query-memory-devices", json!({}))?;
    let data = &listed[0]["data"];
    assert_eq!((&data["size"], &data["slot"]), (&json!(SIZE), &json!(0)));
    assert_eq!(data["hotplugged"], true);
    let grown = json!({"least": before + 200 * MIB, "most": before + SIZE});
    vm.guest()?.call("memory-wait", grown)?;
    let kept = vm
        .guest()?
        .call("memory-touch", json!({"bytes": 280 * MIB}))?;
    assert_eq!(kept, true);
    ensure!(taken(&host)? > 64 * MIB, "the guest has not used it");
    let refused = vm.refusal("object-del", json!({"id": "module"}))?;
    assert!(refused.desc.contains("in use"), "{refused:?}");
    unplug(vm, "dimm")?;
    let told = vm.execute("query-acpi-ospm-status", json!({}))?;
    assert_eq!(told[0]["slot-type"], "DIMM");
    let shrunk = json!({"least": 0, "most": before + MIB});
    vm.guest()?.call("memory-wait", shrunk)?;
    vm.execute("object-del", json!({"id": "module"}))?;
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn memory_comes_and_goes_in_a_sealed_process_and_leaves_nothing_behind() -> Result<()> {
    let mut vm = start()?;
    let memory = total(&mut vm)?;
    by_the_block(&mut vm, memory)?;
    in_a_place(&mut vm, memory)?;
    let before = vm.usage()?;
    by_the_block(&mut vm, memory)?;
    in_a_place(&mut vm, memory)?;
    let after = vm.settled_usage(before)?;
    println!("before: {before}\nafter:  {after}");
    assert!(after.fds <= before.fds);
    assert!(after.mappings <= before.mappings);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_reset_takes_the_memory_back_and_the_guest_asks_for_it_again() -> Result<()> {
    let mut vm = Vm::builder()
        .memory("256,maxmem=1G")
        .args([
            "-object",
            r#"{"qom-type":"memory-backend-ram","id":"blocks","reserve":false,"size":268435456}"#,
            "-device",
            r#"{"driver":"virtio-mem-pci","node":0,"block-size":2097152,"requested-size":134217728,"memdev":"blocks","prealloc":true,"id":"vmem","bus":"pcie.0","addr":"0x8"}"#,
        ])
        .start()?;
    vm.guest()?;
    let is_whole = |event: &Value| event["data"]["size"] == 128 * MIB;
    let name = "MEMORY_DEVICE_SIZE_CHANGE";
    vm.qmp.event_where(name, PATIENCE, is_whole)?;
    vm.execute("system_reset", json!({}))?;
    let is_none = |event: &Value| event["data"]["size"] == 0;
    vm.qmp.event_where(name, PATIENCE, is_none)?;
    vm.guest()?.wait_ready()?;
    let begun = Instant::now();
    while vm.execute("query-memory-devices", json!({}))?[0]["data"]["size"] != 128 * MIB {
        ensure!(begun.elapsed() < PATIENCE, "the guest asks for nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    vm.shutdown_clean()
}
