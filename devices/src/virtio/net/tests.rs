use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fdset::{Door, FdRegistry, Handover, Origin, Scope, SocketAddress};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::features::bit;
use super::*;
use crate::chardev::ChardevRegistry;
use crate::memory::GuestMem;
use crate::net::{HEADER, NetdevKind, NetdevSpec, Netdevs, StreamRole, StreamSpec};
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::state::{AnyStateful, trial};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE, guest_memory};

mod steering;

const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ALL: u64 = bit(VIRTIO_NET_F_MRG_RXBUF)
    | bit(VIRTIO_NET_F_CTRL_VQ)
    | bit(VIRTIO_NET_F_CTRL_RX)
    | bit(VIRTIO_NET_F_STATUS);

/// A card on a stream whose other end the test has.
struct Scene {
    card: Arc<VirtioNet>,
    netdevs: Netdevs,
    peer: UnixStream,
    memory: GuestMem,
    driver: Arc<Notified>,
    notices: mpsc::Receiver<Notice>,
}

fn scene(features: u64) -> Scene {
    scene_of(1, features)
}

/// With several pairs of queues: the stream gives a packet to whichever asks for one.
fn scene_of(pairs: u16, features: u64) -> Scene {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let (ours, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let handed = Handover::new(ours.into(), Origin::CommandLine);
    door.registry()
        .add_named(Scope::Process, "s", handed)
        .unwrap();
    let (tell, notices) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let sink = NoticeSink::new(move |notice| drop(tell.lock().unwrap().send(notice)));
    let reactor = Reactor::new();
    let mut netdevs = Netdevs::new(reactor.clone(), sink.clone());
    let spec = NetdevSpec {
        id: "n".to_owned(),
        kind: NetdevKind::Stream(StreamSpec {
            kind: "stream",
            address: SocketAddress::Fd { name: "s".into() },
            role: StreamRole::Client,
        }),
    };
    let chardevs = ChardevRegistry::new(reactor.clone());
    netdevs.add(&spec, &door, &chardevs).unwrap();
    let card = VirtioNet::new(VirtioNetSpec {
        id: "net0".to_owned(),
        netdev: Some(netdevs.find("n").unwrap().lease().unwrap()),
        mac: MAC,
        pairs,
        rx_queue_size: 256,
        tx_queue_size: 256,
        host_mtu: None,
        speed: u32::MAX,
        duplex: 255,
        rss: true,
        hash: true,
        off: 0,
        reactor,
        notices: sink,
    })
    .unwrap();
    let driver = Arc::new(Notified::default());
    card.attach(Arc::clone(&driver) as _);
    assert_eq!(card.features() & features, features);
    card.set_features(features);
    Scene {
        card,
        netdevs,
        peer,
        memory: guest_memory(),
        driver,
        notices,
    }
}

impl Scene {
    /// A running queue.
    fn queue(&self, index: usize) -> DriverQueue {
        let queue = DriverQueue::new(&self.memory, index as u64);
        queue.start(self.card.as_ref(), index);
        queue
    }

    fn say(&mut self, packet: &[u8]) {
        let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
        self.peer.write_all(&length).unwrap();
        self.peer.write_all(packet).unwrap();
    }

    fn heard(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut packet = vec![0; u32::from_be_bytes(length) as usize];
        self.peer.read_exact(&mut packet).unwrap();
        packet
    }

    fn status(&self) -> u16 {
        let mut bytes = [0; 2];
        self.card.config_read(6, &mut bytes);
        u16::from_le_bytes(bytes)
    }
}

/// Sends the `nth` command of a queue, and returns the answer.
fn ask(scene: &Scene, control: &mut DriverQueue, nth: u16, command: &[u8]) -> u8 {
    let place = control.buffer(nth);
    let answer = place + 0x800;
    let memory = scene.memory.memory();
    memory.write_slice(command, GuestAddress(place)).unwrap();
    let length = u32::try_from(command.len()).unwrap();
    control.offer(&[(place, length, NEXT), (answer, 1, WRITE)]);
    assert_eq!(control.used().len(), 1);
    memory.read_obj(GuestAddress(answer)).unwrap()
}

fn packet(to: Mac, body: &[u8]) -> Vec<u8> {
    [to.as_slice(), &[2; 6], &[8, 0], body].concat()
}

#[test]
fn packets_go_out_without_their_header_and_come_in_with_one() {
    let mut scene = scene(ALL);
    let mut receive = scene.queue(0);
    let mut transmit = scene.queue(1);
    let out = packet([1; 6], b"out");
    transmit.give(&[&[0; HEADER], out.as_slice()].concat());
    assert_eq!(scene.heard(), out);
    assert!(transmit.used().is_empty());
    receive.give_room(2048);
    let into = packet(MAC, b"in");
    scene.say(&into);
    let used = receive.used();
    assert_eq!(used[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(used[HEADER..], into);
}

#[test]
fn a_long_packet_fills_several_buffers_and_waits_until_there_are_enough() {
    let mut scene = scene(ALL);
    let mut receive = scene.queue(0);
    let long = packet(MAC, &[7; 2500]);
    receive.give_room(1000);
    receive.give_room(1000);
    scene.say(&long);
    scene.say(&packet(MAC, b"next"));
    // Too little: it is kept until more comes.
    receive.give_room(1000);
    receive.give_room(1000);
    let parts: Vec<Vec<u8>> = (0..3).map(|_| receive.used()).collect();
    assert_eq!(parts[0][10..12], 3_u16.to_le_bytes());
    assert_eq!(parts.concat()[HEADER..], long);
    assert_eq!(receive.used()[HEADER..], packet(MAC, b"next"));
}

#[test]
fn what_waits_goes_through_together_and_in_order_across_the_end_of_the_rings() {
    let mut scene = scene(ALL);
    let mut receive = scene.queue(0);
    let mut transmit = scene.queue(1);
    for round in 0..3 {
        let packets: Vec<_> = (0..12).map(|n| packet(MAC, &[round, n])).collect();
        let states = [0, 1].map(|index| scene.card.stop_queue(index).unwrap());
        for packet in &packets {
            receive.give_room(200);
            scene.say(packet);
            transmit.give(&[&[0; HEADER], packet.as_slice()].concat());
        }
        let [into, out] = states;
        receive.resume(scene.card.as_ref(), 0, into);
        transmit.resume(scene.card.as_ref(), 1, out);
        for packet in &packets {
            assert_eq!(receive.used()[HEADER..], *packet);
            assert_eq!(scene.heard(), *packet);
            assert!(transmit.used().is_empty());
        }
    }
}

#[test]
fn without_mergeable_buffers_a_packet_that_is_too_long_is_dropped() {
    let mut scene = scene(bit(VIRTIO_NET_F_STATUS));
    let mut receive = scene.queue(0);
    receive.give_room(100);
    receive.give_room(100);
    scene.say(&packet(MAC, &[7; 200]));
    scene.say(&packet(MAC, b"short"));
    assert_eq!(receive.used()[HEADER..], packet(MAC, b"short"));
}

#[test]
fn a_command_switches_the_filter_and_the_first_change_is_told() {
    let mut scene = scene(ALL);
    let mut receive = scene.queue(0);
    let mut control = scene.queue(2);
    assert_eq!(ask(&scene, &mut control, 0, &[0, 0, 0]), 0);
    assert_eq!(ask(&scene, &mut control, 1, &[0, 1, 1]), 0);
    assert_eq!(ask(&scene, &mut control, 2, &[9, 9, 9]), 1);
    let told = |notice: &Notice| matches!(notice, Notice::RxFilterChanged { .. });
    let count = scene.notices.try_iter().filter(told).count();
    assert_eq!(count, 1);
    assert!(!scene.card.look_at_filter().promiscuous);
    receive.give_room(2048);
    scene.say(&packet([4; 6], b"for another"));
    scene.say(&packet(MAC, b"mine"));
    assert_eq!(receive.used()[HEADER..], packet(MAC, b"mine"));
}

#[test]
fn a_packet_without_a_whole_header_breaks_the_device() {
    let scene = scene(ALL);
    let mut transmit = scene.queue(1);
    transmit.give(&[0; HEADER - 1]);
    let start = std::time::Instant::now();
    while scene.driver.resets.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_link_goes_with_the_cable_and_with_the_netdev() {
    let mut scene = scene(ALL);
    assert_eq!(scene.status(), 1);
    scene.card.set_link(false);
    assert_eq!(scene.status(), 0);
    scene.card.set_link(true);
    scene.netdevs.find("n").unwrap().set_link(false);
    assert_eq!(scene.status(), 0);
    scene.netdevs.find("n").unwrap().set_link(true);
    assert_eq!(scene.status(), 1);
    let mut transmit = scene.queue(1);
    assert!(scene.netdevs.remove("n"));
    assert_eq!(scene.status(), 0);
    // Its socket is closed by now, and packets go nowhere.
    assert_eq!(scene.peer.read(&mut [0; 1]).unwrap(), 0);
    transmit.give(&[0; 60]);
    assert!(transmit.used().is_empty());
}

#[test]
fn a_stopped_queue_leaves_packets_where_they_are_until_it_goes_on() {
    let mut scene = scene(ALL);
    let mut receive = scene.queue(0);
    receive.give_room(2048);
    let state = scene.card.stop_queue(0).unwrap();
    scene.say(&packet(MAC, b"later"));
    receive.resume(scene.card.as_ref(), 0, state);
    assert_eq!(receive.used()[HEADER..], packet(MAC, b"later"));
    scene.card.stop_queue(0);
    scene.card.reset();
    assert!(scene.card.look_at_filter().promiscuous);
}

#[test]
fn a_card_goes_on_where_a_snapshot_was_taken() {
    let from = scene(ALL);
    let mut control = from.queue(2);
    assert_eq!(ask(&from, &mut control, 0, &[0, 0, 0]), 0);
    from.card.set_link(false);
    let to = scene(ALL);
    let tree = trial::carry(&*from.card, &*to.card);
    assert_eq!(tree.state["filter"]["modes"], serde_json::json!([]));
    assert_eq!(to.status(), from.status());
    let other = packet([1; 6], b"not for us");
    assert!(!to.card.filter.lock().unwrap().wants(&other));
    let alive = || to.card.set_link(true);
    assert!(trial::offend(&*to.card, &tree, alive) > 30);
    let mut wide = tree;
    wide.state["filter"]["vlans"] = serde_json::json!([4096]);
    assert_eq!(
        to.card.restore(&wide).unwrap_err().to_string(),
        "state 'virtio-net': filter.vlans: 4096, and the last is 4095"
    );
}
