//! The open hook over the wire: what nobody passed is asked for, what was passed is not, and what a
//! command would open can be known before. What can go wrong is in `open_hook_trouble.rs`.
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
use tests::hook::{Manager, NOWHERE, Stage, node};
use tests::qmp::outcome;
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

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
        "fd-kinds": ["file", "memfd"], "fallback": false, "required": true}]);
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

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_plan_of_several_commands_tells_which_opens_what_and_that_a_name_serves_once() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let disk = fds::disk(MIB)?;
    let name = json!({"fdname": "d"});
    vm.qmp.execute_with("getfd", name, &[disk.as_fd()])?;
    let commands = json!([
        {"command": "object-add", "arguments": {"qom-type": "memory-backend-file", "id": "m",
            "size": MIB, "mem-path": "/no/dir", "share": true}},
        {"command": "blockdev-add", "arguments": {"driver": "raw", "node-name": "a",
            "file": {"driver": "file", "filename": "fd:d"}}},
        {"command": "device_add", "arguments": {"driver": "virtio-blk-pci", "drive": "a"}},
        {"command": "blockdev-add", "arguments": {"driver": "file", "node-name": "b",
            "filename": "fd:d"}},
        {"command": "open-hook-set", "arguments": {"path": "/no/hook"}},
    ]);
    let plan = vm.execute("query-open-plan", json!({"commands": commands}))?;
    let short = |entry: &Value| json!([entry["step"], entry["kind"], entry["present"]]);
    let short: Vec<_> = plan.as_array().into_iter().flatten().map(short).collect();
    let wanted = json!([
        [0, "memory", null],
        [1, "regular-file", true],
        [3, "regular-file", false],
        [4, "connected-socket", null]
    ]);
    assert_eq!(json!(short), wanted);
    assert_eq!(plan[0]["fd-kinds"], json!(["file", "memfd", "directory"]));
    assert_eq!(vm.execute("query-open-plan", json!({}))?, json!([]));
    for arguments in [
        json!({"commands": [], "command": "quit"}),
        json!({"commands": [], "arguments": {}}),
        json!({"command-line": ["-help"]}),
        json!({"command-line": ["-no-such-option"]}),
        json!({"commands": [{"command": "no-such-command"}]}),
    ] {
        vm.refusal("query-open-plan", arguments)?;
    }
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_plan_of_a_launch_tells_everything_that_it_opens() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let options = [
        "-machine",
        "q35,memory-backend=ram",
        "-accel",
        "kvm",
        "-m",
        "256",
        "-object",
        "memory-backend-file,id=ram,size=256M,share=on,mem-path=/no/ram",
        "-kernel",
        "/no/kernel",
        "-initrd",
        "/no/initrd",
        "-serial",
        "pty",
        "-qmp",
        "unix:/no/qmp,server=on,wait=off",
        "-pidfile",
        "/no/pid",
        "-open-hook",
        "path=/no/hook",
        "-blockdev",
        "driver=file,node-name=d,filename=/no/disk,auto-read-only=on",
        "-device",
        "virtio-blk-pci,drive=d",
    ];
    let before = vm.usage()?;
    let plan = vm.execute("query-open-plan", json!({"command-line": options}))?;
    let short = |entry: &Value| format!("{} {}", entry["role"], entry["name"]).replace('"', "");
    let mut short: Vec<_> = plan.as_array().into_iter().flatten().map(short).collect();
    short.sort();
    assert_eq!(
        short,
        [
            "chardev /no/qmp",
            "chardev pty",
            "image /no/disk",
            "image /no/disk",
            "initrd /no/initrd",
            "kernel /no/kernel",
            "kvm /dev/kvm",
            "memory /no/ram",
            "other /no/hook",
            "pid-file /no/pid",
        ]
    );
    assert_eq!(vm.usage()?, before);
    vm.shutdown_clean()
}

/// Answers `count` requests of a launch: images with a disk, everything else with a refusal.
fn serve_launch(stream: &UnixStream, count: usize) -> Result<()> {
    let mut manager = Manager::new(stream.try_clone()?)?;
    for _ in 0..count {
        let request = manager.request()?;
        assert_eq!(request["command"], Value::Null);
        match request["role"].as_str() {
            Some("image") => manager.give(&request, fds::disk(MIB)?)?,
            _ => manager.refuse(&request, "no")?,
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
    let server = thread::spawn(move || serve_launch(&served, 3));
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
