//! A function that is saved, and one that goes on from that.

use super::*;

/// A driver's device with MSI-X, its first queue seven buffers on, paused.
fn paused() -> Bench {
    let bench = Bench::new();
    bench.enable_msix();
    bench.drive(1 << 32 | EVENT_IDX | OWN);
    bench.mock.queues.lock().unwrap()[0]
        .as_mut()
        .unwrap()
        .queue
        .set_next_avail(7);
    bench.function.pause();
    bench.mock.driver().config_changed();
    bench
}

#[test]
fn a_fresh_device_goes_on_where_a_snapshot_was_taken() {
    let fresh = Bench::new();
    fresh.function.reset();
    fresh.function.pause();
    let tree = trial::carry(&*paused().function, &*fresh.function);
    assert_eq!(tree.at(BACKEND).unwrap().kind, "mock");
    assert!(
        !fresh.mock.running(0),
        "nothing runs before the machine does"
    );
    fresh.function.resume();
    let features = fresh.mock.features.load(Ordering::SeqCst);
    assert_eq!(features, EVENT_IDX | OWN);
    assert_eq!(fresh.status().bits(), 15);
    assert_eq!(fresh.read(0x15, 1), 1);
    let doorbells = fresh.bells.0.lock().unwrap().clone();
    assert_eq!(doorbells, [BAR + 0x3000, BAR + 0x3004]);
    let state = fresh.mock.queues.lock().unwrap()[0]
        .as_ref()
        .unwrap()
        .queue
        .state();
    assert_eq!((state.next_avail, state.desc_table), (7, 0x10000));
    fresh.mock.interrupt(0);
    assert_eq!(fresh.controller.triggered(1), 1);
}

#[test]
fn a_look_at_a_running_device_leaves_its_indices_out_and_cannot_be_loaded() {
    let bench = Bench::new();
    bench.drive(1 << 32);
    let tree = bench.function.tree().unwrap();
    assert_eq!(tree.state["queues"][0]["running"], true);
    assert_eq!(tree.state["queues"][0]["place"], serde_json::Value::Null);
    assert!(bench.mock.running(0) && bench.mock.running(1));
    let fresh = Bench::new();
    fresh.function.pause();
    let refused = fresh.function.restore(&tree).unwrap_err().to_string();
    assert!(refused.contains("queues[0]: running"), "{refused}");
    let whole = paused().function.tree().unwrap();
    let refused = bench.function.restore(&whole).unwrap_err().to_string();
    assert!(refused.contains("pause it first"), "{refused}");
}

#[test]
fn no_state_breaks_a_device() {
    let tree = paused().function.tree().unwrap();
    let bench = Bench::new();
    bench.function.pause();
    let alive = || {
        bench.function.resume();
        bench.function.pause();
        for offset in (0..0x40).step_by(4) {
            bench.function.registers.read(offset, &mut [0; 4]);
        }
    };
    let refused = trial::offend(&*bench.function, &tree, alive);
    assert!(refused > 20, "{refused}");
    bench.function.restore(&tree).unwrap();
    for (part, name) in [
        (&bench.function.core as &dyn AnyStateful, "config"),
        (&*bench.function.msix, "msix"),
    ] {
        let refused = trial::offend(part, &tree.parts[name], alive);
        assert!(refused > 2, "{name}: {refused}");
    }
}
