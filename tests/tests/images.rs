//! Images made by the process itself, in files that were handed in.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

fn in_a_set(vm: &mut Vm, set: i64, file: &File) -> Result<String> {
    let to = json!({"fdset-id": set});
    vm.qmp.execute_with("add-fd", to, &[file.as_fd()])?;
    Ok(format!("/dev/fdset/{set}"))
}

/// Makes an image; what its job says at its end, if anything.
fn create(vm: &mut Vm, options: Value) -> Result<Option<String>> {
    let job = json!({"job-id": "new", "options": options});
    vm.execute("blockdev-create", job)?;
    let ended = |event: &Value| event["data"]["status"] == "concluded";
    vm.qmp.event_where("JOB_STATUS_CHANGE", SOON, ended)?;
    let jobs = vm.execute("query-jobs", json!({}))?;
    ensure!(jobs[0]["type"] == "create", "{jobs}");
    vm.execute("job-dismiss", json!({"id": "new"}))?;
    Ok(jobs[0]["error"].as_str().map(str::to_owned))
}

/// What the system's tool says of an image.
fn info(path: &Path) -> Result<Value> {
    let mut tool = Command::new("qemu-img");
    let output = tool.args(["info", "--output=json"]).arg(path).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn sealed_process_makes_images_in_files_that_were_handed_in() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let file = tempfile::NamedTempFile::new()?;
    let name = in_a_set(&mut vm, 1, file.as_file())?;
    let plain = json!({"driver": "file", "filename": name, "size": MIB, "preallocation": "full"});
    assert_eq!(create(&mut vm, plain)?, None);
    ensure!(file.as_file().metadata()?.len() == MIB);
    let inline = json!({"driver": "file", "filename": name});
    let options = json!({"driver": "qcow2", "file": inline, "size": 3 * MIB,
        "cluster-size": 16384, "extended-l2": true, "lazy-refcounts": true,
        "backing-file": "below", "backing-fmt": "raw", "refcount-bits": 32,
        "compression-type": "zstd"});
    assert_eq!(create(&mut vm, options)?, None);
    let info = info(file.path())?;
    let data = &info["format-specific"]["data"];
    ensure!(info["virtual-size"] == 3 * MIB, "{info}");
    ensure!(info["backing-filename"] == "below", "{info}");
    ensure!(
        data["extended-l2"] == true && data["lazy-refcounts"] == true,
        "{info}"
    );
    ensure!(data["refcount-bits"] == 32, "{info}");
    ensure!(data["compression-type"] == "zstd", "{info}");
    // It is an image for us, too, and the job has left its file alone.
    let node = json!({"driver": "qcow2", "node-name": "n", "backing": null, "file": inline});
    vm.execute("blockdev-add", node)?;
    // By a path there is nothing to be had any more.
    let path = json!({"driver": "file", "filename": "/tmp/nowhere", "size": 0});
    let error = create(&mut vm, path)?.unwrap_or_default();
    ensure!(error.contains("only fds that were handed in"), "{error}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn image_is_not_made_in_a_file_that_somebody_has() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let file = fds::image(MIB)?;
    let name = in_a_set(&mut vm, 1, &file)?;
    let below = json!({"driver": "file", "node-name": "below", "filename": name});
    let node = json!({"driver": "qcow2", "node-name": "n", "file": below});
    vm.execute("blockdev-add", node)?;
    let over = json!({"driver": "qcow2", "file": "below", "size": MIB});
    let error = create(&mut vm, over)?.unwrap_or_default();
    ensure!(error.contains("required by node 'n'"), "{error}");
    let over = json!({"driver": "file", "filename": name, "size": 0});
    let error = create(&mut vm, over)?.unwrap_or_default();
    ensure!(error.contains("the file of node 'below'"), "{error}");
    ensure!(file.metadata()?.len() > 0);
    let missing = json!({"driver": "qcow2", "file": "no", "size": MIB});
    let error = create(&mut vm, missing)?;
    assert_eq!(
        error.as_deref(),
        Some("Cannot find device='no' nor node-name='no'")
    );
    let none = json!({"job-id": "new", "options": {"driver": "raw"}});
    let refusal = vm.refusal("blockdev-create", none)?;
    ensure!(refusal.desc.contains("does not support"), "{refusal}");
    vm.shutdown_clean()
}
