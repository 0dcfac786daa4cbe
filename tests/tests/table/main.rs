//! Every cell of the table: each resource from each source through the program itself. Where the
//! table says no, the refusal is the one that it names.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open what they hand in"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::hook::Manager;
use tests::qmp::{Client, outcome};
use tests::stock::Stock;
use tests::table::{Cell, Refusal, Resource, Row, Source, TABLE, WITHOUT_ROW};
use tests::{Vm, fds, vm::Builder};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
/// What a name leads to that nothing answers for.
const NOWHERE: &str = "/nowhere/at/all";
/// A number behind which there is nothing, where it is only a file's name.
const NUMBER: &str = "77";
/// The name that `LISTEN_FDNAMES` gives.
const LEFT: &str = "left";

/// The command that opens `resource` under `name`, and the one that lets go of it.
fn command(resource: Resource, name: &str) -> Option<(&'static str, Value, &'static str, Value)> {
    let chardev = |kind: &str, data: Value| {
        let backend = json!({"type": kind, "data": data});
        let arguments = json!({"id": "c", "backend": backend});
        Some((
            "chardev-add",
            arguments,
            "chardev-remove",
            json!({"id": "c"}),
        ))
    };
    let object =
        |arguments: Value| Some(("object-add", arguments, "object-del", json!({"id": "o"})));
    let node = |arguments: Value| {
        let gone = json!({"node-name": "n"});
        Some(("blockdev-add", arguments, "blockdev-del", gone))
    };
    let socket = |more: Value| {
        let mut data = json!({"addr": address(name)});
        for (key, value) in more.as_object().into_iter().flatten() {
            data[key] = value.clone();
        }
        chardev("socket", data)
    };
    let netdev = |more: Value| {
        let mut options = json!({"id": "n"});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        Some(("netdev_add", options, "netdev_del", json!({"id": "n"})))
    };
    match resource {
        Resource::NetTap => netdev(tap(name)),
        Resource::NetListener => netdev(stream(name, json!({"server": true}))),
        Resource::NetConnection => netdev(stream(name, json!({}))),
        Resource::NetReconnecting => netdev(stream(name, json!({"reconnect-ms": 20}))),
        Resource::NetDatagram => netdev(datagram(name)),
        Resource::ImageFile => node(json!({"driver": "file", "node-name": "n", "filename": name})),
        Resource::BackingFile | Resource::DataFile => node(json!({"driver": "qcow2",
            "node-name": "n", "file": {"driver": "file", "filename": "/dev/fdset/97"}})),
        Resource::BlockDevice => node(json!({"driver": "host_device", "node-name": "n",
            "filename": name, "read-only": true})),
        Resource::MemoryFile | Resource::MemoryDirectory => object(json!({
            "qom-type": "memory-backend-file", "id": "o", "size": MIB, "share": true,
            "mem-path": name})),
        Resource::Memfd => object(json!({"qom-type": "memory-backend-memfd", "id": "o",
            "size": MIB, "fd": name})),
        Resource::Entropy => object(json!({"qom-type": "rng-random", "id": "o", "filename": name})),
        Resource::TlsKey => object(json!({"qom-type": "tls-creds-x509", "id": "o",
            "verify-peer": false, "certificate": "/dev/fdset/98", "key": name})),
        Resource::Secret => object(json!({"qom-type": "secret", "id": "o", "file": name})),
        Resource::ChardevOutput => chardev("file", json!({"out": name})),
        Resource::ChardevInput => chardev("file", json!({"out": "/dev/fdset/99", "in": name})),
        Resource::NetDump => object(json!({"qom-type": "filter-dump", "id": "o", "netdev": "w",
            "file": name})),
        Resource::ChardevLog => chardev("null", json!({"logfile": name})),
        Resource::ChardevListener => socket(json!({"server": true, "wait": false})),
        Resource::ChardevConnection => socket(json!({"server": false})),
        Resource::ChardevReconnecting => socket(json!({"server": false, "reconnect-ms": 20})),
        Resource::Pty if name.is_empty() => chardev("pty", json!({})),
        Resource::Pty => chardev("pty", json!({"path": name})),
        Resource::OpenHook => {
            let arguments = match passed_name(name) {
                Some(fd) => json!({"fd": fd}),
                None => json!({"path": name}),
            };
            Some(("open-hook-set", arguments, "open-hook-clear", json!({})))
        }
        Resource::BlkdebugRules
        | Resource::Rom
        | Resource::VhostNet
        | Resource::VhostVsock
        | Resource::Kernel
        | Resource::Initrd
        | Resource::FwCfg
        | Resource::Kvm
        | Resource::PidFile
        | Resource::MonitorListener
        | Resource::MonitorConnection
        | Resource::MonitorCommands => None,
    }
}

