//! What every device goes through: start, pause, resume, reset. How its state is saved is in
//! [`crate::state`].
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
