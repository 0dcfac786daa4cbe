//! The open hook over the wire: a manager that answers, refuses, stays silent, dies, floods, or
//! answers wrongly; and a VMM that goes on, says what was wrong, and keeps nothing.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open the files that they hand in"
)]

use std::env;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::hook::Manager;
use tests::qmp::{Client, outcome};
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;
/// A path that no file has: what comes of it comes from the manager.
const NOWHERE: &str = "/nowhere/disk";

/// A VM with two sessions and a hook.
struct Stage {
    vm: Vm,
    other: Client,
    manager: Manager,
}

impl Stage {
    fn new(timeout_ms: u32) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut builder = Vm::monitor();
        let number = builder.pass(theirs);
        let vm = builder
            .args([
                "-chardev",
                &format!("socket,id=other,fd={number}"),
                "-mon",
                "chardev=other,mode=control",
            ])
            .start()?;
        let mut other = Client::new(ours)?;
        other.negotiate()?;
        let (manager, connection) = Manager::pair()?;
        let mut stage = Self { vm, other, manager };
        stage.set(connection.as_fd(), timeout_ms)?;
        Ok(stage)
    }

    fn set(&mut self, connection: std::os::fd::BorrowedFd<'_>, timeout_ms: u32) -> Result<()> {
        let name = json!({"fdname": "hook"});
        self.vm.qmp.execute_with("getfd", name, &[connection])?;
        let hook = json!({"fd": "hook", "timeout-ms": timeout_ms});
        self.vm.execute("open-hook-set", hook)?;
        Ok(())
    }

    /// Sends a command that will wait for the manager.
    fn send(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        self.vm.qmp.send_raw(format!("{request}\n").as_bytes(), &[])
    }

    fn add_node(&mut self, name: &str) -> Result<()> {
        self.send("blockdev-add", &node(name))
    }

    /// The reply to what was sent, which must be an error with these words.
    fn refused(&mut self, words: &str) -> Result<()> {
        let reply = self.vm.qmp.reply(SOON)?;
        let desc = match outcome(&reply) {
            Err(refusal) => refusal.desc,
            Ok(value) => anyhow::bail!("not refused: {value}"),
        };
        ensure!(desc.contains(words), "{desc}");
        Ok(())
    }

    fn done(&mut self) -> Result<Value> {
        let reply = self.vm.qmp.reply(SOON)?;
        outcome(&reply).context("the command that waited")
    }

    fn state(&mut self) -> Result<Value> {
        self.other.execute("query-open-hook", json!({}))
    }

    /// Ends, with as many fds as `before`.
    fn end(self, before: fds::Usage) -> Result<()> {
        let after = self.vm.settled_usage(before)?;
        ensure!(after.fds <= before.fds, "leaked: {before}, then {after}");
        ensure!(
            after.threads <= before.threads,
            "leaked: {before}, then {after}"
        );
        self.vm.shutdown_clean()
    }
}

fn node(name: &str) -> Value {
    json!({"driver": "file", "node-name": name, "filename": NOWHERE})
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn what_nobody_passed_is_asked_for_and_the_answer_is_used() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let before = stage.vm.usage()?;
    stage.add_node("n")?;
    let request = stage.manager.request()?;
    let wanted = json!({"id": 1, "request": "open", "name": NOWHERE, "role": "image",
        "kind": "regular-file", "access": "read-write", "direct": false,
        "reason": "node 'n'", "command": "blockdev-add", "deadline-ms": 20_000});
    assert_eq!(request, wanted);
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    let nodes = stage.vm.execute("query-named-block-nodes", json!({}))?;
    assert_eq!(nodes[0]["image"]["virtual-size"], MIB);
    stage
        .vm
        .execute("blockdev-del", json!({"node-name": "n"}))?;
    stage.end(before)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn every_kind_of_resource_can_come_through_the_hook() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    // The first chardev starts a thread that stays.
    bring_every_kind(&mut stage)?;
    let before = stage.vm.usage()?;
    bring_every_kind(&mut stage)?;
    stage.end(before)
}

