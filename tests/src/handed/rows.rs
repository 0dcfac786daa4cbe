//! The rows: each property that takes something handed in.

use serde_json::{Value, json};

use super::{Beside, Property, Step, Way};
use crate::table::Resource;

const MIB: u64 = 1 << 20;

/// A row whose fds come alone.
const PLAIN: Property = Property {
    schema: &[],
    title: "",
    resource: Resource::ImageFile,
    role: "image",
    count: 1,
    beside: Beside::Nothing,
    launch: None,
    hotplug: None,
};

/// The table.
pub const PROPERTIES: &[Property] = &[
    Property {
        schema: &["+file.filename"],
        title: "`blockdev-add` `file`: `filename`",
        launch: Some(|names| json_option("-blockdev", &file(&names[0]))),
        hotplug: Some(|names| node(file(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+host_device.filename"],
        title: "`blockdev-add` `host_device`: `filename`",
        resource: Resource::BlockDevice,
        launch: Some(|names| json_option("-blockdev", &host_device(&names[0]))),
        hotplug: Some(|names| node(host_device(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+blkdebug.config"],
        title: "`blockdev-add` `blkdebug`: `config`",
        resource: Resource::BlkdebugRules,
        launch: Some(|names| json_option("-blockdev", &blkdebug(&names[0]))),
        hotplug: Some(|names| node(blkdebug(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["-drive.file"],
        title: "`-drive`: `file`",
        launch: Some(|names| {
            words(&[
                "-drive",
                &format!("if=none,id=d,format=raw,file={}", names[0]),
            ])
        }),
        ..PLAIN
    },
    Property {
        schema: &["-machine.pflash0", "-machine.pflash1"],
        title: "flash chips: the node of `-machine pflash0=`, `pflash1=`",
        launch: Some(|names| {
            let mut options = json_option("-blockdev", &file(&names[0]));
            options.extend(words(&["-machine", "pflash0=n"]));
            options
        }),
        ..PLAIN
    },
    Property {
        title: "media of CD drives: the node of `blockdev-insert-medium`",
        resource: Resource::BackingFile,
        beside: Beside::CdDrive,
        hotplug: Some(|names| medium(&names[0])),
        ..PLAIN
    },
    Property {
        schema: &["+tap.fd"],
        title: "`netdev_add` `tap`: `fd`",
        resource: Resource::NetTap,
        role: "tap",
        launch: Some(|names| json_option("-netdev", &tap("fd", names))),
        hotplug: Some(|names| netdev(tap("fd", names))),
        ..PLAIN
    },
    Property {
        schema: &["+tap.fds"],
        title: "`netdev_add` `tap`: `fds`",
        resource: Resource::NetTap,
        role: "tap",
        count: 2,
        launch: Some(|names| json_option("-netdev", &tap("fds", names))),
        hotplug: Some(|names| netdev(tap("fds", names))),
        ..PLAIN
    },
    Property {
        schema: &["+tap.vhostfd"],
        title: "`netdev_add` `tap`: `vhostfd`",
        resource: Resource::VhostNet,
        role: "vhost",
        beside: Beside::TapQueues(1),
        launch: Some(|names| json_option("-netdev", &vhost_tap("vhostfd", names))),
        hotplug: Some(|names| netdev(vhost_tap("vhostfd", names))),
        ..PLAIN
    },
    Property {
        schema: &["+tap.vhostfds"],
        title: "`netdev_add` `tap`: `vhostfds`",
        resource: Resource::VhostNet,
        role: "vhost",
        count: 2,
        beside: Beside::TapQueues(2),
        launch: Some(|names| json_option("-netdev", &vhost_tap("vhostfds", names))),
        hotplug: Some(|names| netdev(vhost_tap("vhostfds", names))),
    },
    Property {
        schema: &[
            "+vhost-vsock-pci.vhostfd",
            "+vhost-vsock-pci-non-transitional.vhostfd",
        ],
        title: "`device_add` `vhost-vsock-pci`: `vhostfd`",
        resource: Resource::VhostVsock,
        role: "vhost",
        launch: Some(|names| json_option("-device", &vsock(&names[0]))),
        hotplug: Some(|names| Way {
            open: ("device_add", vsock(&names[0])),
            then: Vec::new(),
            undo: vec![("device_del", json!({"id": "vsock"}))],
        }),
        ..PLAIN
    },
    Property {
        schema: &["+stream.addr+fd.str", "+stream.addr+unix.path"],
        title: "`netdev_add` `stream`: `addr`",
        resource: Resource::NetConnection,
        role: "net",
        launch: Some(|names| json_option("-netdev", &stream(&names[0]))),
        hotplug: Some(|names| netdev(stream(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+socket.fd"],
        title: "`netdev_add` `socket`: `fd`",
        resource: Resource::NetConnection,
        role: "net",
        launch: Some(|names| json_option("-netdev", &net_socket(&names[0]))),
        hotplug: Some(|names| netdev(net_socket(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+dgram.local+fd.str", "+dgram.local+unix.path"],
        title: "`netdev_add` `dgram`: `local`",
        resource: Resource::NetDatagram,
        role: "net",
        launch: Some(|names| json_option("-netdev", &datagram(&names[0]))),
        hotplug: Some(|names| netdev(datagram(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+file.data.out"],
        title: "`chardev-add` `file`: `out`",
        resource: Resource::ChardevOutput,
        role: "chardev",
        launch: Some(|names| words(&["-chardev", &format!("file,id=c,path={}", names[0])])),
        hotplug: Some(|names| chardev("file", json!({"out": names[0]}))),
        ..PLAIN
    },
    Property {
        schema: &["+file.data.in"],
        title: "`chardev-add` `file`: `in`",
        resource: Resource::ChardevInput,
        role: "chardev",
        beside: Beside::Output,
        launch: Some(|names| {
            let options = format!("file,id=c,path=/dev/fdset/99,input-path={}", names[0]);
            words(&["-chardev", &options])
        }),
        hotplug: Some(|names| chardev("file", json!({"out": "/dev/fdset/99", "in": names[0]}))),
        ..PLAIN
    },
    Property {
        schema: &[".data.logfile"],
        title: "`chardev-add`: `logfile`",
        resource: Resource::ChardevLog,
        role: "chardev-log",
        launch: Some(|names| words(&["-chardev", &format!("null,id=c,logfile={}", names[0])])),
        hotplug: Some(|names| chardev("null", json!({"logfile": names[0]}))),
        ..PLAIN
    },
    Property {
        schema: &[
            "+socket.data.addr+fd.data.str",
            "+socket.data.addr+unix.data.path",
        ],
        title: "`chardev-add` `socket`: `addr`",
        resource: Resource::ChardevConnection,
        role: "chardev",
        launch: Some(|names| {
            let place = match short(&names[0]) {
                Some(fd) => format!("fd={fd}"),
                None => format!("path={}", names[0]),
            };
            words(&["-chardev", &format!("socket,id=c,{place},server=off")])
        }),
        hotplug: Some(|names| {
            let address = match short(&names[0]) {
                Some(fd) => json!({"type": "fd", "data": {"str": fd}}),
                None => json!({"type": "unix", "data": {"path": names[0]}}),
            };
            chardev("socket", json!({"addr": address, "server": false}))
        }),
        ..PLAIN
    },
    Property {
        schema: &["+memory-backend-file.mem-path"],
        title: "`object-add` `memory-backend-file`: `mem-path`",
        resource: Resource::MemoryFile,
        role: "memory",
        launch: Some(|names| json_option("-object", &memory_file(&names[0]))),
        hotplug: Some(|names| object(memory_file(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+memory-backend-memfd.fd", "+memory-backend-ram.fd"],
        title: "`object-add` `memory-backend-memfd`, `memory-backend-ram`: `fd`",
        resource: Resource::Memfd,
        role: "memory",
        launch: Some(|names| json_option("-object", &memfd(&names[0]))),
        hotplug: Some(|names| object(memfd(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+rng-random.filename"],
        title: "`object-add` `rng-random`: `filename`",
        resource: Resource::Entropy,
        role: "entropy",
        launch: Some(|names| json_option("-object", &rng(&names[0]))),
        hotplug: Some(|names| object(rng(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+secret.file"],
        title: "`object-add` `secret`: `file`",
        resource: Resource::Secret,
        role: "secret",
        launch: Some(|names| json_option("-object", &secret(&names[0]))),
        hotplug: Some(|names| object(secret(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &[
            "+tls-creds-x509.key",
            "+tls-creds-x509.certificate",
            "+tls-creds-x509.authority",
        ],
        title: "`object-add` `tls-creds-x509`: `key`, `certificate`, `authority`",
        resource: Resource::TlsKey,
        role: "secret",
        beside: Beside::Certificate,
        launch: Some(|names| json_option("-object", &tls(&names[0]))),
        hotplug: Some(|names| object(tls(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["+filter-dump.file"],
        title: "`object-add` `filter-dump`: `file`",
        resource: Resource::NetDump,
        role: "net-dump",
        beside: Beside::Netdev,
        launch: Some(|names| json_option("-object", &dump(&names[0]))),
        hotplug: Some(|names| object(dump(&names[0]))),
        ..PLAIN
    },
    Property {
        schema: &["-kernel", "-machine.kernel"],
        title: "`-kernel`",
        resource: Resource::Kernel,
        role: "kernel",
        launch: Some(|names| words(&["-kernel", &names[0]])),
        ..PLAIN
    },
    Property {
        schema: &["-bios", "-machine.firmware"],
        title: "`-bios`",
        resource: Resource::Rom,
        role: "firmware",
        launch: Some(|names| words(&["-bios", &names[0]])),
        ..PLAIN
    },
    Property {
        schema: &["-fw_cfg.file"],
        title: "`-fw_cfg`: `file`",
        resource: Resource::FwCfg,
        role: "firmware",
        launch: Some(|names| words(&["-fw_cfg", &format!("name=opt/test,file={}", names[0])])),
        ..PLAIN
    },
    Property {
        schema: &["-pidfile"],
        title: "`-pidfile`",
        resource: Resource::PidFile,
        role: "pid-file",
        launch: Some(|names| words(&["-pidfile", &names[0]])),
        ..PLAIN
    },
    Property {
        schema: &["-mon.commands"],
        title: "`-mon`: `commands`",
        resource: Resource::MonitorCommands,
        role: "commands",
        launch: Some(|names| {
            let mon = format!("chardev=m,mode=control,commands={}", names[0]);
            words(&["-chardev", "stdio,id=m", "-mon", &mon])
        }),
        ..PLAIN
    },
];

/// An fd's name as members called `fd` take it.
fn short(name: &str) -> Option<&str> {
    name.strip_prefix("fd:")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn json_option(option: &str, value: &Value) -> Vec<String> {
    words(&[option, &value.to_string()])
}

fn one_step(open: Step, undo: Step) -> Way {
    Way {
        open,
        then: Vec::new(),
        undo: vec![undo],
    }
}

fn node(options: Value) -> Way {
    let gone = json!({"node-name": "n"});
    one_step(("blockdev-add", options), ("blockdev-del", gone))
}

fn netdev(options: Value) -> Way {
    one_step(("netdev_add", options), ("netdev_del", json!({"id": "n"})))
}

fn object(options: Value) -> Way {
    one_step(("object-add", options), ("object-del", json!({"id": "o"})))
}

fn chardev(kind: &str, data: Value) -> Way {
    let arguments = json!({"id": "c", "backend": {"type": kind, "data": data}});
    let gone = json!({"id": "c"});
    one_step(("chardev-add", arguments), ("chardev-remove", gone))
}

fn file(name: &str) -> Value {
    json!({"driver": "file", "node-name": "n", "filename": name})
}

fn host_device(name: &str) -> Value {
    json!({"driver": "host_device", "node-name": "n", "filename": name, "read-only": true})
}

fn blkdebug(name: &str) -> Value {
    json!({"driver": "blkdebug", "node-name": "n", "config": name,
        "image": {"driver": "null-co"}})
}

fn medium(name: &str) -> Way {
    let drive = json!({"id": "cd"});
    let options = json!({"driver": "file", "node-name": "n", "filename": name, "read-only": true});
    Way {
        open: ("blockdev-add", options),
        then: vec![
            ("blockdev-open-tray", drive.clone()),
            (
                "blockdev-insert-medium",
                json!({"id": "cd", "node-name": "n"}),
            ),
            ("blockdev-close-tray", drive.clone()),
        ],
        undo: vec![
            ("blockdev-open-tray", drive.clone()),
            ("blockdev-remove-medium", drive.clone()),
            ("blockdev-close-tray", drive),
            ("blockdev-del", json!({"node-name": "n"})),
        ],
    }
}

/// The names of fds as a list in one string.
fn list(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|it| short(it).unwrap_or(it)).collect();
    names.join(":")
}

fn tap(member: &str, names: &[String]) -> Value {
    json!({"type": "tap", "id": "n", member: list(names)})
}

fn vhost_tap(member: &str, names: &[String]) -> Value {
    let (queues, sets) = match member {
        "vhostfd" => ("fd", "/dev/fdset/90"),
        _ => ("fds", "/dev/fdset/90:/dev/fdset/91"),
    };
    json!({"type": "tap", "id": "n", "vhost": true, queues: sets, member: list(names)})
}

fn vsock(name: &str) -> Value {
    json!({"driver": "vhost-vsock-pci", "id": "vsock", "bus": "port0", "guest-cid": 77,
        "vhostfd": short(name).unwrap_or(name)})
}

fn stream(name: &str) -> Value {
    json!({"type": "stream", "id": "n", "addr": address(name)})
}

fn net_socket(name: &str) -> Value {
    json!({"type": "socket", "id": "n", "fd": short(name).unwrap_or(name)})
}

fn datagram(name: &str) -> Value {
    let mut options = json!({"type": "dgram", "id": "n", "local": address(name)});
    if short(name).is_none() {
        options["remote"] = json!({"type": "unix", "path": "/nowhere/at/all"});
    }
    options
}

fn address(name: &str) -> Value {
    match short(name) {
        Some(fd) => json!({"type": "fd", "str": fd}),
        None => json!({"type": "unix", "path": name}),
    }
}

fn memory_file(name: &str) -> Value {
    json!({"qom-type": "memory-backend-file", "id": "o", "size": MIB, "share": true,
        "mem-path": name})
}

fn memfd(name: &str) -> Value {
    json!({"qom-type": "memory-backend-memfd", "id": "o", "size": MIB, "fd": name})
}

fn rng(name: &str) -> Value {
    json!({"qom-type": "rng-random", "id": "o", "filename": name})
}

fn dump(name: &str) -> Value {
    json!({"qom-type": "filter-dump", "id": "o", "netdev": "w", "file": name})
}

fn secret(name: &str) -> Value {
    json!({"qom-type": "secret", "id": "o", "file": name})
}

fn tls(name: &str) -> Value {
    json!({"qom-type": "tls-creds-x509", "id": "o", "verify-peer": false,
        "certificate": "/dev/fdset/98", "key": name})
}
