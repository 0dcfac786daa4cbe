//! The console device against a driver of its own, with socket pairs as host ends.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use fdset::{Door, FdRegistry, Scope, SocketAddress};

use super::*;
use crate::chardev::{BackendSpec, ChardevSpec, SocketRole, SocketSpec};
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::state::trial;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, guest_memory};

const MULTIPORT: u64 = 2;
const CONTROL_BUFFER: u32 = 64;

/// A device with a driver that has started the queues of port 0, control, and port 1.
struct Machine {
    reactor: Reactor,
    console: Arc<VirtioConsole>,
    notified: Arc<Notified>,
    notices: Receiver<Notice>,
    queues: Vec<DriverQueue>,
}

impl Machine {
    fn new(features: u64) -> Self {
        let reactor = Reactor::new();
        let (send, notices) = mpsc::channel();
        let send = Mutex::new(send);
        let sink = NoticeSink::new(move |notice| {
            send.lock().unwrap().send(notice).ok();
        });
        let spec = ConsoleSpec {
            id: "vs0".to_owned(),
            max_ports: 4,
        };
        let console = VirtioConsole::new(spec, reactor.clone(), sink).unwrap();
        let notified = Arc::new(Notified::default());
        console.attach(Arc::clone(&notified) as _);
        console.set_features(features);
        let memory = guest_memory();
        let queues: Vec<_> = (0..6).map(|n| DriverQueue::new(&memory, n)).collect();
        for (index, queue) in queues.iter().enumerate() {
            queue.start(&*console, index);
        }
        Self {
            reactor,
            console,
            notified,
            notices,
            queues,
        }
    }

    /// A chardev with a socket pair, and its other end.
    fn chardev(&self, id: &str) -> (Arc<Chardev>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
        let passed = OwnedFd::from(theirs);
        door.registry()
            .add_named(
                Scope::Process,
                "peer",
                fdset::Handover::new(passed, fdset::Origin::CommandLine),
            )
            .unwrap();
        let spec = ChardevSpec {
            backend: BackendSpec::Socket(SocketSpec {
                address: SocketAddress::Fd {
                    name: "peer".to_owned(),
                },
                role: SocketRole::Client,
                nodelay: false,
            }),
            log: None,
        };
        let chardev = Chardev::open(id, &spec, &door, &self.reactor).unwrap();
        (chardev, ours)
    }

    /// Says something to the device, and waits until it was read.
    fn say(&mut self, number: u32, event: u16, value: u16) {
        let mut message = number.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        self.queues[3].give(&message);
        self.queues[3].used();
    }

    /// The next thing the device says.
    fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        self.queues[2].give_room(CONTROL_BUFFER);
        let bytes = self.queues[2].used();
        let [a, b, c, d, e, f, g, h] = bytes[..8].try_into().unwrap();
        (
            u32::from_le_bytes([a, b, c, d]),
            u16::from_le_bytes([e, f]),
            u16::from_le_bytes([g, h]),
            bytes[8..].to_vec(),
        )
    }

    fn notice(&self) -> Notice {
        self.notices.recv_timeout(PATIENCE).expect("no notice")
    }

    /// A named channel at number 1 that both sides have open.
    fn open_channel(&mut self) -> (Arc<Chardev>, UnixStream) {
        let (chardev, peer) = self.chardev("c1");
        self.say(0, 0, 1);
        self.console.plug_port(&channel(&chardev)).unwrap();
        assert_eq!(self.hear(), (1, 1, 1, vec![]));
        self.say(1, 3, 1);
        assert_eq!(self.hear(), (1, 7, 1, b"org.x".to_vec()));
        assert_eq!(self.hear(), (1, 6, 1, vec![]));
        self.say(1, 6, 1);
        assert_eq!(self.notice(), change(true));
        (chardev, peer)
    }
}

fn channel(chardev: &Arc<Chardev>) -> PortSpec {
    PortSpec {
        id: Some("ch1".to_owned()),
        kind: PortKind::Serial,
        name: Some("org.x".to_owned()),
        number: None,
        chardev: Some(Arc::clone(chardev)),
    }
}

fn bare(kind: PortKind, number: Option<u32>) -> PortSpec {
    PortSpec {
        id: None,
        kind,
        name: None,
        number,
        chardev: None,
    }
}

fn change(open: bool) -> Notice {
    let id = "ch1".to_owned();
    Notice::PortChange { id, open }
}

