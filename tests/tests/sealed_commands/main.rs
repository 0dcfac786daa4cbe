//! Each command once in a process that may open, and once in a sealed one, with nothing but fds:
//! both must answer the same.
//!
//! The table holds every command, every kind of device, chardev, object and block driver that the
//! schema offers; one that is added to the schema and not here fails the last check.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open and listen for the VMM"
)]
mod backends;
mod devices;
mod images;
mod row;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::qmp::Refusal;
use tests::sealed::is_sealed;
use tests::{Vm, fds, inspect};

use self::backends::{books, chardevs, life, netdevs, objects};
use self::devices::{disks_and_devices, other_cpus};
use self::images::{bitmaps, snapshots_and_jobs};
use self::row::{FILE, Hand, LISTENER, MEMORY, MIB, PORTS, ROOM, Row, Wants};

fn table() -> Vec<Row> {
    let parts = [
        books(),
        objects(),
        chardevs(),
        netdevs(),
        disks_and_devices(),
        other_cpus(),
        snapshots_and_jobs(),
        bitmaps(),
        life(),
    ];
    parts.into_iter().flatten().collect()
}

/// What a manager has, and keeps while the test runs.
struct Manager {
    folder: tempfile::TempDir,
    kept: Vec<OwnedFd>,
}

impl Manager {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let listener = UnixListener::bind(folder.path().join(LISTENER))?;
        File::create(folder.path().join(FILE))?.set_len(MIB)?;
        let kept = vec![listener.into()];
        Ok(Self { folder, kept })
    }

    fn fd(&mut self, hand: Hand) -> Result<Option<OwnedFd>> {
        Ok(Some(match hand {
            Hand::Nothing => return Ok(None),
            Hand::Disk => fds::disk(MIB)?.into(),
            Hand::Image => fds::image(MIB)?.into(),
            Hand::Tls(name) => fds::open_ro(&tests::tls::file(name))?.into(),
            Hand::Memory => fds::memfd(MIB)?,
            Hand::Output => File::create(self.folder.path().join("output"))?.into(),
            Hand::Device(path) => File::open(path)?.into(),
            Hand::Eventfd => nix::sys::eventfd::EventFd::new()?.into(),
            Hand::Pipe => std::io::pipe()?.0.into(),
            Hand::Listener => UnixListener::bind(self.folder.path().join("passed"))?.into(),
            Hand::Tap => tests::tap::queues("", 1)?.pop().context("a queue")?,
            Hand::Datagram => {
                let (ours, theirs) = UnixDatagram::pair()?;
                self.kept.push(ours.into());
                theirs.into()
            }
            Hand::Connection => {
                let (ours, theirs) = UnixStream::pair()?;
                self.kept.push(ours.into());
                theirs.into()
            }
        }))
    }

    /// The arguments, with real paths.
    fn placed(&self, arguments: &Value) -> Result<Value> {
        let mut text = arguments.to_string();
        for name in [LISTENER, FILE] {
            let path = serde_json::to_string(&self.folder.path().join(name))?;
            text = text.replace(&format!("\"{name}\""), &path);
        }
        Ok(serde_json::from_str(&text)?)
    }

    fn run(&mut self, vm: &mut Vm, row: &Row) -> Result<Result<Value, Refusal>> {
        let fd = self.fd(row.hand)?;
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        let arguments = self.placed(&row.arguments)?;
        vm.qmp.attempt(row.command, arguments, &fds)
    }
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn a_sealed_process_answers_each_command_as_one_that_may_open() -> Result<()> {
    let start = || {
        let machine = Vm::paused().memory(MEMORY).root_ports(PORTS);
        machine.args(ROOM).start()
    };
    let (mut open, mut sealed) = (start()?, start()?);
    let (mut manager, mut other) = (Manager::new()?, Manager::new()?);
    sealed.execute("seal", json!({"level": "sealed"}))?;
    for row in table() {
        let what = format!("{} {}", row.command, row.arguments);
        let expected = manager.run(&mut open, &row).context(what.clone())?;
        let came = other.run(&mut sealed, &row);
        let came = came.with_context(|| format!("{what}; it said: {}", sealed.stderr()))?;
        match (row.wants, expected, came) {
            (Wants::Fds, Ok(_), Ok(_)) if row.command == "device_add" => {
                for vm in [&mut open, &mut sealed] {
                    look_at_new(vm, &row.arguments).context(what.clone())?;
                }
            }
            (Wants::Fds, Ok(_), Ok(_)) => {}
            (Wants::Fds, Err(expected), Err(came)) => {
                assert_eq!(
                    (expected.class, expected.desc),
                    (came.class, came.desc),
                    "{what}"
                );
                println!("both refuse: {what}");
            }
            (Wants::ToOpen, Ok(_), Err(came)) => {
                ensure!(
                    came.desc.contains("only fds that were handed in"),
                    "{what}: {came:?}"
                );
                ensure!(came.desc.contains("add-fd or getfd"), "{what}: {came:?}");
            }
            (_, expected, came) => panic!("{what}: open: {expected:?}; sealed: {came:?}"),
        }
        if row.command == "query-pci" {
            let sandbox = sealed.execute("query-sandbox", json!({}))?;
            ensure!(is_sealed(&sandbox), "{sandbox}");
        }
    }
    for vm in [&mut open, &mut sealed] {
        let status = vm.wait_exit()?;
        ensure!(status.success(), "{status}: {}", vm.stderr());
    }
    Ok(())
}

