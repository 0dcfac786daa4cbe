//! A manager may restart between any two commands, and in the middle of one: it loses nothing and
//! leaks nothing. A script of commands runs undisturbed; then again with a manager that goes away
//! in one way or another at every step, and each step must leave the machine in the same state,
//! with as many fds and threads.
//!
//! ```text
//!   script ── undisturbed ──► a state after each step
//!      └───── disturbed ────► the same states
//! ```

use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::hook::{Manager, NOWHERE};
use tests::qmp::Client;
use tests::{Vm, fds};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// What a step hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Nothing,
    Disk,
    Pipe,
    /// The VMM's end of an open hook.
    Hook,
}

/// One command.
struct Step {
    command: &'static str,
    arguments: Value,
    given: Given,
    /// Whether it asks the open hook, and so may be cancelled with its client.
    asks: bool,
}

/// How the manager misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    None,
    /// It restarts before each command.
    Between,
    /// It dies when half of a command is sent, with its fds.
    HalfALine,
    /// It dies before it has read the answer.
    Unread,
    /// The one behind the open hook restarts before each command.
    Hook,
}

fn step(command: &'static str, arguments: Value) -> Step {
    give(Given::Nothing, command, arguments)
}

fn give(given: Given, command: &'static str, arguments: Value) -> Step {
    Step {
        command,
        arguments,
        given,
        asks: false,
    }
}

fn ask(command: &'static str, arguments: Value) -> Step {
    Step {
        asks: true,
        ..step(command, arguments)
    }
}

fn file_node(name: &str, filename: &str) -> Value {
    json!({"driver": "file", "node-name": name, "filename": filename})
}

fn file_chardev(id: &str, path: &str) -> Value {
    json!({"id": id, "backend": {"type": "file", "data": {"out": path}}})
}

fn named(name: &str) -> Value {
    json!({"fdname": name})
}

/// Everything a manager does with fds, without a guest; at the end all is as it was.
fn script() -> Vec<Step> {
    let mut script = builds();
    script.extend(takes_apart());
    script
}

fn builds() -> Vec<Step> {
    let alias = json!({"path": "/nowhere/base", "fdset-id": 3});
    let raw = json!({"driver": "raw", "node-name": "n2", "file": "n1"});
    let memory = json!({"qom-type": "memory-backend-memfd", "id": "m1", "size": MIB});
    let random = json!({"qom-type": "rng-random", "id": "r1", "filename": "fd:random"});
    let disk = json!({"driver": "virtio-blk-pci", "id": "d1", "drive": "n2", "bus": "port0"});
    let rng = json!({"driver": "virtio-rng-pci", "id": "d2", "rng": "r1", "bus": "port1"});
    vec![
        give(Given::Pipe, "getfd", named("pipe")),
        give(Given::Disk, "getfd", named("spare")),
        step("closefd", named("spare")),
        give(
            Given::Disk,
            "add-fd",
            json!({"fdset-id": 3, "opaque": "base"}),
        ),
        give(
            Given::Disk,
            "add-fd",
            json!({"fdset-id": 4, "kind": "file"}),
        ),
        step("add-fd-alias", alias),
        step("blockdev-add", file_node("n1", "/dev/fdset/3")),
        step("blockdev-add", raw),
        step(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "n3"}),
        ),
        give(Given::Disk, "getfd", named("disk")),
        step("blockdev-add", file_node("n4", "fd:disk")),
        step("blockdev-add", file_node("n5", "/nowhere/base")),
        give(Given::Disk, "getfd", named("log")),
        step("chardev-add", file_chardev("c1", "fd:log")),
        step("object-add", json!({"qom-type": "iothread", "id": "io1"})),
        step("object-add", memory),
        give(Given::Disk, "getfd", named("random")),
        step("object-add", random),
        step("device_add", disk),
        step("device_add", rng),
        give(Given::Hook, "getfd", named("hook")),
        step("open-hook-set", json!({"fd": "hook", "timeout-ms": 20_000})),
        ask("blockdev-add", file_node("n6", NOWHERE)),
        ask("chardev-add", file_chardev("c2", NOWHERE)),
    ]
}