fn bring_every_kind(stage: &mut Stage) -> Result<()> {
    let path = |address: &str| json!({"type": "unix", "data": {"path": address}});
    let file = json!({"type": "file", "data": {"out": "/no/out", "logfile": "/no/log"}});
    let listener = json!({"type": "socket", "data": {"addr": path("/no/s"), "server": true}});
    let caller = json!({"type": "socket", "data": {"addr": path("/no/s"), "server": false}});
    let memory = json!({"qom-type": "memory-backend-file", "id": "o", "size": MIB,
        "mem-path": "/no/m", "share": true});
    let random = json!({"qom-type": "rng-random", "id": "o", "filename": "/no/r"});
    let folder = tempfile::tempdir()?;
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("s"))?;
    let (end, _peer) = UnixStream::pair()?;
    for (command, removal, arguments, count) in [
        (
            "chardev-add",
            "chardev-remove",
            json!({"id": "o", "backend": file}),
            2,
        ),
        (
            "chardev-add",
            "chardev-remove",
            json!({"id": "o", "backend": listener}),
            1,
        ),
        (
            "chardev-add",
            "chardev-remove",
            json!({"id": "o", "backend": caller}),
            1,
        ),
        ("object-add", "object-del", memory, 1),
        ("object-add", "object-del", random, 1),
    ] {
        stage.send(command, &arguments)?;
        for _ in 0..count {
            let request = stage.manager.request()?;
            match request["kind"].as_str() {
                Some("listening-socket") => stage.manager.give(&request, &socket)?,
                Some("connected-socket") => stage.manager.give(&request, &end)?,
                _ => stage.manager.give(&request, fds::disk(MIB)?)?,
            }
        }
        stage.done().context(command)?;
        stage.vm.execute(removal, json!({"id": "o"}))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn passed_fds_and_commands_that_open_nothing_are_not_asked_for() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let disk = fds::disk(MIB)?;
    let set = json!({"fdset-id": 1});
    stage.vm.qmp.execute_with("add-fd", set, &[disk.as_fd()])?;
    let passed = json!({"driver": "file", "node-name": "n", "filename": "/dev/fdset/1"});
    stage.vm.execute("blockdev-add", passed)?;
    stage.vm.execute("query-block", json!({}))?;
    // What is wrong with a command is told without asking anybody.
    stage
        .vm
        .refusal("blockdev-add", json!({"driver": "file", "filename": 1}))?;
    assert_eq!(stage.state()?["pending"], 0);
    stage.vm.shutdown_clean()
}

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
fn a_node_that_may_be_read_only_asks_again_for_reading() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    let mut arguments = node("n");
    arguments["auto-read-only"] = json!(true);
    stage.send("blockdev-add", &arguments)?;
    let request = stage.manager.request()?;
    stage.manager.refuse(&request, "read-only for you")?;
    let request = stage.manager.request()?;
    assert_eq!(request["access"], "read-only");
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    stage.vm.shutdown_clean()
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
fn a_sealed_process_is_served_by_its_hook_and_takes_a_new_one() -> Result<()> {
    let mut stage = Stage::new(20_000)?;
    bring_every_kind(&mut stage)?;
    stage.vm.execute("seal", json!({"level": "sealed"}))?;
    bring_every_kind(&mut stage)?;
    let (manager, connection) = Manager::pair()?;
    stage.set(connection.as_fd(), 1000)?;
    stage.manager = manager;
    stage.add_node("n")?;
    stage.manager.request()?;
    stage.refused("did not answer within 1000 ms")?;
    stage.add_node("n")?;
    let request = stage.manager.request()?;
    stage.manager.give(&request, fds::disk(MIB)?)?;
    stage.done()?;
    let path = json!({"path": NOWHERE});
    let refusal = stage.vm.refusal("open-hook-set", path)?;
    ensure!(refusal.desc.contains("Could not open"), "{}", refusal.desc);
    assert_eq!(stage.state()?["state"], "connected");
    stage.vm.shutdown_clean()
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
fn a_plan_tells_what_a_command_would_open_and_what_is_there_for_it() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let disk = fds::disk(MIB)?;
    let set = json!({"fdset-id": 1});
    vm.qmp.execute_with("add-fd", set, &[disk.as_fd()])?;
    let before = vm.usage()?;
    let plan = |vm: &mut Vm, filename: &str| {
        let arguments = json!({"driver": "raw", "node-name": "disk",
            "file": {"driver": "file", "node-name": "n", "filename": filename}});
        vm.execute(
            "query-open-plan",
            json!({"command": "blockdev-add", "arguments": arguments}),
        )
    };
    let passed = plan(&mut vm, "/dev/fdset/1")?;
    assert_eq!(passed[0]["source"], "fdset");
    assert_eq!(passed[0]["present"], true);
    let metadata = disk.metadata()?;
    let identity = json!({"dev": std::os::unix::fs::MetadataExt::dev(&metadata),
        "ino": std::os::unix::fs::MetadataExt::ino(&metadata)});
    assert_eq!(passed[0]["identity"], identity);
    let path = plan(&mut vm, NOWHERE)?;
    let wanted = json!([{"name": NOWHERE, "role": "image", "kind": "regular-file",
        "access": "read-write", "direct": false, "reason": "node 'n'", "source": "path",
        "fallback": false}]);
    assert_eq!(path, wanted);
    let named = plan(&mut vm, "fd:nobody")?;
    assert_eq!(
        (&named[0]["source"], &named[0]["present"]),
        (&json!("fd"), &json!(false))
    );
    let nothing = vm.execute("query-open-plan", json!({"command": "query-status"}))?;
    assert_eq!(nothing, json!([]));
    let unknown = vm.refusal("query-open-plan", json!({"command": "no-such-command"}))?;
    assert_eq!(unknown.class, "CommandNotFound");
    vm.refusal(
        "query-open-plan",
        json!({"command": "blockdev-add", "arguments": 1}),
    )?;
    assert_eq!(vm.settled_usage(before)?.fds, before.fds);
    vm.shutdown_clean()
}

