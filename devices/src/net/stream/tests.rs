use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use fdset::{FdRegistry, Handover, Origin, Scope};

use super::*;
use crate::net::{HEADER, LONGEST, Pieces, StreamRole};
use crate::notice::Notice;

const PATIENCE: Duration = Duration::from_secs(20);

/// Tells of each call.
struct Card(Mutex<Sender<&'static str>>);

impl NetFrontend for Card {
    fn readable(&self, _queue: usize) {
        let _ = self.0.lock().unwrap().send("readable");
    }

    fn writable(&self, _queue: usize) {
        let _ = self.0.lock().unwrap().send("writable");
    }

    fn link_changed(&self) {}
}

struct Scene {
    stream: Arc<StreamNet>,
    notices: Receiver<Notice>,
    heard: Receiver<&'static str>,
    reactor: Reactor,
    _card: Arc<dyn NetFrontend>,
}

fn door() -> Door {
    Door::new(Arc::new(FdRegistry::new()), Scope::Process)
}

fn scene(door: &Door, address: SocketAddress, role: StreamRole) -> Scene {
    let (tell, notices) = mpsc::channel();
    let tell = Mutex::new(tell);
    let sink = NoticeSink::new(move |notice| drop(tell.lock().unwrap().send(notice)));
    let reactor = Reactor::new();
    let spec = StreamSpec {
        kind: "stream",
        address,
        role,
    };
    let stream = StreamNet::open("n", &spec, door, &reactor, sink).unwrap();
    let (tell, heard) = mpsc::channel();
    let card: Arc<dyn NetFrontend> = Arc::new(Card(Mutex::new(tell)));
    stream.attach(Arc::downgrade(&card)).unwrap();
    Scene {
        stream,
        notices,
        heard,
        reactor,
        _card: card,
    }
}

fn passed(door: &Door) -> (SocketAddress, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handed = Handover::new(ours.into(), Origin::CommandLine);
    door.registry()
        .add_named(Scope::Process, "net", handed)
        .unwrap();
    (SocketAddress::Fd { name: "net".into() }, theirs)
}

impl Scene {
    /// The next packet, without its header.
    fn packet(&self) -> Vec<u8> {
        let mut buffer = vec![0xff; LONGEST];
        loop {
            if let Received::Packet(count) = self.stream.receive(0, &mut buffer) {
                assert_eq!(buffer[..HEADER], [0; HEADER]);
                return buffer[HEADER..count].to_vec();
            }
            self.heard.recv_timeout(PATIENCE).unwrap();
        }
    }

    fn send(&self, packet: &[u8]) -> Sent {
        let whole = [&[0; HEADER], packet].concat();
        let sent = self.stream.send(0, &Pieces::default().of(&whole));
        self.stream.flush(0);
        sent
    }

    fn is_connected(&self) -> bool {
        match self.notices.recv_timeout(PATIENCE).unwrap() {
            Notice::NetStream { peer, .. } => peer.is_some(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test plays the other end of the connection"
)]
fn a_call_is_connected_however_soon_it_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for _ in 0..300 {
        let host = "127.0.0.1".to_owned();
        let address = SocketAddress::Inet { host, port };
        let scene = scene(&door(), address, StreamRole::Client);
        assert!(scene.is_connected());
        drop(listener.accept().unwrap());
    }
}

#[test]
fn packets_go_both_ways_over_a_passed_socket() {
    let door = door();
    let (address, mut peer) = passed(&door);
    let scene = scene(&door, address, StreamRole::Client);
    assert!(scene.is_connected());
    assert_eq!(scene.stream.describe(), "unix:");
    peer.write_all(b"\0\0\0\x03one\0\0\0\x05other").unwrap();
    assert_eq!(scene.packet(), b"one");
    assert_eq!(scene.packet(), b"other");
    assert_eq!(scene.send(b"back"), Sent::Done);
    let mut bytes = [0; 8];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0\x04back");
    drop(peer);
    assert_eq!(
        scene.stream.receive(0, &mut vec![0; LONGEST]),
        Received::Nothing
    );
    assert!(!scene.is_connected());
    assert_eq!(scene.send(b"nobody"), Sent::Done);
}

#[test]
fn packets_of_a_batch_are_sent_with_one_write() {
    let door = door();
    let (address, mut peer) = passed(&door);
    let scene = scene(&door, address, StreamRole::Client);
    for packet in [b"one".as_slice(), b"two"] {
        let whole = [&[0; HEADER], packet].concat();
        let sent = scene.stream.send(0, &Pieces::default().of(&whole));
        assert_eq!(sent, Sent::Done);
    }
    peer.set_nonblocking(true).unwrap();
    let mut bytes = [0; 64];
    let nothing = peer.read(&mut bytes).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    scene.stream.flush(0);
    let count = peer.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"\0\0\0\x03one\0\0\0\x03two");
}

#[test]
fn a_peer_that_does_not_read_fills_the_socket_and_is_waited_for() {
    let door = door();
    let (address, mut peer) = passed(&door);
    let scene = scene(&door, address, StreamRole::Client);
    let packet = vec![7; 60_000];
    let sent = (0..100)
        .take_while(|_| scene.send(&packet) == Sent::Done)
        .count();
    assert!((1..100).contains(&sent), "{sent}");
    let mut bytes = vec![0; sent * (packet.len() + 4)];
    peer.read_exact(&mut bytes).unwrap();
    while scene.heard.recv_timeout(PATIENCE).unwrap() != "writable" {}
    for frame in bytes.chunks(packet.len() + 4) {
        assert_eq!(frame[..4], 60_000_u32.to_be_bytes());
        assert_eq!(frame[4..], packet);
    }
    assert_eq!(scene.send(&packet), Sent::Done);
}

#[test]
fn a_server_serves_one_peer_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net");
    let address = SocketAddress::Unix { path: path.clone() };
    let scene = scene(&door(), address, StreamRole::Server);
    assert_eq!(scene.stream.describe(), "listening");
    for round in [b"a", b"b"] {
        #[expect(clippy::disallowed_methods, reason = "the peer")]
        let mut peer = UnixStream::connect(&path).unwrap();
        assert!(scene.is_connected());
        peer.write_all(b"\0\0\0\x01").unwrap();
        peer.write_all(round).unwrap();
        assert_eq!(scene.packet(), round);
        drop(peer);
        assert!(!scene.is_connected());
    }
    let reactor = scene.reactor.clone();
    drop(scene);
    // A handler that has begun may hold it until it returns.
    reactor.settle().unwrap();
    assert!(!path.exists());
}

#[test]
fn who_calls_again_finds_a_peer_that_comes_later_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net");
    let address = SocketAddress::Unix { path: path.clone() };
    let again = StreamRole::Reconnecting(Duration::from_millis(5));
    let scene = scene(&door(), address, again);
    #[expect(clippy::disallowed_methods, reason = "the peer")]
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let (peer, _) = listener.accept().unwrap();
        assert!(scene.is_connected());
        drop(peer);
        assert!(!scene.is_connected());
    }
}

#[test]
fn a_peer_that_sends_no_packets_is_let_go() {
    let door = door();
    let (address, mut peer) = passed(&door);
    let scene = scene(&door, address, StreamRole::Client);
    assert!(scene.is_connected());
    peer.write_all(&[0xff; 64]).unwrap();
    let mut buffer = vec![0; LONGEST];
    while scene.stream.receive(0, &mut buffer) == Received::Nothing {
        match scene.notices.recv_timeout(Duration::from_millis(5)) {
            Ok(Notice::NetStream { peer: None, .. }) => return,
            _ => continue,
        }
    }
    panic!("a packet");
}