/// The options that open `resource` under `name` at the launch.
fn options(resource: Resource, name: &str) -> Vec<String> {
    let place = match passed_name(name) {
        Some(fd) => format!("fd={fd}"),
        None => format!("path={name}"),
    };
    let monitor = |server: &str| {
        let chardev = format!("socket,id=m,{place},server={server}");
        ["-chardev", &chardev, "-mon", "chardev=m,mode=control"].map(str::to_owned)
    };
    match resource {
        Resource::Kernel => vec!["-kernel".into(), name.into()],
        Resource::Initrd => vec!["-initrd".into(), name.into()],
        Resource::FwCfg => vec!["-fw_cfg".into(), format!("name=opt/test,file={name}")],
        Resource::Kvm => vec!["-accel".into(), format!("kvm,device={name}")],
        Resource::PidFile => vec!["-pidfile".into(), name.into()],
        Resource::ChardevListener => {
            let chardev = format!("socket,id=c,{place},server=on,wait=off");
            vec!["-chardev".into(), chardev]
        }
        Resource::ChardevConnection => {
            vec!["-chardev".into(), format!("socket,id=c,{place},server=off")]
        }
        Resource::OpenHook => vec!["-open-hook".into(), place],
        Resource::NetTap => netdev(tap(name)),
        Resource::NetListener => netdev(stream(name, json!({"server": true}))),
        Resource::NetConnection => netdev(stream(name, json!({}))),
        Resource::NetReconnecting => netdev(stream(name, json!({"reconnect-ms": 20}))),
        Resource::NetDatagram => netdev(datagram(name)),
        Resource::MonitorListener => monitor("on,wait=off").to_vec(),
        Resource::MonitorConnection => monitor("off").to_vec(),
        Resource::MonitorCommands => {
            let mon = format!("chardev=m,mode=control,commands={name}");
            vec!["-chardev".into(), "stdio,id=m".into(), "-mon".into(), mon]
        }
        _ => Vec::new(),
    }
}

/// The name or number of an fd, as options called `fd` take it.
fn passed_name(name: &str) -> Option<&str> {
    let number = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty();
    name.strip_prefix("fd:").or(number.then_some(name))
}

/// `-netdev` with these options.
fn netdev(mut options: Value) -> Vec<String> {
    options["id"] = "n".into();
    vec!["-netdev".into(), options.to_string()]
}

fn tap(name: &str) -> Value {
    json!({"type": "tap", "fd": passed_name(name).unwrap_or(name)})
}

fn flat_address(name: &str) -> Value {
    match passed_name(name) {
        Some(fd) => json!({"type": "fd", "str": fd}),
        None => json!({"type": "unix", "path": name}),
    }
}

fn stream(name: &str, more: Value) -> Value {
    let mut options = json!({"type": "stream", "addr": flat_address(name)});
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    options
}

/// A socket that was handed in by a name of its own is connected; another has to be told where to.
fn datagram(name: &str) -> Value {
    let mut options = json!({"type": "dgram", "local": flat_address(name)});
    if passed_name(name).is_none() {
        options["remote"] = json!({"type": "unix", "path": NOWHERE});
    }
    options
}

fn address(name: &str) -> Value {
    match passed_name(name) {
        Some(fd) => json!({"type": "fd", "data": {"str": fd}}),
        None => json!({"type": "unix", "data": {"path": name}}),
    }
}

/// One row, at run time.
struct Stage {
    row: &'static Row,
    stock: Stock,
    vm: Vm,
    /// Set 97 has the image of the cell before.
    has_image: bool,
}

