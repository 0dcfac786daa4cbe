//! A virtio-net function, brought up as its driver does (virtio 1.2, 3.1 and 4.1).

use std::sync::Arc;

use devices::memory::GuestMemView;

use super::machine::Machine;
use super::queue::{Direction, Queue, SIZE};

/// VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX and VIRTIO_NET_F_MRG_RXBUF.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 15;
/// Acknowledged, with a driver, features chosen, running.
const STEPS: [u64; 2] = [1 | 2, 1 | 2 | 8];
const RUNNING: u64 = 1 | 2 | 8 | 4;

/// Where the parts of the function are.
#[derive(Default)]
struct Places {
    common: u64,
    notify: u64,
    /// Bytes between two queues' doorbells.
    stride: u64,
}

/// The driver's side of a card.
pub(crate) struct Card {
    machine: Machine,
    doorbells: [u64; 2],
    pub(crate) receive: Queue,
    pub(crate) transmit: Queue,
}

impl Card {
    pub(crate) fn start(mut machine: Machine, slot: u32, memory: &Arc<GuestMemView>) -> Self {
        let places = find(&mut machine, slot);
        let common = places.common;
        machine.write('b', common + 0x14, 0);
        machine.write('b', common + 0x14, STEPS[0]);
        for half in 0..2 {
            machine.write('l', common, half);
            let offered = machine.read('l', common + 4);
            let wanted = FEATURES >> (32 * half) & 0xffff_ffff;
            assert_eq!(offered & wanted, wanted, "the card's features");
            machine.write('l', common + 8, half);
            machine.write('l', common + 0xc, wanted);
        }
        machine.write('b', common + 0x14, STEPS[1]);
        let queues = [
            Queue::new(memory, 0, Direction::In),
            Queue::new(memory, 1, Direction::Out),
        ];
        let mut doorbells = [0; 2];
        for (index, (queue, doorbell)) in queues.iter().zip(&mut doorbells).enumerate() {
            machine.write('w', common + 0x16, index as u64);
            machine.write('w', common + 0x18, SIZE.into());
            machine.write('w', common + 0x1a, 0xffff);
            for (register, place) in [0x20, 0x28, 0x30].into_iter().zip(queue.rings()) {
                machine.write('l', common + register, place);
                machine.write('l', common + register + 4, 0);
            }
            *doorbell = places.notify + places.stride * machine.read('w', common + 0x1e);
            machine.write('w', common + 0x1c, 1);
        }
        machine.write('b', common + 0x14, RUNNING);
        assert_eq!(machine.read('b', common + 0x14), RUNNING, "the card runs");
        let [receive, transmit] = queues;
        Self {
            machine,
            doorbells,
            receive,
            transmit,
        }
    }

    /// Shows what was submitted to the device, and rings where it wants to be rung for.
    pub(crate) fn publish(&mut self, direction: Direction) {
        let (queue, index) = match direction {
            Direction::In => (&mut self.receive, 0),
            Direction::Out => (&mut self.transmit, 1),
        };
        if queue.publish() {
            self.machine.write('w', self.doorbells[index], index as u64);
        }
    }
}

/// Walks through the function's capabilities (virtio 1.2, 4.1.4).
fn find(machine: &mut Machine, slot: u32) -> Places {
    assert_eq!(
        machine.config(slot, 0) & 0xffff,
        0x1af4,
        "a virtio function"
    );
    let bars = machine.place_bars(slot);
    let mut places = Places::default();
    let mut at = machine.config(slot, 0x34) & 0xfc;
    while at != 0 {
        let head = machine.config(slot, at);
        if head & 0xff == 9 {
            let bar = machine.config(slot, at + 4) & 0xff;
            let offset = machine.config(slot, at + 8);
            let place = bars.get(bar as usize).map(|bar| bar + u64::from(offset));
            match (head >> 24, place) {
                (1, Some(place)) => places.common = place,
                (2, Some(place)) => {
                    places.notify = place;
                    places.stride = machine.config(slot, at + 16).into();
                }
                _ => {}
            }
        }
        at = head >> 8 & 0xfc;
    }
    assert!(places.common != 0 && places.notify != 0, "its registers");
    places
}
