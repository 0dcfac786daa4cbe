//! States that images keep inside, overlays that are made on the way, and how long guests waited.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

fn in_a_set(vm: &mut Vm, set: i64, file: &File) -> Result<String> {
    let to = json!({"fdset-id": set});
    vm.qmp.execute_with("add-fd", to, &[file.as_fd()])?;
    Ok(format!("/dev/fdset/{set}"))
}

/// An image under the name `name`.
fn disk(vm: &mut Vm, name: &str, set: i64, file: &File) -> Result<()> {
    let file = json!({"driver": "file", "filename": in_a_set(vm, set, file)?});
    let node = json!({"driver": "qcow2", "node-name": name, "file": file});
    vm.execute("blockdev-add", node)?;
    Ok(())
}

/// What lists show of a node.
fn shown(vm: &mut Vm, name: &str) -> Result<Value> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let nodes = nodes.as_array().context("a list")?;
    let found = nodes.iter().find(|node| node["node-name"] == name);
    found.cloned().context("the node")
}

fn states(vm: &mut Vm, name: &str) -> Result<Vec<String>> {
    let node = shown(vm, name)?;
    let states = node["image"]["snapshots"].as_array();
    let names = states.into_iter().flatten();
    let names = names.filter_map(|state| Some(state["name"].as_str()?.to_owned()));
    Ok(names.collect())
}

fn keep(node: &str, name: &str) -> Value {
    json!({"type": "blockdev-snapshot-internal-sync", "data": {"device": node, "name": name}})
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn states_are_kept_by_transaction_all_or_none_and_forgotten_by_name_or_id() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let (a, b) = (fds::image(MIB)?, fds::image(MIB)?);
    disk(&mut vm, "a", 1, &a)?;
    disk(&mut vm, "b", 2, &b)?;
    let actions = [keep("a", "one"), keep("a", "two"), keep("b", "one")];
    vm.execute("transaction", json!({"actions": actions}))?;
    assert_eq!(states(&mut vm, "a")?, ["one", "two"]);
    assert_eq!(states(&mut vm, "b")?, ["one"]);
    let abort = json!({"type": "abort", "data": {}});
    for actions in [
        json!([keep("b", "three"), keep("a", "two")]),
        json!([keep("b", "three"), keep("b", "three")]),
        json!([keep("a", "three"), keep("b", "three"), abort]),
    ] {
        vm.refusal("transaction", json!({"actions": actions}))?;
    }
    assert_eq!(states(&mut vm, "b")?, ["one"]);
    let forget = json!({"device": "a", "id": "1", "name": "one"});
    let command = "blockdev-snapshot-delete-internal-sync";
    let gone = vm.execute(command, forget.clone())?;
    ensure!(gone["id"] == "1" && gone["name"] == "one", "{gone}");
    assert_eq!(states(&mut vm, "a")?, ["two"]);
    assert_eq!(
        vm.refusal(command, forget)?.desc,
        "Snapshot with id '1' and name 'one' does not exist on device 'a'"
    );
    let one = json!({"device": "a", "name": "three"});
    vm.execute("blockdev-snapshot-internal-sync", one)?;
    let pauses = vm.execute("query-block-pauses", json!({}))?;
    ensure!(pauses["count"] == 2, "{pauses}");
    ensure!(
        pauses["total-us"].as_u64() >= pauses["longest-us"].as_u64(),
        "{pauses}"
    );
    let grouped = json!({"actions": [keep("a", "four")],
        "properties": {"completion-mode": "grouped"}});
    let refusal = vm.refusal("transaction", grouped)?;
    ensure!(
        refusal.desc.ends_with("completion-mode = grouped"),
        "{refusal}"
    );
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn overlay_is_made_in_an_empty_file_that_was_handed_in() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let base = fds::image(MIB)?;
    disk(&mut vm, "base", 1, &base)?;
    let overlay = tempfile::NamedTempFile::new()?;
    let name = json!({"fdname": "empty"});
    vm.qmp
        .execute_with("getfd", name, &[overlay.as_file().as_fd()])?;
    let take = |file: &str| json!({"node-name": "base", "snapshot-file": file, "snapshot-node-name": "top"});
    // The file of a disk is not taken for a new one.
    let refusal = vm.refusal("blockdev-snapshot-sync", take("/dev/fdset/1"))?;
    ensure!(refusal.desc.contains("would be lost"), "{refusal}");
    let aborted = json!({"actions": [
        {"type": "blockdev-snapshot-sync", "data": take("fd:empty")},
        {"type": "abort", "data": {}}]});
    vm.refusal("transaction", aborted)?;
    vm.execute("blockdev-snapshot-sync", take("fd:empty"))?;
    let top = shown(&mut vm, "top")?;
    ensure!(top["backing_file_depth"] == 1, "{top}");
    ensure!(top["image"]["backing-filename"] == "/dev/fdset/1", "{top}");
    ensure!(top["image"]["virtual-size"] == MIB, "{top}");
    vm.execute("blockdev-del", json!({"node-name": "top"}))
        .expect_err("it goes with its last user");
    vm.shutdown_clean()?;
    let mut tool = Command::new("qemu-img");
    // What is behind it has a name that only its own process knew.
    let path = overlay.path().display();
    let alone = format!("driver=qcow2,file.driver=file,file.filename={path},backing=");
    let output = tool.args(["check", "--image-opts", &alone]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}
