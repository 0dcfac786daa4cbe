//! Rows about fds, objects, chardevs and network backends, and about the machine's life.

use serde_json::{Value, json};

use super::row::{FILE, Hand, LISTENER, MIB, Row, named, row};

pub(super) fn books() -> Vec<Row> {
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

pub(super) fn objects() -> Vec<Row> {
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
        object("memory-backend-shm", json!({"size": MIB})),
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

pub(super) fn chardevs() -> Vec<Row> {
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

pub(super) fn netdevs() -> Vec<Row> {
    let netdev = |id: &str, kind: &str, more: Value| {
        let mut options = json!({"id": id, "type": kind});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        row("netdev_add", options)
    };
    let filter = |kind: &str, more: Value| {
        let kind = format!("filter-{kind}");
        let mut options = json!({"qom-type": kind, "id": kind, "netdev": "hub"});
        for (key, value) in more.as_object().into_iter().flatten() {
            options[key] = value.clone();
        }
        row("object-add", options)
    };
    let unix = |path: &str| json!({"type": "unix", "path": path});
    vec![
        named("tap", Hand::Tap),
        netdev("tap", "tap", json!({"fd": "tap", "sndbuf": 1 << 20})),
        netdev("hub", "hubport", json!({"hubid": 0})),
        // No socket, which is told before anybody is waited for.
        netdev("served", "vhost-user", json!({"chardev": "ring"})),
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
        named("packets", Hand::Output),
        filter("dump", json!({"file": "fd:packets"})),
        filter("dump", json!({"id": "dump2", "file": FILE})).wants_to_open(),
        filter("mirror", json!({"outdev": "ring"})),
        filter("buffer", json!({"interval": 1000})),
        row(
            "qom-set",
            json!({"path": "/objects/filter-buffer", "property": "status", "value": "off"}),
        ),
        row("object-del", json!({"id": "filter-mirror"})),
        filter("redirector", json!({"indev": "ring"})),
        row("object-del", json!({"id": "filter-redirector"})),
        // What is no tap is refused and stays.
        named("no-tap", Hand::Pipe),
        netdev("tap2", "tap", json!({"fd": "no-tap"})),
        named("tap3", Hand::Tap),
        netdev(
            "tap3",
            "tap",
            json!({"fd": "tap3", "vhost": true, "vhostfd": "no-tap"}),
        ),
        row("closefd", json!({"fdname": "tap3"})),
        row("closefd", json!({"fdname": "no-tap"})),
    ]
}

pub(super) fn life() -> Vec<Row> {
    let commands = [
        "query-status",
        "query-name",
        "query-tpm",
        "query-tpm-models",
        "query-tpm-types",
        "query-uuid",
        "query-vm-generation-id",
        "query-kvm",
        "query-target",
        "query-machines",
        "query-current-machine",
        "query-command-line-options",
        "query-cpu-definitions",
        "query-acpi-ospm-status",
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
        row("x-inspect", json!({"path": "/machine/unattached/rtc"})),
        row("x-inspect", json!({"path": "/machine/unattached/pic"})),
        row("x-inspect", json!({"path": "/machine/unattached/pit"})),
        row("x-query-virtio", json!({})),
        row("x-query-virtio-status", json!({"path": "d2"})),
        row(
            "x-query-virtio-queue-status",
            json!({"path": "d2", "queue": 0}),
        ),
        row(
            "x-query-virtio-vhost-queue-status",
            json!({"path": "d2", "queue": 0}),
        ),
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
        row("watchdog-set-action", json!({"action": "pause"})),
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
