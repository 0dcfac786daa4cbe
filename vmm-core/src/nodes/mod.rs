//! What commands do to block nodes at once, without a job, and how lists show them.
//!
//! ```text
//!   blockdev-reopen, -set-active, change-backing-file
//!                                 └───────► this room: specs, rights, the drained moment ─► BlockGraph
//!   x-debug-query-block-graph ◄──────────── members and edges ◄───────────────────────────── BlockGraph
//! ```
//!
//! The graph's rules are in [`block::graph`]; what goes on after its command has been answered is in
//! [`crate::jobs`]; what changes together is in [`crate::transaction`].

mod active;
mod backing;
mod drawing;
pub(crate) mod pauses;
mod reopen;
