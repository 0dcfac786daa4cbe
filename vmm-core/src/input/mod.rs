//! What clients type and point: from events of QMP to reports of devices.
//!
//! This room knows which device takes what, and how long a key is held. It must never know queues or
//! buffers: a [`VirtioInput`] takes whole reports.
//!
//! ```text
//!   input-send-event ─► sorted by device ─► a report for each ──────────────► VirtioInput
//!   send-key ─► Typist: strokes that wait ─► timer ─► one stroke after the other ─► VirtioInput
//! ```
//!
//! Read next: [`sort`], [`typist`], `keys` (names and numbers).

mod keys;
pub mod sort;
pub mod typist;

pub use sort::{Touched, sort};
pub use typist::Typist;

use std::sync::Arc;

use devices::virtio::input::{InputModel, VirtioInput};
use qapi_schema::QmpError;
use qapi_schema::ui::{InputEventKind, KeyValue};

/// The devices of a VM that take events, in the order in which they were plugged in.
pub type Inputs = [Arc<VirtioInput>];

/// The device that takes events of `kind`: of several the newest.
///
/// # Errors
/// There is none.
fn taker(
    inputs: &Inputs,
    kind: InputEventKind,
    takes: impl Fn(InputModel) -> bool,
) -> Result<&Arc<VirtioInput>, QmpError> {
    let mut newest_first = inputs.iter().rev();
    newest_first
        .find(|input| takes(input.model()))
        .ok_or_else(|| {
            QmpError::generic(format!(
                "Input handler not found for event type {}",
                kind.as_str()
            ))
        })
}

/// The keyboard that keys are typed on.
///
/// # Errors
/// There is none.
pub fn keyboard(inputs: &Inputs) -> Result<&Arc<VirtioInput>, QmpError> {
    taker(inputs, InputEventKind::Key, |model| {
        model == InputModel::Keyboard
    })
}

/// What the guest calls a key.
///
/// # Errors
/// No keyboard has it.
pub fn key_code(key: &KeyValue) -> Result<u16, QmpError> {
    keys::code(key).ok_or_else(|| {
        let told = serde_json::to_string(key).unwrap_or_default();
        QmpError::generic(format!("no keyboard has the key {told}"))
    })
}
