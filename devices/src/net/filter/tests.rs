//! Filters on a stream whose other end the test has, before a card that the test plays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use fdset::{Door, FdRegistry, Handover, Origin, Scope, SocketAddress};

use super::*;
use crate::chardev::{BackendSpec, ChardevSpec, SocketRole, SocketSpec};
use crate::net::{
    HEADER, LONGEST, NetFrontend, NetLease, NetdevKind, NetdevSpec, Pieces, Received, Sent,
    StreamRole, StreamSpec,
};
use crate::notice::NoticeSink;

const PATIENCE: Duration = Duration::from_secs(20);

/// Takes packets while it is to, and passes them on.
struct Card {
    takes: AtomicBool,
    lease: OnceLock<NetLease>,
    told: Mutex<Sender<Vec<u8>>>,
}

impl NetFrontend for Card {
    fn readable(&self, _queue: usize) {
        let backend = self.lease.get().and_then(NetLease::backend).unwrap();
        let mut buffer = vec![0xff; LONGEST];
        while self.takes.load(Ordering::SeqCst)
            && let Received::Packet(count) = backend.receive(0, &mut buffer)
        {
            let packet = buffer[HEADER..count].to_vec();
            self.told.lock().unwrap().send(packet).ok();
        }
    }

    fn writable(&self, _queue: usize) {}

    fn link_changed(&self) {}
}

struct Scene {
    door: Door,
    reactor: Reactor,
    netdevs: Netdevs,
    chardevs: ChardevRegistry,
    card: Arc<Card>,
    came: Receiver<Vec<u8>>,
    /// The other end of the netdev.
    peer: UnixStream,
}

fn pair(door: &Door, name: &str) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_write_timeout(Some(PATIENCE)).unwrap();
    let handed = Handover::new(ours.into(), Origin::CommandLine);
    door.registry()
        .add_named(Scope::Process, name, handed)
        .unwrap();
    theirs
}

fn scene() -> Scene {
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let peer = pair(&door, "net");
    let reactor = Reactor::new();
    let chardevs = ChardevRegistry::new(reactor.clone());
    let mut netdevs = Netdevs::new(reactor.clone(), NoticeSink::new(|_| {}));
    let stream = StreamSpec {
        kind: "stream",
        address: SocketAddress::Fd { name: "net".into() },
        role: StreamRole::Client,
    };
    for (id, kind) in [
        ("n", NetdevKind::Stream(stream)),
        ("other", NetdevKind::HubPort { hub: 0 }),
    ] {
        let id = id.to_owned();
        let spec = NetdevSpec { id, kind };
        netdevs.add(&spec, &door, &chardevs).unwrap();
    }
    let (tell, came) = mpsc::channel();
    let card = Arc::new(Card {
        takes: AtomicBool::new(true),
        lease: OnceLock::new(),
        told: Mutex::new(tell),
    });
    let lease = netdevs.find("n").unwrap().lease().unwrap();
    card.lease.set(lease).unwrap();
    let frontend: Arc<dyn NetFrontend> = Arc::clone(&card) as _;
    let lease = card.lease.get().unwrap();
    lease.connect(Arc::downgrade(&frontend)).unwrap();
    Scene {
        door,
        reactor,
        netdevs,
        chardevs,
        card,
        came,
        peer,
    }
}

fn spec(id: &str, queue: Queue, kind: FilterKind) -> FilterSpec {
    FilterSpec {
        id: id.to_owned(),
        netdev: "n".to_owned(),
        queue,
        on: true,
        position: Position::Tail,
        kind,
    }
}

fn mirror(outdev: &str) -> FilterKind {
    FilterKind::Mirror {
        outdev: outdev.to_owned(),
        frames: Frames::Plain,
    }
}

fn redirector(indev: &str, outdev: &str) -> FilterKind {
    let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    FilterKind::Redirector {
        indev: named(indev),
        outdev: named(outdev),
        frames: Frames::Plain,
    }
}

