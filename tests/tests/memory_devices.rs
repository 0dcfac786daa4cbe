//! Memory that comes and goes while the guest runs.
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use ::guest::pattern;
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

/// Hands a file in, and makes it persistent memory behind the port `port`.
fn plug_file(vm: &mut Vm, id: &str, port: &str, file: &File, writable: bool) -> Result<()> {
    let name = format!("fd-of-{id}");
    let given = json!({"fdname": name});
    vm.qmp.execute_with("getfd", given, &[file.as_fd()])?;
    let backend = json!({"qom-type": "memory-backend-file", "id": format!("{id}-file"),
        "size": file.metadata()?.len(), "share": true, "readonly": !writable,
        "mem-path": format!("fd:{name}")});
    vm.execute("object-add", backend)?;
    let device = json!({"driver": "virtio-pmem-pci", "id": id, "bus": port,
        "memdev": format!("{id}-file")});
    vm.execute("device_add", device)?;
    Ok(())
}

/// The name of the disk that the guest makes of persistent memory.
fn disk_of(vm: &mut Vm, size: u64) -> Result<String> {
    vm.guest()?.disk_of_size("", size)?;
    let disks = vm.guest()?.call("disks", json!({}))?;
    let mut disks = disks.as_array().into_iter().flatten();
    let disk = disks.find(|disk| disk["size"] == size);
    let name = disk.and_then(|disk| disk["name"].as_str());
    Ok(name.context("a disk has a name")?.to_owned())
}

/// Persistent memory: what the guest has written and flushed is in the file.
fn that_lasts(vm: &mut Vm) -> Result<()> {
    const SIZE: u64 = 32 * MIB;
    const SEED: u64 = 11;
    let file = fds::disk(SIZE)?;
    plug_file(vm, "pmem", "port0", &file, true)?;
    let listed = vm.execute("query-memory-devices", json!({}))?;
    assert_eq!(listed[0]["type"], "virtio-pmem");
    let data = &listed[0]["data"];
    assert_eq!(
        (&data["size"], &data["memdev"]),
        (&json!(SIZE), &json!("/objects/pmem-file"))
    );
    vm.guest()?.call("modules", json!({}))?;
    let disk = disk_of(vm, SIZE)?;
    let range = json!({"disk": disk, "offset": MIB, "length": MIB, "seed": SEED});
    vm.guest()?.call("disk-write", range)?;
    let mut bytes = vec![0; usize::try_from(MIB)?];
    file.read_exact_at(&mut bytes, MIB)?;
    assert_eq!(pattern::first_difference(&bytes, SEED, MIB), None);
    let refused = vm.refusal("device_del", json!({"id": "pmem"}))?;
    assert!(refused.desc.contains("cannot be unplugged"), "{refused:?}");
    Ok(())
}

/// The same of a file that is only read: the guest reads it, and what it writes goes nowhere.
fn that_nobody_writes(vm: &mut Vm) -> Result<()> {
    const SIZE: u64 = 16 * MIB;
    const SEED: u64 = 12;
    let written = tempfile::NamedTempFile::new()?;
    let mut bytes = vec![0; usize::try_from(SIZE)?];
    pattern::fill(&mut bytes, SEED, 0);
    written.as_file().write_all_at(&bytes, 0)?;
    plug_file(vm, "rom", "port1", &fds::open_ro(written.path())?, false)?;
    let disk = disk_of(vm, SIZE)?;
    let range = |seed: u64| json!({"disk": disk, "offset": 0, "length": 4096, "seed": seed});
    vm.guest()?.call("disk-verify", range(SEED))?;
    vm.guest()?.call("disk-write", range(SEED + 1))?;
    vm.guest()?.call("disk-verify", range(SEED))?;
    let refused = json!({"driver": "pc-dimm", "id": "no", "memdev": "rom-file"});
    let refused = vm.refusal("device_add", refused)?;
    assert!(refused.desc.contains("busy memdev"), "{refused:?}");
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
    that_lasts(&mut vm)?;
    that_nobody_writes(&mut vm)?;
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
