//! Consoles and ports: what the guest says arrives, and what is said to it.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tests::Vm;

const SOON: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_serial_console_log_is_written_through_its_fd() -> Result<()> {
    let mut vm = Vm::builder().start()?;
    vm.guest()?;
    assert!(
        vm.console().contains("guest-init: up after"),
        "{}",
        vm.console()
    );
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_virtio_serial_port_carries_bytes_both_ways() -> Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(SOON))?;
    let mut builder = Vm::builder();
    let fd = builder.pass(theirs);
    let chardev = format!("socket,id=talk,fd={fd}");
    let port = "virtserialport,bus=ports.0,chardev=talk,name=org.test.talk,id=talk0";
    let mut vm = builder
        .args(["-chardev", &chardev, "-device", port])
        .start()?;
    let guest = vm.guest()?;
    guest.call(
        "port-write",
        json!({"name": "org.test.talk", "text": "from the guest"}),
    )?;
    let mut bytes = [0; 14];
    ours.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"from the guest");
    ours.write_all(b"to the guest")?;
    let heard = vm
        .guest()?
        .call("port-read", json!({"name": "org.test.talk", "count": 12}))?;
    assert_eq!(heard, "to the guest");
    vm.qmp.event_where("VSERPORT_CHANGE", SOON, |event| {
        event["data"]["id"] == "talk0"
    })?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_virtio_console_is_hvc0() -> Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(SOON))?;
    let mut builder = Vm::builder().append("console=hvc0");
    let fd = builder.pass(theirs);
    let chardev = format!("socket,id=hvc,fd={fd}");
    let mut vm = builder
        .args([
            "-chardev",
            &chardev,
            "-device",
            "virtconsole,bus=ports.0,chardev=hvc",
        ])
        .start()?;
    vm.guest()?;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&text).contains("guest-init: up after") {
        let count = ours.read(&mut piece)?;
        assert!(
            count > 0,
            "hvc0 ended with {:?}",
            String::from_utf8_lossy(&text)
        );
        text.extend_from_slice(&piece[..count]);
    }
    vm.shutdown_clean()
}
