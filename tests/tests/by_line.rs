//! What people and testers type: `human-monitor-command`.
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde_json::json;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

fn told(vm: &mut Vm, line: &str) -> Result<String> {
    let said = vm.execute("human-monitor-command", json!({"command-line": line}))?;
    Ok(said.as_str().context("text")?.to_owned())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_tester_writes_and_reads_through_the_block_layer() -> Result<()> {
    let file = fds::disk(4 * MIB)?;
    let mut vm = Vm::paused().disk("data", file.try_clone()?).start()?;
    let lines = [
        "qemu-io data \"write -P 0x33 63k 2k\"",
        "qemu-io -d data \"aio_write -P0x44 1M 1M\"",
        "qemu-io /machine/peripheral/data/virtio-backend \"aio_flush\"",
        "qemu-io data-file flush",
        "qemu-io data \"nonsense\"",
    ];
    for line in &lines {
        assert_eq!(told(&mut vm, line)?, "", "{line}");
    }
    let mut bytes = vec![0; usize::try_from(2 * MIB)?];
    file.read_exact_at(&mut bytes, 0)?;
    let (at, end) = (63 << 10, 65 << 10);
    assert!(bytes[..at].iter().all(|byte| *byte == 0));
    assert!(bytes[at..end].iter().all(|byte| *byte == 0x33));
    assert!(bytes[1 << 20..].iter().all(|byte| *byte == 0x44));
    let nodes = vm.execute("query-blockstats", json!({"query-nodes": true}))?;
    assert_eq!(nodes[0]["stats"]["wr_highest_offset"], 2 * MIB);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_person_resizes_a_disk_and_looks_at_it() -> Result<()> {
    let file = fds::disk(4 * MIB)?;
    let mut vm = Vm::paused().disk("data", file.try_clone()?).start()?;
    assert_eq!(told(&mut vm, "block_resize data 8")?, "");
    assert_eq!(file.metadata()?.len(), 8 * MIB);
    assert_eq!(told(&mut vm, "qemu-io data \"truncate 6M\"")?, "");
    assert_eq!(file.metadata()?.len(), 6 * MIB);
    for (line, part) in [
        ("block_resize nobody 8", "Cannot find device='nobody'"),
        ("block_resize data 8x", "invalid size '8x'"),
        ("block_resize data 1b", "a disk stands on it"),
        ("commit data", "No medium behind it"),
        ("commit nobody", "Device 'nobody' not found"),
        ("qemu-io data", "string expected"),
        ("info blockstats", "rd_bytes=0 wr_bytes=0 rd_operations=0"),
    ] {
        let said = told(&mut vm, line)?;
        assert!(said.contains(part), "{line}: {said}");
    }
    assert_eq!(told(&mut vm, "info network")?, "");
    assert_eq!(file.metadata()?.len(), 6 * MIB);
    vm.shutdown_clean()
}