fn buffer(milliseconds: u64) -> FilterKind {
    FilterKind::Buffer {
        interval: Duration::from_millis(milliseconds),
    }
}

/// A packet on a stream.
fn say(mut stream: &UnixStream, packet: &[u8]) {
    let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, packet].concat()).unwrap();
}

/// The next packet on a stream.
fn heard(mut stream: &UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut packet = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut packet).unwrap();
    packet
}

impl Scene {
    /// A chardev and its peer.
    fn chardev(&self, id: &str) -> UnixStream {
        let theirs = pair(&self.door, id);
        self.open_chardev(
            id,
            SocketAddress::Fd { name: id.into() },
            SocketRole::Client,
        );
        theirs
    }

    fn open_chardev(&self, id: &str, address: SocketAddress, role: SocketRole) {
        let backend = BackendSpec::Socket(SocketSpec {
            address,
            role,
            nodelay: false,
        });
        let spec = ChardevSpec { backend, log: None };
        self.chardevs.add(id, &spec, &self.door).unwrap();
    }

    fn try_filter(&self, spec: &FilterSpec) -> Result<NetFilter, FilterError> {
        self.netdevs.add_filter(spec, &self.door, &self.chardevs)
    }

    fn filter(&self, id: &str, queue: Queue, kind: FilterKind) -> NetFilter {
        self.try_filter(&spec(id, queue, kind)).unwrap()
    }

    /// The guest sends a packet.
    fn send(&self, packet: &[u8]) -> Sent {
        let whole = [&[0; HEADER], packet].concat();
        let backend = self.card.lease.get().and_then(NetLease::backend).unwrap();
        let (tell, told) = mpsc::channel();
        self.reactor
            .run(move || {
                let sent = backend.send(0, &Pieces::default().of(&whole));
                backend.flush(0);
                tell.send(sent).unwrap();
            })
            .unwrap();
        told.recv_timeout(PATIENCE).unwrap()
    }

    /// The next packet that the guest has.
    fn came(&self) -> Vec<u8> {
        self.came.recv_timeout(PATIENCE).unwrap()
    }

    /// The guest has room, or none.
    fn takes(&self, takes: bool) {
        self.card.takes.store(takes, Ordering::SeqCst);
        let card = Arc::clone(&self.card);
        self.reactor.run(move || card.readable(0)).unwrap();
    }
}

#[test]
fn a_mirror_copies_packets_of_both_ways_and_they_go_on() {
    let scene = scene();
    let watcher = scene.chardev("c");
    let _filter = scene.filter("f", Queue::All, mirror("c"));
    say(&scene.peer, b"to the guest");
    assert_eq!(heard(&watcher), b"to the guest");
    assert_eq!(scene.came(), b"to the guest");
    assert_eq!(scene.send(b"from the guest"), Sent::Done);
    assert_eq!(heard(&watcher), b"from the guest");
    assert_eq!(heard(&scene.peer), b"from the guest");
}

#[test]
fn a_filter_of_one_queue_sees_the_packets_of_that_queue_only() {
    let scene = scene();
    let (rx, tx) = (scene.chardev("rx"), scene.chardev("tx"));
    let _filters = [
        scene.filter("f", Queue::Rx, mirror("rx")),
        scene.filter("g", Queue::Tx, mirror("tx")),
    ];
    scene.send(b"from the guest");
    say(&scene.peer, b"to the guest");
    assert_eq!(scene.came(), b"to the guest");
    scene.send(b"second");
    say(&scene.peer, b"third");
    assert_eq!(
        (heard(&rx), heard(&rx)),
        (b"from the guest".to_vec(), b"second".to_vec())
    );
    assert_eq!(
        (heard(&tx), heard(&tx)),
        (b"to the guest".to_vec(), b"third".to_vec())
    );
}

