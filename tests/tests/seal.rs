//! A process that gave up the right to open, without a guest: everything still works that is handed
//! in, and nothing else does.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open and listen for the VMM"
)]
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::hook::Manager;
use tests::qmp::Client;
use tests::sealed::{Strace, is_sealed};
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const PORTS: u32 = 3;
/// Everything that a VM without a guest can be told to do.
fn work(vm: &mut Vm) -> Result<()> {
    vm.execute("object-add", json!({"qom-type": "iothread", "id": "late"}))?;
    let file = fds::disk(MIB)?;
    vm.qmp
        .execute_with("add-fd", json!({"fdset-id": 90}), &[file.as_fd()])?;
    vm.execute(
        "blockdev-add",
        json!({"driver": "raw", "node-name": "disk", "file": {
            "driver": "file", "node-name": "file", "filename": "/dev/fdset/90"}}),
    )?;
    let devices = [
        json!({"driver": "virtio-blk-pci", "drive": "disk", "iothread": "late"}),
        json!({"driver": "virtio-rng-pci"}),
        json!({"driver": "virtio-serial-pci"}),
    ];
    for (port, mut device) in devices.into_iter().enumerate() {
        device["id"] = json!(format!("device{port}"));
        device["bus"] = json!(format!("port{port}"));
        vm.execute("device_add", device)?;
    }
    chardevs(vm)?;
    // There is nothing to boot: the CPU leaves the guest at once, and comes back with the reset.
    for command in ["cont", "system_reset", "stop", "system_powerdown"] {
        vm.execute(command, json!({}))?;
    }
    for query in [
        "query-pci",
        "query-chardev",
        "query-iothreads",
        "query-cpus-fast",
    ] {
        vm.execute(query, json!({}))?;
    }
    let memory = json!({"qom-type": "memory-backend-memfd", "id": "ram1", "size": MIB});
    vm.execute("object-add", memory)?;
    vm.execute("object-del", json!({"id": "ram1"}))?;
    Ok(())
}

/// A listening fd becomes a chardev whose clients come and go.
fn chardevs(vm: &mut Vm) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("port");
    let listener = UnixListener::bind(&path)?;
    let name = json!({"fdname": "port"});
    vm.qmp.execute_with("getfd", name, &[listener.as_fd()])?;
    let address = json!({"type": "fd", "data": {"str": "port"}});
    let socket = json!({"addr": address, "server": true, "wait": false});
    let backend = json!({"type": "socket", "data": socket});
    vm.execute("chardev-add", json!({"id": "port", "backend": backend}))?;
    for _ in 0..2 {
        drop(UnixStream::connect(&path)?);
    }
    vm.execute("chardev-remove", json!({"id": "port"}))?;
    Ok(())
}

