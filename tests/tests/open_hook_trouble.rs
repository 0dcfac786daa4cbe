//! The open hook when something goes wrong: a manager that refuses, stays silent, dies, floods, or
//! answers wrongly; a client that goes. The VMM goes on, says what was wrong, and keeps nothing.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::hook::{Manager, NOWHERE, Stage, node};
use tests::qmp::Client;
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_refusal_is_the_commands_error() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let before = stage.vm.usage()?;
    stage.add_node("n")?;
    let request = stage.manager.request()?;
    stage.manager.refuse(&request, "not yours")?;
    stage.refused(
        "Could not open '/nowhere/disk' read-write as image of node 'n': \
         the open hook refuses: not yours",
    )?;
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_manager_that_never_answers_holds_up_its_command_only_and_not_for_ever() -> Result<()> {
    let mut stage = Stage::new(1000)?;
    let before = stage.vm.usage()?;
    stage.add_node("n")?;
    stage
        .vm
        .qmp
        .send_raw(b"{'execute': 'query-status', 'id': 'after'}\n", &[])?;
    let request = stage.manager.request()?;
    let state = stage.state()?;
    assert_eq!(
        (&state["pending"], &state["waiting"]),
        (&json!(1), &json!(1))
    );
    let nothing = json!({"driver": "null-co", "node-name": "other"});
    stage.other.execute("blockdev-add", nothing)?;
    stage
        .other
        .execute("blockdev-del", json!({"node-name": "other"}))?;
    stage.refused("the open hook did not answer within 1000 ms")?;
    assert_eq!(stage.vm.qmp.reply(SOON)?["id"], "after");
    // Too late: it is closed, and nobody minds.
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.add_node("n")?;
    let request = stage.manager.request()?;
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    stage
        .vm
        .execute("blockdev-del", json!({"node-name": "n"}))?;
    assert_eq!(stage.state()?["state"], "connected");
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_manager_that_dies_fails_what_waits_and_can_come_back() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let before = stage.vm.usage()?;
    stage.add_node("n")?;
    stage.manager.request()?;
    let (manager, connection) = Manager::pair()?;
    stage.manager = manager;
    let event = stage.other.event("OPEN_HOOK_GONE", SOON)?;
    let told = json!({"reason": "it has closed the connection", "unanswered": 1});
    assert_eq!(event["data"], told);
    stage.refused("the open hook is gone (it has closed the connection)")?;
    assert_eq!(stage.state()?["state"], "gone");
    let refusal = stage.vm.refusal("blockdev-add", node("n"))?;
    ensure!(refusal.desc.contains("set it again"), "{}", refusal.desc);
    stage.set(connection.as_fd(), 20_000)?;
    drop(connection);
    stage.add_node("n")?;
    let request = stage.manager.request()?;
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    stage
        .vm
        .execute("blockdev-del", json!({"node-name": "n"}))?;
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn replacing_or_clearing_a_hook_fails_what_it_owes() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    stage.add_node("n")?;
    stage.manager.request()?;
    let (manager, connection) = Manager::pair()?;
    let name = json!({"fdname": "hook"});
    stage
        .other
        .execute_with("getfd", name, &[connection.as_fd()])?;
    stage
        .other
        .execute("open-hook-set", json!({"fd": "hook"}))?;
    stage.manager = manager;
    stage.refused("the open hook is gone (another one was set)")?;
    stage.add_node("n")?;
    stage.manager.request()?;
    stage.other.execute("open-hook-clear", json!({}))?;
    stage.refused("the open hook is gone (it was cleared)")?;
    assert_eq!(stage.state()?["state"], "unset");
    // Without a hook a path is a path again.
    let refusal = stage.vm.refusal("blockdev-add", node("n"))?;
    ensure!(refusal.desc.contains("No such file"), "{}", refusal.desc);
    stage.vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn wrong_answers_say_what_came_and_leave_nothing() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let before = stage.vm.usage()?;
    let (pipe, _writer) = std::io::pipe()?;
    let disk = fds::disk(MIB)?;
    let named = tempfile::NamedTempFile::new()?;
    let reader = fds::open_ro(named.path())?;
    let wanted = "wanted a regular file, read-write";
    for (fds, came) in [
        (vec![], "no fd"),
        (vec![disk.as_fd(), disk.as_fd()], "2 fds"),
        (vec![pipe.as_fd()], "a pipe"),
        (vec![reader.as_fd()], "a read-only fd"),
    ] {
        stage.add_node("n")?;
        let request = stage.manager.request()?;
        stage.manager.answer(&json!({"id": request["id"]}), &fds)?;
        stage.refused(&format!("the open hook answered with {came}, {wanted}"))?;
    }
    assert_eq!(stage.state()?["state"], "connected");
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_manager_that_floods_is_left_and_the_sessions_go_on() -> Result<()> {
    let disk = fds::disk(MIB)?;
    for line in [&b"x"[..], b"nonsense\n", b"{\"id\": 99}\n", b"{\"id\": 1}"] {
        let mut stage = Stage::new(20_000)?;
        let before = stage.vm.usage()?;
        stage.add_node("n")?;
        stage.manager.request()?;
        // It ends when the VMM has closed its end.
        while stage.manager.send(line, &[disk.as_fd(); 20]).is_ok() {}
        stage.refused("the open hook is gone (it ")?;
        stage.other.execute("query-status", json!({}))?;
        stage.end(before)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_client_that_goes_away_cancels_what_it_waits_for() -> Result<()> {
    let mut stage = Stage::new(60_000)?;
    let request = json!({"execute": "blockdev-add", "arguments": node("n")});
    stage
        .other
        .send_raw(format!("{request}\n").as_bytes(), &[])?;
    let asked = stage.manager.request()?;
    let (unused, _) = UnixStream::pair()?;
    let before = stage.vm.usage()?;
    drop(std::mem::replace(&mut stage.other, Client::new(unused)?));
    let cancel = stage.manager.request()?;
    assert_eq!(cancel, json!({"id": asked["id"], "request": "cancel"}));
    stage.manager.give(&asked, fds::disk(MIB)?)?;
    let nodes = stage.vm.execute("query-named-block-nodes", json!({}))?;
    assert_eq!(nodes, json!([]), "nothing was done for nobody");
    let state = stage.vm.execute("query-open-hook", json!({}))?;
    assert_eq!(
        (&state["pending"], &state["waiting"]),
        (&json!(0), &json!(0))
    );
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_end_of_the_process_does_not_wait_for_the_manager() -> Result<()> {
    let mut stage = Stage::new(60_000)?;
    stage.add_node("n")?;
    stage.manager.request()?;
    stage.other.execute("quit", json!({}))?;
    stage.refused("cancelled while it waited for the open hook: the process ends")?;
    stage.vm.exit_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_hook_must_be_a_connection() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let (pipe, _writer) = std::io::pipe()?;
    let name = json!({"fdname": "hook"});
    vm.qmp.execute_with("getfd", name, &[pipe.as_fd()])?;
    for (arguments, words) in [
        (json!({"fd": "hook"}), "not one end of a unix stream"),
        (json!({"fd": "nobody"}), "no fd has this name"),
        (json!({"path": NOWHERE}), "No such file"),
        (json!({}), "needs 'fd'"),
        (json!({"fd": "hook", "path": NOWHERE}), "exclude each other"),
        (json!({"fd": "hook", "timeout-ms": 0}), "at least 1 ms"),
    ] {
        let refusal = vm.refusal("open-hook-set", arguments)?;
        ensure!(refusal.desc.contains(words), "{}", refusal.desc);
    }
    vm.execute("closefd", json!({"fdname": "hook"}))?;
    vm.execute("open-hook-clear", json!({}))?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_launch_that_is_refused_something_ends_with_the_reason() -> Result<()> {
    let (stream, connection) = UnixStream::pair()?;
    let mut builder = Vm::monitor();
    let number = builder.pass(connection);
    let server = thread::spawn(move || {
        let mut manager = Manager::new(stream)?;
        let request = manager.request()?;
        manager.refuse(&request, "not yours")
    });
    let stderr = builder
        .args(["-open-hook", &format!("fd={number}")])
        .args(["-blockdev", &node("n").to_string()])
        .start_refused()?;
    server.join().expect("no panic")?;
    ensure!(
        stderr.contains("the open hook refuses: not yours"),
        "{stderr}"
    );
    Ok(())
}