#[test]
fn what_a_guest_does_not_take_is_seen_all_the_same_and_comes_once_and_in_order() {
    let scene = scene();
    let watcher = scene.chardev("c");
    let _filter = scene.filter("f", Queue::Tx, mirror("c"));
    scene.takes(false);
    for packet in [b"one", b"two", b"six"] {
        say(&scene.peer, packet);
    }
    for packet in [b"one", b"two", b"six"] {
        assert_eq!(heard(&watcher), packet);
    }
    assert!(scene.came.try_recv().is_err());
    scene.takes(true);
    say(&scene.peer, b"ten");
    for packet in [b"one", b"two", b"six", b"ten"] {
        assert_eq!(scene.came(), packet);
    }
    assert_eq!(heard(&watcher), b"ten");
}

#[test]
fn a_guest_that_takes_nothing_stops_its_sender_and_loses_nothing() {
    let scene = scene();
    let _watcher = scene.chardev("c");
    let _filter = scene.filter("f", Queue::Tx, mirror("c"));
    scene.takes(false);
    let count = 2000_u32;
    let sender = scene.peer.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for number in 0..count {
            say(
                &sender,
                &[number.to_be_bytes().as_slice(), &[0; 1000]].concat(),
            );
        }
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!sending.is_finished(), "all of it is somewhere");
    scene.takes(true);
    for number in 0..count {
        assert_eq!(scene.came()[..4], number.to_be_bytes());
    }
    sending.join().unwrap();
}

#[test]
fn packets_for_the_guest_meet_filters_from_the_first_to_the_last() {
    let scene = scene();
    let (away, back, last) = (
        scene.chardev("away"),
        scene.chardev("back"),
        scene.chardev("last"),
    );
    let _filters = [
        scene.filter("f", Queue::Tx, redirector("", "away")),
        scene.filter("g", Queue::Tx, redirector("back", "")),
        scene.filter("h", Queue::Tx, mirror("last")),
    ];
    say(&scene.peer, b"packet");
    assert_eq!(heard(&away), b"packet");
    say(&back, b"changed");
    assert_eq!(heard(&last), b"changed");
    assert_eq!(scene.came(), b"changed");
    assert_eq!(scene.send(b"not theirs"), Sent::Done);
    assert_eq!(heard(&scene.peer), b"not theirs");
}

#[test]
fn packets_of_the_guest_meet_filters_from_the_last_to_the_first() {
    let scene = scene();
    let (first, back, away) = (
        scene.chardev("first"),
        scene.chardev("back"),
        scene.chardev("away"),
    );
    let _filters = [
        scene.filter("f", Queue::Rx, mirror("first")),
        scene.filter("g", Queue::Rx, redirector("back", "")),
        scene.filter("h", Queue::Rx, redirector("", "away")),
    ];
    assert_eq!(scene.send(b"packet"), Sent::Done);
    assert_eq!(heard(&away), b"packet");
    say(&back, b"changed");
    assert_eq!(heard(&first), b"changed");
    assert_eq!(heard(&scene.peer), b"changed");
}

#[test]
fn a_filter_stands_where_it_is_told_to() {
    let scene = scene();
    let at = |id: &str, position: Position| {
        let mut spec = spec(id, Queue::All, buffer(1));
        spec.position = position;
        scene.try_filter(&spec)
    };
    let _filters = [
        at("b", Position::Tail).unwrap(),
        at("a", Position::Head).unwrap(),
        at("d", Position::Behind("b".to_owned())).unwrap(),
        at("c", Position::Before("d".to_owned())).unwrap(),
    ];
    let netdev = scene.netdevs.find("n").unwrap();
    assert_eq!(netdev.filters(), ["a", "b", "c", "d"]);
    let elsewhere = FilterSpec {
        netdev: "other".to_owned(),
        ..spec("e", Queue::All, buffer(1))
    };
    let _elsewhere = scene.try_filter(&elsewhere).unwrap();
    let error = at("f", Position::Behind("e".to_owned())).unwrap_err();
    assert!(matches!(error, FilterError::Elsewhere(_)), "{error}");
    let error = at("f", Position::Behind("g".to_owned())).unwrap_err();
    assert!(matches!(error, FilterError::NotFound(_)), "{error}");
}

