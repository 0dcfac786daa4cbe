//! What every device goes through: start, pause, resume, reset; and how its state is saved.
//!
//! ```text
//!            start              pause
//!   Built ──────────► Running ─────────► Paused
//!                       ▲  ▲   resume      │ │
//!                       │  └───────────────┘ │ reset (only while paused or before start)
//!                       └────────────────────┘
//! ```
//!
//! `Vm` calls these in a fixed order: vCPUs are paused first and resumed last, so no device sees a
//! guest access between its own `pause` and `resume`.

use serde::{Serialize, de::DeserializeOwned};

/// The life of a device, driven by the VM's owner and by nobody else.
///
/// Every method has a sensible default for a device without threads or queues of its own.
pub trait Lifecycle: Send + Sync {
    /// Stops all work on the guest's behalf and returns when nothing is in flight: no request, no
    /// DMA, no timer that would touch guest memory.
    fn pause(&self) {}

    /// Goes on after [`pause`](Self::pause).
    fn resume(&self) {}

    /// Back to the state after power-on. Called while paused; keeps backends and configuration.
    fn reset(&self) {}
}

/// The part of a device that is written to a snapshot. Extend only: a new member needs a default
/// that means "as before", and a change of meaning needs a new [`VERSION`](Self::VERSION).
pub trait SavedState: Serialize + DeserializeOwned {
    /// The device's kind in the snapshot, never reused for another layout.
    const KIND: &'static str;
    /// The layout's version.
    const VERSION: u32;
}
