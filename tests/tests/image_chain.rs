//! Chains of images that only their headers tell: opened by aliases and by the open hook, known
//! before by the plan; and a base that becomes writable for a commit.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::hook::{Manager, Stage};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

/// The names in the headers, and what `raw` ends the chain.
const MID: &str = "/images/mid.qcow2";
const BASE: &str = "base.raw";

/// A read-only fd of the same file.
fn reader(file: &File) -> Result<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fds::open_ro(Path::new(&path))
}

fn identity(file: &File) -> Result<Value> {
    let metadata = file.metadata()?;
    Ok(json!({"dev": metadata.dev(), "ino": metadata.ino()}))
}

fn in_a_set(vm: &mut Vm, set: i64, file: &File) -> Result<()> {
    let set = json!({"fdset-id": set});
    vm.qmp.execute_with("add-fd", set, &[file.as_fd()])?;
    Ok(())
}

fn alias(vm: &mut Vm, path: &str, set: i64) -> Result<()> {
    vm.execute("add-fd-alias", json!({"path": path, "fdset-id": set}))?;
    Ok(())
}

fn top(filename: &str) -> Value {
    json!({"driver": "qcow2", "node-name": "top",
        "file": {"driver": "file", "filename": filename}})
}

fn plan_of(vm: &mut Vm, command: &str, arguments: &Value) -> Result<Vec<Value>> {
    let question = json!({"command": command, "arguments": arguments});
    let plan = vm.execute("query-open-plan", question)?;
    plan.as_array().context("a list").cloned()
}

/// How deep the chain under the node is.
fn depth(vm: &mut Vm, name: &str) -> Result<Value> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let nodes = nodes.as_array().context("a list")?;
    let node = nodes.iter().find(|node| node["node-name"] == name);
    Ok(node.context("the node")?["backing_file_depth"].clone())
}

fn removed(vm: &mut Vm) -> Result<()> {
    vm.execute("blockdev-del", json!({"node-name": "top"}))?;
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_chain_of_three_opens_by_aliases_of_the_names_in_its_headers_and_the_plan_knows_it()
-> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let images = [
        fds::image_over(MID, "qcow2")?,
        fds::image_over(BASE, "raw")?,
        fds::disk(MIB)?,
    ];
    let readers = [reader(&images[1])?, reader(&images[2])?];
    in_a_set(&mut vm, 1, &images[0])?;
    in_a_set(&mut vm, 2, &readers[0])?;
    in_a_set(&mut vm, 3, &readers[1])?;
    alias(&mut vm, MID, 2)?;
    let node = top("/dev/fdset/1");
    let before = vm.usage()?;
    // The base has no alias yet: its name is in the plan, which ends there.
    let half = plan_of(&mut vm, "blockdev-add", &node)?;
    // A name in a header is relative to its image, whose name is the alias.
    let base = format!("/images/{BASE}");
    let last = half.last().context("entries")?;
    assert_eq!((half.len(), &last["name"]), (3, &json!(base)));
    assert_eq!(last["source"], "path");
    alias(&mut vm, &base, 3)?;
    for _ in 0..2 {
        let whole = plan_of(&mut vm, "blockdev-add", &node)?;
        let wanted = [
            ("/dev/fdset/1", "image", "read-write"),
            (MID, "backing", "read-only"),
            (&base, "backing", "read-only"),
        ];
        assert_eq!(whole.len(), wanted.len());
        for ((entry, wanted), file) in whole.iter().zip(wanted).zip(&images) {
            let (name, role, access) = wanted;
            assert_eq!(entry["name"], name);
            assert_eq!(entry["role"], role);
            assert_eq!(entry["access"], access);
            assert_eq!(entry["kind"], "regular-file");
            assert_eq!(entry["identity"], identity(file)?);
            assert_eq!(entry["ends"], Value::Null, "{entry}");
        }
    }
    assert_eq!(vm.settled_usage(before)?.fds, before.fds);
    vm.execute("blockdev-add", node)?;
    assert_eq!(depth(&mut vm, "top")?, 2);
    let held = vm.execute("query-fds", json!({}))?.to_string();
    ensure!(held.contains("backing"), "the ledger has the role: {held}");
    removed(&mut vm)?;
    let after = vm.settled_usage(before)?;
    ensure!(after.fds <= before.fds + RINGS, "{before}, then {after}");
    vm.shutdown_clean()
}

