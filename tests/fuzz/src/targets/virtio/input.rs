//! Keyboards, mice and tablets: what somebody types, and what a driver by the rules hears of it and
//! of the device itself.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use devices::virtio::input::{InputEvent, InputModel, VirtioInput, codes};

use super::{BAR, BUFFERS, Driver, USED, WRITE};
use crate::board::reactor;

/// The device's own registers (virtio 1.2, 5.8.5): what is asked for, and the answer.
const CONFIG: u64 = 0x2000;
const SIZE: u64 = 2;
const ANSWER: u64 = 8;
const LONGEST: usize = 128;
/// How many events are reported at once at most.
const AT_ONCE: u8 = 6;

/// A lamp that the driver lights.
pub(super) const LAMP: InputEvent = InputEvent {
    kind: codes::EV_LED,
    code: codes::LED_CAPSL,
    value: 1,
};

/// A device of some kind.
pub(super) fn device(input: &mut Unstructured<'_>) -> Arc<VirtioInput> {
    let model = match input.arbitrary::<u8>().unwrap_or(0) % 3 {
        0 => InputModel::Keyboard,
        1 => InputModel::Mouse,
        _ => InputModel::Tablet,
    };
    VirtioInput::new(model, "fuzz".to_owned(), reactor().clone())
}

/// What somebody does.
pub(super) fn report(input: &mut Unstructured<'_>) -> Result<Vec<InputEvent>> {
    let count = input.int_in_range(0..=AT_ONCE)?;
    let events = (0..count).map(|_| Ok(InputEvent::from_bytes(input.arbitrary()?)));
    events.collect()
}

impl Driver {
    /// The lamp that was lit is lit where there is one; a report comes whole, in order, and nothing
    /// of what was typed before the reset; and the device tells of itself within its bounds.
    pub(super) fn assert_it_hears_what_is_typed(&mut self) {
        let Some(device) = self.typed.clone() else {
            return;
        };
        let has_lamp = device.model().has(LAMP.kind, LAMP.code);
        assert_eq!(device.lamps(), u32::from(has_lamp) << LAMP.code);
        let buffers = Self::base(0) + BUFFERS;
        for (index, place) in (0..).zip([buffers, buffers + 0x100]) {
            self.describe(0, index, (place, 8, WRITE), 0);
            self.offer(0, index);
        }
        let event = InputEvent::key(30, true);
        device.report(&[event]);
        let used = Self::base(0) + USED;
        assert_eq!(self.read(used + 2) & 0xffff, 2, "an event and an end");
        for (place, event) in [(buffers, event), (buffers + 0x100, InputEvent::END)] {
            let heard = [place, place + 4].map(|at| self.read(at).to_le_bytes());
            assert_eq!(heard.concat(), event.to_bytes());
        }
        self.assert_it_tells_of_itself();
    }

    fn assert_it_tells_of_itself(&self) {
        for (select, subsel) in (0..=0x20).flat_map(|select| (0..=0x20).map(move |of| (select, of)))
        {
            self.put(CONFIG, &[select, subsel]);
            let mut size = [0];
            let mut answer = [0; LONGEST];
            self.spaces.memory.read(BAR + CONFIG + SIZE, &mut size);
            for (at, piece) in (0..).step_by(8).zip(answer.chunks_mut(8)) {
                let register = BAR + CONFIG + ANSWER + at;
                self.spaces.memory.read(register, piece);
            }
            let behind = answer
                .get(usize::from(size[0])..)
                .expect("within the answer");
            assert!(behind.iter().all(|&byte| byte == 0), "more than its size");
        }
    }
}