impl Stage {
    fn new(row: &'static Row) -> Result<Self> {
        let mut stock = Stock::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let mut builder = Vm::monitor().in_folder(stock.folder.path());
        builder.listen(LEFT, stock.fd(row.resource)?);
        let mut vm = builder.start()?;
        let netdev = json!({"type": "hubport", "id": "w", "hubid": 0});
        vm.execute("netdev_add", netdev)?;
        let null = File::create("/dev/null")?;
        vm.qmp
            .execute_with("add-fd", json!({"fdset-id": 99}), &[null.as_fd()])?;
        let certificate = fds::open_ro(&tests::tls::file("server-cert.pem"))?;
        vm.qmp
            .execute_with("add-fd", json!({"fdset-id": 98}), &[certificate.as_fd()])?;
        Ok(Self {
            row,
            stock,
            vm,
            has_image: false,
        })
    }

    /// The name by which the resource is there from `source`.
    fn offer(&mut self, source: Source) -> Result<String> {
        Ok(match source {
            Source::Getfd => {
                let fd = self.stock.fd(self.row.resource)?;
                let name = json!({"fdname": "given"});
                self.vm.qmp.execute_with("getfd", name, &[fd.as_fd()])?;
                "fd:given".into()
            }
            Source::ListenFds => format!("fd:{LEFT}"),
            Source::Fdset => {
                self.add_set(1)?;
                "/dev/fdset/1".into()
            }
            Source::Alias => {
                self.add_set(2)?;
                let alias = json!({"path": NOWHERE, "fdset-id": 2});
                self.vm.execute("add-fd-alias", alias)?;
                NOWHERE.into()
            }
            Source::Hook if self.row.resource == Resource::Pty => String::new(),
            Source::Hook => "/nowhere/but/the/hook".into(),
            Source::Path => self.stock.real_path(self.row.resource)?,
            Source::Number => NUMBER.into(),
        })
    }

    /// Makes the image of set 97 whose header is where `name` stands, for resources named there.
    fn write_into_an_image(&mut self, name: &str) -> Result<()> {
        let image = match self.row.resource {
            Resource::BackingFile => fds::image_over(name, "raw")?,
            Resource::DataFile => fds::image_with_data_in(name)?,
            _ => return Ok(()),
        };
        let set = json!({"fdset-id": 97});
        if self.has_image {
            self.vm.execute("remove-fd", set.clone())?;
        }
        self.vm.qmp.execute_with("add-fd", set, &[image.as_fd()])?;
        self.has_image = true;
        Ok(())
    }

    fn add_set(&mut self, set: u32) -> Result<()> {
        let fd = self.stock.fd(self.row.resource)?;
        let set = json!({"fdset-id": set});
        self.vm.qmp.execute_with("add-fd", set, &[fd.as_fd()])?;
        Ok(())
    }

    fn check(&mut self, source: Source, cell: Cell) -> Result<()> {
        let name = self.offer(source)?;
        self.write_into_an_image(&name)?;
        let opened = command(self.row.resource, &name).context("a command")?;
        let (add, arguments, remove, gone) = opened;
        match cell {
            Cell::No(refusal) if refusal.error.is_empty() => {
                self.vm.execute(add, arguments)?;
                ensure!(self.stock.path(&name).exists(), "no file {name}");
            }
            Cell::No(refusal) => {
                let refused = self.vm.refusal(add, arguments)?;
                expect(&refused.desc, refusal)?;
                if source == Source::Getfd {
                    self.vm.execute("closefd", json!({"fdname": "given"}))?;
                }
                return Ok(());
            }
            Cell::Yes if source == Source::Hook => self.ask_hook(add, &arguments)?,
            Cell::Yes => drop(self.vm.execute(add, arguments)?),
        }
        self.connected(source)?;
        self.vm.execute(remove, gone)?;
        if source == Source::Hook {
            self.vm.execute("open-hook-clear", json!({}))?;
        }
        Ok(())
    }

    /// Runs a command whose file a manager gives.
    fn ask_hook(&mut self, add: &str, arguments: &Value) -> Result<()> {
        let (mut manager, connection) = Manager::pair()?;
        let name = json!({"fdname": "hook"});
        self.vm
            .qmp
            .execute_with("getfd", name, &[connection.as_fd()])?;
        self.vm.execute("open-hook-set", json!({"fd": "hook"}))?;
        let request = json!({"execute": add, "arguments": arguments});
        self.vm
            .qmp
            .send_raw(format!("{request}\n").as_bytes(), &[])?;
        let request = manager.request()?;
        ensure!(request["role"] == self.row.role, "{request}");
        manager.give(&request, self.stock.fd(self.row.resource)?)?;
        outcome(&self.vm.qmp.reply(SOON)?)?;
        if is_made_again(self.row.resource) {
            self.connected(Source::Hook)?;
            // Lost, it is asked for again.
            self.stock.ends.clear();
            let request = manager.request()?;
            manager.give(&request, self.stock.fd(self.row.resource)?)?;
        }
        Ok(())
    }

