//! Each command once in a process that may open, and once in a sealed one, with nothing but fds:
//! both must answer the same.
//!
//! The table holds every command, every kind of device, chardev, object and block driver that the
//! schema offers; one that is added to the schema and not here fails the last check.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open and listen for the VMM"
)]
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::qmp::Refusal;
use tests::sealed::is_sealed;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const PORTS: u32 = 16;
/// Paths of the manager's, for what stands for them in the table.
const LISTENER: &str = "@listener";
const FILE: &str = "@file";

/// What a command is sent with.
#[derive(Clone, Copy, Debug)]
enum Hand {
    Nothing,
    Disk,
    /// An empty qcow2 image.
    Image,
    /// One of the test certificates.
    Tls(&'static str),
    Memory,
    /// A file that can only be written.
    Output,
    /// A device file, by its path.
    Device(&'static str),
    Eventfd,
    Pipe,
    /// A socket that listens.
    Listener,
    /// One end of a connection; the other stays with the manager.
    Connection,
    /// A datagram socket; the other one stays with the manager.
    Datagram,
    /// A queue of a tap interface.
    Tap,
}

/// Whether a sealed process can do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// Nothing that was not handed in.
    Fds,
    /// To open by itself: it must say so, and what to do.
    ToOpen,
}

struct Row {
    command: &'static str,
    arguments: Value,
    hand: Hand,
    wants: Wants,
}

fn row(command: &'static str, arguments: Value) -> Row {
    let (hand, wants) = (Hand::Nothing, Wants::Fds);
    Row {
        command,
        arguments,
        hand,
        wants,
    }
}

impl Row {
    fn with(mut self, hand: Hand) -> Self {
        self.hand = hand;
        self
    }

