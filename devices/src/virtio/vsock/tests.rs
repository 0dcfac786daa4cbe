use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::memory::{GuestMem, GuestMemView};
use crate::reactor::Reactor;
use crate::vhost::{QueueServer, ServedQueue};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, Notified, PATIENCE, guest_memory};

/// A server that keeps what it is given and does nothing by itself.
#[derive(Default)]
struct Recorder {
    said: Mutex<Vec<String>>,
    calls: Mutex<Vec<OwnedFd>>,
    errors: Mutex<Vec<OwnedFd>>,
    refuses: bool,
}

impl Recorder {
    fn say(&self, what: String) {
        self.said.lock().unwrap().push(what);
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().unwrap())
    }
}

fn ring(fds: &Mutex<Vec<OwnedFd>>) {
    let fds = fds.lock().unwrap();
    nix::unistd::write(fds.last().unwrap(), &1_u64.to_ne_bytes()).unwrap();
}

impl QueueServer for Recorder {
    fn features(&self) -> u64 {
        1 << 1 | 1 << 29
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.say(format!("features {features:#x}"));
        Ok(())
    }

    fn set_memory(&self, _memory: &GuestMemView) -> io::Result<()> {
        self.say("memory".to_owned());
        Ok(())
    }

    fn start_queue(&self, index: usize, queue: &ServedQueue<'_>) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let (call, error) = (queue.call, queue.error);
        self.calls.lock().unwrap().push(call.try_clone_to_owned()?);
        self.errors
            .lock()
            .unwrap()
            .push(error.try_clone_to_owned()?);
        self.say(format!("start {index} at {}", queue.next));
        Ok(())
    }

    fn set_call(&self, index: usize, _call: BorrowedFd<'_>) -> io::Result<()> {
        self.say(format!("call {index}"));
        Ok(())
    }

    fn stop_queue(&self, index: usize) -> io::Result<u16> {
        self.say(format!("stop {index}"));
        if index == 1 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(7)
    }
}

struct Scene {
    server: Arc<Recorder>,
    device: Arc<VirtioVsock>,
    driver: Arc<Notified>,
    memory: GuestMem,
}

fn scene(server: Recorder) -> Scene {
    let server = Arc::new(server);
    let device = VirtioVsock::new(VirtioVsockSpec {
        id: "vsock0".to_owned(),
        cid: 42,
        seqpacket: true,
        server: Arc::clone(&server) as _,
        reactor: Reactor::new(),
    });
    let driver = Arc::new(Notified::default());
    device.attach(Arc::clone(&driver) as _);
    Scene {
        server,
        device,
        driver,
        memory: guest_memory(),
    }
}

