//! Snapshots by transaction over passed fds: all of it or nothing, whichever way the files come; and
//! the jobs that bring a chain together again.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make the files that they hand in"
)]

use std::fs::File;
use std::io::Seek;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::hook::Stage;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

/// Two images `a` and `b`, each of a set of its own.
fn two_disks(vm: &mut Vm) -> Result<()> {
    for (name, set) in [("a", 1), ("b", 2)] {
        let image = fds::image(MIB)?;
        let to = json!({"fdset-id": set});
        vm.qmp.execute_with("add-fd", to, &[image.as_fd()])?;
        let file = json!({"driver": "file", "filename": format!("/dev/fdset/{set}")});
        let node = json!({"driver": "qcow2", "node-name": name, "file": file});
        vm.execute("blockdev-add", node)?;
    }
    Ok(())
}

/// A snapshot of `node`, the overlay `file` called `overlay`.
fn snapshot(node: &str, file: &str, overlay: &str) -> Value {
    json!({"type": "blockdev-snapshot-sync", "data": {"node-name": node, "snapshot-file": file,
        "snapshot-node-name": overlay, "format": "qcow2", "mode": "existing"}})
}

fn both(first: &str, second: &str, overlays: [&str; 2]) -> Value {
    let first = snapshot("a", first, overlays[0]);
    json!({"actions": [first, snapshot("b", second, overlays[1])]})
}

/// Everything that a transaction that is refused must leave as it was.
fn books(vm: &mut Vm) -> Result<(Value, Value, Value, usize)> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let sets = vm.execute("query-fdsets", json!({}))?;
    let mut held = vm.execute("query-fds", json!({}))?;
    // How long something has been there, and that it was looked at once, may differ.
    for list in held.as_object_mut().context("a ledger")?.values_mut() {
        for entry in list.as_array_mut().context("a list")? {
            let entry = entry.as_object_mut().context("an entry")?;
            entry.retain(|key, _| key != "age" && key != "opened");
        }
    }
    Ok((nodes, sets, held, vm.usage()?.fds))
}

fn named(vm: &mut Vm, name: &str) -> Result<()> {
    let image = fds::image(MIB)?;
    let name = json!({"fdname": name});
    vm.qmp.execute_with("getfd", name, &[image.as_fd()])?;
    Ok(())
}

fn in_a_set(vm: &mut Vm, set: i64) -> Result<()> {
    let image = fds::image(MIB)?;
    let set = json!({"fdset-id": set});
    vm.qmp.execute_with("add-fd", set, &[image.as_fd()])?;
    Ok(())
}

