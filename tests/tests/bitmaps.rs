//! Bitmaps by command and by transaction, in memory and in the image.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make the images that they hand in"
)]

use std::io::Seek;
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;

/// A machine with an image as its node `disk`.
fn vm_with_image(image: &std::fs::File) -> Result<Vm> {
    let mut vm = Vm::monitor().start()?;
    let set = json!({"fdset-id": 1});
    vm.qmp.execute_with("add-fd", set, &[image.as_fd()])?;
    let file = json!({"driver": "file", "filename": "/dev/fdset/1"});
    let node = json!({"driver": "qcow2", "node-name": "disk", "file": file});
    vm.execute("blockdev-add", node)?;
    Ok(vm)
}

fn bitmaps(vm: &mut Vm) -> Result<Value> {
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    let nodes = nodes.as_array().context("a list")?;
    let disk = nodes.iter().find(|node| node["node-name"] == "disk");
    Ok(disk.context("the disk")?["dirty-bitmaps"].clone())
}

fn action(verb: &str, data: Value) -> Value {
    json!({"type": format!("block-dirty-bitmap-{verb}"), "data": data})
}

fn named(name: &str) -> Value {
    json!({"node": "disk", "name": name})
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn refused_transaction_leaves_every_bitmap_as_it_was() -> Result<()> {
    let image = fds::image(MIB)?;
    let mut vm = vm_with_image(&image)?;
    for name in ["a", "b"] {
        vm.execute("block-dirty-bitmap-add", named(name))?;
    }
    let before = bitmaps(&mut vm)?;
    let merge = json!({"node": "disk", "target": "new", "bitmaps": ["a", named("b")]});
    let actions = json!([
        action("add", named("new")),
        action("merge", merge),
        action("disable", named("a")),
        action("remove", named("b")),
    ]);
    let mut refused = actions.clone();
    refused
        .as_array_mut()
        .context("a list")?
        .push(action("clear", named("b")));
    let told = vm.refusal("transaction", json!({"actions": refused}))?;
    ensure!(told.desc == "Dirty bitmap 'b' not found", "{told:?}");
    ensure!(bitmaps(&mut vm)? == before);
    vm.execute("transaction", json!({"actions": actions}))?;
    let after = bitmaps(&mut vm)?;
    let list: Vec<_> = after.as_array().context("a list")?.iter().collect();
    let seen: Vec<_> = list
        .iter()
        .map(|one| (&one["name"], &one["recording"]))
        .collect();
    ensure!(seen == [(&json!("new"), &json!(true)), (&json!("a"), &json!(false))]);
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn persistent_bitmap_is_in_the_image_that_was_closed_and_in_use_in_one_that_was_not() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("disk");
    let mut image = fds::image(MIB)?;
    image.rewind()?;
    std::io::copy(&mut image, &mut std::fs::File::create(&path)?)?;
    let open = || std::fs::File::options().read(true).write(true).open(&path);
    let info = || -> Result<String> {
        let told = Command::new("qemu-img")
            .args(["info", "-U"])
            .arg(&path)
            .output()?;
        Ok(String::from_utf8(told.stdout)?)
    };
    let mut vm = vm_with_image(&open()?)?;
    let kept = json!({"node": "disk", "name": "kept", "persistent": true});
    vm.execute("block-dirty-bitmap-add", kept)?;
    vm.shutdown_clean()?;
    ensure!(info()?.contains("kept") && !info()?.contains("in-use"));
    let mut vm = vm_with_image(&open()?)?;
    ensure!(info()?.contains("in-use"));
    let listed = bitmaps(&mut vm)?;
    ensure!(listed[0]["persistent"] == json!(true) && listed[0]["recording"] == json!(true));
    vm.execute("blockdev-del", json!({"node-name": "disk"}))?;
    ensure!(!info()?.contains("in-use"));
    vm.shutdown_clean()
}
