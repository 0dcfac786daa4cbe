use std::path::PathBuf;
use std::sync::mpsc;

use fdset::{Door, FdRegistry, Scope};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_S_LINK_UP};

use super::super::{NetdevKind, NetdevSpec, Netdevs};
use super::*;
use crate::chardev::ChardevRegistry;
use crate::memory::GuestMem;
use crate::vhost_user::table::tests::shared;
use crate::vhost_user::tests::{Backend, Fault, listening, until};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE};
use crate::virtio::net::{VirtioNet, VirtioNetSpec};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;

/// A card whose queues a back end serves.
struct Scene {
    card: Arc<VirtioNet>,
    netdevs: Netdevs,
    backend: Backend,
    path: PathBuf,
    memory: GuestMem,
    notices: mpsc::Receiver<Notice>,
    _folder: tempfile::TempDir,
}

fn scene(pairs: u16) -> Scene {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let reactor = Reactor::new();
    let chardevs = ChardevRegistry::new(reactor.clone());
    let opened = chardevs.add("c", &listening(&path), &door);
    opened.expect("a place to listen");
    let backend = Backend::call(&path, Fault::None);
    let (tell, notices) = mpsc::channel();
    let tell = Mutex::new(tell);
    let sink = NoticeSink::new(move |notice| drop(tell.lock().unwrap().send(notice)));
    let mut netdevs = Netdevs::new(reactor.clone(), sink.clone());
    let spec = NetdevSpec {
        id: "n".to_owned(),
        kind: NetdevKind::VhostUser {
            chardev: "c".to_owned(),
            pairs,
        },
    };
    netdevs.add(&spec, &door, &chardevs).expect("a back end");
    let card = VirtioNet::new(card_spec(&netdevs, pairs, reactor, sink)).expect("a card");
    card.attach(Arc::new(Notified::default()) as _);
    card.set_features(card.features());
    Scene {
        card,
        netdevs,
        backend,
        path,
        memory: GuestMem::new(shared()),
        notices,
        _folder: folder,
    }
}

/// A card on the netdev.
fn card_spec(
    netdevs: &Netdevs,
    pairs: u16,
    reactor: Reactor,
    notices: NoticeSink,
) -> VirtioNetSpec {
    VirtioNetSpec {
        id: "net0".to_owned(),
        netdev: Some(netdevs.find("n").unwrap().lease().unwrap()),
        mac: MAC,
        pairs,
        rx_queue_size: 256,
        tx_queue_size: 256,
        host_mtu: None,
        speed: u32::MAX,
        duplex: 255,
        rss: false,
        hash: false,
        off: 0,
        reactor,
        notices,
    }
}

impl Scene {
    fn queue(&self, index: usize) -> DriverQueue {
        let queue = DriverQueue::new(&self.memory, index as u64);
        queue.start(self.card.as_ref(), index);
        queue
    }

    fn has_link(&self) -> bool {
        let mut status = [0; 2];
        self.card.config_read(6, &mut status);
        u32::from(u16::from_le_bytes(status)) & VIRTIO_NET_S_LINK_UP != 0
    }

    fn told(&self) -> Option<String> {
        match self.notices.recv_timeout(PATIENCE) {
            Ok(Notice::NetVhostUser { id, chardev }) => {
                assert_eq!(id, "n");
                chardev
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_card_has_a_link_as_long_as_a_back_end_is_there() {
    let mut scene = scene(1);
    assert_eq!(scene.told(), Some("c".to_owned()));
    assert!(scene.has_link());
    let _queue = scene.queue(0);
    assert_eq!(scene.backend.words(SET_VRING_ENABLE), [1 << 32]);
    scene.backend = {
        drop(scene.backend);
        until("it is gone", || {
            scene
                .notices
                .try_recv()
                .is_ok_and(|notice| matches!(notice, Notice::NetVhostUser { chardev: None, .. }))
        });
        Backend::call(&scene.path, Fault::None)
    };
    assert_eq!(scene.told(), Some("c".to_owned()));
    assert_eq!(scene.backend.words(SET_VRING_ENABLE), [1 << 32]);
    assert!(scene.has_link());
    assert!(scene.card.stop_queue(0).is_some());
}

#[test]
fn without_a_back_end_the_card_keeps_its_queues_and_has_no_link() {
    let Scene {
        card,
        netdevs,
        backend,
        path,
        memory,
        notices,
        _folder,
    } = scene(1);
    let queue = DriverQueue::new(&memory, 1);
    queue.start(card.as_ref(), 1);
    backend.hear(SET_VRING_ENABLE);
    drop(backend);
    let link = || {
        let mut status = [0; 2];
        card.config_read(6, &mut status);
        status[0] & 1 != 0
    };
    until("the link is gone", || !link());
    let state = card.stop_queue(1).expect("it was started");
    assert_eq!(state.next_avail, state.next_used);
    drop((netdevs, path, notices));
}

#[test]
fn a_back_end_looks_at_the_pairs_that_the_guest_uses() {
    let scene = scene(2);
    assert_ne!(scene.card.features() & 1 << VIRTIO_NET_F_MQ, 0);
    let _queues = [0, 1, 2, 3].map(|index| scene.queue(index));
    let mut control = scene.queue(4);
    let enabled = || scene.backend.words(SET_VRING_ENABLE)[0];
    let on = 1 << 32;
    assert_eq!([(); 4].map(|()| enabled()), [on, on | 1, 2, 3]);
    // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
    let command = control.buffer(0);
    control.put(command, &[4, 0, 2, 0]);
    control.offer(&[(command, 4, NEXT), (command + 0x800, 1, WRITE)]);
    assert_eq!(control.used_length(), 1);
    assert_eq!([(); 2].map(|()| enabled()), [on | 2, on | 3]);
}

#[test]
fn an_address_is_made_known_by_the_back_end() {
    let scene = scene(1);
    let _queue = scene.queue(0);
    scene.card.send_rarp();
    let [a, b, c, d, e, f] = MAC;
    let mac = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    assert_eq!(scene.backend.words(SEND_RARP), [mac]);
}

#[test]
fn what_the_protocol_has_no_word_for_is_not_offered() {
    let scene = scene(1);
    let offered = scene.card.features();
    assert_eq!(offered & NEVER, 0);
    assert_eq!(offered & APART, APART);
}

#[test]
fn hashes_are_refused_where_packets_do_not_come_by() {
    let Scene { card, netdevs, .. } = scene(1);
    drop(card);
    for name in ["rss", "hash"] {
        let refused = VirtioNet::new(VirtioNetSpec {
            rss: name == "rss",
            hash: name == "hash",
            ..card_spec(&netdevs, 1, Reactor::new(), NoticeSink::new(|_| ()))
        });
        let refused = refused.expect_err(name).to_string();
        let wanted = format!("'{name}=on' needs a netdev whose packets come by here");
        assert!(refused.starts_with(&wanted), "{refused}");
    }
}
