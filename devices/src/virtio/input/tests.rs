//! Keyboards, mice and tablets against a driver of their own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::memory::GuestMem;
use crate::reactor::Reactor;
use crate::state::{AnyStateful, Stateful, trial};
use crate::virtio::device::VirtioDevice;
use crate::virtio::mock_driver::{DriverQueue, Notified, PATIENCE, guest_memory};

const EVENTS: usize = 0;
const STATUS: usize = 1;
const A: u16 = 30;

fn device(model: InputModel) -> Arc<VirtioInput> {
    VirtioInput::new(model, "serial".to_owned(), Reactor::new())
}

fn queue(device: &VirtioInput, memory: &GuestMem, index: usize) -> DriverQueue {
    let queue = DriverQueue::new(memory, index as u64);
    queue.start(device, index);
    queue
}

fn ask(device: &VirtioInput, select: u8, subsel: u8) -> Vec<u8> {
    device.config_write(0, &[select, subsel]);
    let mut size = [0];
    device.config_read(2, &mut size);
    let mut answer = vec![0; size[0].into()];
    device.config_read(8, &mut answer);
    answer
}

fn event(bytes: &[u8]) -> InputEvent {
    InputEvent::from_bytes(bytes.try_into().unwrap())
}

#[test]
fn a_driver_learns_what_it_is() {
    let keyboard = device(InputModel::Keyboard);
    assert_eq!(ask(&keyboard, 1, 0), b"Sesame Virtio Keyboard");
    assert_eq!(ask(&keyboard, 2, 0), b"serial");
    assert_eq!(ask(&keyboard, 3, 0), [6, 0, 0xf4, 0x1a, 1, 0, 1, 0]);
    let keys = ask(&keyboard, 0x11, 1);
    assert_eq!((keys.len(), keys[0], keys[31]), (32, 0xfe, 0xff));
    assert_eq!(ask(&keyboard, 0x11, 0x11), [7]);
    assert_eq!(ask(&keyboard, 0x11, 2), b"");
    let tablet = device(InputModel::Tablet);
    assert_eq!(ask(&tablet, 0x11, 3), [3]);
    let range = ask(&tablet, 0x12, 1);
    assert_eq!((range.len(), &range[4..8]), (20, &[0xff, 0x7f, 0, 0][..]));
    assert_eq!(ask(&tablet, 0x12, 2), b"");
    assert_eq!(ask(&device(InputModel::Mouse), 0x11, 2), [0x43, 1]);
}

#[test]
fn a_report_comes_whole_and_in_order() {
    let (keyboard, memory) = (device(InputModel::Keyboard), guest_memory());
    let mut events = queue(&keyboard, &memory, EVENTS);
    keyboard.report(&[InputEvent::key(A, true)]);
    // What the driver has no room for yet waits for it, also while the queue is stopped.
    let state = keyboard.stop_queue(EVENTS).unwrap();
    keyboard.report(&[InputEvent::key(A, false)]);
    events.resume(&*keyboard, EVENTS, state);
    for _ in 0..4 {
        events.give_room(8);
    }
    let wanted = [
        InputEvent::key(A, true),
        InputEvent::END,
        InputEvent::key(A, false),
        InputEvent::END,
    ];
    for wanted in wanted {
        assert_eq!(event(&events.used()), wanted);
    }
}

#[test]
fn nothing_waits_for_a_driver_that_has_not_come_and_not_for_ever() {
    let (mouse, memory) = (device(InputModel::Mouse), guest_memory());
    mouse.report(&[InputEvent::moved(codes::REL_X, -1)]);
    assert_eq!(mouse.save(), InputState::default());
    let _events = queue(&mouse, &memory, EVENTS);
    for _ in 0..2000 {
        mouse.report(&[InputEvent::moved(codes::REL_X, 1)]);
    }
    assert!(mouse.save().waiting.len() <= 1024);
    mouse.stop_queue(EVENTS);
    mouse.reset();
    assert_eq!(mouse.save(), InputState::default());
}

#[test]
fn lamps_are_what_the_driver_says_and_are_saved() {
    let (keyboard, memory) = (device(InputModel::Keyboard), guest_memory());
    let mut status = queue(&keyboard, &memory, STATUS);
    let lamp = |code, value| {
        let kind = codes::EV_LED;
        InputEvent { kind, code, value }.to_bytes()
    };
    for bytes in [
        lamp(codes::LED_CAPSL, 1),
        lamp(codes::LED_NUML, 1),
        lamp(codes::LED_NUML, 0),
        lamp(40, 1),
    ] {
        status.give(&bytes);
        status.used();
    }
    assert_eq!(keyboard.lamps(), 1 << codes::LED_CAPSL);
    let state = serde_json::to_string(&keyboard.save()).unwrap();
    let other = device(InputModel::Keyboard);
    other.load(serde_json::from_str(&state).unwrap()).unwrap();
    assert_eq!(other.save(), keyboard.save());
}

#[test]
fn a_buffer_too_short_for_an_event_breaks_the_device() {
    let (keyboard, memory) = (device(InputModel::Keyboard), guest_memory());
    let notified = Arc::new(Notified::default());
    keyboard.attach(Arc::clone(&notified) as _);
    let mut events = queue(&keyboard, &memory, EVENTS);
    events.give_room(7);
    keyboard.report(&[InputEvent::key(A, true)]);
    let start = std::time::Instant::now();
    while notified.resets.load(Ordering::SeqCst) == 0 && start.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    assert_eq!(notified.resets.load(Ordering::SeqCst), 1);
    assert!(events.used_already().is_none());
}

proptest! {
    #[test]
    fn no_access_to_the_configuration_breaks_it(
        accesses in prop::collection::vec((any::<u64>(), any::<[u8; 9]>(), 0_usize..9), 0..20),
    ) {
        let tablet = device(InputModel::Tablet);
        for (offset, bytes, len) in accesses {
            for offset in [offset, offset % 160] {
                tablet.config_write(offset, &bytes[..len]);
                tablet.config_read(offset, &mut { bytes }[..len]);
            }
        }
    }
}

#[test]
fn no_state_breaks_a_keyboard() {
    let keyboard = device(InputModel::Keyboard);
    let tree = keyboard.tree().unwrap();
    let alive = || keyboard.config_read(0, &mut [0; 136]);
    assert!(trial::offend(&*keyboard, &tree, alive) > 10);
}
