//! User networking by passt, over a connection that was handed in.
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use serde_json::json;
use tests::Vm;
use tests::backends::{ADDRESS, Outside, ROUTER};
use tests::network::Peer;

const MIB: u64 = 1 << 20;
const MAC: &str = "52:54:00:77:99:02";

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_guest_gets_an_address_from_passt_and_reaches_this_machine() -> Result<()> {
    let outside = Outside::new()?;
    let (_passt, connection) = outside.passt()?;
    let mut vm = Vm::sealed_with_a_port()?;
    let name = json!({"fdname": "passt"});
    vm.qmp.execute_with("getfd", name, &[connection.as_fd()])?;
    drop(connection);
    let address = json!({"type": "fd", "str": "passt"});
    let netdev = json!({"type": "stream", "id": "outside", "addr": address});
    vm.execute("netdev_add", netdev)?;
    let card = json!({"driver": "virtio-net-pci", "netdev": "outside", "bus": "port0", "mac": MAC});
    vm.execute("device_add", card)?;
    let guest = vm.guest_port();
    let card = guest.call("card-wait", json!({"mac": MAC, "seconds": 60}))?;
    let lease = guest.call("card-dhcp", json!({"card": card, "mac": MAC}))?;
    ensure!(lease["address"] == ADDRESS.to_string(), "{lease}");
    ensure!(lease["router"] == ROUTER.to_string(), "{lease}");
    let peer = Peer::tcp(Ipv4Addr::LOCALHOST)?.called(ROUTER)?;
    peer.exchange(vm.guest_port(), 2 * MIB, 2)?;
    vm.shutdown_clean()
}