    fn wants_to_open(mut self) -> Self {
        self.wants = Wants::ToOpen;
        self
    }
}

/// An fd under a name.
fn named(name: &str, hand: Hand) -> Row {
    row("getfd", json!({"fdname": name})).with(hand)
}

fn books() -> Vec<Row> {
    let alias = json!({"path": "/images/a", "fdset-id": 50});
    vec![
        row("qmp_capabilities", json!({})),
        row("query-version", json!({})),
        row("query-commands", json!({})),
        row("query-events", json!({})),
        row("query-qmp-schema", json!({})),
        named("a", Hand::Disk),
        row("closefd", json!({"fdname": "a"})),
        row("add-fd", json!({"fdset-id": 50})).with(Hand::Disk),
        row("add-fd-alias", alias),
        row("query-fd-aliases", json!({})),
        // What came is looked at, each kind in its own way.
        named("kvm", Hand::Device("/dev/kvm")),
        named("terminal", Hand::Device("/dev/ptmx")),
        named("device", Hand::Device("/dev/zero")),
        named("folder", Hand::Device("/")),
        named("eventfd", Hand::Eventfd),
        named("pipe", Hand::Pipe),
        named("memory", Hand::Memory),
        row("query-fdsets", json!({})),
        row("query-fds", json!({})),
        row("fd-unclaimed-set", json!({"after": 0})),
        named("hook", Hand::Connection),
        row("open-hook-set", json!({"fd": "hook"})),
        row("query-open-hook", json!({})),
        row("open-hook-clear", json!({})),
        row("open-hook-set", json!({"path": LISTENER})).wants_to_open(),
        row("open-hook-clear", json!({})),
        row(
            "query-open-plan",
            json!({"command": "blockdev-add", "arguments": {
            "driver": "file", "node-name": "plan", "filename": "/images/a"}}),
        ),
    ]
}

fn objects() -> Vec<Row> {
    let object = |kind: &str, more: Value| {
        let mut options = json!({"qom-type": kind, "id": format!("of-{kind}")});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        row("object-add", options)
    };
    vec![
        object("iothread", json!({})),
        object("memory-backend-ram", json!({"size": MIB})),
        object("memory-backend-memfd", json!({"size": MIB})),
        row("add-fd", json!({"fdset-id": 51})).with(Hand::Memory),
        object(
            "memory-backend-file",
            json!({"size": MIB, "mem-path": "/dev/fdset/51", "share": true}),
        ),
        object("rng-builtin", json!({})),
        object("throttle-group", json!({"limits": {"iops-total": 100}})),
        named("entropy", Hand::Device("/dev/urandom")),
        object("rng-random", json!({"filename": "fd:entropy"})),
        row(
            "object-add",
            json!({"qom-type": "rng-random", "id": "by-path"}),
        )
        .wants_to_open(),
        named("key", Hand::Memory),
        object("secret", json!({"file": "fd:key"})),
        row(
            "object-add",
            json!({"qom-type": "secret", "id": "secret-by-path", "file": FILE}),
        )
        .wants_to_open(),
        named("tls-key", Hand::Tls("server-key.pem")),
        named("tls-certificate", Hand::Tls("server-cert.pem")),
        object(
            "tls-creds-x509",
            json!({"verify-peer": false, "key": "fd:tls-key", "certificate": "fd:tls-certificate"}),
        ),
        row(
            "object-add",
            json!({"qom-type": "tls-creds-x509", "id": "tls-by-path", "dir": tests::tls::file("")}),
        )
        .wants_to_open(),
        row(
            "object-add",
            json!({"qom-type": "memory-backend-file", "id": "by-path-too",
            "size": MIB, "mem-path": FILE}),
        )
        .wants_to_open(),
        row("object-del", json!({"id": "of-memory-backend-ram"})),
        row("query-iothreads", json!({})),
        row("query-memdev", json!({})),
        row("query-memory-size-summary", json!({})),
    ]
}

fn chardevs() -> Vec<Row> {
    let chardev = |id: &str, kind: &str, data: Value| {
        row(
            "chardev-add",
            json!({"id": id, "backend": {"type": kind, "data": data}}),
        )
    };
    let fd = |name: &str| json!({"type": "fd", "data": {"str": name}});
    let unix = |path: &str| json!({"type": "unix", "data": {"path": path}});
    vec![
        row("add-fd", json!({"fdset-id": 52})).with(Hand::Output),
        chardev("file", "file", json!({"out": "/dev/fdset/52"})),
        chardev("file2", "file", json!({"out": "/dev/null"})).wants_to_open(),
        named("listener", Hand::Listener),
        chardev(
            "server",
            "socket",
            json!({"addr": fd("listener"), "server": true, "wait": false}),
        ),
        named("connection", Hand::Connection),
        chardev(
            "client",
            "socket",
            json!({"addr": fd("connection"), "server": false}),
        ),
        chardev(
            "client2",
            "socket",
            json!({"addr": unix(LISTENER), "server": false}),
        )
        .wants_to_open(),
        chardev("pty", "pty", json!({})).wants_to_open(),
        chardev("null", "null", json!({})),
        chardev(
            "ring",
            "ringbuf",
            json!({"size": 4096, "logfile": "/dev/fdset/52"}),
        ),
        chardev("stdio", "stdio", json!({})),
        row("query-chardev", json!({})),
        row("chardev-remove", json!({"id": "null"})),
    ]
}

fn netdevs() -> Vec<Row> {
    let netdev = |id: &str, kind: &str, more: Value| {
        let mut options = json!({"id": id, "type": kind});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        row("netdev_add", options)
    };
    let unix = |path: &str| json!({"type": "unix", "path": path});
    vec![
        named("tap", Hand::Tap),
        netdev("tap", "tap", json!({"fd": "tap", "sndbuf": 1 << 20})),
        netdev("hub", "hubport", json!({"hubid": 0})),
        named("passt", Hand::Connection),
        netdev(
            "stream",
            "stream",
            json!({"addr": {"type": "fd", "str": "passt"}}),
        ),
        netdev("stream2", "stream", json!({"addr": unix(LISTENER)})).wants_to_open(),
        named("socket", Hand::Connection),
        netdev("socket", "socket", json!({"fd": "socket"})),
        named("datagrams", Hand::Datagram),
        netdev(
            "dgram",
            "dgram",
            json!({"local": {"type": "fd", "str": "datagrams"}}),
        ),
        // What is no tap is refused and stays.
        named("no-tap", Hand::Pipe),
        netdev("tap2", "tap", json!({"fd": "no-tap"})),
        row("closefd", json!({"fdname": "no-tap"})),
    ]
}

/// A chain of images and the jobs on it; a job that is named in vain is refused by both.
fn snapshots_and_jobs() -> Vec<Row> {
    let image = |set: u32, name: &str| {
        let file = json!({"driver": "file", "filename": format!("/dev/fdset/{set}")});
        [
            row("add-fd", json!({"fdset-id": set})).with(Hand::Image),
            row(
                "blockdev-add",
                json!({"driver": "qcow2", "node-name": name, "backing": null, "file": file}),
            ),
        ]
    };
    let sync = |name: &str| {
        json!({"node-name": "first", "snapshot-file": name, "mode": "existing",
            "snapshot-node-name": "third"})
    };
    let mut rows: Vec<Row> = image(60, "base").into_iter().collect();
    rows.extend(image(61, "first"));
    rows.extend([
        row(
            "blockdev-snapshot",
            json!({"node": "base", "overlay": "first"}),
        ),
        row("add-fd", json!({"fdset-id": 62})).with(Hand::Image),
        row("blockdev-snapshot-sync", sync("/dev/fdset/62")),
        row(
            "transaction",
            json!({"actions": [{"type": "abort", "data": {}}]}),
        ),
        row(
            "block-stream",
            json!({"device": "first", "job-id": "stream", "auto-dismiss": false}),
        ),
        row(
            "block-commit",
            json!({"device": "base", "job-id": "commit"}),
        ),
    ]);
    rows.extend([
        row(
            "blockdev-reopen",
            json!({"options": [{"driver": "qcow2", "node-name": "none", "file": "none"}]}),
        ),
        row(
            "change-backing-file",
            json!({"device": "none", "image-node-name": "none", "backing-file": "x"}),
        ),
        row("x-debug-query-block-graph", json!({})),
        row(
            "blockdev-snapshot-internal-sync",
            json!({"device": "first", "name": "kept"}),
        ),
        row(
            "blockdev-snapshot-delete-internal-sync",
            json!({"device": "none", "name": "kept"}),
        ),
        row("query-block-pauses", json!({})),
        row(
            "x-blockdev-set-iothread",
            json!({"node-name": "none", "iothread": null}),
        ),
        row("add-fd", json!({"fdset-id": 63})).with(Hand::Disk),
        row(
            "blockdev-create",
            json!({"job-id": "create", "options": {"driver": "file",
                "filename": "/dev/fdset/63", "size": MIB}}),
        ),
    ]);
    for verb in ["pause", "resume", "cancel", "complete"] {
        let (plain, block) = match verb {
            "pause" => ("job-pause", "block-job-pause"),
            "resume" => ("job-resume", "block-job-resume"),
            "cancel" => ("job-cancel", "block-job-cancel"),
            _ => ("job-complete", "block-job-complete"),
        };
        rows.push(row(plain, json!({"id": "none"})));
        rows.push(row(block, json!({"device": "none"})));
    }
    for command in [
        "job-dismiss",
        "job-finalize",
        "block-job-dismiss",
        "block-job-finalize",
    ] {
        rows.push(row(command, json!({"id": "none"})));
    }
    rows.push(row(
        "block-job-set-speed",
        json!({"device": "none", "speed": 1}),
    ));
    rows
}

/// Bitmaps of a node that is in memory, and one that its image keeps.
fn bitmaps() -> Vec<Row> {
    let of = |name: &str| json!({"node": "recorded", "name": name});
    let merge = json!({"node": "recorded", "target": "a", "bitmaps": ["b",
        {"node": "recorded", "name": "b"}]});
    let mut rows = vec![
        row("add-fd", json!({"fdset-id": 65})).with(Hand::Image),
        row(
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "recorded", "backing": null, "file": {
            "driver": "file", "filename": "/dev/fdset/65"}}),
        ),
        row(
            "block-dirty-bitmap-add",
            json!({"node": "recorded", "name": "a", "persistent": true}),
        ),
        row("block-dirty-bitmap-add", of("b")),
        row("block-dirty-bitmap-merge", merge),
    ];
    for command in [
        "block-dirty-bitmap-disable",
        "block-dirty-bitmap-enable",
        "block-dirty-bitmap-clear",
        "block-dirty-bitmap-remove",
    ] {
        rows.push(row(command, of("a")));
    }
    rows.push(row("x-debug-block-dirty-bitmap-sha256", of("b")));
    rows.push(row("blockdev-del", json!({"node-name": "recorded"})));
    rows
}

