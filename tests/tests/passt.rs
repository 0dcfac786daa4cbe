//! User networking by passt, over a connection that was handed in.
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use serde_json::json;
use tests::network::{self, Peer};
use tests::{Vm, tap};

const MIB: u64 = 1 << 20;
const MAC: &str = "52:54:00:77:99:02";
/// What passt finds here, and gives the guest: an interface with a default route.
const HERE: &str = "192.0.2.2/24";
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// passt, of the distribution; ended when dropped.
struct Passt(Child);

impl Passt {
    fn start(connection: UnixStream) -> Result<Self> {
        let mut command = Command::new("passt");
        command
            .args(["--foreground", "--quiet", "--one-off", "--ipv4-only"])
            .args(["--fd", "10"])
            .stdin(Stdio::null())
            .fd_mappings(vec![FdMapping {
                parent_fd: connection.into(),
                child_fd: 10,
            }])?;
        Ok(Self(command.spawn().context("run passt")?))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_gets_an_address_from_passt_and_reaches_this_machine() -> Result<()> {
    let _outside = tap::queues("outside", 1)?;
    network::configure("outside", HERE)?;
    let router = ROUTER.to_string();
    network::ip(&["route", "add", "default", "via", &router, "dev", "outside"])?;
    let (ours, theirs) = UnixStream::pair()?;
    let _passt = Passt::start(theirs)?;
    let mut vm = Vm::sealed_with_a_port()?;
    vm.qmp
        .execute_with("getfd", json!({"fdname": "passt"}), &[ours.as_fd()])?;
    drop(ours);
    let address = json!({"type": "fd", "str": "passt"});
    let netdev = json!({"type": "stream", "id": "outside", "addr": address});
    vm.execute("netdev_add", netdev)?;
    let card = json!({"driver": "virtio-net-pci", "netdev": "outside", "bus": "port0", "mac": MAC});
    vm.execute("device_add", card)?;
    let guest = vm.guest_port();
    let card = guest.call("card-wait", json!({"mac": MAC, "seconds": 60}))?;
    let lease = guest.call("card-dhcp", json!({"card": card, "mac": MAC}))?;
    ensure!(lease["address"] == "192.0.2.2", "{lease}");
    ensure!(lease["router"] == router, "{lease}");
    // passt leads what is meant for the router to this machine itself.
    let peer = Peer::tcp(Ipv4Addr::LOCALHOST)?.called(ROUTER)?;
    peer.exchange(vm.guest_port(), 2 * MIB, 2)?;
    vm.shutdown_clean()
}
