//! The QMP schema as Rust: the wire types, one command trait per schema file, the events, and the
//! introspection reply.
//!
//! Everything under `generated` is written by `cargo xtask codegen` from `schema/*.json`.

mod wire;

pub use wire::{Context, ErrorClass, EventSink, MonitorId, QmpError};

/// A placeholder until the first generated events land.
#[derive(Clone, Debug)]
pub enum Event {}