/// The thread on which images are opened comes with the first image and stays, with its fds.
const RINGS: usize = 4;

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_plan_reads_a_named_fd_without_taking_it_and_says_where_it_ends() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let name = json!({"fdname": "t"});
    let image = fds::image_over("base.qcow2", "qcow2")?;
    vm.qmp.execute_with("getfd", name, &[image.as_fd()])?;
    let before = vm.usage()?;
    for _ in 0..2 {
        let plan = plan_of(&mut vm, "blockdev-add", &top("fd:t"))?;
        assert_eq!(plan.len(), 2);
        assert_eq!(plan[0]["present"], true);
        // What was handed in is nowhere, so that the name stays as it is recorded.
        assert_eq!(plan[1]["name"], "base.qcow2");
        let ends = plan[1]["ends"].as_str().context("the plan ends")?;
        ensure!(ends.contains("No such file"), "{ends}");
    }
    let missing = plan_of(&mut vm, "blockdev-add", &top("/dev/fdset/7"))?;
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0]["ends"], "no passed fd serves it yet");
    assert_eq!(vm.usage()?.fds, before.fds);
    in_a_set(&mut vm, 2, &reader(&fds::image(MIB)?)?)?;
    alias(&mut vm, "base.qcow2", 2)?;
    vm.execute("blockdev-add", top("fd:t"))?;
    assert_eq!(depth(&mut vm, "top")?, 1);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_data_file_is_opened_in_a_role_of_its_own() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    in_a_set(&mut stage.vm, 1, &fds::image_with_data_in("/images/data")?)?;
    stage.send("blockdev-add", &top("/dev/fdset/1"))?;
    let request = stage.manager.request()?;
    assert_eq!(request["name"], "/images/data");
    assert_eq!(request["role"], "data-file");
    assert_eq!(request["access"], "read-write");
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    stage.vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_hook_is_asked_level_by_level_and_a_refusal_or_silence_leaves_nothing() -> Result<()> {
    let mut stage = Stage::new(2_000)?;
    let node = top("/images/top.qcow2");
    let bring = |stage: &mut Stage| -> Result<Value> {
        stage.send("blockdev-add", &node)?;
        let request = stage.manager.request()?;
        assert_eq!(request["role"], "image");
        stage
            .manager
            .give(&request, fds::image_over(MID, "qcow2")?)?;
        let request = stage.manager.request()?;
        assert_eq!(
            (&request["name"], &request["role"]),
            (&json!(MID), &json!("backing"))
        );
        assert_eq!(request["access"], "read-only");
        assert_eq!(request["reason"], "node 'top'");
        assert_eq!(request["command"], "blockdev-add");
        stage
            .manager
            .give(&request, fds::image_over(BASE, "raw")?)?;
        let request = stage.manager.request()?;
        assert_eq!(request["name"], format!("/images/{BASE}"));
        Ok(request)
    };
    let request = bring(&mut stage)?;
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    assert_eq!(depth(&mut stage.vm, "top")?, 2);
    removed(&mut stage.vm)?;
    let before = stage.vm.usage()?;
    let request = bring(&mut stage)?;
    stage.manager.refuse(&request, "not this one")?;
    stage.refused("not this one")?;
    let late = bring(&mut stage)?;
    stage.refused("did not answer within 2000 ms")?;
    stage.manager.give(&late, fds::disk(MIB)?)?;
    assert_eq!(stage.state()?["pending"], 0);
    let plan = plan_of(&mut stage.vm, "blockdev-add", &node)?;
    assert_eq!(plan[0]["source"], "hook");
    assert_eq!(plan[0]["ends"], "the open hook was not asked for it");
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_chain_in_a_circle_is_refused_clearly_with_and_without_a_hook() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let (a, b) = (
        fds::image_over("/images/b", "qcow2")?,
        fds::image_over("/images/a", "qcow2")?,
    );
    for (set, file, path) in [(1, &a, "/images/a"), (2, &b, "/images/b")] {
        in_a_set(&mut stage.vm, set, file)?;
        in_a_set(&mut stage.vm, set, &reader(file)?)?;
        alias(&mut stage.vm, path, set)?;
    }
    let refusal = stage.vm.refusal("blockdev-add", top("/images/a"))?;
    ensure!(refusal.desc.contains("go in a circle"), "{refusal}");
    let before = stage.vm.usage()?;
    let plan = plan_of(&mut stage.vm, "blockdev-add", &top("/images/a"))?;
    let ends = plan.last().context("entries")?["ends"].to_string();
    ensure!(plan.len() == 3 && ends.contains("go in a circle"), "{ends}");
    for path in ["/images/a", "/images/b"] {
        stage.vm.execute("remove-fd-alias", json!({"path": path}))?;
    }
    stage.send("blockdev-add", &top("/images/a"))?;
    for file in [&a, &b, &a] {
        let request = stage.manager.request()?;
        stage.manager.give(&request, file)?;
    }
    stage.refused("go in a circle")?;
    assert_eq!(stage.state()?["pending"], 0);
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_base_is_asked_for_to_be_written_and_must_be_the_same_file() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let base = fds::image(MIB)?;
    in_a_set(&mut stage.vm, 1, &fds::image_over("/images/base", "qcow2")?)?;
    stage.send("blockdev-add", &top("/dev/fdset/1"))?;
    let request = stage.manager.request()?;
    stage.manager.give(&request, reader(&base)?)?;
    stage.done()?;
    let commit = json!({"device": "top", "job-id": "j"});
    let plan = plan_of(&mut stage.vm, "block-commit", &commit)?;
    assert_eq!(plan.len(), 1);
    assert_eq!(plan[0]["name"], "/images/base");
    assert_eq!(
        (&plan[0]["role"], &plan[0]["access"]),
        (&json!("backing"), &json!("read-write"))
    );
    let before = stage.vm.usage()?;
    let nodes = stage.vm.execute("query-named-block-nodes", json!({}))?;
    for wrong in [true, false] {
        stage.send("block-commit", &commit)?;
        let request = stage.manager.request()?;
        assert_eq!(request["access"], "read-write");
        assert_eq!(request["command"], "block-commit");
        if wrong {
            stage.manager.give(&request, fds::image(MIB)?)?;
            stage.refused("another file")?;
        } else {
            stage.manager.refuse(&request, "not today")?;
            stage.refused("not today")?;
        }
        assert_eq!(
            stage.vm.execute("query-named-block-nodes", json!({}))?,
            nodes
        );
        assert_eq!(stage.vm.execute("query-jobs", json!({}))?, json!([]));
        assert_eq!(stage.vm.settled_usage(before)?.fds, before.fds);
    }
    stage.send("block-commit", &commit)?;
    let request = stage.manager.request()?;
    stage.manager.give(&request, &base)?;
    stage.done()?;
    stage.vm.qmp.event("BLOCK_JOB_READY", SOON)?;
    stage
        .vm
        .execute("block-job-cancel", json!({"device": "j"}))?;
    stage.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    let after = stage.vm.execute("query-named-block-nodes", json!({}))?;
    let read_only = |nodes: &Value| -> Vec<Value> {
        let nodes = nodes.as_array().into_iter().flatten();
        nodes.map(|node| node["ro"].clone()).collect()
    };
    assert_eq!(read_only(&after), read_only(&nodes), "given back");
    // The kernel keeps a thread for what its rings had to wait for.
    assert_eq!(stage.vm.settled_usage(before)?.fds, before.fds);
    stage.vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_plan_finds_the_file_of_an_image_by_its_node_planned_or_there() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    in_a_set(&mut vm, 1, &fds::image_over(MID, "raw")?)?;
    let file = json!({"driver": "file", "node-name": "f", "filename": "/dev/fdset/1"});
    let image = json!({"driver": "qcow2", "node-name": "top", "file": "f"});
    let commands = json!([{"command": "blockdev-add", "arguments": file},
        {"command": "blockdev-add", "arguments": image}]);
    let plan = vm.execute("query-open-plan", json!({"commands": commands}))?;
    assert_eq!(plan.as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&plan[1]["name"], &plan[1]["step"]),
        (&json!(MID), &json!(1))
    );
    vm.execute("blockdev-add", file)?;
    let plan = plan_of(&mut vm, "blockdev-add", &image)?;
    assert_eq!((plan.len(), &plan[0]["name"]), (1, &json!(MID)));
    vm.execute("seal", json!({"level": "sealed"}))?;
    assert_eq!(plan_of(&mut vm, "blockdev-add", &image)?, plan);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_transaction_asks_for_what_the_headers_of_its_overlays_name() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    in_a_set(&mut stage.vm, 1, &fds::image(MIB)?)?;
    stage.vm.execute("blockdev-add", top("/dev/fdset/1"))?;
    in_a_set(&mut stage.vm, 2, &fds::image_with_data_in("/images/data")?)?;
    let snapshot = json!({"type": "blockdev-snapshot-sync", "data": {"node-name": "top",
        "snapshot-file": "/dev/fdset/2", "snapshot-node-name": "over", "mode": "existing"}});
    let before = stage.vm.usage()?.fds;
    for refuses in [true, false] {
        stage.send("transaction", &json!({"actions": [snapshot]}))?;
        let request = stage.manager.request()?;
        assert_eq!(request["role"], "data-file");
        assert_eq!(request["command"], "transaction");
        if refuses {
            stage.manager.refuse(&request, "not today")?;
            stage.refused("not today")?;
            assert_eq!(stage.vm.usage()?.fds, before);
        } else {
            stage.manager.give(&request, fds::disk(MIB)?)?;
            stage.done()?;
        }
    }
    assert_eq!(depth(&mut stage.vm, "over")?, 1);
    stage.vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_launch_asks_for_what_the_headers_of_its_images_name() -> Result<()> {
    let (stream, connection) = UnixStream::pair()?;
    let mut builder = Vm::monitor();
    let number = builder.pass(connection);
    let server = thread::spawn(move || -> Result<Vec<Value>> {
        let mut manager = Manager::new(stream)?;
        let mut asked = Vec::new();
        while let Ok(request) = manager.request() {
            match request["name"].as_str() {
                Some("/images/top") => manager.give(&request, fds::image_over(MID, "qcow2")?)?,
                Some(MID) => manager.give(&request, fds::image_over(BASE, "raw")?)?,
                Some("/images/base.raw") => manager.give(&request, fds::disk(MIB)?)?,
                _ => manager.refuse(&request, "no")?,
            }
            asked.push(request["role"].clone());
        }
        Ok(asked)
    });
    let file = json!({"driver": "file", "node-name": "f", "filename": "/images/top"});
    let image = json!({"driver": "qcow2", "node-name": "top", "file": "f"});
    let mut vm = builder
        .args(["-open-hook", &format!("fd={number}")])
        .args([
            "-blockdev",
            &file.to_string(),
            "-blockdev",
            &image.to_string(),
        ])
        .start()?;
    assert_eq!(depth(&mut vm, "top")?, 2);
    vm.shutdown_clean()?;
    let asked = server.join().expect("no panic")?;
    let backing = asked.iter().filter(|role| **role == "backing");
    assert_eq!(backing.count(), 2, "{asked:?}");
    Ok(())
}
