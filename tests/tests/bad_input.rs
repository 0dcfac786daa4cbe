//! What a client gets wrong is told to it in the right class; the session goes on, nothing leaks,
//! and the next valid command works. No guest is needed: most of this is a monitor alone.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::qmp::{Refusal, outcome};
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// Sends a raw line and returns how it was refused.
fn refused_line(vm: &mut Vm, line: &[u8]) -> Result<Refusal> {
    vm.qmp.send_raw(line, &[])?;
    let reply = vm.qmp.reply(SOON)?;
    match outcome(&reply) {
        Err(refusal) => Ok(refusal),
        Ok(value) => anyhow::bail!("not refused: {value}"),
    }
}

/// The session still works, and the VMM holds no more than before.
fn still_whole(vm: &mut Vm, before: fds::Usage) -> Result<()> {
    vm.execute("query-status", json!({}))?;
    let after = vm.settled_usage(before)?;
    ensure!(
        after.fds <= before.fds,
        "fds leaked: {before}, then {after}"
    );
    ensure!(
        after.threads <= before.threads,
        "threads leaked: {before}, then {after}"
    );
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn malformed_lines_are_errors_and_the_next_command_works() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    for line in [
        &b"{]\n"[..],
        b"{\"execute\": }\n",
        b"nonsense\n",
        b"{\"execute\": \"query-status\", \"execute\": \"quit\"}\n",
        b"{'bad \xff\n",
        b"{\"execute\": true}\n",
        b"{\"execute\": \"query-status\", \"arguments\": []}\n",
        b"{\"execute\": \"query-status\", \"surplus\": 1}\n",
        b"[]\n",
        b"{}\n",
    ] {
        let shown = String::from_utf8_lossy(line).into_owned();
        // One malformed line may be several errors; the reply to the next command comes last.
        vm.qmp.send_raw(line, &[])?;
        vm.qmp
            .send_raw(b"{\"execute\": \"query-status\", \"id\": \"next\"}\n", &[])?;
        let mut errors = 0;
        loop {
            let reply = vm.qmp.reply(SOON)?;
            if reply["id"] == "next" {
                ensure!(
                    reply["return"].is_object(),
                    "{shown}: the next command: {reply}"
                );
                break;
            }
            ensure!(
                reply["error"]["class"] == "GenericError",
                "{shown}: {reply}"
            );
            errors += 1;
        }
        ensure!(errors > 0, "{shown} was no error");
    }
    still_whole(&mut vm, before)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_line_too_deep_is_refused() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    let mut line = vec![b'['; 1025];
    line.push(b'\n');
    let refusal = refused_line(&mut vm, &line)?;
    assert_eq!(refusal.class, "GenericError");
    // What is left of it may be complained about; 0xff brings the parser back for sure.
    vm.qmp
        .send_raw(b"\xff{\"execute\": \"query-status\", \"id\": 1000}\n", &[])?;
    while vm.qmp.reply(SOON)?["id"] != 1000 {}
    still_whole(&mut vm, before)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_line_too_long_is_refused_without_holding_it_all() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let piece = vec![b'x'; 1 << 20];
    vm.qmp.send_raw(b"{\"execute\": \"", &[])?;
    for _ in 0..65 {
        vm.qmp.send_raw(&piece, &[])?;
    }
    let reply = vm.qmp.reply(SOON)?;
    assert_eq!(reply["error"]["class"], "GenericError", "{reply}");
    vm.qmp.send_raw(
        b"\"}\n\xff{\"execute\": \"query-status\", \"id\": 1000}\n",
        &[],
    )?;
    while vm.qmp.reply(SOON)?["id"] != 1000 {}
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn wrong_commands_and_arguments_are_named() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    let refusal = vm.refusal("no-such-command", json!({}))?;
    assert_eq!(refusal.class, "CommandNotFound");
    assert_eq!(
        refusal.desc,
        "The command no-such-command has not been found"
    );
    let generic = [
        ("getfd", json!({}), "Parameter 'fdname' is missing"),
        (
            "query-status",
            json!({"extra": 1}),
            "Parameter 'extra' is unexpected",
        ),
        (
            "closefd",
            json!({"fdname": 7}),
            "Invalid parameter type for 'fdname', expected: string",
        ),
        ("remove-fd", json!({"fdset-id": "x"}), "fdset-id"),
        (
            "object-add",
            json!({"qom-type": "no-such-type", "id": "x"}),
            "no-such-type",
        ),
        (
            "closefd",
            json!({"fdname": "none"}),
            "File descriptor named 'none' not found",
        ),
        (
            "remove-fd",
            json!({"fdset-id": 3}),
            "File descriptor named 'fdset-id:3' not found",
        ),
    ];
    for (command, arguments, text) in generic {
        let refusal = vm.refusal(command, arguments)?;
        assert_eq!(refusal.class, "GenericError", "{command}");
        assert!(refusal.desc.contains(text), "{command}: {refusal}");
    }
    let refusal = vm.refusal("device_del", json!({"id": "none"}))?;
    assert_eq!(refusal.class, "DeviceNotFound");
    still_whole(&mut vm, before)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_fd_that_nobody_takes_is_closed_and_a_missing_one_is_named() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    let file = fds::disk(MIB)?;
    // QEMU keeps such an fd until something takes it; here the request that came with it answers.
    let unwanted = vm
        .qmp
        .execute_with("query-status", json!({}), &[file.as_fd(), file.as_fd()]);
    let text = unwanted
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    assert!(
        text.contains("fd") || text.contains("file descriptor"),
        "{text}"
    );
    let refusal = vm.refusal("add-fd", json!({}))?;
    assert!(
        refusal.desc.contains("No file descriptor supplied"),
        "{refusal}"
    );
    let refusal = vm
        .qmp
        .refusal_with("getfd", json!({"fdname": "1x"}), &[file.as_fd()])?;
    assert!(refusal.desc.contains("fdname"), "{refusal}");
    still_whole(&mut vm, before)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_thousand_refused_commands_with_fds_leave_no_fd_behind() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    let file = fds::disk(MIB)?;
    for round in 0..1100 {
        let bad = [("fdname", json!("9bad")), ("surplus", json!(1))][round % 2].clone();
        vm.qmp
            .refusal_with("getfd", json!({bad.0: bad.1}), &[file.as_fd()])?;
    }
    still_whole(&mut vm, before)?;
    println!(
        "after 1100 refused commands with an fd each: {}",
        vm.usage()?
    );
    vm.shutdown_clean()
}