    /// A chardev that calls by itself tells later that somebody has answered.
    fn connected(&mut self, source: Source) -> Result<()> {
        match self.row.resource {
            Resource::NetReconnecting => {
                self.vm.qmp.event("NETDEV_STREAM_CONNECTED", SOON)?;
                return Ok(());
            }
            Resource::ChardevReconnecting => {}
            _ => return Ok(()),
        }
        let start = Instant::now();
        loop {
            let chardevs = self.vm.execute("query-chardev", json!({}))?;
            let all = chardevs.as_array().into_iter().flatten();
            let mut lost = all.filter(|it| it["label"] == "c");
            let name = lost.next().map(|it| it["filename"].to_string());
            if name
                .as_ref()
                .is_some_and(|name| !name.contains("disconnected"))
            {
                return Ok(());
            }
            ensure!(start.elapsed() < SOON, "{source:?}: {name:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether it is a connection that the program makes by itself.
fn is_made_again(resource: Resource) -> bool {
    matches!(
        resource,
        Resource::ChardevReconnecting | Resource::NetReconnecting
    )
}

fn expect(text: &str, refusal: &Refusal) -> Result<()> {
    ensure!(
        text.contains(refusal.error),
        "'{text}' does not say '{}'",
        refusal.error
    );
    Ok(())
}

/// One cell of a row that is opened at the launch.
fn launch(row: &Row, source: Source, cell: Cell) -> Result<()> {
    let resource = row.resource;
    let mut stock = Stock::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let mut builder = match resource {
        Resource::Kernel | Resource::Initrd | Resource::FwCfg => Vm::paused(),
        _ => Vm::monitor(),
    }
    .in_folder(stock.folder.path());
    if resource == Resource::Initrd {
        let kernel = stock.fd(Resource::Kernel)?;
        let kernel = builder.fdset(kernel);
        builder = builder.args(["-kernel", &kernel]);
    }
    let mut manager = None;
    let name = match source {
        Source::Getfd => "fd:late".to_owned(),
        Source::ListenFds => {
            builder.listen(LEFT, stock.fd(resource)?);
            format!("fd:{LEFT}")
        }
        Source::Fdset => builder.fdset(stock.fd(resource)?),
        Source::Alias => {
            let number = builder.pass(stock.fd(resource)?);
            let set = format!("fd={number},set=77,alias={NOWHERE}");
            builder = builder.args(["-add-fd", &set]);
            NOWHERE.to_owned()
        }
        Source::Hook => {
            let (ours, theirs) = UnixStream::pair()?;
            let number = builder.pass(theirs);
            builder = builder.args(["-open-hook", &format!("fd={number}")]);
            let fd = stock.fd(resource)?;
            let role = row.role;
            manager = Some(thread::spawn(move || Manager::new(ours)?.serve(role, &fd)));
            "/nowhere/but/the/hook".to_owned()
        }
        Source::Path => stock.real_path(resource)?,
        Source::Number if cell == Cell::Yes => builder.pass(stock.fd(resource)?).to_string(),
        Source::Number => NUMBER.to_owned(),
    };
    if resource == Resource::OpenHook {
        // A hook that is there at the launch is asked at once.
        let end = UnixStream::from(stock.ends.pop().context("the other end")?);
        let nothing = fds::memfd(MIB)?;
        manager = Some(thread::spawn(move || {
            Manager::new(end)?.serve("nothing", &nothing)
        }));
    }
    builder = builder.args(options(resource, &name));
    match cell {
        Cell::No(refusal) if refusal.error.is_empty() => {
            let vm = builder.start()?;
            ensure!(stock.path(&name).exists(), "no file {name}");
            vm.shutdown_clean()?;
        }
        Cell::No(refusal) => refused(builder, resource, refusal)?,
        Cell::Yes => {
            let mut vm = builder.start()?;
            if resource == Resource::Kvm {
                let kvm = vm.execute("query-kvm", json!({}))?;
                ensure!(kvm["enabled"] == true, "{kvm}");
            }
            talk(resource, source, &mut stock)?;
            vm.shutdown_clean()?;
        }
    }
    if let Some(manager) = manager {
        manager.join().expect("no panic")?;
    }
    Ok(())
}

/// A machine without CPUs only looks whether there is a KVM, and starts without.
fn refused(builder: Builder, resource: Resource, refusal: &Refusal) -> Result<()> {
    if resource != Resource::Kvm {
        return expect(&builder.start_refused()?, refusal);
    }
    let mut vm = builder.start()?;
    let kvm = vm.execute("query-kvm", json!({}))?;
    ensure!(kvm["enabled"] == false, "{kvm}");
    vm.shutdown_clean()
}

/// A monitor that can be reached by what was handed in answers there.
fn talk(resource: Resource, source: Source, stock: &mut Stock) -> Result<()> {
    let stream = match (resource, source) {
        (Resource::MonitorListener, Source::Path) => UnixStream::connect(stock.path("bound"))?,
        (Resource::MonitorListener, _) => UnixStream::connect(stock.path("passed"))?,
        (Resource::MonitorConnection, Source::Path) => {
            let listener = stock.ends.pop().context("who listens")?;
            UnixListener::from(listener).accept()?.0
        }
        (Resource::MonitorConnection, _) => stock.ends.pop().context("the other end")?.into(),
        _ => return Ok(()),
    };
    let mut client = Client::new(stream)?;
    client.negotiate()?;
    Ok(())
}

fn check(row: &'static Row) -> Result<()> {
    let mut stage = None;
    for (source, cell) in Source::ALL.into_iter().zip(row.cells) {
        let what = || format!("{:?} from {source:?}: {cell:?}", row.resource);
        // Numbers mean something on the command line only.
        let is_number = source == Source::Number && cell == Cell::Yes;
        if is_number || command(row.resource, "").is_none() {
            launch(row, source, cell).with_context(what)?;
            continue;
        }
        if stage.is_none() {
            stage = Some(Stage::new(row).with_context(what)?);
        }
        if let Some(stage) = &mut stage {
            stage.check(source, cell).with_context(what)?;
        }
    }
    match stage {
        Some(stage) => stage.vm.shutdown_clean(),
        None => Ok(()),
    }
}

fn check_where(wanted: impl Fn(Resource) -> bool) -> Result<()> {
    let rows = TABLE.iter().filter(|row| wanted(row.resource));
    let failures: Vec<String> = rows
        .filter_map(|row| check(row).err())
        .map(|error| format!("{error:#}"))
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

fn needs_a_machine(resource: Resource) -> bool {
    matches!(
        resource,
        Resource::Kernel | Resource::Initrd | Resource::FwCfg
    )
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn every_resource_is_opened_from_every_source_that_the_table_names() -> Result<()> {
    check_where(|resource| !needs_a_machine(resource))
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn what_a_machine_boots_from_is_opened_from_every_source_that_the_table_names() -> Result<()> {
    check_where(needs_a_machine)
}

#[test]
#[ignore = "needs sesame: cargo xtask test"]
fn every_role_of_the_schema_has_a_row_or_a_reason() -> Result<()> {
    let mut vm = Vm::monitor().start()?;
    let schema = vm.execute("query-qmp-schema", json!({}))?;
    let all = schema.as_array().context("a list")?;
    let values = |entry: &Value| -> Vec<String> {
        let values = entry["values"].as_array().into_iter().flatten();
        values
            .filter_map(|it| Some(it.as_str()?.to_owned()))
            .collect()
    };
    // Types have no names in an introspection; this one is known by its first values.
    let roles = all
        .iter()
        .map(values)
        .find(|values| values.starts_with(&["image".into(), "backing".into()]))
        .context("the roles")?;
    for role in roles {
        let has_row = TABLE.iter().any(|row| row.role == role);
        let has_reason = WITHOUT_ROW.iter().any(|(name, _)| *name == role);
        ensure!(has_row != has_reason, "{role}: a row or a reason");
    }
    vm.shutdown_clean()
}