fn disks_and_devices() -> Vec<Row> {
    let device = |id: u32, driver: &str, more: Value| {
        let mut options = json!({"driver": driver, "id": format!("d{id}")});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        row("device_add", options)
    };
    let port = |number: u32| json!({"bus": format!("port{number}")});
    vec![
        row(
            "blockdev-add",
            json!({"driver": "raw", "node-name": "disk", "file": {
            "driver": "file", "node-name": "file", "filename": "/dev/fdset/50"}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "file", "node-name": "path",
            "filename": FILE, "read-only": true}),
        )
        .wants_to_open(),
        row(
            "blockdev-add",
            json!({"driver": "file", "node-name": "alone", "filename": "/dev/fdset/50"}),
        ),
        row("add-fd", json!({"fdset-id": 53})).with(Hand::Image),
        row(
            "blockdev-add",
            json!({"driver": "qcow2", "node-name": "image", "lazy-refcounts": true, "file": {
            "driver": "file", "filename": "/dev/fdset/53"}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "compress", "node-name": "packs", "file": "image"}),
        ),
        row("blockdev-del", json!({"node-name": "packs"})),
        // Longer: the file grows, on the thread that may do that.
        row(
            "block_resize",
            json!({"node-name": "image", "size": 2 * MIB}),
        ),
        row("blockdev-del", json!({"node-name": "image"})),
        row(
            "blockdev-add",
            json!({"driver": "host_device", "node-name": "host",
            "filename": "/dev/fdset/50"}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "null", "size": MIB}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "null-aio", "node-name": "aio", "size": MIB}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "blkdebug", "node-name": "debug",
            "image": {"driver": "null-co", "node-name": "debugged", "size": MIB}}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "copy-on-read", "node-name": "keeps", "file": "debug"}),
        ),
        row(
            "blockdev-add",
            json!({"driver": "throttle", "node-name": "slow", "throttle-group": "of-throttle-group",
            "file": "keeps"}),
        ),
        device(
            0,
            "virtio-blk-pci",
            json!({"bus": "port0", "drive": "disk"}),
        ),
        device(
            1,
            "virtio-blk-pci-non-transitional",
            json!({"bus": "port1", "drive": "null"}),
        ),
        device(
            2,
            "virtio-rng-pci",
            json!({"bus": "port2", "rng": "of-rng-random"}),
        ),
        device(3, "virtio-rng-pci-non-transitional", port(3)),
        device(4, "virtio-serial-pci", port(4)),
        device(5, "virtio-serial-pci-non-transitional", port(5)),
        device(
            6,
            "virtserialport",
            json!({"bus": "d4.0", "chardev": "server"}),
        ),
        device(
            7,
            "virtconsole",
            json!({"bus": "d5.0", "chardev": "client"}),
        ),
        device(
            13,
            "virtio-net-pci",
            json!({"bus": "port12", "netdev": "tap"}),
        ),
        device(
            14,
            "virtio-net-pci-non-transitional",
            json!({"bus": "port13", "netdev": "hub"}),
        ),
        row("query-rx-filter", json!({"name": "d13"})),
        row("set_link", json!({"name": "d13", "up": false})),
        row(
            "announce-self",
            json!({"initial": 1, "max": 1, "rounds": 2, "step": 0}),
        ),
        row("netdev_del", json!({"id": "tap"})),
        device(8, "isa-serial", json!({"chardev": "file"})),
        device(9, "pcie-root-port", json!({"chassis": 90, "slot": 90})),
        device(10, "pvpanic", json!({})),
        device(11, "virtio-balloon-pci", port(6)),
        row("balloon", json!({"value": 64 * MIB})),
        row("query-balloon", json!({})),
        row(
            "qom-set",
            json!({"path": "/machine/peripheral/d11",
            "property": "guest-stats-polling-interval", "value": 2}),
        ),
        row("device_del", json!({"id": "d11"})),
        device(12, "virtio-balloon-pci-non-transitional", port(7)),
        device(17, "pvpanic-pci", port(10)),
        device(13, "virtio-scsi-pci", port(8)),
        device(14, "virtio-scsi-pci-non-transitional", port(9)),
        row(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "disc", "size": MIB, "read-only": true}),
        ),
        device(15, "scsi-hd", json!({"bus": "d13.0", "drive": "aio"})),
        device(16, "scsi-cd", json!({"bus": "d13.0", "drive": "disc"})),
        row("eject", json!({"id": "d16"})),
        row(
            "blockdev-insert-medium",
            json!({"id": "d16", "node-name": "disc"}),
        ),
        row("blockdev-close-tray", json!({"id": "d16"})),
        row("blockdev-open-tray", json!({"id": "d16"})),
        row("blockdev-remove-medium", json!({"id": "d16"})),
        row("device_del", json!({"id": "d15"})),
        row(
            "device-list-properties",
            json!({"typename": "virtio-blk-pci"}),
        ),
        row("query-block", json!({})),
        row("query-named-block-nodes", json!({})),
        row("query-block-jobs", json!({})),
        row(
            "block-set-write-threshold",
            json!({"node-name": "disk", "write-threshold": MIB / 2}),
        ),
        row("query-blockstats", json!({})),
        row("query-blockstats", json!({"query-nodes": true})),
        row(
            "block_resize",
            json!({"node-name": "disk", "size": 2 * MIB}),
        ),
        row("block_resize", json!({"device": "d0", "size": MIB})),
        row("query-pci", json!({})),
        row("device_del", json!({"id": "d1"})),
        row("blockdev-del", json!({"node-name": "aio"})),
    ]
}

