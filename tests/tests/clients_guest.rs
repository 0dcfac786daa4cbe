//! Our own clients boot a machine with a disk that they hand in, and see what happens to it.
use std::process::Command;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use sesame_qmp::block_core::{
    BlockdevAdd, BlockdevOptions, BlockdevOptionsFile, BlockdevOptionsVariant,
};
use sesame_qmp::devices::{DeviceOptions, DeviceOptionsVariant, VirtioBlkProperties};
use sesame_qmp::fds::Getfd;
use sesame_qmp::qdev::DeviceAdd;
use sesame_qmp::run_state::{Cont, ShutdownCause, SystemPowerdown};
use sesame_qmp::{Client, Event, TakesFd};
use tests::clients::{Listening, ended, go, node, program, python};
use tests::vm::Builder;
use tests::{Vm, fds};

/// The client plugs the disk `data` into a machine that waits, lets it run, and sees it end.
fn boots_a_guest(machine: Builder, client: &mut Command) -> Result<()> {
    let mut listening = Listening::start(machine.root_ports(1).stopped())?;
    let client = listening.begin(client)?;
    works(&mut listening.vm, "data")?;
    listening.vm.execute("system_powerdown", json!({}))?;
    ended(client)?;
    listening.vm.exit_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_python_client_boots_a_guest_with_a_disk() -> Result<()> {
    let mut client = python()?;
    client.arg(program("sesame_python.py")).arg("guest");
    boots_a_guest(Vm::builder(), client.stdin(fds::disk(24 << 20)?))
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_go_client_boots_a_guest_with_a_disk() -> Result<()> {
    boots_a_guest(Vm::builder(), go("guest")?.stdin(fds::disk(24 << 20)?))
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_typescript_client_boots_a_guest_with_a_disk() -> Result<()> {
    let mut machine = Vm::builder();
    let disk = machine.fdset(fds::disk(24 << 20)?);
    boots_a_guest(machine, &mut node("guest", &disk)?)
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_rust_client_boots_a_guest_with_a_disk() -> Result<()> {
    let mut listening = Listening::start(Vm::builder().root_ports(1).stopped())?;
    let mut qmp = Client::connect(&listening.socket)?;
    qmp.execute(Getfd::new("disk").with_fd(&fds::disk(24 << 20)?))?;
    let file = BlockdevOptionsVariant::File(BlockdevOptionsFile::new("fd:disk"));
    qmp.execute(BlockdevAdd(BlockdevOptions {
        node_name: Some("data".to_owned()),
        ..BlockdevOptions::new(file)
    }))?;
    let disk = VirtioBlkProperties {
        serial: Some("data".to_owned()),
        ..VirtioBlkProperties::new("data")
    };
    qmp.execute(DeviceAdd(DeviceOptions {
        bus: Some("port0".to_owned()),
        ..DeviceOptions::new(DeviceOptionsVariant::VirtioBlkPci(disk))
    }))?;
    qmp.execute(Cont)?;
    ensure!(qmp.next_event(None)?.event == Event::Resume);
    works(&mut listening.vm, "data")?;
    qmp.execute(SystemPowerdown)?;
    ensure!(qmp.next_event(None)?.event == Event::Powerdown);
    let Event::Shutdown(shutdown) = qmp.next_event(None)?.event else {
        bail!("another event than SHUTDOWN");
    };
    ensure!(shutdown.reason == ShutdownCause::GuestShutdown && shutdown.guest);
    listening.vm.exit_clean()
}

/// The guest writes to its disk of that serial, and reads back what it wrote.
fn works(vm: &mut Vm, serial: &str) -> Result<()> {
    let guest = vm.guest()?;
    let disk = guest.disk(serial)?;
    let range = json!({"disk": disk, "offset": 0, "length": 1 << 20, "seed": 5});
    guest.call("disk-write", range.clone())?;
    guest.call("disk-verify", range)?;
    Ok(())
}
