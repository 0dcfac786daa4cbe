//! Persistent memory against a driver of its own.

use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use block::{IoThread, IoThreadSpec};
use fdset::OpenFile;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::memory::GuestMem;
use crate::reactor::Reactor;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE, guest_memory};

const START: u64 = 4 << 30;
const SIZE: u64 = 2 << 20;
/// Where requests and answers lie: one of each for every descriptor.
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x10_1000;
const FLUSH: u32 = 0;
/// What no answer is.
const NONE: [u8; 4] = [0xee; 4];

/// Storage whose syncs end when the test says so.
struct Storage(Mutex<Sender<Synced>>);

impl Durable for Storage {
    fn sync(&self, done: Synced) {
        self.0.lock().unwrap().send(done).unwrap();
    }
}

struct Bench {
    device: Arc<VirtioPmem>,
    syncs: Receiver<Synced>,
    notified: Arc<Notified>,
    memory: GuestMem,
    queue: DriverQueue,
}

fn device(durable: Arc<dyn Durable>) -> Arc<VirtioPmem> {
    let spec = PmemSpec {
        address: START,
        size: SIZE,
    };
    let host = PmemHost {
        memory: durable,
        reactor: Reactor::new(),
    };
    VirtioPmem::new(spec, host)
}

fn bench() -> Bench {
    let (begun, syncs) = mpsc::channel();
    let device = device(Arc::new(Storage(Mutex::new(begun))));
    let notified = Arc::new(Notified::default());
    device.attach(Arc::clone(&notified) as _);
    let memory = guest_memory();
    let queue = DriverQueue::new(&memory, 0);
    queue.start(&*device, 0);
    Bench {
        device,
        syncs,
        notified,
        memory,
        queue,
    }
}

impl Bench {
    fn ask_for(&mut self, number: u64, kind: u32, room: u32) {
        let view = self.memory.memory();
        let [request, answer] = [REQUEST, ANSWER].map(|place| place + 16 * number);
        view.write_slice(&kind.to_le_bytes(), GuestAddress(request))
            .unwrap();
        view.write_slice(&NONE, GuestAddress(answer)).unwrap();
        self.queue
            .offer(&[(request, 4, NEXT), (answer, room, WRITE)]);
    }

    /// Asks for a flush; its answer is the one of this number.
    fn ask(&mut self, number: u64) {
        self.ask_for(number, FLUSH, 4);
    }

    fn answer(&mut self, number: u64) -> i32 {
        assert_eq!(self.queue.used_length(), 4);
        i32::from_le_bytes(self.bytes(number))
    }

    fn bytes(&self, number: u64) -> [u8; 4] {
        let mut answer = [0; 4];
        let view = self.memory.memory();
        view.read_slice(&mut answer, GuestAddress(ANSWER + 16 * number))
            .unwrap();
        answer
    }

    fn begun(&self) -> Synced {
        self.syncs.recv_timeout(PATIENCE).expect("no sync begins")
    }
}

#[test]
fn a_flush_is_answered_when_the_storage_has_ended_it_and_not_before() {
    let mut bench = bench();
    bench.ask(0);
    let sync = bench.begun();
    assert_eq!(bench.bytes(0), NONE);
    sync(Ok(()));
    assert_eq!(bench.answer(0), 0);
}

#[test]
fn what_is_asked_during_a_sync_is_answered_by_the_next_one() {
    let mut bench = bench();
    bench.ask(0);
    let first = bench.begun();
    bench.ask(2);
    bench.ask(4);
    first(Ok(()));
    assert_eq!(bench.answer(0), 0);
    let second = bench.begun();
    assert_eq!([bench.bytes(2), bench.bytes(4)], [NONE; 2]);
    second(Err(io::ErrorKind::StorageFull.into()));
    assert_eq!([bench.answer(2), bench.answer(4)], [-1; 2]);
    assert!(bench.syncs.try_recv().is_err(), "nobody asked for a third");
}

#[test]
fn a_queue_that_stops_has_lost_nothing_and_asks_again() {
    let mut bench = bench();
    bench.ask(0);
    let first = bench.begun();
    let state = bench.device.stop_queue(0).expect("it runs");
    bench.queue.resume(&*bench.device, 0, state);
    let second = bench.begun();
    // Nobody waits for this one any more.
    first(Err(io::ErrorKind::Other.into()));
    assert_eq!(bench.bytes(0), NONE);
    second(Ok(()));
    assert_eq!(bench.answer(0), 0);
}

#[test]
fn a_request_that_is_no_flush_fails_and_one_that_is_none_breaks_the_device() {
    let mut bench = bench();
    bench.ask_for(0, 7, 4);
    bench.begun()(Ok(()));
    assert_eq!(bench.answer(0), -1);
    bench.ask_for(2, FLUSH, 3);
    bench.begun()(Ok(()));
    assert_eq!(bench.notified.resets.load(Ordering::SeqCst), 1);
    assert_eq!(bench.bytes(2), NONE);
}

#[test]
fn a_ring_that_claims_more_than_it_can_hold_breaks_the_device() {
    let bench = bench();
    let available = bench.queue.buffer(0) - 0x1000 + 0x400;
    bench.queue.put(available + 2, &17_u16.to_le_bytes());
    bench.queue.kick();
    let begun = std::time::Instant::now();
    while bench.notified.resets.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < PATIENCE, "it goes on");
        std::thread::yield_now();
    }
    assert!(bench.syncs.try_recv().is_err());
}

#[test]
fn the_guest_reads_where_the_region_is() {
    let bench = bench();
    let mut bytes = [0xff; 20];
    bench.device.config_read(0, &mut bytes);
    assert_eq!(bytes[..8], START.to_le_bytes());
    assert_eq!(bytes[8..16], SIZE.to_le_bytes());
    assert_eq!(bytes[16..], [0; 4]);
}

#[test]
fn a_file_is_synced_on_the_io_thread_and_one_that_cannot_be_is_told() {
    let iothread = IoThread::start(IoThreadSpec { id: "t".to_owned() }).unwrap();
    let whole = tempfile::tempfile().unwrap();
    let (pipe, _end) = nix::unistd::pipe().unwrap();
    for (file, works) in [(whole, true), (File::from(pipe), false)] {
        let memory = FileMemory::new(OpenFile::new(file.into(), None), iothread.clone());
        let (tell, told) = mpsc::channel();
        memory.sync(Box::new(move |result| tell.send(result.is_ok()).unwrap()));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), works);
    }
}