/// Answers `count` requests of a launch: images with a disk, everything else with a refusal.
fn serve_launch(stream: &UnixStream, count: usize, refusal: Option<&'static str>) -> Result<()> {
    let mut manager = Manager::new(stream.try_clone()?)?;
    for _ in 0..count {
        let request = manager.request()?;
        assert_eq!(request["command"], Value::Null);
        match (request["role"].as_str(), refusal) {
            (Some("image"), None) => manager.give(&request, fds::disk(MIB)?)?,
            (_, text) => manager.refuse(&request, text.unwrap_or("no"))?,
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_launch_asks_for_everything_at_once_and_keeps_the_hook() -> Result<()> {
    let (stream, connection) = UnixStream::pair()?;
    let mut builder = Vm::monitor();
    let number = builder.pass(connection);
    let nodes = ["a", "b"].map(|name| node(name).to_string());
    // Two images, and the KVM that a machine without CPUs only looks for.
    let served = stream.try_clone()?;
    let server = thread::spawn(move || serve_launch(&served, 3, None));
    let mut vm = builder
        .args(["-open-hook", &format!("fd={number}")])
        .args(["-blockdev", &nodes[0], "-blockdev", &nodes[1]])
        .start()?;
    server.join().expect("no panic")?;
    let mut manager = Manager::new(stream)?;
    let named = vm.execute("query-named-block-nodes", json!({}))?;
    assert_eq!(named.as_array().map(Vec::len), Some(2));
    let request = json!({"execute": "blockdev-add", "arguments": node("c")});
    vm.qmp.send_raw(format!("{request}\n").as_bytes(), &[])?;
    let request = manager.request()?;
    manager.give(&request, fds::disk(MIB)?)?;
    outcome(&vm.qmp.reply(SOON)?)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_launch_that_is_refused_something_ends_with_the_reason() -> Result<()> {
    let (stream, connection) = UnixStream::pair()?;
    let mut builder = Vm::monitor();
    let number = builder.pass(connection);
    let server = thread::spawn(move || serve_launch(&stream, 1, Some("not yours")));
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

/// The reference server, ended when it is dropped.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    fn start(allow: impl Fn(&Path) -> String) -> Result<Self> {
        let program: PathBuf = env::var_os("SESAME_OPEN_HOOK")
            .context("SESAME_OPEN_HOOK is not set: these tests are run by `cargo xtask test`")?
            .into();
        let folder = tempfile::tempdir()?;
        let list = folder.path().join("allow");
        std::fs::write(&list, allow(folder.path()))?;
        let child = Command::new(program)
            .arg("--allow")
            .arg(list)
            .arg("--listen")
            .arg(folder.path().join("hook"))
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, folder })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Sets it as the hook, once it listens.
    fn set(&self, vm: &mut Vm) -> Result<()> {
        let hook = json!({"path": self.path("hook")});
        for _ in 0..200 {
            if UnixStream::connect(self.path("hook")).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        vm.execute("open-hook-set", hook).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_reference_server_opens_what_its_list_permits_and_logs_each_decision() -> Result<()> {
    let list = |folder: &Path| {
        let folder = folder.display();
        format!("image rw {folder}/disks/*.raw\nchardev-log rwc {folder}/logs/**\n")
    };
    let server = Server::start(list)?;
    for folder in ["disks", "logs"] {
        std::fs::create_dir(server.path(folder))?;
    }
    for disk in ["disks/a.raw", "b.raw"] {
        std::fs::File::create(server.path(disk))?.set_len(MIB)?;
    }
    let mut vm = Vm::monitor().start()?;
    server.set(&mut vm)?;
    let before = vm.usage()?;
    let disk = |path: String| json!({"driver": "file", "node-name": "n", "filename": path});
    vm.execute("blockdev-add", disk(server.path("disks/a.raw")))?;
    vm.execute("blockdev-del", json!({"node-name": "n"}))?;
    let refusal = vm.refusal("blockdev-add", disk(server.path("b.raw")))?;
    ensure!(
        refusal.desc.contains("no line of the allow list"),
        "{}",
        refusal.desc
    );
    let refusal = vm.refusal("blockdev-add", disk(server.path("disks/missing.raw")))?;
    ensure!(refusal.desc.contains("No such file"), "{}", refusal.desc);
    let log = json!({"type": "null", "data": {"logfile": server.path("logs/vm.log")}});
    vm.execute("chardev-add", json!({"id": "c", "backend": log}))?;
    vm.execute("chardev-remove", json!({"id": "c"}))?;
    ensure!(
        Path::new(&server.path("logs/vm.log")).exists(),
        "it was made"
    );
    assert_eq!(vm.settled_usage(before)?.fds, before.fds);
    let decisions = std::fs::read_to_string(server.path("log"))?;
    let count = |word: &str| decisions.lines().filter(|line| line.contains(word)).count();
    assert_eq!(
        (count(": allowed: "), count(": refused: ")),
        (2, 2),
        "{decisions}"
    );
    ensure!(
        decisions.contains(&format!("pid {}", vm.pid())),
        "{decisions}"
    );
    vm.shutdown_clean()
}