#[test]
fn only_what_the_server_has_is_offered_and_the_guest_reads_its_name() {
    let scene = scene(Recorder::default());
    assert_eq!(scene.device.features(), 1 << 1 | 1 << 29);
    let mut config = [0xff; 12];
    scene.device.config_read(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    scene.device.config_read(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}

#[test]
fn a_server_is_told_of_features_and_memory_once_and_says_where_a_queue_stands() {
    let scene = scene(Recorder::default());
    scene.device.set_features(1 << 29);
    let queues = [0, 1, 2].map(|index| DriverQueue::new(&scene.memory, index));
    for (index, queue) in queues.iter().enumerate() {
        queue.start(scene.device.as_ref(), index);
    }
    let told = [
        "features 0x120000000",
        "memory",
        "start 0 at 0",
        "start 1 at 0",
    ];
    assert_eq!(scene.server.said(), told);
    scene.device.interrupt_moved(0);
    scene.device.interrupt_moved(2);
    scene.device.memory_changed().unwrap();
    assert_eq!(scene.server.said(), ["call 0", "memory"]);
    // What the server has used is in memory alone.
    let used = GuestAddress(0x1000 + 0x800 + 2);
    scene.memory.memory().write_obj(5_u16, used).unwrap();
    let state = scene.device.stop_queue(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (7, 5));
    assert!(scene.device.stop_queue(0).is_none());
    // One that does not say is taken to be done with all that it took.
    let state = scene.device.stop_queue(1).unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    assert!(scene.device.stop_queue(2).is_some());
    queues[0].resume(scene.device.as_ref(), 0, scene_state(7, 5));
    assert!(scene.server.said().ends_with(&["start 0 at 7".to_owned()]));
}

#[test]
fn a_queue_whose_rings_are_gone_with_their_memory_is_taken_from_the_server() {
    let scene = scene(Recorder::default());
    let queue = DriverQueue::new(&scene.memory, 0);
    queue.start(scene.device.as_ref(), 0);
    scene.server.said();
    let elsewhere = GuestMemView::from_ranges(&[(GuestAddress(1 << 30), 1 << 20)]).unwrap();
    scene.memory.lock().unwrap().replace(elsewhere);
    scene.device.memory_changed().unwrap();
    assert_eq!(scene.server.said(), ["stop 0", "memory"]);
    assert_eq!(scene.driver.resets.load(Ordering::SeqCst), 1);
    assert!(scene.device.stop_queue(0).is_none());
    assert_eq!(scene.server.said(), [""; 0]);
}

#[test]
fn a_queue_is_shown_as_its_server_has_it_and_only_while_it_has_it() {
    let scene = scene(Recorder::default());
    let queues = [0, 2].map(|index| DriverQueue::new(&scene.memory, index));
    assert_eq!(scene.device.queue_outside(0), None, "not started");
    queues[0].start(scene.device.as_ref(), 0);
    queues[1].start(scene.device.as_ref(), 2);
    let view = scene.device.queue_outside(0).expect("with the server");
    let rings = view.rings;
    assert_eq!(rings.available - rings.descriptors, 0x400);
    assert_eq!(rings.used - rings.descriptors, 0x800);
    assert_ne!(view.kick, view.call);
    assert_eq!(scene.device.queue_outside(2), None, "events are ours");
    scene.device.stop_queue(0);
    assert_eq!(scene.device.queue_outside(0), None, "taken back");
}

fn scene_state(next_avail: u16, next_used: u16) -> virtio_queue::QueueState {
    virtio_queue::QueueState {
        max_size: 16,
        size: 16,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x1400,
        used_ring: 0x1800,
        next_avail,
        next_used,
        ..Default::default()
    }
}

#[test]
fn a_call_reaches_an_interrupt_that_is_no_eventfd() {
    let scene = scene(Recorder::default());
    let mut queue = DriverQueue::new(&scene.memory, 0);
    queue.start(scene.device.as_ref(), 0);
    queue.give_room(16);
    let place = GuestAddress(0x1000 + 0x800 + 2);
    scene.memory.memory().write_obj(1_u16, place).unwrap();
    ring(&scene.server.calls);
    assert_eq!(queue.used_length(), 0);
}

#[test]
fn a_server_that_finds_the_rules_broken_has_the_driver_told() {
    let scene = scene(Recorder::default());
    let queue = DriverQueue::new(&scene.memory, 0);
    queue.start(scene.device.as_ref(), 0);
    ring(&scene.server.errors);
    let start = Instant::now();
    while scene.driver.resets.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_server_that_refuses_a_queue_does_not_have_it() {
    let scene = scene(Recorder {
        refuses: true,
        ..Recorder::default()
    });
    let state = scene_state(0, 0);
    let queue = virtio_queue::Queue::try_from(state).unwrap();
    let active = crate::virtio::device::ActiveQueue {
        queue,
        memory: scene.memory.clone(),
        kick: vmm_sys_util::eventfd::EventFd::new(0).unwrap(),
        interrupt: crate::virtio::mock_driver::silent(),
    };
    assert!(scene.device.start_queue(0, active).is_err());
    assert!(scene.device.stop_queue(0).is_none());
}