fn takes_apart() -> Vec<Step> {
    let removal = |command, key: &str, id: &str| step(command, json!({key: id}));
    let mut script = vec![
        removal("device_del", "id", "d1"),
        removal("device_del", "id", "d2"),
    ];
    for id in ["r1", "m1", "io1"] {
        script.push(removal("object-del", "id", id));
    }
    for node in ["n6", "n5", "n4", "n3", "n2", "n1"] {
        script.push(removal("blockdev-del", "node-name", node));
    }
    for id in ["c2", "c1"] {
        script.push(removal("chardev-remove", "id", id));
    }
    script.extend([
        step("open-hook-clear", json!({})),
        step("closefd", named("pipe")),
        step("remove-fd-alias", json!({"path": "/nowhere/base"})),
        step("remove-fd", json!({"fdset-id": 4})),
        step("remove-fd", json!({"fdset-id": 3})),
    ]);
    script
}

/// What the machine looks like to a manager that has just come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    told: String,
    fds: usize,
    threads: usize,
}

/// A VM and the manager of the moment.
struct Stage {
    vm: Vm,
    folder: tempfile::TempDir,
    client: Client,
    /// Our end of the open hook, by which its manager is ended.
    hook: Option<UnixStream>,
    hook_is_set: bool,
}

impl Stage {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("qmp");
        let chardev = format!("socket,id=mon,path={},server=on,wait=off", path.display());
        let vm = Vm::paused()
            .root_ports(2)
            .args(["-chardev", &chardev, "-mon", "chardev=mon,mode=control"])
            .start()?;
        let client = Client::connect(&path)?;
        Ok(Self {
            vm,
            folder,
            client,
            hook: None,
            hook_is_set: false,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// The manager dies; its successor comes.
    fn restart(&mut self) -> Result<()> {
        let (dummy, _) = UnixStream::pair()?;
        drop(std::mem::replace(&mut self.client, Client::new(dummy)?));
        self.client = Client::connect(&self.path())?;
        Ok(())
    }

    fn given(&mut self, given: Given) -> Result<Vec<OwnedFd>> {
        Ok(match given {
            Given::Nothing => vec![],
            Given::Disk => vec![fds::disk(MIB)?.into()],
            Given::Pipe => vec![std::io::pipe()?.0.into()],
            Given::Hook => {
                let (ours, theirs) = UnixStream::pair()?;
                self.hook = Some(ours.try_clone()?);
                thread::spawn(move || serve(ours));
                vec![theirs.into()]
            }
        })
    }

    fn execute(&mut self, step: &Step) -> Result<()> {
        let fds = self.given(step.given)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.client
            .execute_with(step.command, step.arguments.clone(), &fds)
            .map(drop)
    }

    /// Sends a part of a command, with its fds, and dies.
    fn send_and_die(&mut self, step: &Step, part: impl Fn(&str) -> &str) -> Result<()> {
        let request = json!({"execute": step.command, "arguments": step.arguments});
        let line = format!("{request}\n");
        let fds = self.given(step.given)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.client.send_raw(part(&line).as_bytes(), &fds)?;
        self.restart()
    }

    /// Ends the manager behind the hook, and sets another.
    fn restart_hook(&mut self) -> Result<()> {
        if !self.hook_is_set {
            return Ok(());
        }
        let hook = self.hook.take().context("one is set")?;
        hook.shutdown(Shutdown::Both)?;
        self.client.event("OPEN_HOOK_GONE", SOON)?;
        self.execute(&give(Given::Hook, "getfd", named("hook")))?;
        let again = json!({"fd": "hook", "timeout-ms": 20_000});
        self.execute(&step("open-hook-set", again))
    }

    fn state(&mut self) -> Result<State> {
        let mut told = Vec::new();
        for (command, arguments) in [
            ("query-fdsets", json!({})),
            ("query-fds", json!({})),
            ("query-fd-aliases", json!({})),
            ("query-named-block-nodes", json!({})),
            ("query-chardev", json!({})),
            ("query-open-hook", json!({})),
            ("query-iothreads", json!({})),
            ("qom-list", json!({"path": "/objects"})),
            ("qom-list", json!({"path": "/machine/peripheral"})),
        ] {
            told.push(plain(self.client.execute(command, arguments)?));
        }
        let folder = self.folder.path().display().to_string();
        let usage = self.vm.usage()?;
        Ok(State {
            told: Value::from(told).to_string().replace(&folder, "FOLDER"),
            fds: usage.fds,
            threads: usage.threads,
        })
    }

    /// Waits until the machine is in this state: what a dead manager has sent is still carried
    /// out, but nobody says when.
    fn reach(&mut self, wanted: &State, mut try_again: impl FnMut(&mut Self)) -> Result<()> {
        let start = Instant::now();
        loop {
            let state = self.state()?;
            if state == *wanted {
                return Ok(());
            }
            ensure!(
                start.elapsed() < SOON,
                "wanted {wanted:#?}, came to {state:#?}"
            );
            thread::sleep(Duration::from_millis(10));
            try_again(self);
        }
    }

    /// One step in a disturbed life, which must lead from one state to the next.
    fn disturbed(&mut self, step: &Step, disturbance: Disturbance, wanted: &State) -> Result<()> {
        match disturbance {
            Disturbance::None => self.execute(step)?,
            Disturbance::Between => {
                self.restart()?;
                self.execute(step)?;
            }
            Disturbance::HalfALine => {
                self.send_and_die(step, |line| &line[..line.len() / 2])?;
                self.execute(step)?;
            }
            Disturbance::Unread => {
                self.send_and_die(step, |line| line)?;
                return self.reach(wanted, |stage| {
                    // What waits for the hook is given up with its client; who comes after it
                    // finds that it is not done, and says it again.
                    if step.asks && stage.execute(step).is_err() {
                        thread::sleep(Duration::from_millis(10));
                    }
                });
            }
            Disturbance::Hook => {
                self.restart_hook()?;
                self.execute(step)?;
            }
        }
        match step.command {
            "open-hook-set" => self.hook_is_set = true,
            "open-hook-clear" => self.hook_is_set = false,
            _ => {}
        }
        self.reach(wanted, |_| ())
    }
}

/// A manager that gives a disk to whoever asks, until its connection ends.
fn serve(connection: UnixStream) -> Result<()> {
    let mut manager = Manager::new(connection)?;
    loop {
        let request = manager.request()?;
        if request["request"] == "open" {
            manager.give(&request, fds::disk(MIB)?)?;
        }
    }
}

/// The same without what differs from one run to the next: times, order, and the kernel's numbers.
fn plain(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            for key in ["age", "fd", "inode", "thread-id"] {
                members.remove(key);
            }
            for member in members.values_mut() {
                *member = plain(member.take());
            }
            // In the order of opening, in which the manager's own connection is now early, now late.
            if let Some(Value::Array(uses)) = members.get_mut("in-use") {
                uses.sort_by_key(Value::to_string);
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = plain(item.take());
            }
        }
        _ => {}
    }
    value
}

