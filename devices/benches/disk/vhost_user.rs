//! A vhost-user front end, as much of it as starts one queue (QEMU's document "Vhost-user
//! Protocol"). The memory is one region at guest address 0; user addresses are guest addresses.
#![expect(unsafe_code, reason = "vmm-sys-util's EventFd lends no BorrowedFd")]
// UNSAFETY: the borrowed number lives no longer than the eventfd it is of.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use fdset::{Connection, Door, Role, SocketAddress, Wait};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{AVAILABLE, DESCRIPTORS, MEMORY, SIZE, USED};

/// VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_RING_F_EVENT_IDX, VIRTIO_BLK_F_FLUSH.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 9;
/// VHOST_USER_PROTOCOL_F_CONFIG.
const PROTOCOL_FEATURES: u64 = 1 << 9;
const VERSION: u32 = 1;

/// Between two doorbells that nobody asked for.
const PULSE: Duration = Duration::from_millis(10);

/// The requests that are used here, by their numbers.
#[derive(Clone, Copy)]
enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    SetVringEnable = 18,
}

/// Connects and has the queue served. It is until the connection is dropped.
pub(crate) fn start(
    door: &Door,
    socket: &str,
    memory: &OwnedFd,
    kick: &EventFd,
    call: &EventFd,
) -> Connection {
    let address = SocketAddress::Unix {
        path: PathBuf::from(socket),
    };
    let peer = fdset::connect(door, &address, Wait::ForPeer, Role::Chardev, "bench")
        .expect("the export's socket");
    let fd = peer.fd.as_fd();
    send(fd, Request::SetOwner, &[], &[]);
    let offered = ask(fd, Request::GetFeatures);
    assert_eq!(offered & FEATURES, FEATURES, "the export's features");
    let protocol = ask(fd, Request::GetProtocolFeatures) & PROTOCOL_FEATURES;
    send(fd, Request::SetProtocolFeatures, &[protocol], &[]);
    send(fd, Request::SetFeatures, &[FEATURES], &[]);
    let regions = [1, 0, MEMORY as u64, 0, 0];
    send(fd, Request::SetMemTable, &regions, &[memory.as_fd()]);
    // 32 bits each: the queue's index, then the number.
    send(fd, Request::SetVringNum, &[u64::from(SIZE) << 32], &[]);
    send(fd, Request::SetVringBase, &[0], &[]);
    let rings = [0, DESCRIPTORS, USED, AVAILABLE, 0];
    send(fd, Request::SetVringAddr, &rings, &[]);
    send(fd, Request::SetVringCall, &[0], &[borrowed(call)]);
    send(fd, Request::SetVringKick, &[0], &[borrowed(kick)]);
    send(fd, Request::SetVringEnable, &[1 << 32], &[]);
    // Answered when everything before it was done.
    ask(fd, Request::GetFeatures);
    // The export made both non-blocking for its own reading; the driver sleeps on this one.
    fcntl(borrowed(call), FcntlArg::F_SETFL(OFlag::empty())).expect("an eventfd");
    keep_awake(kick);
    peer
}

/// Rings now and then until the program ends. libvhost-user says up to where it has seen the ring,
/// and looks at the ring again without a barrier between the two: once in a million requests it
/// sleeps on one that it was not told of, and would for ever.
fn keep_awake(kick: &EventFd) {
    let kick = kick.try_clone().expect("an fd");
    thread::spawn(move || {
        loop {
            thread::sleep(PULSE);
            kick.write(1).expect("a doorbell");
        }
    });
}

fn borrowed(bell: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: open as long as `bell` is borrowed.
    unsafe { BorrowedFd::borrow_raw(bell.as_raw_fd()) }
}

fn send(socket: BorrowedFd<'_>, request: Request, words: &[u64], fds: &[BorrowedFd<'_>]) {
    let mut message = Vec::new();
    let len = u32::try_from(8 * words.len()).expect("small");
    for number in [request as u32, VERSION, len] {
        message.extend(number.to_le_bytes());
    }
    message.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let sent = fdset::scm::send_with_fds(socket, &message, fds).expect("the export listens");
    assert_eq!(sent, message.len(), "a short message");
}

/// Sends a request without arguments; the number in the answer.
fn ask(socket: BorrowedFd<'_>, request: Request) -> u64 {
    send(socket, request, &[], &[]);
    let (mut answer, mut came) = ([0; 20], 0);
    while came < answer.len() {
        let received = fdset::scm::recv_with_fds(socket, &mut answer[came..]).expect("an answer");
        assert_ne!(received.bytes, 0, "the export hung up");
        came += received.bytes;
    }
    u64::from_le_bytes(*answer.last_chunk().expect("its last word"))
}
