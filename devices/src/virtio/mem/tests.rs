//! Memory by the block against a driver of its own.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::lifecycle::Lifecycle;
use crate::memory::{GuestMem, Populate, Reclaim};
use crate::notice::{Notice, NoticeSink};
use crate::reactor::Reactor;
use crate::state::{AnyStateful, Stateful, trial};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE, guest_memory};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const START: u64 = 4 << 30;
const SIZE: u64 = 1 << 30;
/// Where requests and answers lie.
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x10_1000;

/// Writes down what is done with the host's memory; refuses while it is told to.
#[derive(Default)]
struct Host {
    done: Mutex<Vec<(&'static str, u64, u64)>>,
    refuses: Mutex<bool>,
}

impl Host {
    fn note(&self, what: &'static str, start: u64, len: u64) -> io::Result<()> {
        if *self.refuses.lock().unwrap() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.done.lock().unwrap().push((what, start, len));
        Ok(())
    }

    fn said(&self) -> Vec<(&'static str, u64, u64)> {
        std::mem::take(&mut self.done.lock().unwrap())
    }
}

impl Reclaim for Host {
    fn reclaim(&self, start: u64, len: u64) -> io::Result<()> {
        self.note("back", start, len)
    }
}

impl Populate for Host {
    fn populate(&self, start: u64, len: u64) -> io::Result<()> {
        self.note("take", start, len)
    }
}

struct Bench {
    device: Arc<VirtioMem>,
    host: Arc<Host>,
    heard: Arc<Mutex<Vec<Notice>>>,
    notified: Arc<Notified>,
    memory: GuestMem,
    queue: DriverQueue,
}

fn spec() -> MemSpec {
    MemSpec {
        id: "mem".to_owned(),
        address: START,
        size: SIZE,
        block: BLOCK,
        node: Some(1),
        requested: 8 * BLOCK,
        prealloc: false,
        inaccessible: true,
    }
}

fn bench(spec: MemSpec) -> Bench {
    let host = Arc::new(Host::default());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let device = VirtioMem::new(
        spec,
        MemHost {
            memory: Arc::clone(&host) as _,
            reactor: Reactor::new(),
            notices: NoticeSink::new(move |notice| sink.lock().unwrap().push(notice)),
        },
    )
    .unwrap();
    let notified = Arc::new(Notified::default());
    device.attach(Arc::clone(&notified) as _);
    let memory = guest_memory();
    let queue = DriverQueue::new(&memory, 0);
    queue.start(&*device, 0);
    Bench {
        device,
        host,
        heard,
        notified,
        memory,
        queue,
    }
}

fn request(kind: u16, address: u64, count: u16) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

impl Bench {
    fn offer(&mut self, request: &[u8], room: u32) {
        let view = self.memory.memory();
        view.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let len = u32::try_from(request.len()).unwrap();
        self.queue
            .offer(&[(REQUEST, len, NEXT), (ANSWER, room, WRITE)]);
    }

    /// The answer to a request, and the state in it.
    fn ask(&mut self, kind: u16, block: u64, count: u16) -> (u8, u8) {
        self.ask_at(kind, START + block * BLOCK, count)
    }

    fn ask_at(&mut self, kind: u16, address: u64, count: u16) -> (u8, u8) {
        self.offer(&request(kind, address, count), 10);
        assert_eq!(self.queue.used_length(), 10);
        let mut answer = [0; 10];
        let view = self.memory.memory();
        view.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        (answer[0], answer[8])
    }

