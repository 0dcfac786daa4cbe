//! A virtio-blk disk from a passed fd: what the guest writes is in the file.
use std::os::unix::fs::FileExt;

use anyhow::Result;
use guest::pattern;
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn what_the_guest_writes_is_in_the_file() -> Result<()> {
    let file = fds::disk(64 * MIB)?;
    let mut vm = Vm::builder()
        .cpus(2)
        .disk("data", file.try_clone()?)
        .start()?;
    let guest = vm.guest()?;
    let disk = guest.disk("data")?;
    let range = json!({"disk": disk, "offset": 3 * MIB, "length": 8 * MIB, "seed": 11});
    guest.call("disk-write", range.clone())?;
    guest.call("disk-verify", range)?;
    let mut bytes = vec![0; usize::try_from(8 * MIB)?];
    file.read_exact_at(&mut bytes, 3 * MIB)?;
    assert_eq!(pattern::first_difference(&bytes, 11, 3 * MIB), None);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_guest_sees_size_serial_and_queues() -> Result<()> {
    let mut builder = Vm::builder().cpus(2).args(["-object", "iothread,id=io0"]);
    let filename = builder.fdset(fds::disk(24 * MIB)?);
    let node = json!({"driver": "file", "node-name": "wide", "filename": filename}).to_string();
    let device = "virtio-blk-pci,drive=wide,serial=WIDE-1,num-queues=2,iothread=io0";
    let mut vm = builder
        .args(["-blockdev", &node, "-device", device])
        .start()?;
    vm.guest()?.disk("WIDE-1")?;
    let disks = vm.guest()?.call("disks", json!({}))?;
    let ours = |disk: &&Value| disk["serial"] == "WIDE-1";
    let disk = disks.as_array().into_iter().flatten().find(ours).cloned();
    let disk = disk.unwrap_or_default();
    assert_eq!(disk["size"], 24 * MIB);
    assert_eq!(disk["queues"], 2);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn discarded_and_zeroed_ranges_read_as_zero() -> Result<()> {
    let file = fds::disk(16 * MIB)?;
    let mut builder = Vm::builder();
    let filename = builder.fdset(file.try_clone()?);
    let node = json!({"driver": "file", "node-name": "thin", "filename": filename,
        "discard": "unmap"})
    .to_string();
    let device = "virtio-blk-pci,drive=thin,serial=thin";
    let mut vm = builder
        .args(["-blockdev", &node, "-device", device])
        .start()?;
    let guest = vm.guest()?;
    let disk = guest.disk("thin")?;
    let range = |offset: u64| json!({"disk": disk, "offset": offset, "length": MIB, "seed": 5});
    guest.call(
        "disk-write",
        json!({"disk": disk, "offset": 0, "length": 4 * MIB, "seed": 5}),
    )?;
    guest.call("disk-discard", range(MIB))?;
    guest.call("disk-zero", range(2 * MIB))?;
    guest.call("disk-verify", range(0))?;
    guest.call("disk-verify", range(3 * MIB))?;
    let mut bytes = vec![1; usize::try_from(2 * MIB)?];
    file.read_exact_at(&mut bytes, MIB)?;
    assert!(bytes.iter().all(|&byte| byte == 0));
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_resized_node_is_a_disk_of_the_new_size_for_the_running_guest() -> Result<()> {
    let file = fds::disk(16 * MIB)?;
    let mut vm = Vm::builder().disk("data", file.try_clone()?).start()?;
    let disk = vm.guest()?.disk("data")?;
    for size in [24 * MIB, 8 * MIB] {
        vm.execute("block_resize", json!({"device": "data", "size": size}))?;
        assert_eq!(file.metadata()?.len(), size);
        let grown = json!({"disk": disk, "offset": size - MIB, "length": MIB, "seed": 3});
        vm.guest()?.disk_of_size("data", size)?;
        vm.guest()?.call("disk-write", grown.clone())?;
        vm.guest()?.call("disk-verify", grown)?;
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn what_the_guest_moves_is_counted_for_disk_node_and_storage() -> Result<()> {
    let mut vm = Vm::builder().disk("data", fds::disk(16 * MIB)?).start()?;
    let disk = vm.guest()?.disk("data")?;
    let range = json!({"disk": disk, "offset": 2 * MIB, "length": MIB, "seed": 3});
    vm.guest()?.call("disk-write", range)?;
    let reply = vm.execute("query-blockstats", json!({}))?;
    let stats = &reply[0]["stats"];
    let number = |name: &str| stats[name].as_u64().unwrap_or_default();
    assert!(number("wr_bytes") >= MIB, "{stats}");
    assert!(
        number("wr_operations") > 0 && number("wr_total_time_ns") > 0,
        "{stats}"
    );
    assert!(number("wr_highest_offset") >= 3 * MIB, "{stats}");
    assert_eq!(number("failed_wr_operations"), 0);
    let nodes = vm.execute("query-blockstats", json!({"query-nodes": true}))?;
    let storage = nodes.as_array().into_iter().flatten();
    let written = storage.map(|node| node["stats"]["wr_bytes"].as_u64());
    assert!(
        written.into_iter().all(|bytes| bytes >= Some(MIB)),
        "{nodes}"
    );
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn an_ext4_file_system_is_mounted_and_written() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(32 * MIB)?;
    let made = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(image.path())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .status()?;
    assert!(made.success());
    let mut vm = Vm::builder()
        .disk("root", fds::open_rw(image.path())?)
        .start()?;
    let guest = vm.guest()?;
    let disk = guest.disk("root")?;
    guest.call(
        "mount",
        json!({"device": disk, "kind": "ext4", "path": "/mnt"}),
    )?;
    guest.call("write-file", json!({"path": "/mnt/word", "text": "sesame"}))?;
    guest.call("unmount", json!({"path": "/mnt"}))?;
    guest.call(
        "mount",
        json!({"device": disk, "kind": "ext4", "path": "/mnt"}),
    )?;
    assert_eq!(
        guest.call("read-file", json!({"path": "/mnt/word"}))?,
        "sesame"
    );
    vm.shutdown_clean()
}