#[test]
fn a_simple_driver_has_a_console_on_port_0_without_asking() {
    let mut machine = Machine::new(0);
    let (chardev, mut peer) = machine.chardev("c0");
    let mut spec = bare(PortKind::Console, None);
    spec.chardev = Some(chardev);
    assert_eq!(machine.console.plug_port(&spec).unwrap(), 0);
    machine.queues[1].give(b"login: ");
    let mut seen = [0; 7];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"login: ");
    peer.write_all(b"root\n").unwrap();
    machine.queues[0].give_room(3);
    machine.queues[0].give_room(3);
    let mut typed = machine.queues[0].used();
    typed.extend(machine.queues[0].used());
    assert_eq!(typed, b"root\n");
}

#[test]
fn a_channel_is_announced_opened_used_and_closed() {
    let mut machine = Machine::new(MULTIPORT);
    let (chardev, mut peer) = machine.open_channel();
    assert!(chardev.frontend_open());
    machine.queues[5].give(b"from the guest");
    let mut seen = [0; 14];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"from the guest");
    machine.queues[4].give_room(64);
    peer.write_all(b"to the guest").unwrap();
    assert_eq!(machine.queues[4].used(), b"to the guest");
    machine.say(1, 6, 0);
    assert_eq!(machine.notice(), change(false));
    assert!(!chardev.frontend_open());
    drop(peer);
    assert_eq!(machine.hear(), (1, 6, 0, vec![]));
}

#[test]
fn a_reset_closes_what_the_guest_had_open() {
    let mut machine = Machine::new(MULTIPORT);
    let (chardev, _peer) = machine.open_channel();
    for index in 0..6 {
        assert!(machine.console.stop_queue(index).is_some());
    }
    machine.console.reset();
    assert_eq!(machine.notice(), change(false));
    assert!(!chardev.frontend_open());
}

#[test]
fn an_unplugged_port_is_announced_and_frees_its_chardev_and_number() {
    let mut machine = Machine::new(MULTIPORT);
    let (chardev, _peer) = machine.open_channel();
    machine.console.unplug_port(1).unwrap();
    assert!(!chardev.is_busy());
    assert_eq!(machine.hear(), (1, 2, 1, vec![]));
    assert_eq!(machine.console.ports_plugged(), []);
    let error = machine.console.unplug_port(1).unwrap_err();
    assert_eq!(error.to_string(), "virtio-serial-bus: there is no port 1");
    machine.queues[5].give(b"to nobody");
    machine.queues[5].used();
    assert_eq!(machine.console.plug_port(&channel(&chardev)).unwrap(), 1);
    assert_eq!(machine.hear(), (1, 1, 1, vec![]));
}

#[test]
fn a_slow_peer_holds_the_guests_buffers_and_gets_every_byte() {
    let mut machine = Machine::new(MULTIPORT);
    let (_chardev, mut peer) = machine.open_channel();
    let mut sent = Vec::new();
    let mut waiting = 0;
    // As many buffers as the ring has, again and again, until one is held.
    for round in 0u32.. {
        let block: Vec<u8> = (0..4096u32).map(|n| (n + round).to_le_bytes()[0]).collect();
        machine.queues[5].give(&block);
        sent.extend(block);
        waiting += 1;
        while machine.queues[5].used_already().is_some() {
            waiting -= 1;
        }
        if waiting == 16 {
            break;
        }
        assert!(sent.len() < 16 << 20, "nothing holds the guest back");
    }
    // A pause in the middle of a buffer neither loses nor repeats a byte.
    let state = machine.console.stop_queue(5).unwrap();
    machine.queues[5].resume(&*machine.console, 5, state);
    let mut seen = vec![0; sent.len()];
    peer.read_exact(&mut seen).unwrap();
    assert!(seen == sent, "bytes were lost or mixed up");
    while waiting > 0 {
        machine.queues[5].used();
        waiting -= 1;
    }
}

#[test]
fn a_guest_without_buffers_holds_its_peer_back_and_gets_every_byte() {
    let mut machine = Machine::new(MULTIPORT);
    let (_chardev, mut peer) = machine.open_channel();
    peer.set_nonblocking(true).unwrap();
    let mut sent = 0usize;
    loop {
        match peer.write(&[b'x'; 4096]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 16 << 20, "nothing holds the peer back");
    }
    let mut got = 0;
    while got < sent {
        machine.queues[4].give_room(4096);
        got += machine.queues[4].used().len();
    }
    assert_eq!(got, sent);
}

