//! Nodes that get other options, or another name in their header, all of it over passed fds.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

fn in_a_set(vm: &mut Vm, set: i64, file: &File) -> Result<()> {
    let to = json!({"fdset-id": set});
    vm.qmp.execute_with("add-fd", to, &[file.as_fd()])?;
    Ok(())
}

fn reader(file: &File) -> Result<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fds::open_ro(Path::new(&path))
}

fn image(name: &str, set: i64, more: Value) -> Value {
    let mut node = json!({"driver": "qcow2", "node-name": name,
        "file": {"driver": "file", "filename": format!("/dev/fdset/{set}")}});
    for (key, value) in more.as_object().into_iter().flatten() {
        node[key] = value.clone();
    }
    node
}

/// What lists show of a node.
fn shown(vm: &mut Vm, name: &str) -> Result<Value> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let nodes = nodes.as_array().context("a list")?;
    let found = nodes.iter().find(|node| node["node-name"] == name);
    found.cloned().context("the node")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn nodes_over_sets_become_writable_lose_their_backing_and_get_it_back() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let (base, top) = (fds::image(MIB)?, fds::image(MIB)?);
    in_a_set(&mut vm, 1, &reader(&base)?)?;
    in_a_set(&mut vm, 2, &top)?;
    let reading = json!({"read-only": true});
    vm.execute("blockdev-add", image("base", 1, reading.clone()))?;
    vm.execute("blockdev-add", image("top", 2, json!({"backing": "base"})))?;
    let anew = |nodes: &[Value]| json!({"options": nodes});
    // Nobody has handed in an fd that can write: both stay.
    let both = [
        image("top", 2, json!({"backing": null, "read-only": true})),
        image("base", 1, json!({})),
    ];
    let refusal = vm.refusal("blockdev-reopen", anew(&both))?;
    ensure!(refusal.desc.contains("/dev/fdset/1"), "{refusal}");
    ensure!(shown(&mut vm, "top")?["backing_file_depth"] == 1);
    in_a_set(&mut vm, 1, &base)?;
    vm.execute("blockdev-reopen", anew(&both))?;
    let (now, below) = (shown(&mut vm, "top")?, shown(&mut vm, "base")?);
    ensure!(now["backing_file_depth"] == 0 && now["ro"] == true, "{now}");
    ensure!(below["ro"] == false, "{below}");
    let text = "qemu-io base \"write -P 7 0 64k\"";
    let wrote = vm.execute("human-monitor-command", json!({"command-line": text}))?;
    ensure!(wrote == "", "{wrote}");
    // And back: what base had in memory is in the image by then.
    let both = [
        image("base", 1, reading),
        image("top", 2, json!({"backing": "base"})),
    ];
    vm.execute("blockdev-reopen", anew(&both))?;
    ensure!(shown(&mut vm, "top")?["backing_file_depth"] == 1);
    let text = "qemu-io top \"read -P 7 0 64k\"";
    vm.execute("human-monitor-command", json!({"command-line": text}))?;
    let unsaid = [image("top", 2, json!({}))];
    let refusal = vm.refusal("blockdev-reopen", anew(&unsaid))?;
    assert_eq!(refusal.desc, "backing is missing for 'top'");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn filter_comes_between_an_image_and_its_storage_and_goes_again() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let (file, other) = (tempfile::NamedTempFile::new()?, fds::image(MIB)?);
    let make = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(file.path())
        .arg("1M")
        .status()?;
    ensure!(make.success());
    in_a_set(&mut vm, 1, file.as_file())?;
    in_a_set(&mut vm, 2, &other)?;
    for (name, set) in [("storage", 1), ("other", 2)] {
        let filename = format!("/dev/fdset/{set}");
        let node = json!({"driver": "file", "node-name": name, "filename": filename});
        vm.execute("blockdev-add", node)?;
    }
    let over = |file: &str| json!({"driver": "qcow2", "node-name": "disk", "file": file});
    vm.execute("blockdev-add", over("storage"))?;
    let group = json!({"qom-type": "throttle-group", "id": "group",
        "limits": {"bps-total": 1 << 30}});
    vm.execute("object-add", group)?;
    let filter = json!({"driver": "throttle", "node-name": "slow", "throttle-group": "group",
        "file": "storage"});
    vm.execute("blockdev-add", filter)?;
    for (turn, file) in ["slow", "storage", "slow"].into_iter().enumerate() {
        vm.execute("blockdev-reopen", json!({"options": [over(file)]}))?;
        let text = format!("qemu-io disk \"write -P {} {}k 4k\"", turn + 1, 64 * turn);
        let wrote = vm.execute("human-monitor-command", json!({"command-line": text}))?;
        ensure!(wrote == "", "{wrote}");
    }
    for turn in 0..3 {
        let text = format!("qemu-io disk \"read -P {} {}k 4k\"", turn + 1, 64 * turn);
        let read = vm.execute("human-monitor-command", json!({"command-line": text}))?;
        ensure!(read == "", "{read}");
    }
    // Another image, and back again.
    for file in ["other", "slow"] {
        vm.execute("blockdev-reopen", json!({"options": [over(file)]}))?;
    }
    let refusal = vm.refusal("blockdev-del", json!({"node-name": "slow"}))?;
    assert_eq!(refusal.desc, "Block device slow is in use");
    vm.execute("blockdev-reopen", json!({"options": [over("storage")]}))?;
    vm.execute("blockdev-del", json!({"node-name": "slow"}))?;
    vm.shutdown_clean()?;
    let check = Command::new("qemu-img")
        .arg("check")
        .arg(file.path())
        .status()?;
    ensure!(check.success());
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn name_in_a_header_changes_and_the_graph_is_drawn() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let base = fds::image(MIB)?;
    let top = tempfile::NamedTempFile::new()?;
    in_a_set(&mut vm, 1, &reader(&base)?)?;
    in_a_set(&mut vm, 2, top.as_file())?;
    let make = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(top.path())
        .arg("1M")
        .status()?;
    ensure!(make.success());
    vm.execute("blockdev-add", image("base", 1, json!({"read-only": true})))?;
    let over = json!({"backing": "base", "read-only": true});
    in_a_set(&mut vm, 2, &reader(top.as_file())?)?;
    vm.execute("blockdev-add", image("top", 2, over))?;
    let change = json!({"device": "top", "image-node-name": "top", "backing-file": "elsewhere"});
    vm.execute("change-backing-file", change)?;
    ensure!(shown(&mut vm, "top")?["ro"] == true);
    let mut tool = Command::new("qemu-img");
    let output = tool
        .args(["info", "--output=json"])
        .arg(top.path())
        .output()?;
    let info: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(info["backing-filename"] == "elsewhere", "{info}");
    ensure!(info["backing-filename-format"] == "qcow2", "{info}");
    let alone = json!({"device": "base", "image-node-name": "base", "backing-file": "x"});
    let refusal = vm.refusal("change-backing-file", alone)?;
    ensure!(refusal.desc.contains("without a backing file"), "{refusal}");
    let graph = vm.execute("x-debug-query-block-graph", json!({}))?;
    let edges = graph["edges"].as_array().context("edges")?;
    let backing = edges.iter().find(|edge| edge["name"] == "backing");
    let backing = backing.context("the backing edge")?;
    let nodes = graph["nodes"].as_array().context("nodes")?;
    let name = |id: &Value| nodes.iter().find(|node| node["id"] == *id);
    ensure!(name(&backing["parent"]).context("a parent")?["name"] == "top");
    ensure!(name(&backing["child"]).context("a child")?["name"] == "base");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn image_goes_from_one_sealed_process_to_another_and_back() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"]).arg(file.path());
    ensure!(make.arg("1M").status()?.success());
    let mut vms = [Vm::monitor().start()?, Vm::monitor().start()?];
    for (vm, active) in vms.iter_mut().zip([true, false]) {
        vm.execute("seal", json!({"level": "sealed"}))?;
        in_a_set(vm, 1, &file.reopen()?)?;
        vm.execute(
            "blockdev-add",
            image("disk", 1, json!({"active": active, "discard": "unmap"})),
        )?;
        ensure!(shown(vm, "disk")?["active"] == active);
        vm.execute("stop", json!({}))?;
    }
    let write = |vm: &mut Vm, byte: u32, at: u32| {
        let line = format!("qemu-io disk \"write -P {byte} {at}k 4k\"");
        vm.execute("human-monitor-command", json!({"command-line": line}))
    };
    let set = |active: bool| json!({"node-name": "disk", "active": active});
    let [one, other] = &mut vms;
    for turn in 1..5 {
        let (has, wants) = match turn % 2 {
            1 => (&mut *one, &mut *other),
            _ => (&mut *other, &mut *one),
        };
        let refusal = wants.refusal("blockdev-set-active", set(true))?;
        ensure!(refusal.desc.contains("\"write\" lock"), "{refusal}");
        // The start of a machine is one more way to the same.
        let refusal = wants.refusal("cont", json!({}))?;
        ensure!(refusal.desc.contains("\"write\" lock"), "{refusal}");
        write(wants, 9, 0)?;
        // All in one cluster: who has read its tables before does not find it.
        write(has, turn, 4 * turn)?;
        has.execute("blockdev-set-active", set(false))?;
        write(has, 9, 0)?;
        match turn {
            4 => wants.execute("cont", json!({}))?,
            _ => wants.execute("blockdev-set-active", set(true))?,
        };
        ensure!(shown(wants, "disk")?["active"] == true);
    }
    for vm in vms {
        vm.shutdown_clean()?;
    }
    let mut check = Command::new("qemu-img");
    ensure!(check.arg("check").arg(file.path()).status()?.success());
    let mut read = Command::new("qemu-io");
    read.args(["-f", "qcow2"]);
    for turn in 0..5 {
        let command = format!("read -P {turn} {}k 4k", 4 * turn);
        read.args(["-c", &command]);
    }
    let read = read.arg(file.path()).output()?;
    let text = String::from_utf8_lossy(&read.stdout);
    ensure!(read.status.success(), "{text}");
    Ok(())
}