fn life() -> Vec<Row> {
    let commands = [
        "query-status",
        "query-name",
        "query-uuid",
        "query-kvm",
        "query-target",
        "query-machines",
        "query-current-machine",
        "query-command-line-options",
        "query-cpu-definitions",
        "query-hotpluggable-cpus",
        "query-migrate-capabilities",
        "query-jobs",
        "x-exit-preconfig",
        "query-cpus-fast",
        "query-sandbox",
        "qom-list-types",
        "inject-nmi",
        "cont",
        "stop",
        "system_reset",
        "system_powerdown",
    ];
    let mut rows: Vec<Row> = commands.map(|command| row(command, json!({}))).into();
    rows.extend([
        row("qom-list", json!({"path": "/machine/peripheral"})),
        row("qom-list-properties", json!({"typename": "virtio-blk-pci"})),
        row(
            "qom-set",
            json!({"path": "/machine/peripheral/d2", "property": "type", "value": "x"}),
        ),
        row(
            "query-cpu-model-expansion",
            json!({"type": "static", "model": {"name": "host"}}),
        ),
        row("migrate-set-capabilities", json!({"capabilities": []})),
        row("set-action", json!({"reboot": "reset"})),
        row(
            "human-monitor-command",
            json!({"command-line": "info status"}),
        ),
        row(
            "qom-get",
            json!({"path": "/machine/peripheral/d2", "property": "type"}),
        ),
        row(
            "human-monitor-command",
            json!({"command-line": "qemu-io disk \"write -P 1 0 4k\""}),
        ),
        row(
            "human-monitor-command",
            json!({"command-line": "qemu-io disk \"aio_read -P 1 0 4k\""}),
        ),
        row(
            "human-monitor-command",
            json!({"command-line": "qemu-io disk aio_flush"}),
        ),
        row("remove-fd-alias", json!({"path": "/images/a"})),
        row("remove-fd", json!({"fdset-id": 52})),
        row("seal", json!({"level": "passed"})),
        row("quit", json!({})),
    ]);
    rows
}

fn table() -> Vec<Row> {
    let parts = [
        books(),
        objects(),
        chardevs(),
        netdevs(),
        disks_and_devices(),
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
    let start = || Vm::paused().root_ports(PORTS).start();
    let (mut open, mut sealed) = (start()?, start()?);
    let (mut manager, mut other) = (Manager::new()?, Manager::new()?);
    sealed.execute("seal", json!({"level": "sealed"}))?;
    for row in table() {
        let what = format!("{} {}", row.command, row.arguments);
        let expected = manager.run(&mut open, &row).context(what.clone())?;
        let came = other.run(&mut sealed, &row);
        let came = came.with_context(|| format!("{what}; it said: {}", sealed.stderr()))?;
        match (row.wants, expected, came) {
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
