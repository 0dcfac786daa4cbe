//! Through every cell of the table, with the program itself.
//!
//! ```text
//!   a property ─► launch:  a named fd, a set, the hook │ wrong kind, too few │ a reset keeps it
//!              └► hotplug: the same, and too many; given back, and used by another process;
//!                          then a reset, which keeps it; then all of it once more
//! ```
//!
//! After each cell of a running program its fds are as many as before; after each refusal the names
//! that were handed in are still there.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::eventfd::EventFd;
use serde_json::{Value, json};

use super::{Beside, Options, PROPERTIES, Property, Step, Way, Ways};
use crate::hook::Manager;
use crate::qmp::{Refusal, outcome};
use crate::stock::Stock;
use crate::table::Resource;
use crate::vm::{Builder, Vm};
use crate::{fds, tap, tls};

const SOON: Duration = Duration::from_secs(30);
/// What no fd is called, and which set nobody made.
const NOBODY: &str = "fd:nobody";
const NO_SET: &str = "/dev/fdset/66";
/// A path at which there is nothing: what comes of it comes from the hook.
const NOWHERE: &str = "/nowhere/but/the/hook";
/// What a refusal of a wrong kind says: of files, of sockets.
const WRONG_KIND: [&str; 2] = ["needed is", "the fd is not a"];