    fn config(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.config_read(word * 8, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: (u8, u8) = (0, 0);
const NACK: (u8, u8) = (1, 0);
const BUSY: (u8, u8) = (2, 0);
const ERROR: (u8, u8) = (3, 0);

#[test]
fn blocks_are_plugged_as_far_as_they_were_asked_for_and_given_back() {
    let mut bench = bench(spec());
    assert_eq!(bench.ask(PLUG, 0, 6), ACK);
    assert_eq!(bench.ask(PLUG, 6, 3), NACK);
    assert_eq!(bench.ask(PLUG, 6, 2), ACK);
    assert_eq!(bench.device.size(), 8 * BLOCK);
    assert_eq!(bench.ask(UNPLUG, 2, 2), ACK);
    assert_eq!(bench.host.said(), [("back", START + 2 * BLOCK, 2 * BLOCK)]);
    assert_eq!(bench.ask(STATE, 0, 2), (0, 0));
    assert_eq!(bench.ask(STATE, 2, 2), (0, 1));
    assert_eq!(bench.ask(STATE, 1, 2), (0, 2));
    let heard = bench.heard.lock().unwrap();
    let sizes = heard.iter().map(|notice| match notice {
        Notice::MemorySizeChange { size, .. } => size / BLOCK,
        other => panic!("{other:?}"),
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [6, 8, 6]);
}

#[test]
fn what_is_plugged_already_or_not_there_is_an_error_and_changes_nothing() {
    let mut bench = bench(spec());
    assert_eq!(bench.ask(PLUG, 1, 2), ACK);
    let usable = bench.config(4) / BLOCK;
    for (kind, block, count) in [
        (PLUG, 0, 2),
        (PLUG, 5, 0),
        (PLUG, usable, 1),
        (PLUG, usable - 1, 2),
        (UNPLUG, 0, 2),
        (UNPLUG, 9, 1),
        (STATE, usable, 1),
        (STATE, 0, u16::MAX),
    ] {
        assert_eq!(bench.ask(kind, block, count), ERROR, "{kind} {block}");
    }
    for address in [0, START - BLOCK, START + 1, u64::MAX - BLOCK + 1, u64::MAX] {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(bench.ask_at(kind, address, 1), ERROR, "{address:#x}");
        }
    }
    assert_eq!(bench.device.size(), 2 * BLOCK);
    assert_eq!(bench.host.said(), []);
    assert_eq!(bench.notified.resets.load(Ordering::SeqCst), 0);
}

#[test]
fn the_configuration_tells_the_region_and_grows_with_what_is_asked_for() {
    let mut bench = bench(spec());
    assert_eq!(
        [0, 1, 2, 3].map(|word| bench.config(word)),
        [BLOCK, 1, START, SIZE]
    );
    assert_eq!(bench.config(4), 8 * BLOCK + 256 * MIB);
    assert_eq!(bench.ask(PLUG, 3, 1), ACK);
    assert_eq!([5, 6].map(|word| bench.config(word)), [BLOCK, 8 * BLOCK]);
    bench.device.set_requested(SIZE).unwrap();
    assert_eq!([4, 6].map(|word| bench.config(word)), [SIZE, SIZE]);
    bench.device.set_requested(0).unwrap();
    assert_eq!(bench.config(4), SIZE, "a plugged block may lie there");
    assert_eq!(bench.ask(ALL, 0, 0), ACK);
    assert_eq!([4, 5].map(|word| bench.config(word)), [0, 0]);
    assert_eq!(bench.ask(STATE, 0, 1), ERROR);
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    let bench = bench(spec());
    let text = |bytes| bench.device.set_requested(bytes).unwrap_err().to_string();
    assert_eq!(
        text(BLOCK + 1),
        "'requested-size' property must be multiple of 'block-size' (0x200000)"
    );
    assert_eq!(
        text(SIZE + BLOCK),
        "'requested-size' cannot exceed the memory backend size (0x40000000)"
    );
    assert_eq!(bench.device.requested(), 8 * BLOCK);
}

#[test]
fn it_leaves_only_when_nothing_is_plugged_or_asked_for() {
    let mut bench = bench(spec());
    assert_eq!(bench.device.leave(), Err(MemError::InUse));
    assert_eq!(bench.ask(PLUG, 0, 1), ACK);
    bench.device.set_requested(0).unwrap();
    assert_eq!(bench.device.leave(), Err(MemError::InUse));
    assert_eq!(bench.ask(UNPLUG, 0, 1), ACK);
    assert_eq!(bench.device.leave(), Ok(()));
    assert_eq!(bench.device.set_requested(BLOCK), Err(MemError::Leaving));
    Lifecycle::reset(&*bench.device);
    assert_eq!(bench.device.set_requested(BLOCK), Ok(()));
}

#[test]
fn a_reset_of_the_machine_unplugs_all_and_one_by_the_driver_nothing() {
    let mut bench = bench(spec());
    assert_eq!(bench.ask(PLUG, 0, 4), ACK);
    let state = bench.device.stop_queue(0).unwrap();
    VirtioDevice::reset(&*bench.device);
    assert_eq!(bench.device.size(), 4 * BLOCK);
    let saved = bench.device.save();
    Lifecycle::reset(&*bench.device);
    assert_eq!(
        (bench.device.size(), bench.host.said()),
        (0, vec![("back", START, SIZE)])
    );
    bench.device.load(saved.clone()).unwrap();
    assert_eq!(bench.device.save(), saved);
    bench.queue.resume(&*bench.device, 0, state);
    assert_eq!(bench.ask(STATE, 0, 4), (0, 0));
}

#[test]
fn memory_that_the_host_does_not_have_is_not_plugged() {
    let mut bench = bench(MemSpec {
        prealloc: true,
        ..spec()
    });
    assert_eq!(bench.ask(PLUG, 0, 1), ACK);
    assert_eq!(bench.host.said(), [("take", START, BLOCK)]);
    *bench.host.refuses.lock().unwrap() = true;
    assert_eq!(bench.ask(PLUG, 1, 1), BUSY);
    assert_eq!(bench.ask(UNPLUG, 0, 1), BUSY);
    assert_eq!(bench.device.size(), BLOCK);
}

#[test]
fn what_is_no_request_breaks_the_device() {
    for (bytes, room) in [
        (request(4, START, 1), 10),
        (request(PLUG, START, 1)[..23].to_vec(), 10),
        (request(PLUG, START, 1), 9),
    ] {
        let mut bench = bench(spec());
        bench.offer(&bytes, room);
        let begun = Instant::now();
        while bench.notified.resets.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < PATIENCE, "it goes on");
            std::thread::yield_now();
        }
        assert_eq!(bench.device.size(), 0);
    }
}

#[test]
fn no_state_plugs_what_is_not_there() {
    let bench = bench(spec());
    let tree = bench.device.tree().unwrap();
    assert!(trial::offend(&*bench.device, &tree, || ()) > 10);
    for plugged in [[[0, 1 << 40]], [[1, 1]], [[u64::MAX, u64::MAX]]] {
        let mut tree = tree.clone();
        tree.state["plugged"] = serde_json::json!(plugged);
        assert!(bench.device.restore(&tree).is_err());
    }
}
