//! Guests whose queues the kernel serves, vhost-net and vhost-vsock, in processes that are sealed.
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the manager: they open what they hand in"
)]
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::cable::Cable;
use tests::handed::{Property, walk};
use tests::network::Peer;
use tests::{Vm, fds};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(120);

/// How many of the VMM's threads are the kernel's, for vhost.
fn workers(vm: &Vm) -> Result<usize> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.pid()))?.flatten();
    let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    Ok(names.filter(|name| name.starts_with("vhost-")).count())
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn the_kernel_moves_packets_through_reset_pause_and_a_pulled_cable() -> Result<()> {
    let cable = Cable::with_vhost(21, 1)?;
    let mut vm = Vm::sealed_with_a_port()?;
    cable.plug(&mut vm, &json!({}))?;
    ensure!(workers(&vm)? == 1, "{} workers", workers(&vm)?);
    let card = cable.configure(&mut vm)?;
    cable.use_it(&mut vm, 4 * MIB, 2)?;
    vm.execute("stop", json!({}))?;
    vm.execute("cont", json!({}))?;
    cable.use_it(&mut vm, MIB, 1)?;
    cable.pull_and_put_back(&mut vm, &card, "card")?;
    cable.use_it(&mut vm, MIB, 1)?;
    vm.execute("system_reset", json!({}))?;
    vm.guest_port().wait_ready()?;
    cable.configure(&mut vm)?;
    cable.use_it(&mut vm, MIB, 1)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn tap_and_vhost_serve_another_guest_as_soon_as_the_card_is_deleted() -> Result<()> {
    let cable = Cable::with_vhost(22, 1)?;
    let mut first = Vm::sealed_with_a_port()?;
    let mut second = Vm::sealed_with_a_port()?;
    let before = first.usage()?;
    for turn in 0..3 {
        let vm = if turn == 1 { &mut second } else { &mut first };
        cable.plug(vm, &json!({}))?;
        cable.configure(vm)?;
        cable.use_it(vm, MIB, 1)?;
        cable.unplug(vm)?;
        ensure!(workers(vm)? == 0, "{} workers", workers(vm)?);
    }
    let after = first.settled_usage(before)?;
    ensure!(after.fds <= before.fds, "before {before}, after {after}");
    first.shutdown_clean()?;
    second.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn four_queues_have_a_server_each() -> Result<()> {
    let cable = Cable::with_vhost(23, 4)?;
    let mut vm = Vm::sealed_with(Vm::builder().cpus(4))?;
    cable.plug(&mut vm, &json!({}))?;
    ensure!(workers(&vm)? == 4, "{} workers", workers(&vm)?);
    let card = cable.configure(&mut vm)?;
    for count in [4, 1, 3] {
        let channels = json!({"card": card, "count": count});
        vm.guest_port().call("card-set-channels", channels)?;
        cable.use_it(&mut vm, MIB, 8)?;
    }
    // The netdev goes first: the card keeps an end without a link.
    vm.execute("netdev_del", json!({"id": "cable"}))?;
    ensure!(workers(&vm)? == 0, "{} workers", workers(&vm)?);
    cable.wait_link(&mut vm, &card, false)?;
    vm.shutdown_clean()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_without_message_interrupts_hears_of_the_kernels_work() -> Result<()> {
    let cable = Cable::with_vhost(24, 1)?;
    let builder = Vm::builder().append("pci=nomsi");
    let builder = builder.args(["-open-policy", "sealed"]);
    let mut vm = cable.inherit(builder)?.start()?;
    vm.guest()?;
    cable.configure(&mut vm)?;
    cable.use_it(&mut vm, MIB, 1)?;
    vm.shutdown_clean()
}

/// Hands vhost-vsock in and plugs a socket device in.
fn plug_vsock(vm: &mut Vm, cid: u32) -> Result<Result<Value, tests::qmp::Refusal>> {
    let device = fds::open_rw(Path::new("/dev/vhost-vsock"))?;
    let name = json!({"fdname": "vsock"});
    vm.qmp.execute_with("getfd", name, &[device.as_fd()])?;
    let options = json!({"driver": "vhost-vsock-pci", "id": "sockets", "guest-cid": cid,
        "vhostfd": "vsock", "bus": "port0"});
    vm.qmp.attempt("device_add", options, &[])
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn sockets_reach_this_machine_and_a_guests_name_is_its_own() -> Result<()> {
    let mut vm = Vm::sealed_with_a_port()?;
    plug_vsock(&mut vm, 77)??;
    let peer = Peer::vsock(7701)?;
    vm.guest_port().call("vsock-wait", json!({"seconds": 60}))?;
    peer.exchange(vm.guest_port(), 4 * MIB, 4)?;
    vm.execute("stop", json!({}))?;
    vm.execute("cont", json!({}))?;
    peer.exchange(vm.guest_port(), MIB, 1)?;
    vm.execute("system_reset", json!({}))?;
    vm.guest_port().wait_ready()?;
    vm.guest_port().call("vsock-wait", json!({"seconds": 60}))?;
    peer.exchange(vm.guest_port(), MIB, 1)?;
    let mut other = Vm::sealed_with_a_port()?;
    let refused = plug_vsock(&mut other, 77)?.expect_err("it is taken");
    ensure!(
        refused.desc.contains("another guest is called so"),
        "{refused}"
    );
    vm.execute("device_del", json!({"id": "sockets"}))?;
    vm.qmp.event("DEVICE_DELETED", SOON)?;
    ensure!(workers(&vm)? == 0, "{} workers", workers(&vm)?);
    other.execute("closefd", json!({"fdname": "vsock"}))?;
    plug_vsock(&mut other, 77)??;
    other
        .guest_port()
        .call("vsock-wait", json!({"seconds": 60}))?;
    peer.exchange(other.guest_port(), MIB, 1)?;
    vm.shutdown_clean()?;
    other.shutdown_clean()
}

#[test]
#[ignore = "needs the lab's vhost devices: cargo xtask test"]
fn properties_take_and_give_back_the_kernels_devices_as_the_table_says() -> Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    walk::walk(Property::wants_vhost, folder)
}
