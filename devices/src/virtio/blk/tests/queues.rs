//! Queues on their threads: which one serves them, how they stop and go on, and interrupts.

use std::time::Duration;

use block::PollSpec;

use super::*;

#[test]
fn four_queues_serve_the_same_disk() {
    let (node, file) = file_node(64 << 10);
    let rig = Rig::new(node, 4);
    let view = rig.view();
    let mut drivers: Vec<_> = (0..4).map(|index| rig.start(index, &view)).collect();
    for (i, driver) in (0u8..).zip(&mut drivers) {
        let buffer = DATA + 0x1000 * u64::from(i);
        fill(&rig, buffer, &[i + 1; 512]);
        driver.offer(VIRTIO_BLK_T_OUT, i.into(), &[Out(buffer, 512)]);
        driver.kick();
    }
    for (i, driver) in (0u8..).zip(&drivers) {
        driver.wait();
        assert_eq!(driver.status(0), OK);
        let mut sector = [0; 512];
        file.as_file()
            .read_exact_at(&mut sector, 512 * u64::from(i))
            .expect("file");
        assert_eq!(sector, [i + 1; 512]);
    }
}

#[test]
fn queues_take_turns_on_the_threads_and_one_that_is_busy_holds_up_its_own_only() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 4);
    let view = rig.view();
    let mut drivers: Vec<_> = (0..4).map(|index| rig.start(index, &view)).collect();
    let (release, held) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    rig.disk.spec.iothreads[0].spawn(move |_| async move {
        tell.send(()).expect("listener");
        assert!(held.recv().is_err(), "nobody sends anything");
    });
    told.recv().expect("the thread is busy from here on");
    for driver in &mut drivers {
        driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
        driver.kick();
    }
    drivers[1].wait();
    drivers[3].wait();
    assert_eq!((drivers[0].used(), drivers[2].used()), (0, 0));
    drop(release);
    drivers[0].wait();
    drivers[2].wait();
}

#[test]
fn a_drain_waits_for_the_queues_of_all_threads_and_a_stop_for_each() {
    let probe = Probe::default();
    let rig = Rig::new(ProbeNode::node(&probe), 2);
    let view = rig.view();
    let mut drivers: Vec<_> = (0..2).map(|index| rig.start(index, &view)).collect();
    for driver in &mut drivers {
        driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
        driver.kick();
    }
    probe.wait_for_held_requests(2);
    let gate = rig.disk.spec.root.gate().clone();
    thread::scope(|scope| {
        let draining = scope.spawn(|| {
            let drain = Drain::begin(vec![gate.clone()]);
            probe.log("drained");
            drain
        });
        probe.log("released");
        probe.release();
        let drain = draining.join().expect("drain");
        assert_eq!((drivers[0].used(), drivers[1].used()), (1, 1));
        for driver in &mut drivers {
            driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
            driver.kick();
        }
        for index in 0..2 {
            rig.disk.stop_queue(index).expect("was started");
        }
        assert_eq!((drivers[0].used(), drivers[1].used()), (1, 1));
        drop(drain);
    });
    assert_eq!(probe.events(), ["released", "drained"]);
}

#[test]
fn stopped_queue_has_nothing_in_flight_and_goes_on_where_it_stood() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    for sector in 0..5 {
        driver.offer(VIRTIO_BLK_T_IN, sector, &[In(DATA, 512)]);
    }
    driver.kick();
    let queue = driver.stop();
    let state = queue_positions(&queue);
    assert_eq!(state.0, state.1, "every chain taken was given back");
    assert_eq!(driver.used(), state.1);
    driver.restart(queue);
    driver.wait_for(5);
    assert!((0..5).all(|chain| driver.status(chain) == OK));
    assert!(rig.disk.stop_queue(3).is_none(), "there is no queue 3");
}

fn queue_positions(queue: &virtio_queue::Queue) -> (u16, u16) {
    use virtio_queue::QueueT;
    (queue.next_avail(), queue.next_used())
}

#[test]
fn stop_waits_for_the_request_in_flight() {
    let probe = Probe::default();
    let rig = Rig::new(ProbeNode::node(&probe), 1);
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
    driver.kick();
    probe.wait_for_a_held_request();
    thread::scope(|scope| {
        let stopping = scope.spawn(|| {
            rig.disk.stop_queue(0).expect("was started");
            probe.log("stopped");
        });
        probe.log("released");
        probe.release();
        stopping.join().expect("stop");
    });
    assert_eq!(probe.events(), ["released", "stopped"]);
    assert_eq!(driver.used(), 1);
    assert_eq!(driver.status(0), OK);
}

#[test]
fn with_event_idx_the_driver_is_interrupted_only_where_it_asked() {
    let (node, _file) = file_node(64 << 10);
    let rig = Rig::new(node, 1);
    rig.disk.set_features(rig.disk.features());
    let view = rig.view();
    let mut driver = rig.start(0, &view);
    driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
    driver.kick();
    driver.hear();
    driver.ask_after(9);
    for _ in 0..9 {
        driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
    }
    driver.kick();
    driver.wait();
    driver.stop();
    assert_eq!(driver.used(), 10);
    assert_eq!(driver.interrupts(), 2, "once for all nine");
}

/// The thread looks for requests for some time after each, and sleeps after some: a request that
/// came between the last look and the sleep would never be answered.
#[test]
fn driver_that_kicks_only_where_it_is_asked_to_gets_every_answer() {
    for round in 0..12 {
        let (node, _file) = file_node(64 << 10);
        let rig = Rig::new(node, 1);
        rig.disk.spec.iothreads[0].poll(PollSpec {
            max: Duration::from_micros(200),
            grow: 50,
            shrink: 1,
        });
        let view = rig.view();
        let mut driver = rig.start(0, &view);
        for request in 0..20 {
            driver.offer(VIRTIO_BLK_T_IN, 0, &[In(DATA, 512)]);
            driver.kick_if_wanted();
            driver.wait();
            thread::sleep(Duration::from_micros(20 * ((request + round) % 12)));
        }
        driver.stop();
    }
}