/// Hands in a file as a set and returns the arguments of a raw node over it.
fn node(vm: &mut Vm, id: &str, size: u64) -> Result<Value> {
    let file = fds::disk(size)?;
    let set = vm.qmp.execute_with("add-fd", json!({}), &[file.as_fd()])?;
    let filename = format!("/dev/fdset/{}", set["fdset-id"]);
    Ok(json!({"driver": "raw", "node-name": id,
        "file": {"driver": "file", "node-name": format!("{id}-file"), "filename": filename}}))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn disks_that_cannot_be_are_refused_and_leave_no_node() -> Result<()> {
    let mut vm = Vm::paused().root_ports(1).start()?;
    let missing = json!({"driver": "file", "node-name": "gone", "filename": "/dev/fdset/77"});
    vm.refusal("blockdev-add", missing)?;
    let mut sized = node(&mut vm, "short", MIB)?;
    sized["size"] = json!(2 * MIB);
    vm.refusal("blockdev-add", sized)?;
    let mut unaligned = node(&mut vm, "unaligned", MIB)?;
    unaligned["offset"] = json!(100);
    unaligned["size"] = json!(1000);
    vm.refusal("blockdev-add", unaligned)?;
    let nodes = vm.execute("query-named-block-nodes", json!({}))?;
    assert_eq!(nodes.as_array().map(Vec::len), Some(0), "{nodes}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn names_are_unique_and_what_is_in_use_stays() -> Result<()> {
    let mut vm = Vm::paused().root_ports(2).start()?;
    let first = node(&mut vm, "disk", MIB)?;
    vm.execute("blockdev-add", first)?;
    let again = node(&mut vm, "disk", MIB)?;
    let refusal = vm.refusal("blockdev-add", again)?;
    assert!(refusal.desc.contains("disk"), "{refusal}");
    let device = json!({"driver": "virtio-blk-pci", "id": "d", "drive": "disk", "bus": "port0"});
    vm.execute("device_add", device)?;
    let twice = json!({"driver": "virtio-blk-pci", "id": "d2", "drive": "disk", "bus": "port1"});
    assert!(vm.refusal("device_add", twice)?.desc.contains("disk"));
    let same_id = json!({"driver": "virtio-rng-pci", "id": "d", "bus": "port1"});
    assert!(vm.refusal("device_add", same_id)?.desc.contains("'d'"));
    let refusal = vm.refusal("blockdev-del", json!({"node-name": "disk"}))?;
    assert!(refusal.desc.contains("in use"), "{refusal}");
    vm.execute("query-status", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_full_port_takes_no_second_device() -> Result<()> {
    let mut vm = Vm::paused().root_ports(1).start()?;
    vm.execute(
        "device_add",
        json!({"driver": "virtio-rng-pci", "id": "a", "bus": "port0"}),
    )?;
    let refusal = vm.refusal(
        "device_add",
        json!({"driver": "virtio-rng-pci", "id": "b", "bus": "port0"}),
    )?;
    assert_eq!(refusal.class, "GenericError");
    let no_bus = vm.refusal(
        "device_add",
        json!({"driver": "virtio-rng-pci", "id": "b", "bus": "port9"}),
    )?;
    assert!(no_bus.desc.contains("port9"), "{no_bus}");
    let no_driver = vm.refusal("device_add", json!({"driver": "no-such-device", "id": "b"}))?;
    assert!(no_driver.desc.contains("no-such-device"), "{no_driver}");
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn sizes_beyond_all_memory_are_refused() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    for (command, arguments) in [
        (
            "chardev-add",
            json!({"id": "ring", "backend":
                {"type": "ringbuf", "data": {"size": 1_u64 << 62}}}),
        ),
        (
            "object-add",
            json!({"qom-type": "memory-backend-ram", "id": "ram", "size": 1_u64 << 62}),
        ),
    ] {
        let refusal = vm.refusal(command, arguments)?;
        assert_eq!(refusal.class, "GenericError", "{command}");
    }
    still_whole(&mut vm, before)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_client_cannot_make_the_vm_wait_for_another_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("waits");
    let mut vm = Vm::monitor().start()?;
    let before = vm.usage()?;
    let address = json!({"type": "unix", "data": {"path": path}});
    let socket = json!({"type": "socket", "data": {"addr": address, "wait": true}});
    let refusal = vm.refusal("chardev-add", json!({"id": "waits", "backend": socket}))?;
    assert!(refusal.desc.contains("'wait'"), "{refusal}");
    assert!(!path.exists(), "nothing listens");
    still_whole(&mut vm, before)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_command_line_with_a_mistake_is_one_line_that_names_it() -> Result<()> {
    for (arguments, named) in [
        (vec!["-no-such-option"], "no-such-option"),
        (vec!["-device", "no-such-device"], "no-such-device"),
        (vec!["-object", "no-such-object,id=x"], "no-such-object"),
        (vec!["-chardev", "null"], "id"),
        (vec!["-add-fd", "fd=999,set=1"], "999"),
    ] {
        let said = Vm::monitor().args(arguments.clone()).start_refused()?;
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_kernel_that_is_none_is_refused_at_the_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("text");
    std::fs::write(&path, "this is no kernel, but a text\n".repeat(2000))?;
    let said = Vm::paused().boots(&path).start_refused()?;
    assert!(said.contains("kernel"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    Ok(())
}
