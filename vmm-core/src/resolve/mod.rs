//! From what a client wrote to what is built: wire types in, resolved specs out.
//!
//! This is the one place where "absent means" is decided. Every function is pure: it opens
//! nothing, looks at no VM, and fails only where members contradict each other.
//!
//! ```text
//!   QMP arguments ─┐
//!                  ├─► qapi_schema type ──► resolve::* ──► *Spec ──► fdset, block, devices
//!   command line ──┘    (optional members)                 (nothing optional left)
//! ```

pub mod chardev;
pub mod node;
pub mod object;
