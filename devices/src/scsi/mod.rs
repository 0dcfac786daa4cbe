//! SCSI logical units: disks and CD drives over nodes of the block graph.
//!
//! ```text
//!   controller ── CDB, buffers ──► ScsiUnit::execute ─► Command ─┬─► answers: INQUIRY, MODE SENSE, …
//!        ◄── status, sense, bytes moved ──┘                      └─► medium: READ, WRITE, UNMAP, …
//! ```
//!
//! This room knows commands and media; it must never know how a controller carries them, nor what
//! is behind a node. Sources: SPC-4, SBC-3, MMC-6.
//!
//! Read next: [`unit`] (a unit and its medium), `command` (what can be asked), `answers` and `optical`
//! (what is answered without the medium), `blocks` (what moves its blocks), [`sense`] (why not).

mod answers;
mod blocks;
mod command;
mod optical;
pub mod sense;
pub mod state;
#[cfg(test)]
pub(crate) mod tests;
pub mod unit;

pub use sense::Sense;
pub use unit::{Done, Kind, ScsiUnit, ScsiUnitError, ScsiUnitSpec};