/// The overlays stand on the disks, which have become read-only.
fn taken(vm: &mut Vm, overlays: [&str; 2]) -> Result<()> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let nodes = nodes.as_array().context("a list")?;
    let find = |name: &str| nodes.iter().find(|node| node["node-name"] == name);
    for (disk, overlay) in ["a", "b"].into_iter().zip(overlays) {
        let overlay = find(overlay).context("the overlay")?;
        ensure!(overlay["backing_file_depth"] == 1, "{overlay}");
        ensure!(overlay["ro"] == false, "{overlay}");
        let disk = find(disk).context("the disk")?;
        ensure!(disk["ro"] == true, "{disk}");
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn two_snapshots_by_names_are_taken_together_and_a_refusal_gives_the_names_back() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    two_disks(&mut vm)?;
    named(&mut vm, "one")?;
    let before = books(&mut vm)?;
    let half = both("fd:one", "fd:two", ["a1", "b1"]);
    let refusal = vm.refusal("transaction", half)?;
    ensure!(refusal.desc.contains("fd:two"), "{refusal}");
    assert_eq!(books(&mut vm)?, before);
    named(&mut vm, "two")?;
    let aborted = json!({"actions": [snapshot("a", "fd:one", "a1"),
        snapshot("b", "fd:two", "b1"), {"type": "abort", "data": {}}]});
    let before = books(&mut vm)?;
    vm.refusal("transaction", aborted)?;
    assert_eq!(books(&mut vm)?, before);
    let whole = both("fd:one", "fd:two", ["a1", "b1"]);
    vm.execute("transaction", whole)?;
    taken(&mut vm, ["a1", "b1"])?;
    let gone = vm.refusal("closefd", json!({"fdname": "one"}))?;
    ensure!(gone.desc.contains("one"), "{gone}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn two_snapshots_by_sets_are_taken_together_or_not_at_all() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    two_disks(&mut vm)?;
    in_a_set(&mut vm, 11)?;
    let before = books(&mut vm)?;
    let half = both("/dev/fdset/11", "/dev/fdset/12", ["a1", "b1"]);
    let refusal = vm.refusal("transaction", half)?;
    ensure!(refusal.desc.contains("/dev/fdset/12"), "{refusal}");
    assert_eq!(books(&mut vm)?, before);
    in_a_set(&mut vm, 12)?;
    let whole = both("/dev/fdset/11", "/dev/fdset/12", ["a1", "b1"]);
    vm.execute("transaction", whole)?;
    taken(&mut vm, ["a1", "b1"])?;
    // A second overlay over the first, by its node.
    let file = json!({"driver": "file", "filename": "/dev/fdset/13"});
    in_a_set(&mut vm, 13)?;
    let node = json!({"driver": "qcow2", "node-name": "a2", "backing": null, "file": file});
    vm.execute("blockdev-add", node)?;
    let above = json!({"node": "a1", "overlay": "a2"});
    vm.execute("blockdev-snapshot", above.clone())?;
    let refusal = vm.refusal("blockdev-snapshot", above)?;
    ensure!(
        refusal.desc == "The overlay already has a backing image",
        "{refusal}"
    );
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn two_snapshots_by_the_hook_are_asked_for_at_once_and_taken_together_or_not_at_all() -> Result<()>
{
    let mut stage = Stage::new(20_000)?;
    two_disks(&mut stage.vm)?;
    let before = books(&mut stage.vm)?;
    for refuses in [true, false] {
        let actions = both("/no/one", "/no/two", ["a1", "b1"]);
        stage.send("transaction", &actions)?;
        // Both questions come before either is answered.
        let (one, two) = (stage.manager.request()?, stage.manager.request()?);
        ensure!(
            one["name"] == "/no/one" && two["name"] == "/no/two",
            "{two}"
        );
        stage.manager.give(&one, fds::image(MIB)?)?;
        if refuses {
            stage.manager.refuse(&two, "not today")?;
            stage.refused("not today")?;
            assert_eq!(books(&mut stage.vm)?, before);
        } else {
            stage.manager.give(&two, fds::image(MIB)?)?;
            stage.done()?;
        }
    }
    taken(&mut stage.vm, ["a1", "b1"])?;
    stage.vm.shutdown_clean()
}

const SOON: Duration = Duration::from_secs(30);

/// Adds the image `name` of set `set`, over `backing` if there is one.
fn add_image(vm: &mut Vm, name: &str, set: i64, more: Value) -> Result<()> {
    let file = json!({"driver": "file", "filename": format!("/dev/fdset/{set}")});
    let mut node = json!({"driver": "qcow2", "node-name": name, "file": file});
    for (key, value) in more.as_object().into_iter().flatten() {
        node[key] = value.clone();
    }
    vm.execute("blockdev-add", node)?;
    Ok(())
}

fn is_read_only(vm: &mut Vm, name: &str) -> Result<bool> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let nodes = nodes.as_array().context("a list")?;
    let node = nodes.iter().find(|node| node["node-name"] == name);
    node.context("the node")?["ro"].as_bool().context("a bool")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_base_is_written_by_another_fd_of_the_same_file_and_only_while_a_commit_runs() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("base");
    let mut image = fds::image(MIB)?;
    image.rewind()?;
    std::io::copy(&mut image, &mut File::create(&path)?)?;
    let set = json!({"fdset-id": 1});
    let reader = fds::open_ro(&path)?;
    vm.qmp
        .execute_with("add-fd", set.clone(), &[reader.as_fd()])?;
    add_image(&mut vm, "base", 1, json!({"read-only": true}))?;
    in_a_set(&mut vm, 2)?;
    add_image(&mut vm, "mid", 2, json!({"backing": "base"}))?;
    in_a_set(&mut vm, 3)?;
    add_image(&mut vm, "top", 3, json!({"backing": "mid"}))?;
    let middle = json!({"device": "top", "job-id": "j", "top-node": "mid", "base-node": "base"});
    let before = books(&mut vm)?;
    let refusal = vm.refusal("block-commit", middle.clone())?;
    ensure!(refusal.desc.contains("/dev/fdset/1"), "{refusal}");
    assert_eq!(books(&mut vm)?, before);
    let writer = fds::open_rw(&path)?;
    vm.qmp.execute_with("add-fd", set, &[writer.as_fd()])?;
    let before = vm.usage()?.fds;
    vm.execute("block-commit", middle)?;
    let done = vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    ensure!(done["data"]["error"].is_null(), "{done}");
    ensure!(is_read_only(&mut vm, "base")?, "given back");
    assert_eq!(vm.usage()?.fds, before);
    vm.execute("blockdev-del", json!({"node-name": "mid"}))?;
    vm.execute("block-commit", json!({"device": "top", "job-id": "k"}))?;
    vm.qmp.event("BLOCK_JOB_READY", SOON)?;
    let busy = vm.refusal("blockdev-del", json!({"node-name": "base"}))?;
    ensure!(busy.desc.contains("is busy"), "{busy}");
    vm.execute("job-complete", json!({"id": "k"}))?;
    let done = vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    ensure!(done["data"]["error"].is_null(), "{done}");
    ensure!(
        !is_read_only(&mut vm, "base")?,
        "it is what is written to now"
    );
    vm.execute("blockdev-del", json!({"node-name": "top"}))?;
    assert_eq!(vm.execute("query-jobs", json!({}))?, json!([]));
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_stream_tells_each_state_and_leaves_the_overlay_alone() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    two_disks(&mut vm)?;
    in_a_set(&mut vm, 11)?;
    add_image(&mut vm, "over", 11, json!({"backing": null}))?;
    vm.execute("blockdev-snapshot", json!({"node": "a", "overlay": "over"}))?;
    let stream = json!({"device": "over", "job-id": "s", "auto-finalize": false,
        "auto-dismiss": false});
    vm.execute("block-stream", stream)?;
    vm.qmp.event("BLOCK_JOB_PENDING", SOON)?;
    let jobs = vm.execute("query-jobs", json!({}))?;
    ensure!(
        jobs[0]["status"] == "pending" && jobs[0]["type"] == "stream",
        "{jobs}"
    );
    vm.execute("job-finalize", json!({"id": "s"}))?;
    vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    vm.execute("job-dismiss", json!({"id": "s"}))?;
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let over = nodes.as_array().context("a list")?;
    let over = over.iter().find(|node| node["node-name"] == "over");
    ensure!(over.context("it")?["backing_file_depth"] == 0, "{nodes}");
    vm.execute("blockdev-del", json!({"node-name": "a"}))?;
    vm.shutdown_clean()
}
