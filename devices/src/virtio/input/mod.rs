//! Keyboards, mice and tablets (virtio 1.2, section 5.8).
//!
//! This room knows what a device tells its driver of itself, and how reports reach it. It must never
//! know who types: whoever does names keys and axes as Linux' `input-event-codes.h` numbers them,
//! which is what the specification asks for.
//!
//! ```text
//!   report ─► waiting (as long as the driver has no buffers) ─► event queue ─► guest
//!   guest ─► status queue ─► which lamps are lit
//!   guest ─► select, subsel ─► config: names, bits, ranges    (a window, one answer at a time)
//! ```
//!
//! Read next: [`device`], [`model`] (what each kind is), [`event`].

pub mod device;
pub mod event;
pub mod model;
#[cfg(test)]
mod tests;

pub use device::{InputState, VirtioInput};
pub use event::{InputEvent, codes};
pub use model::InputModel;
