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
//! Read next: [`contents`], [`written`] (files that the guest writes).

pub mod contents;
pub mod written;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend};

pub use contents::{FwCfgError, FwCfgFile, FwCfgKernel, FwCfgLive, FwCfgSpec};

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::memory::{GuestMem, GuestMemView};
use crate::state::{SavedState, StateError, Stateful};
use contents::{Contents, Item};

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

/// How much of a transfer is copied at once.
const PIECE: usize = 4096;

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
    /// Only changed while the machine does not run.
    contents: RwLock<Contents>,
    memory: GuestMem,
    /// Guest memory is touched with it, and live items are read, which never call back.
    state: Mutex<FwCfgState>,
}

impl FwCfg {
    /// A store of what `spec` says, with transfers to `memory`.
    ///
    /// # Errors
    /// A file cannot be in the directory.
    pub fn new(spec: FwCfgSpec, memory: GuestMem) -> Result<Self, FwCfgError> {
        Ok(Self {
            contents: RwLock::new(Contents::new(spec)?),
            memory,
            state: Mutex::default(),
        })
    }

    /// Adds a file; before the machine starts, as the guest reads the directory once.
    ///
    /// # Errors
    /// It cannot be in the directory.
    pub fn add_file(&self, name: &str, live: Arc<dyn FwCfgLive>) -> Result<(), FwCfgError> {
        let mut contents = self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        contents.add(name, live)
    }

    /// Has a file be of these bytes; while no guest reads: before the machine starts, or at its
    /// reset.
    ///
    /// # Errors
    /// It cannot be in the directory.
    pub fn set_file(&self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        let mut contents = self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        contents.set(name, bytes)
    }

    /// Tells of so many vCPUs from now on; at a reset, when firmware asks how many it wakes.
    pub fn set_cpus(&self, cpus: u16) {
        let contents = self.contents.write();
        let mut contents = contents.unwrap_or_else(PoisonError::into_inner);
        contents.set_cpus(cpus);
    }

    /// Does something with what the state's key selects.
    fn with_item<T>(&self, act: impl FnOnce(&mut FwCfgState, &Contents) -> T) -> T {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        act(&mut self.lock(), &contents)
    }

    fn lock(&self) -> MutexGuard<'_, FwCfgState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_byte(&self) -> u8 {
        self.with_item(|state, contents| {
            let mut byte = [0];
            if let Some(item) = contents.item(state.key) {
                item.read(state.offset, &mut byte);
            }
            state.offset = state.offset.saturating_add(1);
            let [byte] = byte;
            byte
        })
    }

    /// Does what the description at `address` says, and tells there how it went.
    fn transfer(&self, address: u64) {
        let memory = self.memory.memory();
        let mut raw = [0; TRANSFER];
        let place = GuestAddress(address);
        let control = match memory.read_slice(&mut raw, place) {
            Ok(()) => {
                let done =
                    self.with_item(|state, contents| state.carry_out(&raw, contents, &memory));
                if done.is_some() { 0 } else { ERROR }
            }
            Err(_) => ERROR,
        };
        // Where this cannot be told, there is nobody who could be told.
        let _ = memory.write_slice(&control.to_be_bytes(), place);
    }
}

impl FwCfgState {
    fn select(&mut self, key: u16, contents: &Contents) {
        self.key = key;
        self.offset = 0;
        if let Some(item) = contents.item(key) {
            item.select();
        }
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
        let address = u64::from_be_bytes(*raw.get(8..)?.first_chunk()?);
        if control & SELECT != 0 {
            let [high, low, ..] = control.to_be_bytes();
            self.select(u16::from_be_bytes([high, low]), contents);
        }
        let item = contents.item(self.key);
        let range = (self.offset, length, address);
        if control & READ != 0 {
            copy_out(item, range, memory)?;
        } else if control & WRITE != 0 && length > 0 {
            copy_in(item?, range, memory)?;
        }
        if control & (READ | WRITE | SKIP) != 0 {
            self.offset = self.offset.saturating_add(length);
        }
        Some(())
    }
}

/// Pieces of a transfer: where each is in the item, in guest memory, and how long it is.
fn pieces(
    (offset, length, address): (u32, u32, u64),
    memory: &GuestMemView,
) -> Option<impl Iterator<Item = (u32, GuestAddress, usize)>> {
    let whole = usize::try_from(length).ok()?;
    let fits = whole == 0 || memory.check_range(GuestAddress(address), whole);
    let count = whole.div_ceil(PIECE);
    fits.then(|| {
        (0..count).map(move |index| {
            let done = index * PIECE;
            let at = u32::try_from(done).unwrap_or(u32::MAX);
            let place = GuestAddress(address + done as u64);
            (offset.saturating_add(at), place, (whole - done).min(PIECE))
        })
    })
}

/// Writes a part of an item to the guest, and zeroes behind its end.
fn copy_out(item: Option<&Item>, range: (u32, u32, u64), memory: &GuestMemView) -> Option<()> {
    let mut buffer = [0; PIECE];
    for (offset, place, len) in pieces(range, memory)? {
        let piece = buffer.get_mut(..len)?;
        match item {
            Some(item) => item.read(offset, piece),
            None => piece.fill(0),
        }
        memory.write_slice(piece, place).ok()?;
    }
    Some(())
}

/// Takes a part of an item from the guest.
fn copy_in(item: &Item, range: (u32, u32, u64), memory: &GuestMemView) -> Option<()> {
    let mut buffer = [0; PIECE];
    for (offset, place, len) in pieces(range, memory)? {
        let piece = buffer.get_mut(..len)?;
        memory.read_slice(piece, place).ok()?;
        item.write(offset, piece).then_some(())?;
    }
    Some(())
}

impl Stateful for FwCfg {
    type State = FwCfgState;

    fn save(&self) -> FwCfgState {
        *self.lock()
    }

    fn load(&self, state: FwCfgState) -> Result<(), StateError> {
        *self.lock() = state;
        Ok(())
    }
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
            (SELECTOR, &[low, high]) => {
                let key = u16::from_le_bytes([low, high]);
                self.with_item(|state, contents| state.select(key, contents));
            }
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
