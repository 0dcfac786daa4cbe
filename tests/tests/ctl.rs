//! `sesame-ctl` in scripts: arguments, files, exit statuses, events, jobs, scripts that are replayed.
//! At a terminal: `ctl_terminal.rs`.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::Vm;
use tests::clients::Listening;
use tests::ctl::{Ctl, Said};
use tests::job_server::JobServer;

/// A VM, the program that drives it, and a disk.
struct Stage {
    listening: Listening,
    ctl: Ctl,
    folder: TempDir,
    disk: String,
}

impl Stage {
    fn new() -> Result<Self> {
        let listening = Listening::start(Vm::monitor())?;
        let ctl = Ctl::at(&listening.socket)?;
        let folder = tempfile::tempdir()?;
        let disk = folder.path().join("disk.raw");
        File::create(&disk)?.set_len(1 << 20)?;
        Ok(Self {
            listening,
            ctl,
            disk: disk.display().to_string(),
            folder,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn end(self) -> Result<()> {
        self.listening.vm.shutdown_clean()
    }
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_disk_is_handed_over_with_dotted_and_typed_arguments() -> Result<()> {
    let stage = Stage::new()?;
    let before = stage.listening.vm.usage()?;
    let line = format!(
        "blockdev-add driver=raw node-name=disk read-only=off size=64K offset:=4096 \
         file.driver=file file.filename=fd:disk --fd disk=<>{}",
        stage.disk
    );
    assert_eq!(stage.ctl.reply(&line)?, json!({}));
    let nodes = stage.ctl.reply("query-named-block-nodes")?;
    let nodes = nodes.as_array().context("a list")?;
    let node = nodes.iter().find(|node| node["node-name"] == "disk");
    assert_eq!(node.context("the node")?["image"]["virtual-size"], 64 << 10);
    stage.ctl.reply("blockdev-del disk")?;
    let after = stage.listening.vm.settled_usage(before)?;
    assert_eq!(after.fds, before.fds);
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_command_that_fails_leaves_no_file_behind() -> Result<()> {
    let stage = Stage::new()?;
    let before = stage.listening.vm.usage()?;
    stage.ctl.reply("blockdev-add null-co node-name=n")?;
    let disk = &stage.disk;
    let wrong = "blockdev-add file node-name=n";
    let files = [
        format!("{wrong} filename=fd:a --fd a=<>{disk} --fd b=<{disk}"),
        format!("{wrong} filename!<>{disk}"),
        format!("{wrong} filename=/dev/fdset/7 --add-fd 7=<>{disk}"),
    ];
    for line in files {
        let said = stage.ctl.run(&line.split(' ').collect::<Vec<_>>())?;
        ensure!(said.status == 1 && said.stdout.is_empty(), "{said:?}");
    }
    assert_eq!(stage.ctl.reply("query-fdsets")?, json!([]));
    let after = stage.listening.vm.settled_usage(before)?;
    assert_eq!(after.fds, before.fds);
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_shell_may_open_the_file_itself() -> Result<()> {
    let stage = Stage::new()?;
    let disk = &stage.disk;
    let lines = [
        // Unquoted, `=<PATH` is a redirection of standard input: that is the file.
        format!("$CTL blockdev-add file node-name=a read-only=on filename=fd:d --fd d=<{disk}"),
        format!("$CTL blockdev-add file node-name=b filename=fd:d --fd d= <>{disk}"),
        format!("$CTL blockdev-add file node-name=c filename=fd:d --fd d=7 7<>{disk}"),
        format!("$CTL blockdev-add file node-name=d 'filename!7' 7<>{disk}"),
    ];
    for line in lines {
        let said = stage.ctl.in_shell(&line)?;
        assert_eq!(
            (said.status, said.stdout.as_str()),
            (0, "{}\n"),
            "{line}: {said:?}"
        );
    }
    let nodes = stage.ctl.reply("query-named-block-nodes")?;
    assert_eq!(nodes.as_array().map(Vec::len), Some(4));
    let said = stage.ctl.in_shell("$CTL getfd x --fd x=19")?;
    assert_eq!(said.status, 12, "{said:?}");
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn commands_that_take_an_fd_get_the_file_itself() -> Result<()> {
    let stage = Stage::new()?;
    let disk = &stage.disk;
    stage.ctl.reply(&format!("getfd --fd disk=<{disk}"))?;
    let added = stage
        .ctl
        .reply(&format!("add-fd fdset-id=3 --fd disk=<{disk}"))?;
    assert_eq!(added["fdset-id"], 3);
    let fds = stage.ctl.reply("query-fds")?;
    let waiting = fds["waiting"].as_array().context("a list")?;
    assert!(waiting.iter().any(|fd| fd["name"] == "disk"), "{fds}");
    stage.ctl.reply("closefd disk")?;
    stage.ctl.reply("remove-fd 3")?;
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_exit_status_tells_the_class_of_the_error() -> Result<()> {
    let stage = Stage::new()?;
    let wanted = [
        ("query-status", 0, ""),
        ("blockdev-del nowhere", 1, "(GenericError)"),
        ("blockdev-del node=x", 2, "(did you mean 'node-name'?)"),
        ("query-statu", 3, "(did you mean 'query-status'?)"),
        ("device_del d9", 4, "Device 'd9' not found (DeviceNotFound)"),
        ("events --timeout 0.01", 9, "--timeout"),
        ("--wait nothing", 10, "there is no job 'nothing'"),
        ("getfd x --fd x=</no/such/file", 12, "/no/such/file"),
        ("events NEVER", 2, "no event 'NEVER'"),
    ];
    for (line, status, stderr) in wanted {
        let said = stage.ctl.run(&line.split(' ').collect::<Vec<_>>())?;
        assert_eq!(said.status, status, "{line}: {said:?}");
        assert!(said.stderr.contains(stderr), "{line}: {said:?}");
        assert!(said.stderr.lines().count() <= 1, "{line}: {said:?}");
    }
    let nobody = Ctl::at(&stage.path("nobody"))?;
    assert_eq!(nobody.run(&["query-status"])?.status, 8);
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn help_follows_the_live_vm() -> Result<()> {
    let stage = Stage::new()?;
    let all = stage.ctl.run(&["help"])?;
    assert!(all.stdout.contains("  query-status  "), "{all:?}");
    let one = stage.ctl.run(&["help", "blockdev-add", "driver=file"])?;
    assert!(one.stdout.contains("filename=TEXT"), "{one:?}");
    let server = JobServer::start()?;
    let other = Ctl::at(&server.socket)?.run(&["help"])?;
    assert!(!other.stdout.contains("query-status"), "{other:?}");
    assert!(other.stdout.contains("blockdev-create"), "{other:?}");
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn events_are_json_and_tail_is_for_people() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut follow = stage.ctl.command();
    follow.args(["events", "RESUME", "SHUTDOWN", "--follow"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn()?;
    let mut tail = stage.ctl.command();
    let mut tail = tail.arg("tail").stdout(Stdio::piped()).spawn()?;
    let (sender, heard) = mpsc::channel();
    let output = tail.stdout.take().context("its output")?;
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut output = BufReader::new(follow.stdout.take().context("its output")?);
    let follows = thread::spawn(move || {
        let mut first = String::new();
        output.read_line(&mut first).map(|_| (first, output))
    });
    // What happened before they listened they have not heard.
    while !follows.is_finished() || heard.try_recv().is_err() {
        stage.listening.vm.execute("stop", json!({}))?;
        stage.listening.vm.execute("cont", json!({}))?;
        thread::sleep(Duration::from_millis(20));
    }
    let Ok(Ok((first, output))) = follows.join() else {
        bail!("events wrote nothing");
    };
    let event: Value = serde_json::from_str(&first)?;
    assert_eq!(event["event"], "RESUME");
    assert!(event["timestamp"]["seconds"].is_u64(), "{event}");
    stage.listening.vm.shutdown_clean()?;
    let last = output
        .lines()
        .map_while(Result::ok)
        .last()
        .context("more")?;
    let event: Value = serde_json::from_str(&last)?;
    assert_eq!(event["data"]["reason"], "host-qmp-quit");
    let lines: Vec<_> = heard.iter().collect();
    let last = lines.last().context("lines of tail")?;
    assert!(
        last.ends_with("Z SHUTDOWN guest=false reason=host-qmp-quit"),
        "{lines:?}"
    );
    // The VM's end is the end of what they were asked for.
    assert!(follow.wait()?.success() && tail.wait()?.success());
    Ok(())
}

#[test]
#[ignore = "needs sesame-ctl: cargo xtask test"]
fn a_job_is_waited_for_with_a_line_for_each_tenth() -> Result<()> {
    let server = JobServer::start()?;
    let ctl = Ctl::at(&server.socket)?;
    let mut wait = ctl.command();
    wait.args(["blockdev-create", "j", "options:={}", "--wait", "j"]);
    let mut wait = wait.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stderr = wait.stderr.take().context("its stderr")?;
    let mut lines = BufReader::new(stderr).lines();
    let mut next = || lines.next().context("a line")?.context("read");
    assert_eq!(next()?, "j 0% running");
    server.set("running", 42);
    assert_eq!(next()?, "j 42% running");
    server.set("concluded", 100);
    assert_eq!(next()?, "j 100% concluded");
    let said = Said::of(&wait.wait_with_output()?)?;
    let replies: Vec<Value> = serde_json::Deserializer::from_str(&said.stdout)
        .into_iter()
        .collect::<Result<_, _>>()?;
    assert_eq!(said.status, 0);
    assert_eq!(
        (&replies[0], &replies[1]["status"]),
        (&json!({}), &json!("concluded"))
    );
    Ok(())
}

#[test]
#[ignore = "needs sesame-ctl: cargo xtask test"]
fn a_job_that_fails_is_a_failure_with_its_reason() -> Result<()> {
    let server = JobServer::start()?;
    let ctl = Ctl::at(&server.socket)?;
    ctl.reply("blockdev-create j options:={}")?;
    server.fail("No space left on device");
    let said = ctl.run(&["--wait", "j"])?;
    assert_eq!(said.status, 10, "{said:?}");
    assert!(
        said.stderr
            .ends_with("job 'j' did not succeed: No space left on device\n"),
        "{said:?}"
    );
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_session_is_recorded_and_replayed_on_another_vm() -> Result<()> {
    let first = Stage::new()?;
    let script = first.path("session.txt");
    let lines = format!(
        "blockdev-add file node-name=disk filename!<>{}\nquery-status\nstop\nquery-status\n\
         {{\"execute\": \"blockdev-del\", \"arguments\": {{\"node-name\": \"disk\"}}}}\n",
        first.disk
    );
    let mut session = first.ctl.command();
    session.arg("--record").arg(&script).stdin(Stdio::piped());
    let mut session = session.stdout(Stdio::null()).spawn()?;
    session
        .stdin
        .take()
        .context("its stdin")?
        .write_all(lines.as_bytes())?;
    assert!(session.wait()?.success());
    let recorded = fs::read_to_string(&script)?;
    assert!(recorded.contains("\n> stop\n"), "{recorded}");
    let second = Stage::new()?;
    let replay = |options: &[&str]| {
        let path = script.display().to_string();
        second.ctl.run(&[&["replay", &path], options].concat())
    };
    let said = replay(&["--check"])?;
    // The other VM ran, too, when it began: what it says is what is recorded.
    assert_eq!(
        (said.status, said.stderr.as_str()),
        (0, ""),
        "{recorded}{said:?}"
    );
    // Now it is stopped, which the first reply shows.
    let said = replay(&["--check"])?;
    assert_eq!(said.status, 11, "{said:?}");
    assert!(
        said.stdout
            .contains("# line 4: status is \"paused\" and not \"running\""),
        "{said:?}"
    );
    assert_eq!(replay(&[])?.status, 0);
    first.end()?;
    second.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_replay_ends_at_the_first_failure_unless_it_is_to_go_on() -> Result<()> {
    let stage = Stage::new()?;
    let script = stage.path("script");
    fs::write(&script, "device_del d9\nquery-name\n")?;
    let path = script.display().to_string();
    let said = stage.ctl.run(&["replay", &path])?;
    assert_eq!(said.status, 4, "{said:?}");
    assert!(!said.stdout.contains("query-name"), "{said:?}");
    let said = stage.ctl.run(&["replay", &path, "--keep-going"])?;
    assert_eq!(said.status, 4, "{said:?}");
    assert!(said.stdout.contains("> query-name\n< {}"), "{said:?}");
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_look_shows_state_and_nodes() -> Result<()> {
    let stage = Stage::new()?;
    stage
        .ctl
        .reply("blockdev-add null-co node-name=zero size=1G")?;
    let said = stage
        .ctl
        .run(&["top", "--count", "2", "--interval", "0.01"])?;
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(said.stdout.matches("running").count(), 2, "{said:?}");
    assert!(said.stdout.contains("zero"), "{said:?}");
    stage.end()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_look_at_a_machine_shows_its_vcpus_and_disks() -> Result<()> {
    let port = ["-device", "pcie-root-port,id=port0"];
    let listening = Listening::start(Vm::paused().cpus(2).args(port))?;
    let ctl = Ctl::at(&listening.socket)?;
    ctl.reply("blockdev-add null-co node-name=zero size=1G")?;
    ctl.reply("device_add virtio-blk-pci id=d0 drive=zero bus=port0")?;
    let said = ctl.run(&["top", "--count", "2", "--interval", "0.05"])?;
    assert_eq!((said.status, said.stderr.as_str()), (0, ""), "{said:?}");
    let lines: Vec<_> = said.stdout.lines().collect();
    // The second look knows how much processor time the threads have had since the first.
    let busy = |line: &&&str| line.trim_start().starts_with("1 ") && line.ends_with('%');
    assert_eq!(lines.iter().filter(busy).count(), 1, "{}", said.stdout);
    let disk = |line: &&&str| line.starts_with("zero ") && line.contains("/machine/peripheral/d0");
    assert_eq!(lines.iter().filter(disk).count(), 2, "{}", said.stdout);
    listening.vm.shutdown_clean()
}