/// Walks through the rows that are wanted; files are made in a folder within `within`.
///
/// # Errors
/// All cells that are not as they must be.
pub fn walk(wanted: impl Fn(&Property) -> bool, within: &Path) -> Result<()> {
    let rows = PROPERTIES.iter().filter(|row| wanted(row));
    let mut failures = Vec::new();
    for row in rows {
        if let Some(options) = row.launch {
            let cells = Launch {
                row,
                options,
                within: within.to_owned(),
            };
            failures.extend(cells.all().err().map(|error| (row.title, "launch", error)));
        }
        if let Some(way) = row.hotplug {
            let cells = Hotplug::new(row, way, within).and_then(Hotplug::all);
            failures.extend(cells.err().map(|error| (row.title, "hotplug", error)));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let lines = failures
        .iter()
        .map(|(title, place, error)| format!("{title}, {place}: {error:#}"));
    bail!("{}", lines.collect::<Vec<_>>().join("\n"))
}

/// What must be there beside, as options of a launch.
fn beside(row: &Property, mut builder: Builder, stock: &Stock) -> Result<Builder> {
    let sets: Vec<(usize, OwnedFd)> = match row.beside {
        Beside::Nothing | Beside::CdDrive | Beside::Netdev => Vec::new(),
        Beside::TapQueues(count) => (90..).zip(tap::queues("", count)?).collect(),
        Beside::Certificate => vec![(98, fds::open_ro(&tls::file("server-cert.pem"))?.into())],
        Beside::Output => vec![(99, File::create(stock.path("other"))?.into())],
    };
    for (number, fd) in sets {
        let fd = builder.pass(fd);
        builder = builder.args(["-add-fd", &format!("fd={fd},set={number}")]);
    }
    if row.beside == Beside::Netdev {
        builder = builder.args(["-netdev", "hubport,id=w,hubid=0"]);
    }
    if row.beside == Beside::CdDrive {
        let drive = "scsi-cd,id=cd,bus=scsi.0";
        builder = builder.args(["-device", "virtio-scsi-pci,id=scsi", "-device", drive]);
    }
    Ok(builder)
}

/// What is in use, but for its age: that a reset must not change.
fn in_use(vm: &mut Vm) -> Result<Value> {
    let mut ledger = vm.execute("query-fds", json!({}))?["in-use"].take();
    for entry in ledger.as_array_mut().into_iter().flatten() {
        entry.as_object_mut().context("an object")?.remove("age");
    }
    Ok(ledger)
}

/// Resets the machine, which keeps all that it has.
fn reset(vm: &mut Vm) -> Result<()> {
    let before = in_use(vm)?;
    vm.execute("system_reset", json!({}))?;
    vm.qmp.event("RESET", SOON)?;
    let after = in_use(vm)?;
    ensure!(before == after, "a reset made {before} to {after}");
    Ok(())
}

/// The cells of a launch.
struct Launch {
    row: &'static Property,
    options: Options,
    within: PathBuf,
}

impl Launch {
    fn all(self) -> Result<()> {
        self.opened("a named fd", |builder, fds| {
            let names = fds.into_iter().enumerate().map(|(at, fd)| {
                builder.listen(&left(at), fd);
                format!("fd:{}", left(at))
            });
            Ok((names.collect(), None))
        })?;
        self.opened("a set", |builder, fds| {
            Ok((fds.into_iter().map(|fd| builder.fdset(fd)).collect(), None))
        })?;
        let role = self.row.role;
        self.opened("the hook", |builder, fds| {
            let (ours, theirs) = UnixStream::pair()?;
            let number = builder.pass(theirs);
            let names = (0..fds.len()).map(|at| format!("{NOWHERE}{at}")).collect();
            let manager = thread::spawn(move || Manager::new(ours)?.serve_all(role, fds));
            Ok((names, Some((format!("fd={number}"), manager))))
        })?;
        self.refused("an fd of the wrong kind", &WRONG_KIND, |mut fds| {
            fds.pop();
            fds.push(EventFd::new()?.into());
            Ok(fds)
        })?;
        self.refused("too few", &["no fd has this name"], |mut fds| {
            fds.pop();
            Ok(fds)
        })
    }

    fn prepared(&self) -> Result<(Stock, Builder, Vec<OwnedFd>)> {
        let mut stock = Stock::new(&self.within)?;
        let builder = Vm::paused().in_folder(stock.folder.path()).root_ports(1);
        let builder = beside(self.row, builder, &stock)?;
        let fds = stock.fds(self.row.resource, self.row.count)?;
        Ok((stock, builder, fds))
    }

    /// It is opened, and a reset keeps it.
    fn opened(
        &self,
        how: &str,
        offer: impl FnOnce(&mut Builder, Vec<OwnedFd>) -> Result<Offer>,
    ) -> Result<()> {
        let (_stock, mut builder, fds) = self.prepared()?;
        let (names, hook) = offer(&mut builder, fds)?;
        let mut manager = None;
        if let Some((place, thread)) = hook {
            builder = builder.args(["-open-hook", &place]);
            manager = Some(thread);
        }
        let mut vm = builder
            .args((self.options)(&names))
            .start()
            .with_context(|| how.to_owned())?;
        reset(&mut vm).with_context(|| how.to_owned())?;
        vm.shutdown_clean()?;
        match manager {
            Some(manager) => manager.join().expect("no panic"),
            None => Ok(()),
        }
    }

    /// What `change` makes of the fds is handed in, as many are named as are wanted, and the launch
    /// is refused.
    fn refused(
        &self,
        what: &str,
        words: &[&str],
        change: impl FnOnce(Vec<OwnedFd>) -> Result<Vec<OwnedFd>>,
    ) -> Result<()> {
        let (_stock, mut builder, fds) = self.prepared()?;
        for (at, fd) in change(fds)?.into_iter().enumerate() {
            builder.listen(&left(at), fd);
        }
        let names: Vec<_> = (0..self.row.count)
            .map(|at| format!("fd:{}", left(at)))
            .collect();
        let said = builder
            .args((self.options)(&names))
            .start_refused()
            .with_context(|| what.to_owned())?;
        ensure!(
            says(&said, words),
            "{what}: '{said}' says none of {words:?}"
        );
        Ok(())
    }
}

/// The name of an fd that is left at a launch.
fn left(at: usize) -> String {
    format!("left{at}")
}

fn says(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(*word))
}

/// Names that open what was handed in, and the hook that has to be asked for it.
type Offer = (
    Vec<String>,
    Option<(String, thread::JoinHandle<Result<()>>)>,
);

/// The cells of a running program.
struct Hotplug {
    row: &'static Property,
    way: Ways,
    stock: Stock,
    vm: Vm,
    /// Another process, to which what came back is handed.
    elsewhere: Vm,
}

impl Hotplug {
    fn new(row: &'static Property, way: Ways, within: &Path) -> Result<Self> {
        let stock = Stock::new(within)?;
        let start = || {
            let builder = Vm::paused().in_folder(stock.folder.path()).root_ports(1);
            beside(row, builder, &stock)?.start()
        };
        let (vm, elsewhere) = (start()?, start()?);
        Ok(Self {
            row,
            way,
            stock,
            vm,
            elsewhere,
        })
    }

    fn all(mut self) -> Result<()> {
        // Threads and rings that come with first use stay.
        self.named()?;
        for when in ["while it runs", "after a reset"] {
            self.cell(when, "a named fd", Self::named)?;
            self.cell(when, "a set", Self::set)?;
            self.cell(when, "the hook", Self::hook)?;
            self.cell(when, "an fd of the wrong kind", Self::wrong_kind)?;
            self.cell(when, "too few", Self::too_few)?;
            self.cell(when, "too many", Self::too_many)?;
            self.cell(when, "used elsewhere", Self::used_elsewhere)?;
            self.cell(when, "through a reset", Self::through_a_reset)?;
        }
        self.elsewhere.shutdown_clean()?;
        self.vm.shutdown_clean()
    }

    fn cell(&mut self, when: &str, what: &str, run: fn(&mut Self) -> Result<()>) -> Result<()> {
        let place = || format!("{when}, {what}");
        let before = self.vm.usage()?;
        run(self).with_context(place)?;
        let after = self.vm.settled_usage(before)?;
        ensure!(
            after.fds <= before.fds,
            "{}: before {before}, after {after}",
            place()
        );
        Ok(())
    }

    fn fds(&mut self) -> Result<Vec<OwnedFd>> {
        self.stock.fds(self.row.resource, self.row.count)
    }

    fn named(&mut self) -> Result<()> {
        let fds = self.fds()?;
        let names = give(&mut self.vm, &fds)?;
        drop(fds);
        plug_and_back(&mut self.vm, &(self.way)(&names))?;
        let left = self.vm.execute("query-fds", json!({}))?["waiting"].take();
        let named = left.as_array().into_iter().flatten();
        ensure!(
            named.clone().all(|entry| entry["name"] != "given0"),
            "the name is not used up: {left}"
        );
        Ok(())
    }

    fn set(&mut self) -> Result<()> {
        let mut names = Vec::new();
        for (at, fd) in self.fds()?.into_iter().enumerate() {
            let set = json!({"fdset-id": at});
            self.vm.qmp.execute_with("add-fd", set, &[fd.as_fd()])?;
            names.push(format!("/dev/fdset/{at}"));
        }
        plug_and_back(&mut self.vm, &(self.way)(&names))?;
        for at in 0..names.len() {
            self.vm.execute("remove-fd", json!({"fdset-id": at}))?;
        }
        Ok(())
    }

    fn hook(&mut self) -> Result<()> {
        let (mut manager, connection) = Manager::pair()?;
        let name = json!({"fdname": "hook"});
        self.vm
            .qmp
            .execute_with("getfd", name, &[connection.as_fd()])?;
        drop(connection);
        self.vm.execute("open-hook-set", json!({"fd": "hook"}))?;
        let names: Vec<_> = (0..self.row.count)
            .map(|at| format!("{NOWHERE}{at}"))
            .collect();
        let way = (self.way)(&names);
        let (command, arguments) = &way.open;
        let request = json!({"execute": command, "arguments": arguments});
        self.vm
            .qmp
            .send_raw(format!("{request}\n").as_bytes(), &[])?;
        for fd in self.fds()? {
            let request = manager.request()?;
            ensure!(request["role"] == self.row.role, "{request}");
            manager.give(&request, fd)?;
        }
        outcome(&self.vm.qmp.reply(SOON)?)?;
        steps(&mut self.vm, &way.then)?;
        back(&mut self.vm, &way)?;
        self.vm.execute("open-hook-clear", json!({}))?;
        Ok(())
    }

    /// Everything is there, but the last is of the wrong kind.
    fn wrong_kind(&mut self) -> Result<()> {
        let mut fds = self.fds()?;
        fds.pop();
        fds.push(EventFd::new()?.into());
        let names = give(&mut self.vm, &fds)?;
        let refusal = self.refusal(&names)?;
        ensure!(
            says(&refusal.desc, &WRONG_KIND),
            "it says '{}'",
            refusal.desc
        );
        take_back(&mut self.vm, names.len())
    }

    /// The last one was never handed in.
    fn too_few(&mut self) -> Result<()> {
        for missing in [NOBODY, NO_SET] {
            let mut fds = self.fds()?;
            fds.pop();
            let mut names = give(&mut self.vm, &fds)?;
            names.push(missing.to_owned());
            self.refusal(&names)?;
            take_back(&mut self.vm, fds.len())?;
        }
        Ok(())
    }

    /// One more comes with the command, or stands in a list that has to be as long as another.
    fn too_many(&mut self) -> Result<()> {
        let fds = self.fds()?;
        let mut names = give(&mut self.vm, &fds)?;
        let (command, arguments) = (self.way)(&names).open;
        let sent = self
            .vm
            .qmp
            .refusal_with(command, arguments, &[fds[0].as_fd()])?;
        ensure!(
            sent.desc.contains("takes no file descriptors"),
            "it says '{}'",
            sent.desc
        );
        if matches!(self.row.beside, Beside::TapQueues(count) if count > 1) {
            names.push(names[0].clone());
            self.refusal(&names)?;
        }
        take_back(&mut self.vm, fds.len())
    }

    /// What has come back serves another process at once.
    fn used_elsewhere(&mut self) -> Result<()> {
        let mut fds = self.fds()?;
        let way = (self.way)(&give(&mut self.vm, &fds)?);
        plug_and_back(&mut self.vm, &way)?;
        if self.row.resource == Resource::VhostVsock {
            // The kernel has it serve who used it first, as long as it is open anywhere.
            drop(fds);
            fds = self.fds()?;
        }
        let way = (self.way)(&give(&mut self.elsewhere, &fds)?);
        plug_and_back(&mut self.elsewhere, &way).context("the other process")
    }

    fn through_a_reset(&mut self) -> Result<()> {
        let fds = self.fds()?;
        let way = (self.way)(&give(&mut self.vm, &fds)?);
        plug(&mut self.vm, &way)?;
        reset(&mut self.vm)?;
        if way.open.0 == "device_add" {
            // A card that was there at a reset is the guest's, and this one never runs to give it
            // back: the next reset takes it.
            steps(&mut self.vm, &way.undo)?;
            self.vm.execute("system_reset", json!({}))?;
            self.vm.qmp.event("DEVICE_DELETED", SOON)?;
            return Ok(());
        }
        back(&mut self.vm, &way)
    }

    fn refusal(&mut self, names: &[String]) -> Result<Refusal> {
        let (command, arguments) = (self.way)(names).open;
        self.vm.refusal(command, arguments)
    }
}

/// Hands fds in, and returns their names.
fn give(vm: &mut Vm, fds: &[OwnedFd]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (at, fd) in fds.iter().enumerate() {
        let name = json!({"fdname": format!("given{at}")});
        vm.qmp.execute_with("getfd", name, &[fd.as_fd()])?;
        names.push(format!("fd:given{at}"));
    }
    Ok(names)
}

/// After a refusal what was handed in is still there.
fn take_back(vm: &mut Vm, count: usize) -> Result<()> {
    for at in 0..count {
        let name = json!({"fdname": format!("given{at}")});
        vm.execute("closefd", name)
            .context("the refusal has used a name up")?;
    }
    Ok(())
}

fn steps(vm: &mut Vm, steps: &[Step]) -> Result<()> {
    for (command, arguments) in steps {
        vm.execute(command, arguments.clone())?;
    }
    Ok(())
}

fn plug(vm: &mut Vm, way: &Way) -> Result<()> {
    let (command, arguments) = &way.open;
    vm.execute(command, arguments.clone())?;
    steps(vm, &way.then)
}

fn back(vm: &mut Vm, way: &Way) -> Result<()> {
    steps(vm, &way.undo)?;
    if way.open.0 == "device_add" {
        vm.qmp.event("DEVICE_DELETED", SOON)?;
    }
    Ok(())
}

fn plug_and_back(vm: &mut Vm, way: &Way) -> Result<()> {
    plug(vm, way)?;
    back(vm, way)
}