#[test]
fn a_filter_that_cannot_be_had_changes_nothing() {
    let scene = scene();
    let _watcher = scene.chardev("c");
    let refused = |kind| {
        scene
            .try_filter(&spec("f", Queue::All, kind))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refused(mirror("d")), "Device 'd' not found");
    assert_eq!(refused(redirector("d", "c")), "IN Device 'd' not found");
    assert_eq!(refused(redirector("c", "d")), "OUT Device 'd' not found");
    let mut nowhere = spec("f", Queue::All, mirror("c"));
    nowhere.netdev = "m".to_owned();
    let error = scene.try_filter(&nowhere).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Parameter 'netdev' expects a network backend id"
    );
    assert!(scene.netdevs.find("n").unwrap().chain().is_none());
    // The chardev is free.
    let filter = scene.filter("f", Queue::All, mirror("c"));
    assert!(refused(redirector("c", "")).contains("'c' is in use"));
    drop(filter);
    assert!(!scene.chardevs.find("c").unwrap().is_busy());
}

#[test]
fn a_netdev_whose_last_filter_is_gone_is_as_before() {
    let scene = scene();
    let _watcher = scene.chardev("c");
    for _ in 0..3 {
        let filters = [
            scene.filter("f", Queue::All, mirror("c")),
            scene.filter("g", Queue::All, buffer(1)),
        ];
        drop(filters);
        assert!(scene.netdevs.find("n").unwrap().chain().is_none());
        say(&scene.peer, b"packet");
        assert_eq!(scene.came(), b"packet");
        assert_eq!(scene.send(b"answer"), Sent::Done);
        assert_eq!(heard(&scene.peer), b"answer");
    }
}

#[test]
fn a_filter_that_is_off_is_passed_by_and_reads_nothing() {
    let scene = scene();
    let (away, back) = (scene.chardev("away"), scene.chardev("back"));
    let filter = scene.filter("f", Queue::Tx, redirector("back", "away"));
    filter.switch(false);
    say(&back, b"from beside");
    say(&scene.peer, b"packet");
    assert_eq!(scene.came(), b"packet");
    assert!(scene.came.recv_timeout(Duration::from_millis(50)).is_err());
    filter.switch(true);
    assert_eq!(scene.came(), b"from beside");
    say(&scene.peer, b"packet");
    assert_eq!(heard(&away), b"packet");
}

#[test]
fn without_a_link_nobody_sees_packets() {
    let scene = scene();
    let watcher = scene.chardev("c");
    let _filter = scene.filter("f", Queue::Tx, mirror("c"));
    let netdev = scene.netdevs.find("n").unwrap();
    netdev.set_link(false);
    say(&scene.peer, b"lost");
    // A real card drops it.
    assert_eq!(scene.came(), b"lost");
    netdev.set_link(true);
    say(&scene.peer, b"packet");
    assert_eq!(heard(&watcher), b"packet");
}

