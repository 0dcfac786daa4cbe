//! The use that all this is for: a sealed VMM whose guest writes and checks numbered blocks all
//! along, while its disk's chain grows by passed fds and goes home again.
//!
//! ```text
//!   base ◄─ delta                        delta by a set, base by the hook, for reading
//!   base ◄─ delta ◄─ over                transaction of two disks, overlays by names
//!   base ◄─ over                         commit: the hook grants writing, and it is given back
//!   base ◄─ over ◄─ last,  base ◄─ last  a snapshot by set, stream
//!   base                                 active commit and pivot
//! ```
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make the images and open them"
)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest::pattern;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::hook::Manager;
use tests::qmp::outcome;
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(120);
/// As in the guest's `ledger.rs`.
const PLACES: u64 = 512;
const BLOCK: usize = 4096;
const STRIDE: u64 = 64 << 10;
/// Bytes of each disk.
const SIZE: u64 = PLACES * STRIDE;

/// The VM, its manager, and the images as files.
struct Stage {
    vm: Vm,
    manager: Manager,
    folder: TempDir,
    /// The guest's names of the disks.
    disks: [String; 2],
}

fn qemu_img(words: &[&str]) -> Result<(i32, String)> {
    let output = Command::new("qemu-img").args(words).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

impl Stage {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (manager, hook) = Manager::pair()?;
        let mut builder = Vm::builder().cpus(2).root_ports(2);
        let hook = builder.pass(hook);
        let vm = builder
            .args([
                "-open-policy",
                "sealed",
                "-open-hook",
                &format!("fd={hook}"),
            ])
            .start()?;
        let mut stage = Self {
            vm,
            manager,
            folder,
            disks: Default::default(),
        };
        stage.make("base", None)?;
        stage.make("delta", Some("base"))?;
        stage.make("side", None)?;
        stage.add_base()?;
        stage.add("delta", Some("base"))?;
        stage.add("side", None)?;
        for (number, node) in ["delta", "side"].into_iter().enumerate() {
            let device = json!({"driver": "virtio-blk-pci", "id": format!("disk{number}"),
                "drive": node, "serial": node, "bus": format!("port{number}")});
            stage.vm.execute("device_add", device)?;
            stage.disks[number] = stage.vm.guest()?.disk(node)?;
        }
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// An image, over another if there is one.
    fn make(&self, name: &str, below: Option<&str>) -> Result<()> {
        let (path, size) = (self.text(name), SIZE.to_string());
        let mut words = vec!["create", "-q", "-f", "qcow2"];
        let below = below.map(|below| self.text(below));
        if let Some(below) = &below {
            words.extend(["-b", below, "-F", "qcow2"]);
        }
        words.extend([path.as_str(), &size]);
        let (code, text) = qemu_img(&words)?;
        ensure!(code == 0, "{text}");
        Ok(())
    }

    /// A command that asks the manager for the base, with this access; who gets it.
    fn asks_for_base(&mut self, command: &str, arguments: &Value, access: &str) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        let request = format!("{request}\n");
        self.vm.qmp.send_raw(request.as_bytes(), &[])?;
        let asked = self.manager.request()?;
        ensure!(
            asked["name"] == self.text("base") && asked["access"] == access,
            "{asked}"
        );
        let file: File = match access {
            "read-only" => fds::open_ro(&self.path("base"))?,
            _ => fds::open_rw(&self.path("base"))?,
        };
        self.manager.give(&asked, file)?;
        outcome(&self.vm.qmp.reply(SOON)?).context("the command that asked")?;
        Ok(())
    }

    fn add_base(&mut self) -> Result<()> {
        let file = json!({"driver": "file", "filename": self.text("base")});
        let node = json!({"driver": "qcow2", "node-name": "base", "read-only": true, "file": file});
        self.asks_for_base("blockdev-add", &node, "read-only")
    }

    /// An image by a set of its own.
    fn add(&mut self, name: &str, backing: Option<&str>) -> Result<()> {
        let file = fds::open_rw(&self.path(name))?;
        let set = self
            .vm
            .qmp
            .execute_with("add-fd", json!({}), &[file.as_fd()])?;
        let file = json!({"driver": "file",
            "filename": format!("/dev/fdset/{}", set["fdset-id"])});
        let node = json!({"driver": "qcow2", "node-name": name, "file": file, "backing": backing});
        self.vm.execute("blockdev-add", node)?;
        Ok(())
    }

    /// Both disks get an overlay at once, by names.
    fn snapshot_both(&mut self) -> Result<()> {
        for (name, below) in [("over", "delta"), ("side-over", "side")] {
            self.make(name, Some(below))?;
            let file = fds::open_rw(&self.path(name))?;
            let named = json!({"fdname": name});
            self.vm.qmp.execute_with("getfd", named, &[file.as_fd()])?;
        }
        let action = |node: &str, overlay: &str| {
            json!({"type": "blockdev-snapshot-sync", "data": {"node-name": node,
                "snapshot-file": format!("fd:{overlay}"), "snapshot-node-name": overlay,
                "format": "qcow2", "mode": "existing"}})
        };
        let actions = [action("delta", "over"), action("side", "side-over")];
        self.vm
            .execute("transaction", json!({"actions": actions}))?;
        Ok(())
    }

    /// The guest goes on for a while: this many blocks on each disk.
    fn goes_on(&mut self, blocks: u64) -> Result<()> {
        for disk in self.disks.clone() {
            let named = json!({"disk": disk});
            let count = |vm: &mut Vm| -> Result<u64> {
                let count = vm.guest()?.call("ledger-count", named.clone())?;
                count.as_u64().context("a number")
            };
            let enough = count(&mut self.vm)? + blocks;
            let mut looks = 0;
            while count(&mut self.vm)? < enough {
                looks += 1;
                if looks > 6000 {
                    bail!("disk {disk} stands still");
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn done(&mut self) -> Result<()> {
        let done = self.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
        ensure!(done["data"]["error"].is_null(), "{done}");
        Ok(())
    }

    /// The guest stands still; the images have no error, and what QEMU reads is the guest's.
    fn judge(&mut self, images: &[&str], tops: [&str; 2]) -> Result<()> {
        self.goes_on(64)?;
        self.vm.execute("stop", json!({}))?;
        for image in images {
            let (code, text) = qemu_img(&["check", "-U", "-f", "qcow2", &self.text(image)])?;
            ensure!(matches!(code, 0 | 3), "{image}: {text}");
        }
        for top in tops {
            let (raw, again) = (self.text("raw"), self.text(top));
            let (code, text) =
                qemu_img(&["convert", "-U", "-f", "qcow2", "-O", "raw", &again, &raw])?;
            ensure!(code == 0, "{top}: {text}");
            let words = ["compare", "-U", "-f", "qcow2", "-F", "raw", &again, &raw];
            let (code, text) = qemu_img(&words)?;
            ensure!(code == 0, "{top}: {text}");
            ledger_is_whole(&fs::read(&raw)?).with_context(|| top.to_owned())?;
        }
        self.vm.execute("cont", json!({}))?;
        self.goes_on(16)
    }

    fn is_read_only(&mut self, name: &str) -> Result<bool> {
        let nodes = self.vm.execute("query-named-block-nodes", json!({}))?;
        let nodes = nodes.as_array().context("a list")?;
        let node = nodes.iter().find(|node| node["node-name"] == name);
        node.context("the node")?["ro"].as_bool().context("a bool")
    }
}

/// The number of a block, which stands in front; the rest of it must be what belongs to that number.
fn number_of(block: &[u8], place: u64) -> Option<u64> {
    let (head, rest) = block.split_first_chunk()?;
    let number = u64::from_le_bytes(*head).checked_sub(1)?;
    let at = place * STRIDE + 8;
    let whole = pattern::first_difference(rest, number, at).is_none();
    (whole && number % PLACES == place).then_some(number)
}

/// Every place has a block, and their numbers follow each other without a gap; the one that is being
/// written may be the old one still.
fn ledger_is_whole(disk: &[u8]) -> Result<()> {
    let mut numbers = Vec::new();
    for place in 0..PLACES {
        let at = usize::try_from(place * STRIDE)?;
        let block = &disk[at..at + BLOCK];
        match number_of(block, place) {
            Some(number) => numbers.push(number),
            None if block.iter().all(|byte| *byte == 0) => {}
            None => bail!("place {place} has what nobody wrote"),
        }
    }
    numbers.sort_unstable();
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
        bail!("no block");
    };
    ensure!(
        last - first + 1 == numbers.len() as u64,
        "blocks {first} to {last}, but only {} of them",
        numbers.len()
    );
    Ok(())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_chain_of_a_sealed_vmm_grows_and_goes_home_and_the_guest_misses_no_block() -> Result<()> {
    let mut stage = Stage::new()?;
    for disk in stage.disks.clone() {
        let named = json!({"disk": disk});
        stage.vm.guest()?.call("ledger-start", named)?;
    }
    stage.judge(&["base", "delta", "side"], ["delta", "side"])?;
    stage.snapshot_both()?;
    stage.judge(&["base", "delta", "side", "over"], ["over", "side-over"])?;
    let middle = json!({"device": "over", "job-id": "middle", "top-node": "delta",
        "base-node": "base"});
    stage.asks_for_base("block-commit", &middle, "read-write")?;
    stage.done()?;
    ensure!(stage.is_read_only("base")?, "given back");
    stage.judge(&["base", "over", "side-over"], ["over", "side-over"])?;
    stage.make("last", Some("over"))?;
    let over = stage.path("over");
    stage
        .add("last", None)
        .with_context(|| over.display().to_string())?;
    let above = json!({"node": "over", "overlay": "last"});
    stage.vm.execute("blockdev-snapshot", above)?;
    stage.goes_on(64)?;
    let stream = json!({"device": "last", "job-id": "stream", "base-node": "base",
        "backing-file": stage.text("base")});
    stage.vm.execute("block-stream", stream)?;
    stage.done()?;
    stage.judge(&["base", "last"], ["last", "side-over"])?;
    let home = json!({"device": "last", "job-id": "home"});
    stage.asks_for_base("block-commit", &home, "read-write")?;
    stage.vm.qmp.event("BLOCK_JOB_READY", SOON)?;
    stage.goes_on(64)?;
    stage.vm.execute("job-complete", json!({"id": "home"}))?;
    stage.done()?;
    stage.judge(&["base"], ["base", "side-over"])?;
    for disk in stage.disks.clone() {
        let told = stage
            .vm
            .guest()?
            .call("ledger-stop", json!({"disk": disk}))?;
        println!("{disk}: {told}");
    }
    stage.vm.shutdown_clean()
}
