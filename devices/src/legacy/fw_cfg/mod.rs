//! fw_cfg: a small store of named files that the host hands to the guest, with a few numbers about
//! the machine (QEMU's `docs/specs/fw_cfg`). Guests that do not ask pay nothing for it.
//!
//! This room knows keys and bytes. It must never know where a file came from or what is in it.
//!
//! ```text
//!   0x510 word, write  ─► the key, little-endian ─┐
//!   0x511 byte, read   ◄── its next byte ◄────────┼── Contents (contents.rs): key ─► bytes
//!   0x514 DMA address, ─► { control, length, address } in guest memory
//!         big-endian         └─ select, read, skip ──► the bytes, to guest memory
//! ```
//!
//! An item that ends, or is not there, goes on as zeroes. A guest may hand over any address and
//! any length: a transfer that RAM has no place for is answered with the error bit.
//!
//! Read next: [`contents`].

pub mod contents;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

pub use contents::{FwCfgError, FwCfgFile, FwCfgSpec};

use crate::bus::BusDevice;
use crate::lifecycle::{Lifecycle, SavedState};
use crate::memory::{GuestMem, GuestMemView};
use contents::Contents;

/// Where the ports are.
pub const BASE: u64 = 0x510;
/// How many.
pub const LEN: u64 = 12;

/// Offsets of the ports.
const SELECTOR: u64 = 0;
const LAST_OF_DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;

/// What the DMA port reads as: it is there.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Bits of a transfer's control word; its upper half is a key.
const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;
/// The length of what describes a transfer.
const TRANSFER: usize = 16;

static ZEROES: [u8; 4096] = [0; 4096];

/// What a snapshot keeps: what a guest has begun to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    key: u16,
    /// How far the item has been read, in bytes.
    offset: u32,
    /// The upper half of a transfer's address, while the lower has not come.
    dma_high: u32,
}

impl SavedState for FwCfgState {
    const KIND: &'static str = "fw-cfg";
    const VERSION: u32 = 1;
}

/// The device.
pub struct FwCfg {
    contents: Contents,
    memory: GuestMem,
    /// Leaf lock: only guest memory is touched with it.
    state: Mutex<FwCfgState>,
}

impl FwCfg {
    /// A store of what `spec` says, with transfers to `memory`.
    ///
    /// # Errors
    /// A file cannot be in the directory.
    pub fn new(spec: FwCfgSpec, memory: GuestMem) -> Result<Self, FwCfgError> {
        Ok(Self {
            contents: Contents::new(spec)?,
            memory,
            state: Mutex::default(),
        })
    }

    /// What a snapshot keeps.
    #[must_use]
    pub fn save(&self) -> FwCfgState {
        *self.lock()
    }

    /// Goes on from a snapshot.
    pub fn load(&self, saved: FwCfgState) {
        *self.lock() = saved;
    }

    fn lock(&self) -> MutexGuard<'_, FwCfgState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_byte(&self) -> u8 {
        let mut state = self.lock();
        let rest = state.rest(&self.contents);
        let byte = rest.first().copied();
        state.offset = state.offset.saturating_add(u32::from(byte.is_some()));
        byte.unwrap_or(0)
    }

    /// Does what the description at `address` says, and tells there how it went.
    fn transfer(&self, address: u64) {
        let memory = self.memory.memory();
        let mut raw = [0; TRANSFER];
        let place = GuestAddress(address);
        let control = match memory.read_slice(&mut raw, place) {
            Ok(()) => {
                let done = self.lock().carry_out(&raw, &self.contents, &memory);
                if done.is_some() { 0 } else { ERROR }
            }
            Err(_) => ERROR,
        };
        // Where this cannot be told, there is nobody who could be told.
        let _ = memory.write_slice(&control.to_be_bytes(), place);
    }
}

impl FwCfgState {
    const fn select(&mut self, key: u16) {
        self.key = key;
        self.offset = 0;
    }

    /// What of the item has not been read.
    fn rest<'a>(&self, contents: &'a Contents) -> &'a [u8] {
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        contents.item(self.key).get(offset..).unwrap_or_default()
    }

    /// `None` if it cannot be.
    fn carry_out(
        &mut self,
        raw: &[u8; TRANSFER],
        contents: &Contents,
        memory: &GuestMemView,
    ) -> Option<()> {
        let control = u32::from_be_bytes(*raw.first_chunk()?);
        let length = u32::from_be_bytes(*raw.get(4..)?.first_chunk()?);
        let to = u64::from_be_bytes(*raw.get(8..)?.first_chunk()?);
        if control & SELECT != 0 {
            let [high, low, ..] = control.to_be_bytes();
            self.select(u16::from_be_bytes([high, low]));
        }
        if control & READ != 0 {
            copy(self.rest(contents), length, memory, to)?;
        } else if control & WRITE != 0 && length > 0 {
            // All items are the host's to write.
            return None;
        }
        if control & (READ | SKIP) != 0 {
            self.offset = self.offset.saturating_add(length);
        }
        Some(())
    }
}

/// Writes `length` bytes to the guest: `bytes`, and zeroes behind them.
fn copy(bytes: &[u8], length: u32, memory: &GuestMemView, to: u64) -> Option<()> {
    let length = usize::try_from(length).ok()?;
    if length == 0 {
        return Some(());
    }
    if !memory.check_range(GuestAddress(to), length) {
        return None;
    }
    let (bytes, _) = bytes.split_at(bytes.len().min(length));
    memory.write_slice(bytes, GuestAddress(to)).ok()?;
    let mut done = bytes.len();
    while done < length {
        let (piece, _) = ZEROES.split_at(ZEROES.len().min(length - done));
        let at = to.checked_add(done as u64)?;
        memory.write_slice(piece, GuestAddress(at)).ok()?;
        done += piece.len();
    }
    Some(())
}

impl Lifecycle for FwCfg {
    fn reset(&self) {
        *self.lock() = FwCfgState::default();
    }
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (SELECTOR..=LAST_OF_DATA, [byte]) => *byte = self.next_byte(),
            (DMA_HIGH.., data) => {
                let at = usize::try_from(offset - DMA_HIGH).unwrap_or(usize::MAX);
                for (byte, at) in data.iter_mut().zip(at..) {
                    *byte = DMA_SIGNATURE.get(at).copied().unwrap_or(0);
                }
            }
            (_, data) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECTOR, &[low, high]) => self.lock().select(u16::from_le_bytes([low, high])),
            (DMA_HIGH, &[a, b, c, d]) => self.lock().dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.lock().dma_high);
                let low = u32::from_be_bytes([a, b, c, d]);
                self.transfer(u64::from(high) << 32 | u64::from(low));
            }
            // Writes to the data port have no effect, and no other access is one.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
