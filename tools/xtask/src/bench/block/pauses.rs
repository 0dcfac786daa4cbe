//! How long a guest's requests are held back while its disks get overlays: eight at once, by one
//! `transaction` of `blockdev-snapshot-sync`.
//!
//! Sesame tells it (`query-block-pauses`). QEMU does not; it drains each disk before it makes and
//! opens that disk's overlay, so that the first one waits from then to the end of the command: its
//! pause is taken to be what the command takes beyond one that does nothing. The machines are
//! stopped, so no request is waited for in either.
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ::tests::qmp::Client;
use ::tests::vm::Vmm;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::table::{Bar, Row};
use super::BlockOptions;
use super::jobs::start;
use crate::shell::run;

const DISKS: usize = 8;

pub(super) fn measure(pair: &[Vmm; 2], folder: &Path, options: &BlockOptions) -> Result<Vec<Row>> {
    let mut pauses = [Vec::new(), Vec::new()];
    let mut commands = [Vec::new(), Vec::new()];
    for number in 0..DISKS {
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(folder.join(format!("base{number}")))
            .arg("64M"))?;
    }
    for _ in 0..options.disk_turns {
        for (index, vmm) in pair.iter().enumerate() {
            let (pause, command) = sample(vmm, folder, index == 0)?;
            pauses[index].push(pause);
            commands[index].push(command);
        }
    }
    let name = format!("snapshot of {DISKS} disks: pause");
    Ok(vec![
        Row::new(name, "ms", pauses, Bar::Share(0.25)),
        Row::new("      the whole command", "ms", commands, Bar::Shown),
    ])
}

/// Milliseconds of the pause, and of the command.
fn sample(vmm: &Vmm, folder: &Path, tells: bool) -> Result<(f64, f64)> {
    let machine = if tells {
        "q35,accel=kvm"
    } else {
        "q35,accel=tcg"
    };
    let mut options = vec!["-machine", machine, "-m", "64M", "-S"];
    let mut disks = Vec::new();
    for number in 0..DISKS {
        let file = folder.join(format!("base{number}"));
        let file = json!({"driver": "file", "filename": file});
        let node = json!({"driver": "qcow2", "node-name": format!("disk{number}"), "file": file});
        let device = format!("virtio-blk-pci,drive=disk{number}");
        disks.push([node.to_string(), device]);
    }
    for [node, device] in &disks {
        options.extend(["-blockdev", node.as_str(), "-device", device.as_str()]);
    }
    let (mut child, mut client) = start(vmm, &options)?;
    let nothing = time(&mut client, "query-status", json!({}))?;
    let actions = (0..DISKS).map(|number| {
        let data = json!({
            "node-name": format!("disk{number}"),
            "snapshot-file": folder.join(format!("over{number}")),
            "snapshot-node-name": format!("over{number}"),
            "format": "qcow2",
        });
        json!({"type": "blockdev-snapshot-sync", "data": data})
    });
    let actions: Vec<Value> = actions.collect();
    let command = time(&mut client, "transaction", json!({"actions": actions}))?;
    let pause = if tells {
        let told = client.execute("query-block-pauses", json!({}))?;
        ensure!(told["count"] == 1, "one transaction, but: {told}");
        told["last-us"].as_f64().context("microseconds")? / 1000.0
    } else {
        command - nothing
    };
    client.execute("quit", json!({}))?;
    child.wait()?;
    for number in 0..DISKS {
        fs::remove_file(folder.join(format!("over{number}")))?;
    }
    Ok((pause, command))
}

/// Milliseconds to a command's reply.
fn time(client: &mut Client, command: &str, arguments: Value) -> Result<f64> {
    let start = Instant::now();
    client.execute(command, arguments)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}
