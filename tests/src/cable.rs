//! A network between this machine and one guest: a tap, handed in, and a card on it.
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::network::{self, Peer};
use crate::vm::Builder;
use crate::{Vm, fds, tap};

/// Linux waits 5 s after the attention button before it lets a slot go.
const SOON: Duration = Duration::from_secs(120);

/// A network between one tap and one guest: `10.77.N.1` is here, `10.77.N.2` there.
#[derive(Debug)]
pub struct Cable {
    number: u8,
    queues: Vec<OwnedFd>,
    /// The kernel's servers of the queues, where it moves the packets.
    vhosts: Vec<OwnedFd>,
}

impl Cable {
    /// A tap with so many queues and an address.
    pub fn new(number: u8, queues: usize) -> Result<Self> {
        let name = format!("stap{number}");
        let queues = tap::queues(&name, queues)?;
        network::configure(&name, &format!("10.77.{number}.1/24"))?;
        Ok(Self {
            number,
            queues,
            vhosts: Vec::new(),
        })
    }

    /// The same, whose packets the kernel moves.
    pub fn with_vhost(number: u8, queues: usize) -> Result<Self> {
        let open = |_| Ok(fds::open_rw(Path::new("/dev/vhost-net"))?.into());
        Ok(Self {
            vhosts: (0..queues).map(open).collect::<Result<_>>()?,
            ..Self::new(number, queues)?
        })
    }

    /// This machine's address.
    pub fn here(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    /// The guest's address.
    pub fn there(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 2)
    }

    /// The card's address.
    pub fn mac(&self) -> String {
        format!("52:54:00:77:{:02x}:02", self.number)
    }

    /// Hands the queues in and plugs a card onto them, into the first root port.
    pub fn plug(&self, vm: &mut Vm, more: &Value) -> Result<()> {
        let fds = hand_in(vm, "q", &self.queues)?;
        let mut netdev = json!({"type": "tap", "id": "cable", "fds": fds});
        if !self.vhosts.is_empty() {
            netdev["vhost"] = true.into();
            netdev["vhostfds"] = hand_in(vm, "v", &self.vhosts)?.into();
        }
        let mut device = json!({"driver": "virtio-net-pci", "id": "card", "netdev": "cable",
            "bus": "port0", "mac": self.mac(), "mq": self.queues.len() > 1});
        for (to, part) in [(&mut netdev, "netdev"), (&mut device, "device")] {
            for (key, value) in more[part].as_object().into_iter().flatten() {
                to[key] = value.clone();
            }
        }
        vm.execute("netdev_add", netdev)?;
        vm.execute("device_add", device)?;
        Ok(())
    }

    /// The arguments of a card with one queue that is there from the start.
    pub fn inherit(&self, builder: Builder) -> Result<Builder> {
        let mut builder = builder;
        let mut netdev = "tap,id=cable".to_owned();
        for (option, fds) in [("fd", &self.queues), ("vhostfd", &self.vhosts)] {
            for fd in fds {
                netdev += &format!(",{option}={}", builder.pass(fd.try_clone()?));
            }
        }
        let device = format!("virtio-net-pci,id=card,netdev=cable,mac={}", self.mac());
        Ok(builder.args(["-netdev", &netdev, "-device", &device]))
    }

    /// Waits for the card in the guest and gives it its address; its name.
    pub fn configure(&self, vm: &mut Vm) -> Result<String> {
        let guest = vm.guest_port();
        let card = guest.call("card-wait", json!({"mac": self.mac(), "seconds": 60}))?;
        let card = card.as_str().unwrap_or_default().to_owned();
        let address = json!({"card": card, "address": self.there().to_string(), "prefix": 24});
        guest.call("card-address", address)?;
        Ok(card)
    }

    /// Waits until the guest sees the card with a link, or without.
    pub fn wait_link(&self, vm: &mut Vm, card: &str, up: bool) -> Result<()> {
        let wanted = json!({"card": card, "up": u8::from(up), "seconds": 60});
        vm.guest_port().call("card-wait-carrier", wanted)?;
        Ok(())
    }

    /// Pulls the cable out by the card or the netdev of this id, puts it back, and is seen to.
    pub fn pull_and_put_back(&self, vm: &mut Vm, card: &str, end: &str) -> Result<()> {
        for up in [false, true] {
            vm.execute("set_link", json!({"name": end, "up": up}))?;
            self.wait_link(vm, card, up)?;
        }
        Ok(())
    }

    /// An echo, and bytes both ways.
    pub fn use_it(&self, vm: &mut Vm, length: u64, streams: u64) -> Result<()> {
        network::ping(self.there())?;
        Peer::tcp(self.here())?.exchange(vm.guest_port(), length, streams)
    }

    /// Has the guest let go of the card, and removes the netdev.
    pub fn unplug(&self, vm: &mut Vm) -> Result<()> {
        vm.execute("device_del", json!({"id": "card"}))?;
        let is_ours = |event: &Value| event["data"]["device"] == "card";
        vm.qmp.event_where("DEVICE_DELETED", SOON, is_ours)?;
        vm.execute("netdev_del", json!({"id": "cable"}))?;
        Ok(())
    }
}

/// Hands fds in under names of their own; the names, separated by colons.
fn hand_in(vm: &mut Vm, prefix: &str, fds: &[OwnedFd]) -> Result<String> {
    let mut names = Vec::new();
    for (nth, fd) in fds.iter().enumerate() {
        let name = format!("{prefix}{nth}");
        vm.qmp
            .execute_with("getfd", json!({"fdname": name}), &[fd.as_fd()])?;
        names.push(name);
    }
    Ok(names.join(":"))
}
