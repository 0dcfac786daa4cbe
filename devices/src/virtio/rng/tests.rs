//! The entropy device against a driver of its own.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fdset::OpenFile;

use super::*;
use crate::reactor::{Reactor, Watched};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, NEXT, Notified, PATIENCE, WRITE, guest_memory};
use crate::vm_clock::{TestedClock, VmClock};

/// Gives the same byte forever.
struct Sevens;

impl Entropy for Sevens {
    fn fill(&self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(7);
        Ok(buffer.len())
    }

    fn watched(&self) -> Option<Watched> {
        None
    }
}

fn started(source: Arc<dyn Entropy>, rate: Rate) -> (Arc<VirtioRng>, DriverQueue, Arc<Notified>) {
    started_by(VmClock::Host, source, rate)
}

fn started_by(
    clock: VmClock,
    source: Arc<dyn Entropy>,
    rate: Rate,
) -> (Arc<VirtioRng>, DriverQueue, Arc<Notified>) {
    let rng = VirtioRng::new(source, rate, Reactor::new(), clock);
    let notified = Arc::new(Notified::default());
    rng.attach(Arc::clone(&notified) as _);
    let queue = DriverQueue::new(&guest_memory(), 0);
    queue.start(&*rng, 0);
    (rng, queue, notified)
}

#[test]
fn every_buffer_is_filled_by_the_kernels_generator() {
    let (_rng, mut queue, _) = started(Arc::new(Builtin), Rate::UNLIMITED);
    let mut all = Vec::new();
    for _ in 0..40 {
        queue.give_room(64);
        all.extend(queue.used());
    }
    assert_eq!(all.len(), 40 * 64);
    assert!(all.iter().any(|byte| *byte != all[0]), "not random");
}

#[test]
fn a_pipe_is_read_as_its_bytes_come() {
    let (reader, mut writer) = io::pipe().unwrap();
    let file = OpenFile::new(OwnedFd::from(reader), None);
    let source = Arc::new(EntropyFile::new(file).unwrap());
    let (rng, mut queue, _) = started(source, Rate::UNLIMITED);
    queue.give_room(8);
    writer.write_all(b"ab").unwrap();
    assert_eq!(queue.used(), b"ab");
    queue.give_room(8);
    writer.write_all(b"cd").unwrap();
    assert_eq!(queue.used(), b"cd");
    let state = rng.stop_queue(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (2, 2));
}

#[test]
fn a_spent_quota_leaves_the_rest_of_the_buffers_for_the_next_period() {
    let rate = Rate {
        max_bytes: 10,
        period: Duration::from_secs(3600),
    };
    let (rng, mut queue, _) = started(Arc::new(Sevens), rate);
    queue.give_room(6);
    assert_eq!(queue.used(), [7; 6]);
    queue.give_room(6);
    assert_eq!(queue.used(), [7; 4]);
    queue.give_room(6);
    // Stopping waits for the device: it has looked at the buffer, or never will.
    let state = rng.stop_queue(0).unwrap();
    assert_eq!(state.next_avail, 2);
    assert_eq!(queue.used_already(), None);
}

#[test]
fn a_testers_clock_ends_a_period_when_it_is_moved() {
    let rate = Rate {
        max_bytes: 4,
        period: Duration::from_secs(3600),
    };
    let clock = TestedClock::new();
    let tested = VmClock::Tested(Arc::clone(&clock));
    let (_rng, mut queue, _) = started_by(tested, Arc::new(Sevens), rate);
    queue.give_room(4);
    assert_eq!(queue.used(), [7; 4]);
    queue.give_room(4);
    let waited = std::time::Instant::now();
    while clock.next_deadline().is_none() {
        assert!(waited.elapsed() < PATIENCE, "the device waits for nothing");
        std::thread::yield_now();
    }
    clock.advance(rate.period / 2);
    assert_eq!(queue.used_already(), None);
    clock.advance(rate.period);
    assert_eq!(queue.used(), [7; 4]);
}

#[test]
fn a_short_period_gives_more_when_it_is_over() {
    let rate = Rate {
        max_bytes: 4,
        period: Duration::from_millis(1),
    };
    let (_rng, mut queue, _) = started(Arc::new(Sevens), rate);
    for _ in 0..5 {
        queue.give_room(4);
        assert_eq!(queue.used(), [7; 4]);
    }
}

#[test]
fn a_descriptor_loop_asks_for_a_reset_once_and_ends_the_service() {
    let (rng, mut queue, notified) = started(Arc::new(Sevens), Rate::UNLIMITED);
    let address = queue.buffer(0);
    queue.offer(&[(address, 16, WRITE | NEXT)]);
    let waited = std::time::Instant::now();
    while notified.resets.load(Ordering::SeqCst) == 0 {
        assert!(waited.elapsed() < PATIENCE, "the loop went unnoticed");
        std::thread::yield_now();
    }
    queue.give_room(4);
    rng.stop_queue(0).unwrap();
    assert_eq!(queue.used_already(), None);
    assert_eq!(notified.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn a_buffer_of_four_gigabytes_outside_memory_is_no_way_in() {
    let (rng, mut queue, notified) = started(Arc::new(Sevens), Rate::UNLIMITED);
    queue.offer(&[(u64::MAX - 10, u32::MAX, WRITE)]);
    let waited = std::time::Instant::now();
    while notified.resets.load(Ordering::SeqCst) == 0 {
        assert!(waited.elapsed() < PATIENCE, "the address went unnoticed");
        std::thread::yield_now();
    }
    rng.stop_queue(0).unwrap();
    assert_eq!(rng.stop_queue(0), None);
    assert_eq!(rng.stop_queue(1), None);
}
