//! kill -9 while jobs and transactions change a chain of images: no image has an error, and every
//! write that was flushed before is there.
//!
//! `cargo xtask torture` runs these with other dice: SESAME_TORTURE is their seed.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they make the images"
)]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::Vm;

/// Bytes of the disk.
const SIZE: usize = 4 << 20;
const SOON: Duration = Duration::from_secs(30);
/// The longest time between a command and the end, in microseconds.
const LATEST: u64 = 40_000;

/// Dice that fall as the seed says (xorshift64).
struct Dice(u64);

impl Dice {
    fn new() -> Result<Self> {
        let seed = match env::var("SESAME_TORTURE") {
            Ok(seed) => seed.parse().context("SESAME_TORTURE is a number")?,
            Err(_) => 1_u64,
        };
        Ok(Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A chain base ← mid ← top of files, and what a guest knows to be on it.
struct Scene {
    vm: Vm,
    folder: TempDir,
    model: Vec<u8>,
    dice: Dice,
}

/// A file of the chain.
fn qemu(program: &str, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(program).args(arguments).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((output.status.code().unwrap_or(-1), text))
}

impl Scene {
    fn new(dice: Dice) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut scene = Self {
            vm: Vm::monitor().start()?,
            folder,
            model: vec![0; SIZE],
            dice,
        };
        for (name, below) in [("base", None), ("mid", Some("base")), ("top", Some("mid"))] {
            scene.create(name, below)?;
            scene.add(name, below)?;
            for _ in 0..6 {
                scene.write(name)?;
            }
            scene.io(name, "flush")?;
        }
        Ok(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A new image that says what is below it.
    fn create(&mut self, name: &str, below: Option<&str>) -> Result<()> {
        let layouts = ["cluster_size=4k", "cluster_size=64k", "lazy_refcounts=on"];
        let layout = layouts[usize::try_from(self.dice.below(3))?];
        let (path, size) = (self.text(name), SIZE.to_string());
        let mut words = vec!["create", "-q", "-f", "qcow2", "-o", layout];
        let below = below.map(|below| self.text(below));
        if let Some(below) = &below {
            words.extend(["-b", below, "-F", "qcow2"]);
        }
        words.extend([path.as_str(), &size]);
        let (code, text) = qemu("qemu-img", &words)?;
        ensure!(code == 0, "{text}");
        Ok(())
    }

    fn add(&mut self, name: &str, below: Option<&str>) -> Result<()> {
        let file = json!({"driver": "file", "filename": self.text(name)});
        let node = json!({"driver": "qcow2", "node-name": name, "file": file, "backing": below});
        self.vm.execute("blockdev-add", node)?;
        Ok(())
    }

    fn io(&mut self, node: &str, words: &str) -> Result<()> {
        let line = format!("qemu-io {node} \"{words}\"");
        let told = json!({"command-line": line});
        let told = self.vm.execute("human-monitor-command", told)?;
        let told = told.as_str().context("text")?;
        ensure!(!told.contains("rror"), "{line}: {told}");
        Ok(())
    }

    /// What a guest would: bytes somewhere.
    fn write(&mut self, node: &str) -> Result<()> {
        let len = [512, 4096, 70_144][usize::try_from(self.dice.below(3))?];
        let sectors = (SIZE as u64 - len) / 512;
        let at = self.dice.below(sectors) * 512;
        let byte = u8::try_from(self.dice.below(255) + 1)?;
        self.io(node, &format!("write -P {byte} {at} {len}"))?;
        let (at, len) = (usize::try_from(at)?, usize::try_from(len)?);
        self.model[at..at + len].fill(byte);
        Ok(())
    }

    /// Sends a command whose reply may never come.
    fn send(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        self.vm.qmp.send_raw(format!("{request}\n").as_bytes(), &[])
    }

    /// The end, a moment later.
    fn kill(&mut self) -> Result<()> {
        thread::sleep(Duration::from_micros(self.dice.below(LATEST)));
        kill(
            Pid::from_raw(i32::try_from(self.vm.pid())?),
            Signal::SIGKILL,
        )?;
        self.vm.wait_exit()?;
        Ok(())
    }

    /// The image has no error, or says itself that its counts are late: they are made right first.
    fn is_sound(&self, name: &str) -> Result<()> {
        let path = self.text(name);
        let dirty = fs::read(self.path(name))?
            .get(79)
            .is_some_and(|bits| bits & 1 != 0);
        if dirty {
            qemu("qemu-img", &["check", "-q", "-r", "all", &path])?;
        }
        let (code, text) = qemu("qemu-img", &["check", "-f", "qcow2", &path])?;
        ensure!(matches!(code, 0 | 3), "{name}: {text}");
        Ok(())
    }

    /// No image has an error, and the chain from `top` on reads as the guest knows it.
    fn judge(&self, images: &[&str], top: &str) -> Result<()> {
        for name in images {
            self.is_sound(name)?;
        }
        let raw = self.text("raw");
        fs::write(&raw, &self.model)?;
        let words = ["compare", "-f", "qcow2", "-F", "raw", &self.text(top), &raw];
        let (code, text) = qemu("qemu-img", &words)?;
        ensure!(code == 0, "{top} differs: {text}");
        Ok(())
    }
}

/// A job over the chain, slow enough to be met half-way.
fn killed_job(command: &str, mut arguments: Value) -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    arguments["job-id"] = json!("job");
    arguments["device"] = json!("top");
    // Between a piece every 40 ms and all at once.
    arguments["speed"] = json!(scene.dice.below(2) * (16 << 20));
    scene.vm.execute(command, arguments)?;
    for _ in 0..scene.dice.below(4) {
        scene.write("top")?;
    }
    scene.io("top", "flush")?;
    scene.kill()?;
    scene.judge(&["base", "mid", "top"], "top")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_while_it_streams_loses_nothing() -> Result<()> {
    killed_job("block-stream", json!({}))?;
    killed_job("block-stream", json!({"base-node": "base"}))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_while_it_commits_loses_nothing() -> Result<()> {
    killed_job(
        "block-commit",
        json!({"top-node": "mid", "base-node": "base"}),
    )?;
    killed_job("block-commit", json!({"base-node": "base"}))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_while_the_base_takes_over_loses_nothing() -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    let commit = json!({"device": "top", "job-id": "job"});
    scene.vm.execute("block-commit", commit)?;
    scene.vm.qmp.event("BLOCK_JOB_READY", SOON)?;
    // Mirrored into the base from here on.
    scene.write("top")?;
    scene.io("top", "flush")?;
    scene.send("job-complete", &json!({"id": "job"}))?;
    scene.kill()?;
    scene.judge(&["base", "mid", "top"], "top")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn what_is_flushed_after_the_base_took_over_is_in_the_base() -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    let commit = json!({"device": "top", "job-id": "job"});
    scene.vm.execute("block-commit", commit)?;
    scene.vm.qmp.event("BLOCK_JOB_READY", SOON)?;
    scene.vm.execute("job-complete", json!({"id": "job"}))?;
    scene.vm.qmp.event("BLOCK_JOB_COMPLETED", SOON)?;
    scene.write("base")?;
    scene.io("base", "flush")?;
    scene.write("base")?;
    scene.io("base", "flush")?;
    scene.kill()?;
    scene.judge(&["base", "mid", "top"], "base")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_in_a_transaction_has_both_snapshots_or_none_and_no_error() -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    scene.create("over", Some("top"))?;
    scene.create("side", None)?;
    scene.add("side", None)?;
    scene.create("side-over", Some("side"))?;
    let snapshot = |node: &str, overlay: &str, path: String| {
        json!({"type": "blockdev-snapshot-sync", "data": {"node-name": node, "format": "qcow2",
            "snapshot-file": path, "snapshot-node-name": overlay, "mode": "existing"}})
    };
    let actions = json!({"actions": [
        snapshot("top", "over", scene.text("over")),
        snapshot("side", "side-over", scene.text("side-over")),
    ]});
    scene.send("transaction", &actions)?;
    if scene.dice.below(2) == 0 {
        scene.vm.qmp.reply(SOON)?;
        scene.write("over")?;
        scene.io("over", "flush")?;
    }
    scene.kill()?;
    let images = ["base", "mid", "top", "over", "side", "side-over"];
    scene.judge(&images, "over")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_while_a_disk_grows_has_the_old_length_or_the_new_one() -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    let grown = json!({"node-name": "top", "size": 2 * SIZE});
    scene.send("block_resize", &grown)?;
    scene.kill()?;
    scene.model.resize(2 * SIZE, 0);
    // What is compared may be longer by zeros.
    scene.judge(&["base", "mid", "top"], "top")
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_while_states_are_kept_has_both_or_none_and_each_is_whole() -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    scene.create("side", None)?;
    scene.add("side", None)?;
    let keep = |node: &str| json!({"type": "blockdev-snapshot-internal-sync", "data": {"device": node, "name": "then"}});
    let actions = json!({"actions": [keep("top"), keep("side")]});
    let before = scene.model.clone();
    scene.send("transaction", &actions)?;
    let told = scene.dice.below(2) == 0;
    if told {
        scene.vm.qmp.reply(SOON)?;
        scene.write("top")?;
        scene.io("top", "flush")?;
    }
    scene.kill()?;
    scene.judge(&["base", "mid", "top", "side"], "top")?;
    let (code, kept) = qemu("qemu-img", &["snapshot", "-l", &scene.text("top")])?;
    ensure!(code == 0, "{kept}");
    ensure!(!told || kept.contains("then"), "it was told, and is gone");
    if kept.contains("then") {
        let (code, text) = qemu("qemu-img", &["snapshot", "-a", "then", &scene.text("top")])?;
        ensure!(code == 0, "{text}");
        scene.model = before;
        scene.judge(&["top"], "top")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn killed_while_an_image_is_made_leaves_the_others_alone_and_no_broken_one() -> Result<()> {
    let mut scene = Scene::new(Dice::new()?)?;
    fs::write(scene.path("new"), "")?;
    let file = json!({"driver": "file", "filename": scene.text("new")});
    let options = json!({"driver": "qcow2", "file": file, "size": 16 * SIZE,
        "preallocation": "falloc", "backing-file": null});
    let options = match scene.dice.below(2) {
        0 => options,
        _ => json!({"driver": "qcow2", "file": options["file"], "size": 16 * SIZE,
            "cluster-size": 4096, "lazy-refcounts": true}),
    };
    scene.send(
        "blockdev-create",
        &json!({"job-id": "make", "options": options}),
    )?;
    scene.kill()?;
    scene.judge(&["base", "mid", "top"], "top")?;
    // Either it is no image yet, or a sound one.
    let begun = fs::read(scene.path("new"))?;
    if begun.starts_with(b"QFI\xfb") {
        scene.is_sound("new")?;
    }
    Ok(())
}
