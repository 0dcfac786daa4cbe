//! The published JSON Schema in the hands of others: programs that make types of a schema, and the
//! types then read what a VM really said.
//!
//! `SESAME_PYTHON` has datamodel-code-generator, `SESAME_QUICKTYPE` is a folder with quicktype;
//! `cargo xtask test` makes both.
#![expect(
    clippy::disallowed_methods,
    reason = "the tests write a file for the programs that they run"
)]

use std::env;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// What is asked for once there is something to tell.
const QUESTIONS: &[&str] = &[
    "query-version",
    "query-status",
    "query-name",
    "query-commands",
    "query-qmp-schema",
    "query-machines",
    "query-chardev",
    "query-iothreads",
    "query-fdsets",
    "query-fds",
    "query-sandbox",
    "query-block",
    "query-blockstats",
    "query-named-block-nodes",
    "query-block-jobs",
    "query-jobs",
    "query-command-line-options",
];

fn disk(vm: &mut Vm, name: &str) -> Result<()> {
    let set = vm
        .qmp
        .execute_with("add-fd", json!({}), &[fds::image(MIB)?.as_fd()])?;
    let file = json!({"driver": "file", "filename": format!("/dev/fdset/{}", set["fdset-id"])});
    let node = json!({"driver": "qcow2", "node-name": name, "file": file});
    vm.execute("blockdev-add", node)?;
    Ok(())
}

/// Everything that a VM with an image under a finished job answers, and the events of that job.
fn record() -> Result<Value> {
    let mut vm = Vm::monitor().start()?;
    disk(&mut vm, "base")?;
    disk(&mut vm, "over")?;
    let json = |text: &str| serde_json::from_str::<Value>(text);
    vm.execute(
        "object-add",
        json(r#"{"qom-type": "iothread", "id": "io"}"#)?,
    )?;
    vm.execute("blockdev-del", json(r#"{"node-name": "over"}"#)?)?;
    let overlay = fds::image(MIB)?;
    let name = json(r#"{"fdname": "over"}"#)?;
    vm.qmp.execute_with("getfd", name, &[overlay.as_fd()])?;
    let snapshot = json!({"node-name": "base", "snapshot-file": "fd:over", "format": "qcow2",
        "snapshot-node-name": "over", "mode": "existing"});
    vm.execute("blockdev-snapshot-sync", snapshot)?;
    let stream = json!({"device": "over", "job-id": "s", "auto-dismiss": false});
    vm.execute("block-stream", stream)?;
    let mut events = json!({});
    for name in ["JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED"] {
        events[name] = json!({ "data": vm.qmp.event(name, SOON)?["data"] });
    }
    let mut commands = json!({});
    for question in QUESTIONS {
        commands[question] = json!({ "return": vm.execute(question, json!({}))? });
    }
    vm.execute("job-dismiss", json!({"id": "s"}))?;
    vm.shutdown_clean()?;
    Ok(json!({ "commands": commands, "events": events }))
}

fn schema() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qapi-schema/export/schema.json")
}

fn written(record: &Value, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("record.json");
    fs::write(&path, serde_json::to_string(record)?)?;
    Ok(path)
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.ends_with("done\n"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn types_that_datamodel_code_generator_makes_read_what_was_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = written(&record()?, folder.path())?;
    let python = env::var_os("SESAME_PYTHON").context("SESAME_PYTHON: cargo xtask test sets it")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/datamodel.py");
    let arguments = [script, schema(), record, folder.path().to_owned()];
    done(Command::new(python).args(arguments))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn types_that_quicktype_makes_read_what_was_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = written(&record()?, folder.path())?;
    let quicktype =
        env::var_os("SESAME_QUICKTYPE").context("SESAME_QUICKTYPE: cargo xtask test sets it")?;
    let made = folder.path().join("made.cjs");
    let output = Command::new(Path::new(&quicktype).join("node_modules/.bin/quicktype"))
        .args(["--src-lang", "schema", "--lang", "javascript"])
        .args(["--top-level", "Sesame", "--out"])
        .args([&made, &schema()])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/quicktype/parse.mjs");
    done(Command::new("node").args([script, made, record]))
}
