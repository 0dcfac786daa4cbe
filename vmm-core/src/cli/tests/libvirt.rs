//! Command lines as libvirt writes them.

use super::*;

/// The probe of libvirt 11.3.
#[test]
fn the_probe_of_libvirt_is_understood() {
    let config = config(&[
        "-S",
        "-no-user-config",
        "-nodefaults",
        "-nographic",
        "-machine",
        "none,accel=kvm:tcg",
        "-qmp",
        "unix:/run/probe/qmp.monitor,server=on,wait=off",
        "-pidfile",
        "/run/probe/qmp.pid",
        "-daemonize",
    ]);
    assert_eq!(config.machine.model.kind, MachineKind::None);
    assert_eq!(config.accels.len(), 1);
    assert_eq!(config.monitors[0].chardev, "compat_monitor0");
    assert_eq!(config.pidfile.as_deref(), Some("/run/probe/qmp.pid"));
    assert!(config.paused && config.daemonize);
    let ChardevBackendVariant::Socket(socket) = &config.chardevs[0].backend.r#type else {
        panic!("{:?}", config.chardevs);
    };
    assert_eq!(
        (socket.data.server, socket.data.wait),
        (Some(true), Some(false))
    );
    assert!(config.serials.is_empty());
}

/// The order and spelling of libvirt 11.3, with the devices there are here.
pub(super) const GUEST: &[&str] = &[
    "-name",
    "guest=web,,1,debug-threads=on",
    "-S",
    "-object",
    r#"{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/run/key"}"#,
    "-machine",
    "pc-q35-sesame1,usb=off,vmport=off,kernel_irqchip=on,dump-guest-core=off,mem-merge=off,\
     memory-backend=pc.ram,acpi=on",
    "-accel",
    "kvm",
    "-cpu",
    "host,migratable=on",
    "-m",
    "size=524288k",
    "-object",
    r#"{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"x-use-canonical-path-for-ramblock-id":false,"size":536870912}"#,
    "-overcommit",
    "mem-lock=off",
    "-smp",
    "1,maxcpus=2,sockets=2,cores=1,threads=1",
    "-object",
    r#"{"qom-type":"iothread","id":"iothread1"}"#,
    "-uuid",
    "11111111-2222-3333-4444-555555555555",
    "-display",
    "none",
    "-no-user-config",
    "-nodefaults",
    "-chardev",
    "socket,id=charmonitor,fd=31,server=on,wait=off",
    "-mon",
    "chardev=charmonitor,id=monitor,mode=control",
    "-rtc",
    "base=utc,driftfix=slew",
    "-no-shutdown",
    "-boot",
    "strict=on",
    "-kernel",
    "/dev/fdset/7",
    "-append",
    "console=ttyS0 panic=-1",
    "-device",
    r#"{"driver":"pcie-root-port","port":8,"chassis":1,"id":"pci.1","bus":"pcie.0","multifunction":true,"addr":"0x1"}"#,
    "-device",
    r#"{"driver":"virtio-serial-pci","id":"virtio-serial0","bus":"pci.1","addr":"0x0"}"#,
    "-blockdev",
    r#"{"driver":"file","filename":"/srv/a.raw","aio":"native","node-name":"libvirt-1-storage","read-only":false,"discard":"unmap","detect-zeroes":"unmap","cache":{"direct":true,"no-flush":false}}"#,
    "-device",
    r#"{"driver":"virtio-blk-pci","iothread":"iothread1","num-queues":2,"queue-size":256,"bus":"pci.1","addr":"0x0","drive":"libvirt-1-storage","id":"virtio-disk0","bootindex":1,"write-cache":"on","serial":"S"}"#,
    "-add-fd",
    "set=0,fd=27,opaque=serial0-source",
    "-chardev",
    "file,id=charserial0,path=/dev/fdset/0,append=on,logfile=/srv/s.log,logappend=on",
    "-device",
    r#"{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}"#,
    "-chardev",
    "pty,id=charconsole1",
    "-device",
    r#"{"driver":"virtconsole","chardev":"charconsole1","id":"console1"}"#,
    "-audiodev",
    r#"{"id":"audio1","driver":"none"}"#,
    "-global",
    "ICH9-LPC.noreboot=off",
    "-global",
    "ICH9-LPC.disable_s3=1",
    "-global",
    "ICH9-LPC.disable_s4=1",
    "-watchdog-action",
    "reset",
    "-sandbox",
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-msg",
    "timestamp=on",
];

#[test]
fn a_guest_of_libvirt_is_understood() {
    let config = config(GUEST);
    assert_eq!(config.name.guest.as_deref(), Some("web,1"));
    assert_eq!(config.machine.memory_backend.as_deref(), Some("pc.ram"));
    assert!(!config.machine.dump_guest_core && !config.machine.mem_merge);
    assert_eq!(config.memory.size, 512 << 20);
    assert_eq!((config.smp.cpus, config.smp.maxcpus), (1, 2));
    assert_eq!(config.devices.len(), 5);
    assert_eq!(
        config.add_fds,
        [AddFdSpec {
            fd: 27,
            set: 0,
            opaque: Some("serial0-source".to_owned()),
            kind: None,
            alias: None,
        }]
    );
    let kernel = config.kernel.expect("a kernel was given");
    assert_eq!(kernel.append, "console=ttyS0 panic=-1");
    let sandbox = config.sandbox.expect("the sandbox is on");
    assert!(sandbox.deny_spawn && sandbox.deny_obsolete);
    assert!(config.messages.timestamp && config.boot.strict);
    assert_eq!(config.actions.shutdown, Some(ShutdownAction::Pause));
    assert!(config.serials.is_empty(), "isa-serial is the port");
}

#[test]
fn sleep_cannot_be_asked_for() {
    let error = error(&["-global", "ICH9-LPC.disable_s3=0"]);
    assert!(error.contains("no sleep states"), "{error}");
}