/// Looks at the state of a device that has come.
fn look_at_new(vm: &mut Vm, asked: &Value) -> Result<()> {
    let (id, driver) = (asked["id"].as_str(), asked["driver"].as_str());
    let path = format!("/machine/peripheral/{}", id.context("an id")?);
    inspect::look_at(vm, &path, driver.context("a driver")?)?;
    Ok(())
}

/// The entity of that name in the schema.
fn entity<'a>(schema: &'a Value, name: &Value) -> Result<&'a Value> {
    let entities = schema.as_array().context("a list")?;
    let found = entities.iter().find(|entity| entity["name"] == *name);
    found.with_context(|| format!("no {name} in the schema"))
}

/// The kinds of thing that a command adds; `member` holds the kind.
fn kinds(schema: &Value, command: &str, member: Option<&str>) -> Result<BTreeSet<String>> {
    let mut object = entity(schema, &entity(schema, &json!(command))?["arg-type"])?;
    if let Some(member) = member {
        let members = object["members"].as_array().context("members")?;
        let member = members.iter().find(|one| one["name"] == member);
        object = entity(schema, &member.context("the member")?["type"])?;
    }
    let cases = object["variants"].as_array().context("variants")?;
    let names = cases.iter().filter_map(|case| case["case"].as_str());
    Ok(names.map(str::to_owned).collect())
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn the_table_has_every_command_and_every_kind_of_thing() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let commands = vm.execute("query-commands", json!({}))?;
    let schema = vm.execute("query-qmp-schema", json!({}))?;
    vm.shutdown_clean()?;
    let table = table();
    let covered: BTreeSet<&str> = table.iter().map(|row| row.command).collect();
    let commands = commands.as_array().context("a list")?;
    let known: BTreeSet<&str> = commands
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(covered, known);
    for (command, member, key) in [
        ("device_add", None, "/driver"),
        ("object-add", None, "/qom-type"),
        ("blockdev-add", None, "/driver"),
        ("chardev-add", Some("backend"), "/backend/type"),
        ("netdev_add", None, "/type"),
    ] {
        let rows = table
            .iter()
            .filter(|row| row.command == command && row.wants == Wants::Fds);
        let kind = |row: &Row| Some(row.arguments.pointer(key)?.as_str()?.to_owned());
        let mut covered: BTreeSet<String> = rows.filter_map(kind).collect();
        // A pty is made by opening: nobody can hand it in as one.
        covered.extend((command == "chardev-add").then(|| "pty".to_owned()));
        assert_eq!(covered, kinds(&schema, command, member)?, "{command}");
    }
    Ok(())
}