/// The states of an undisturbed life, lived twice: the first time starts threads that stay.
fn undisturbed() -> Result<Vec<State>> {
    let mut stage = Stage::new()?;
    let mut states = Vec::new();
    for _ in 0..2 {
        states.clear();
        states.push(stage.state()?);
        for step in script() {
            stage.execute(&step).context(step.command)?;
            thread::sleep(Duration::from_millis(20));
            states.push(stage.state()?);
        }
    }
    ensure!(
        states.first() == states.last(),
        "at the end all is as it was: {states:#?}"
    );
    stage.vm.shutdown_clean()?;
    Ok(states)
}

fn disturbed(disturbance: Disturbance) -> Result<()> {
    let states = undisturbed()?;
    let mut stage = Stage::new()?;
    for step in script() {
        stage.execute(&step).context(step.command)?;
    }
    let mut wanted = states.iter();
    let first = wanted.next().context("a first state")?;
    stage.reach(first, |_| ())?;
    for (number, (step, wanted)) in script().iter().zip(wanted).enumerate() {
        stage
            .disturbed(step, disturbance, wanted)
            .with_context(|| format!("step {number}, {}, {disturbance:?}", step.command))?;
    }
    println!(
        "{disturbance:?}: {} steps, {} fds before and after",
        script().len(),
        first.fds
    );
    stage.vm.shutdown_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn an_undisturbed_life_is_the_same_each_time() -> Result<()> {
    disturbed(Disturbance::None)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_manager_may_restart_between_any_two_commands() -> Result<()> {
    disturbed(Disturbance::Between)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_manager_may_die_in_the_middle_of_any_command() -> Result<()> {
    disturbed(Disturbance::HalfALine)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_manager_may_die_before_it_reads_any_answer() -> Result<()> {
    disturbed(Disturbance::Unread)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_manager_behind_the_hook_may_restart_between_any_two_commands() -> Result<()> {
    disturbed(Disturbance::Hook)
}

/// Hands over a named fd and one in a set, over the listening monitor.
fn leave_two(stage: &mut Stage) -> Result<()> {
    stage.execute(&give(Given::Disk, "getfd", named("left")))?;
    stage.execute(&give(Given::Disk, "add-fd", json!({"fdset-id": 3})))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn names_and_sets_outlive_the_last_client_of_all_monitors() -> Result<()> {
    let mut stage = Stage::new()?;
    leave_two(&mut stage)?;
    let before = stage.client.execute("query-fds", json!({}))?;
    let usage = stage.vm.usage()?;
    for client in [&mut stage.client, &mut stage.vm.qmp] {
        let (dummy, _) = UnixStream::pair()?;
        drop(std::mem::replace(client, Client::new(dummy)?));
    }
    // Both connections are gone, and nothing else is.
    let most = fds::Usage {
        fds: usage.fds - 2,
        ..usage
    };
    assert_eq!(stage.vm.settled_usage(most)?.fds, most.fds);
    stage.client = Client::connect(&stage.path())?;
    let after = stage.client.execute("query-fds", json!({}))?;
    assert_eq!(plain(after), plain(before));
    let sets = stage.client.execute("query-fdsets", json!({}))?;
    // One is that of /dev/kvm.
    let has_left = |set: &Value| set["fdset-id"] == 3;
    assert!(
        sets.as_array()
            .is_some_and(|sets| sets.iter().any(has_left))
    );
    stage.execute(&step("blockdev-add", file_node("n", "fd:left")))?;
    stage.client.execute("quit", json!({}))?;
    stage.vm.exit_clean()
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn with_fd_scope_session_a_manager_that_restarts_finds_nothing_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("qmp");
    let chardev = format!("socket,id=mon,path={},server=on,wait=off", path.display());
    let monitor = "chardev=mon,mode=control,fd-scope=session";
    let vm = Vm::monitor()
        .args(["-chardev", &chardev, "-mon", monitor])
        .start()?;
    let client = Client::connect(&path)?;
    let mut stage = Stage {
        vm,
        folder,
        client,
        hook: None,
        hook_is_set: false,
    };
    let before = stage.vm.usage()?;
    leave_two(&mut stage)?;
    stage.execute(&step("blockdev-add", file_node("n", "/dev/fdset/3")))?;
    let told = stage.client.execute("query-fds", json!({}))?;
    assert_eq!(told["waiting"][0]["session"], true);
    stage.restart()?;
    let start = Instant::now();
    while stage.client.execute("query-fds", json!({}))?["waiting"] != json!([]) {
        ensure!(start.elapsed() < SOON, "something was left");
        thread::sleep(Duration::from_millis(10));
    }
    // What was opened stays open; its set goes with it.
    let sets = stage.client.execute("query-fdsets", json!({}))?;
    assert_eq!(sets, json!([{"fdset-id": 3, "fds": []}]));
    stage.execute(&step("blockdev-del", json!({"node-name": "n"})))?;
    assert_eq!(stage.client.execute("query-fdsets", json!({}))?, json!([]));
    assert_eq!(stage.vm.settled_usage(before)?.fds, before.fds);
    stage.vm.shutdown_clean()
}