#[test]
fn bad_control_messages_are_ignored() {
    let mut machine = Machine::new(MULTIPORT);
    machine.say(0, 0, 1);
    for number in [0, 3, 31, 32, u32::MAX] {
        for event in [0, 3, 6, 9, u16::MAX] {
            machine.say(number, event, 1);
        }
    }
    machine.queues[3].give(b"short");
    machine.queues[3].used();
    machine.queues[3].give(b"");
    machine.queues[3].used();
    let (_chardev, _peer) = machine.open_channel();
    assert_eq!(machine.notified.resets.load(Ordering::SeqCst), 0);
}

#[test]
fn a_descriptor_loop_stops_one_queue_and_asks_for_a_reset() {
    let mut machine = Machine::new(MULTIPORT);
    let (_chardev, mut peer) = machine.open_channel();
    let address = machine.queues[5].buffer(0);
    machine.queues[5].offer(&[(address, 0, NEXT)]);
    let waited = std::time::Instant::now();
    while machine.notified.resets.load(Ordering::SeqCst) == 0 {
        assert!(waited.elapsed() < PATIENCE, "the loop went unnoticed");
        std::thread::yield_now();
    }
    // The other direction goes on.
    machine.queues[4].give_room(8);
    peer.write_all(b"still").unwrap();
    assert_eq!(machine.queues[4].used(), b"still");
}

#[test]
fn ports_that_clash_are_refused_with_a_reason() {
    let machine = Machine::new(MULTIPORT);
    let console = &machine.console;
    assert_eq!(console.bus_name(), "vs0.0");
    let refused = |spec: &PortSpec| console.plug_port(spec).unwrap_err().to_string();
    assert_eq!(
        refused(&bare(PortKind::Serial, Some(0))),
        "Port number 0 on virtio-serial devices reserved for virtconsole devices \
         for backward compatibility"
    );
    let mut named = bare(PortKind::Serial, Some(2));
    named.name = Some("a".to_owned());
    assert_eq!(console.plug_port(&named).unwrap(), 2);
    assert_eq!(
        refused(&bare(PortKind::Serial, Some(2))),
        "virtio-serial-bus: A port already exists at id 2"
    );
    named.number = None;
    assert_eq!(
        refused(&named),
        "virtio-serial-bus: A port already exists by name a"
    );
    assert_eq!(
        refused(&bare(PortKind::Serial, Some(4))),
        "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3"
    );
    for expected in [1, 3] {
        let spec = bare(PortKind::Serial, None);
        assert_eq!(console.plug_port(&spec).unwrap(), expected);
    }
    assert_eq!(
        refused(&bare(PortKind::Serial, None)),
        "virtio-serial-bus: Maximum port limit for this device reached"
    );
    assert_eq!(
        console.plug_port(&bare(PortKind::Console, None)).unwrap(),
        0
    );
}

#[test]
fn the_configuration_space_tells_the_number_of_ports() {
    let machine = Machine::new(MULTIPORT);
    let mut config = [0xff; 16];
    machine.console.config_read(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(machine.console.queue_sizes().len(), 10);
    let mut beyond = [1];
    machine.console.config_read(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0]);
}

#[test]
fn a_device_and_its_ports_go_on_where_a_snapshot_was_taken() {
    let mut from = Machine::new(MULTIPORT);
    let (_chardev, _peer) = from.open_channel();
    // Nobody gives buffers: the driver is still to hear of it.
    from.console
        .plug_port(&bare(PortKind::Serial, Some(3)))
        .unwrap();
    let to = Machine::new(MULTIPORT);
    let (chardev, _other) = to.chardev("c");
    let number = to.console.plug_port(&channel(&chardev)).unwrap();
    to.console
        .plug_port(&bare(PortKind::Serial, Some(3)))
        .unwrap();
    for queue in 0..6 {
        to.console.stop_queue(queue);
    }
    let tree = trial::carry(&*from.console, &*to.console);
    let port = |machine: &Machine| machine.console.port_state(number).unwrap();
    let state = trial::carry(&*port(&from), &*port(&to));
    assert_eq!(state.state["guest_open"], true);
    assert!(to.console.ports_plugged()[0].guest_open);
    assert!(to.console.port_state(2).is_none());
    let alive = || to.console.reset();
    assert!(trial::offend(&*to.console, &tree, alive) > 10);
    assert!(trial::offend(&*port(&to), &state, alive) > 5);
}