#[test]
fn a_watcher_that_does_not_read_costs_its_own_copies_only() {
    let scene = scene();
    let watcher = scene.chardev("c");
    let _filter = scene.filter("f", Queue::Rx, mirror("c"));
    let packet = |number: u32| [number.to_be_bytes().as_slice(), &[1; 1400]].concat();
    let count = 2000;
    let reader = scene.peer.try_clone().unwrap();
    let reading =
        std::thread::spawn(move || (0..count).all(|number: u32| heard(&reader) == packet(number)));
    for number in 0..count {
        while scene.send(&packet(number)) == Sent::Full {
            std::thread::yield_now();
        }
    }
    assert!(reading.join().unwrap());
    // What it has is whole, and in order.
    let mut last = None;
    watcher
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut length = [0; 4];
    while (&watcher).read_exact(&mut length).is_ok() {
        let mut copy = vec![0; u32::from_be_bytes(length) as usize];
        (&watcher).read_exact(&mut copy).unwrap();
        let number = u32::from_be_bytes(copy[..4].try_into().unwrap());
        assert_eq!(copy, packet(number));
        assert!(last < Some(number));
        last = Some(number);
    }
    assert!(last.is_some());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test plays the peers")]
fn a_peer_that_sends_no_packets_is_not_listened_to_and_the_next_one_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    let scene = scene();
    let role = SocketRole::Server { wait: false };
    scene.open_chardev("c", SocketAddress::Unix { path: path.clone() }, role);
    let _filter = scene.filter("f", Queue::Tx, redirector("c", ""));
    for length in [u32::MAX, 1 << 20] {
        let mut hostile = UnixStream::connect(&path).unwrap();
        say(&hostile, b"first");
        assert_eq!(scene.came(), b"first");
        hostile.write_all(&length.to_be_bytes()).unwrap();
        say(&hostile, b"never");
        hostile.write_all(&vec![0; 1 << 20]).unwrap();
        say(&scene.peer, b"packet");
        assert_eq!(scene.came(), b"packet");
    }
    // One that leaves in the middle of a packet.
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(&[0, 0, 0, 9, b'x']).unwrap();
    drop(early);
    let honest = UnixStream::connect(&path).unwrap();
    say(&honest, b"second");
    assert_eq!(scene.came(), b"second");
}

#[test]
fn what_comes_in_by_a_chardev_waits_there_while_the_guest_has_no_room() {
    let scene = scene();
    let back = scene.chardev("back");
    let _filter = scene.filter("f", Queue::Tx, redirector("back", ""));
    scene.takes(false);
    let count = 2000_u32;
    let sending = std::thread::spawn(move || {
        for number in 0..count {
            say(
                &back,
                &[number.to_be_bytes().as_slice(), &[0; 1000]].concat(),
            );
        }
        back
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!sending.is_finished(), "all of it is somewhere");
    scene.takes(true);
    for number in 0..count {
        assert_eq!(scene.came()[..4], number.to_be_bytes());
    }
    sending.join().unwrap();
}

#[test]
fn a_buffer_keeps_packets_until_their_time_is_over() {
    let scene = scene();
    let filter = scene.filter("f", Queue::All, buffer(50));
    let began = Instant::now();
    say(&scene.peer, b"one");
    assert_eq!(scene.send(b"two"), Sent::Done);
    assert_eq!(scene.came(), b"one");
    assert_eq!(heard(&scene.peer), b"two");
    assert!(began.elapsed() >= Duration::from_millis(50));
    drop(filter);
    let filter = scene.filter("f", Queue::All, buffer(1_000_000));
    assert_eq!(scene.send(b"three"), Sent::Done);
    filter.switch(false);
    assert_eq!(heard(&scene.peer), b"three");
    filter.switch(true);
    assert_eq!(scene.send(b"four"), Sent::Done);
    drop(filter);
    assert_eq!(heard(&scene.peer), b"four");
}

#[test]
fn a_buffer_that_is_full_stops_the_guest_and_loses_nothing() {
    let scene = scene();
    let _filter = scene.filter("f", Queue::Rx, buffer(20));
    let count = 2000_u32;
    let reader = scene.peer.try_clone().unwrap();
    let reading =
        std::thread::spawn(move || (0..count).all(|number| heard(&reader) == number.to_be_bytes()));
    let mut stopped = 0;
    for number in 0..count {
        while scene.send(&number.to_be_bytes()) == Sent::Full {
            stopped += 1;
            std::thread::yield_now();
        }
    }
    assert!(reading.join().unwrap());
    assert!(stopped > 0);
}