fn refuses_paths(vm: &mut Vm) -> Result<()> {
    let file = json!({"driver": "file", "node-name": "passwd", "filename": "/etc/passwd"});
    let pty = json!({"id": "pty", "backend": {"type": "pty", "data": {}}});
    for (command, arguments) in [("blockdev-add", file), ("chardev-add", pty)] {
        let refusal = vm.refusal(command, arguments)?;
        ensure!(
            refusal.desc.contains("only fds that were handed in"),
            "{refusal:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_sealed_process_does_all_that_it_is_handed_the_means_for() -> Result<()> {
    let mut vm = Vm::paused().cpus(2).root_ports(PORTS).start()?;
    let before = vm.execute("query-sandbox", json!({}))?;
    assert_eq!(before["open-policy"], "open");
    vm.execute("seal", json!({"level": "sealed"}))?;
    assert!(is_sealed(&vm.execute("query-sandbox", json!({}))?));
    refuses_paths(&mut vm)?;
    work(&mut vm)?;
    let after = vm.execute("query-sandbox", json!({}))?;
    assert!(is_sealed(&after), "{after}");
    vm.execute("quit", json!({}))?;
    let status = vm.wait_exit()?;
    assert!(status.success(), "{status}: {}", vm.stderr());
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_option_seals_before_the_first_command() -> Result<()> {
    let mut vm = Vm::paused()
        .root_ports(PORTS)
        .args(["-open-policy", "sealed"])
        .start()?;
    let sandbox = vm.execute("query-sandbox", json!({}))?;
    assert!(is_sealed(&sandbox), "{sandbox}");
    refuses_paths(&mut vm)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn passed_is_a_policy_of_its_own_and_levels_only_rise() -> Result<()> {
    let mut vm = Vm::monitor().args(["-open-policy", "passed"]).start()?;
    refuses_paths(&mut vm)?;
    let policy = |vm: &mut Vm| vm.execute("query-sandbox", json!({}));
    assert_eq!(policy(&mut vm)?["open-policy"], "passed");
    vm.execute("seal", json!({"level": "sealed"}))?;
    for level in ["passed", "sealed"] {
        vm.execute("seal", json!({"level": level}))?;
        assert!(is_sealed(&policy(&mut vm)?));
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_path_on_the_command_line_is_refused_by_the_policy_too() -> Result<()> {
    let node = r#"{"driver":"file","node-name":"n","filename":"/dev/zero"}"#;
    for policy in ["passed", "sealed"] {
        let builder = Vm::monitor().args(["-open-policy", policy, "-blockdev", node]);
        let said = builder.start_refused()?;
        assert!(said.contains("only fds that were handed in"), "{said}");
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn clients_come_back_to_the_monitor_of_a_sealed_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("qmp");
    let mut builder = Vm::monitor();
    let fd = builder.pass(UnixListener::bind(&path)?);
    let chardev = format!("socket,id=more,server=on,wait=off,fd={fd}");
    let mut vm = builder
        .args(["-chardev", &chardev, "-mon", "chardev=more,mode=control"])
        .start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    for _ in 0..3 {
        let mut client = Client::new(UnixStream::connect(&path)?)?;
        client.negotiate()?;
        assert!(is_sealed(&client.execute("query-sandbox", json!({}))?));
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn io_threads_come_and_go_without_end_and_sixteen_at_a_time() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let iothread = |id: u32| json!({"qom-type": "iothread", "id": format!("io{id}")});
    for round in 0..40 {
        vm.execute("object-add", iothread(round))?;
        vm.execute("object-del", json!({"id": format!("io{round}")}))?;
    }
    for id in 0..16 {
        vm.execute("object-add", iothread(id))?;
    }
    let refusal = vm.refusal("object-add", iothread(16))?;
    assert!(refusal.desc.contains("before the seal"), "{refusal:?}");
    vm.execute("object-del", json!({"id": "io3"}))?;
    vm.execute("object-add", iothread(16))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn strace_sees_no_forbidden_call_after_the_seal() -> Result<()> {
    if !Strace::is_installed() {
        println!("strace is not installed: the probes of vmm-core/tests/sealed.rs must do");
        return Ok(());
    }
    let mut vm = Vm::paused().cpus(2).root_ports(PORTS).start()?;
    let strace = Strace::attach(vm.pid())?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    work(&mut vm)?;
    vm.execute("quit", json!({}))?;
    vm.wait_exit()?;
    let calls = strace.finish()?;
    ensure!(
        calls.forbidden().is_some(),
        "the seal itself opens the time zone"
    );
    let sealed = calls.after_seal()?;
    ensure!(sealed.count() > 500, "strace saw too little");
    assert_eq!(sealed.forbidden(), None);
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_chardev_that_cannot_call_once_the_process_is_sealed_says_so_and_takes_what_a_hook_gives()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("peer");
    let listener = UnixListener::bind(&path)?;
    let address = json!({"type": "unix", "data": {"path": path}});
    let socket = json!({"addr": address, "server": false, "reconnect-ms": 5});
    let backend = json!({"type": "socket", "data": socket});
    let mut vm = Vm::monitor().start()?;
    vm.execute("chardev-add", json!({"id": "early", "backend": backend}))?;
    let (peer, _) = listener.accept()?;
    vm.execute("seal", json!({"level": "sealed"}))?;
    let refusal = vm.refusal("chardev-add", json!({"id": "late", "backend": backend}))?;
    ensure!(
        refusal.desc.contains("only fds that were handed in"),
        "{refusal:?}"
    );
    // The one that was there has nobody to talk to any more, and the process lives on.
    drop(peer);
    while !vm.stderr().contains("cannot call again by itself") {
        ensure!(
            vm.execute("query-status", json!({})).is_ok(),
            "{}",
            vm.stderr()
        );
    }
    // A manager that comes later is asked, and the chardev is as it was.
    let (mut manager, connection) = Manager::pair()?;
    let name = json!({"fdname": "hook"});
    vm.qmp.execute_with("getfd", name, &[connection.as_fd()])?;
    vm.execute("open-hook-set", json!({"fd": "hook"}))?;
    let request = manager.request()?;
    ensure!(
        request["name"] == path.to_str().context("text")?,
        "{request}"
    );
    let (_peer, given) = UnixStream::pair()?;
    manager.give(&request, &given)?;
    while vm
        .execute("query-chardev", json!({}))?
        .to_string()
        .contains("disconnected")
    {}
    ensure!(
        vm.stderr().matches("cannot call again").count() == 1,
        "{}",
        vm.stderr()
    );
    vm.execute("quit", json!({}))?;
    ensure!(vm.wait_exit()?.success(), "{}", vm.stderr());
    Ok(())
}
