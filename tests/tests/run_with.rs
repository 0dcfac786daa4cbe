//! A process that became somebody else, somewhere else: what it was handed is all it needs.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open what they hand in"
)]
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::sealed::is_sealed;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
/// The account that owns nothing, on every Debian.
const NOBODY: u32 = 65534;
const EVERY_GROUP: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Hands a disk in and plugs it.
fn plug_a_disk(vm: &mut Vm) -> Result<()> {
    let file = fds::disk(MIB)?;
    vm.qmp
        .execute_with("getfd", json!({"fdname": "disk"}), &[file.as_fd()])?;
    vm.execute(
        "blockdev-add",
        json!({"driver": "file", "node-name": "disk", "filename": "fd:disk"}),
    )?;
    vm.execute("object-add", json!({"qom-type": "iothread", "id": "late"}))?;
    let device = json!({"driver": "virtio-blk-pci", "id": "disk", "drive": "disk",
        "bus": "port0", "iothread": "late"});
    vm.execute("device_add", device)?;
    vm.execute("device_del", json!({"id": "disk"}))?;
    Ok(())
}

/// Only root may become somebody else.
fn may_become_others() -> bool {
    let may = nix::unistd::geteuid().is_root();
    if !may {
        println!("not root: nothing to see");
    }
    may
}

/// A line of `/proc/PID/status`, as numbers.
fn ids(pid: u32, line: &str) -> Result<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|text| text.strip_prefix(line));
    let words = line.context("no such line")?.split_whitespace();
    // Sizes end in their unit.
    let numbers = words.filter(|word| *word != "kB");
    numbers.map(|word| Ok(word.parse()?)).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nobody_in_an_empty_folder_runs_a_sealed_machine_from_what_it_was_handed() -> Result<()> {
    if !may_become_others() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let run_with = format!("user=nobody,chroot={}", folder.path().display());
    let mut vm = Vm::paused()
        .root_ports(1)
        .args([
            "-run-with",
            &run_with,
            "-open-policy",
            "sealed",
            "-sandbox",
            EVERY_GROUP,
        ])
        .start()?;
    // Answered when all is done; the greeting comes before.
    assert!(is_sealed(&vm.execute("query-sandbox", json!({}))?));
    let pid = vm.pid();
    assert_eq!(ids(pid, "Uid:")?, [NOBODY; 4]);
    assert_eq!(ids(pid, "Gid:")?, [NOBODY; 4]);
    assert_eq!(ids(pid, "Groups:")?, [NOBODY]);
    for place in ["root", "cwd"] {
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/{place}"))?,
            folder.path()
        );
    }
    plug_a_disk(&mut vm)?;
    vm.execute("system_reset", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn numbers_bring_no_other_group_and_paths_lead_into_the_new_root() -> Result<()> {
    if !may_become_others() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let run_with = format!("user=4711:4712,chroot={}", folder.path().display());
    let mut vm = Vm::monitor().args(["-run-with", &run_with]).start()?;
    vm.execute("query-sandbox", json!({}))?;
    assert_eq!(ids(vm.pid(), "Uid:")?, [4711; 4]);
    assert_eq!(ids(vm.pid(), "Groups:")?, [4712]);
    let password = json!({"driver": "file", "node-name": "n", "filename": "/etc/passwd"});
    let refusal = vm.refusal("blockdev-add", password)?;
    ensure!(refusal.desc.contains("No such file"), "{refusal:?}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn who_is_not_there_is_told() -> Result<()> {
    let told = Vm::monitor()
        .args(["-run-with", "user=no-such-user"])
        .start_refused()?;
    ensure!(told.contains("user 'no-such-user' doesn't exist"), "{told}");
    let told = Vm::monitor()
        .args(["-run-with", "chroot=/no/such/folder"])
        .start_refused()?;
    ensure!(told.contains("chroot=/no/such/folder: "), "{told}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_sealed_process_goes_into_the_background() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pid_file = folder.path().join("pid");
    let mut builder = Vm::paused().root_ports(1);
    let passed = builder.fdset(fs::File::create(&pid_file)?);
    let mut vm = builder
        .args(["-daemonize", "-pidfile", &passed, "-sandbox", EVERY_GROUP])
        .args(["-open-policy", "sealed"])
        .start()?;
    // The parent has gone, and with success: the monitor answers.
    ensure!(vm.wait_exit()?.success(), "{}", vm.stderr());
    let pid: u32 = fs::read_to_string(&pid_file)?.trim().parse()?;
    ensure!(pid != vm.pid(), "nobody went into the background");
    for stream in 0..3 {
        let leads_to = fs::read_link(format!("/proc/{pid}/fd/{stream}"))?;
        assert_eq!(leads_to, Path::new("/dev/null"));
    }
    assert!(is_sealed(&vm.execute("query-sandbox", json!({}))?));
    plug_a_disk(&mut vm)?;
    vm.execute("quit", json!({}))?;
    let start = Instant::now();
    // A process that nobody waited for stays in the list, without anything of its own.
    while ids(pid, "VmRSS:").is_ok() {
        ensure!(start.elapsed() < Duration::from_secs(30), "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
