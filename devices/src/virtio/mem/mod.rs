//! Memory by the block (virtio 1.2, section 5.15): a region of which the guest uses as many blocks
//! as its host asks for; what it gives up costs the host nothing.
//!
//! ```text
//!   the VM's owner ── requested size ──► VirtioMem ── config change ──► guest
//!   guest ── plug, unplug, unplug all, state ──► answer ─┬─► Blocks: which are plugged
//!                                                        └─► Reclaim, Populate: the host's memory
//!   a change of the size ──► Notice::MemorySizeChange         a machine's reset unplugs all
//! ```
//!
//! The device knows no mapping: the region is guest memory before the device is there, and until
//! after it has gone. It runs on the reactor's thread.
//!
//! Read next: [`device`]; `request` (what a driver asks), `blocks` (which are plugged).

mod blocks;
pub mod device;
mod request;
#[cfg(test)]
mod tests;

pub use device::{MemError, MemHost, MemSpec, MemState, VirtioMem};
