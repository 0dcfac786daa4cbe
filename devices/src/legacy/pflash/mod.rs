//! Parallel flash: memory that a guest reads like ROM and changes by commands (JEDEC JESD68, the
//! Common Flash Interface, with Intel's command set). Firmware keeps its variables in one.
//!
//! ```text
//!             0x70, 0x90, 0x98, 0x10, 0x20, 0xe8
//!   Array ───────────────────────────────────────► Status, Id, Query, Program, Erase, Buffer..
//!     ▲  read as memory, no exits                    │ every access is an exit
//!     └──────────────── 0xff, 0x50 ◄─────────────────┘
//! ```
//!
//! What was programmed is handed to the storage before the guest can see that it is done: before
//! any read, and before the array is shown again. Many bytes in a row are handed over at once. The
//! guest never waits for storage: what is under way is waited for when the machine pauses.
//!
//! The chip must never know KVM or block nodes: both are behind [`FlashArray`].
//!
//! Read next: [`store`] (the way to a block node), `query` (what a driver can ask).

mod query;
pub mod store;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::state::{SavedState, StateError, Stateful};

/// Bytes of a block: what is erased at once.
pub const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;
/// The most bytes of one buffered write.
const BUFFER: u16 = 256;
/// What an erased byte is.
const ERASED: u8 = 0xff;

/// Bits of the status register.
const READY: u8 = 1 << 7;
const ERASE_FAILED: u8 = 1 << 5;
const PROGRAM_FAILED: u8 = 1 << 4;

/// The memory of a flash chip, and what is behind it.
pub trait FlashArray: Send + Sync {
    /// Bytes.
    fn len(&self) -> u64;

    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the guest may change it.
    fn is_writable(&self) -> bool;

    /// Fills `data` from `offset`; what lies beyond the end reads as erased.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Changes bytes in memory; what lies beyond the end is lost.
    fn program(&self, offset: u64, data: &[u8]);

    /// Begins to store a range where it outlives the machine, after all that was stored before.
    fn store(&self, range: Range<u64>);

    /// Whether something could not be stored, since this was asked last.
    fn take_failure(&self) -> bool;

    /// Waits until all is stored.
    fn settle(&self);

    /// Has the guest read the array as memory, or each access come to the device.
    fn show(&self, as_memory: bool);
}

/// What the chip does with the next access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    #[default]
    Array,
    Status,
    Id,
    Query,
    /// The next write is a byte to program.
    Program,
    /// The next write confirms the erasing of its block.
    Erase,
    /// The next write says how many bytes come, less one.
    BufferCount,
    /// That many bytes are still to come.
    Buffer(u16),
    /// The next write confirms them.
    BufferEnd,
    /// The next write locks or unlocks; there are no locks.
    Lock,
}

/// What a snapshot keeps, beside the array.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PflashState {
    mode: Mode,
    status: u8,
    /// Programmed and not handed to the storage yet.
    unstored: Option<Range<u64>>,
}

impl SavedState for PflashState {
    const KIND: &'static str = "pflash";
    const VERSION: u32 = 1;
}

/// A flash chip.
pub struct Pflash<A> {
    array: A,
    /// Held over a whole access, so that accesses of several vCPUs do not mix; the array never
    /// calls back.
    state: Mutex<PflashState>,
}

impl<A: FlashArray> Pflash<A> {
    /// A chip that shows its array.
    pub fn new(array: A) -> Self {
        array.show(true);
        Self {
            array,
            state: Mutex::default(),
        }
    }

    /// The array.
    pub const fn array(&self) -> &A {
        &self.array
    }

    fn lock(&self) -> MutexGuard<'_, PflashState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands what was programmed to the storage.
    fn hand_over(&self, state: &mut PflashState) {
        if let Some(range) = state.unstored.take() {
            self.array.store(range);
        }
        if self.array.take_failure() {
            state.status |= PROGRAM_FAILED;
        }
    }

    fn enter(&self, state: &mut PflashState, mode: Mode) {
        let shown = state.mode == Mode::Array;
        state.mode = mode;
        if mode == Mode::Array {
            self.hand_over(state);
        }
        if shown != (mode == Mode::Array) {
            self.array.show(mode == Mode::Array);
        }
    }

    fn program(&self, state: &mut PflashState, offset: u64, data: &[u8]) {
        if !self.array.is_writable() {
            state.status |= PROGRAM_FAILED;
            return;
        }
        self.array.program(offset, data);
        let end = offset.saturating_add(data.len() as u64);
        state.unstored = match state.unstored.take() {
            Some(before) if offset <= before.end && before.start <= end => {
                Some(before.start.min(offset)..before.end.max(end))
            }
            before => {
                state.unstored = before;
                self.hand_over(state);
                Some(offset..end)
            }
        };
    }

    fn erase(&self, state: &mut PflashState, offset: u64) {
        if !self.array.is_writable() {
            state.status |= ERASE_FAILED;
            return;
        }
        let start = offset - offset % BLOCK;
        self.program(state, start, &[ERASED; BLOCK_LEN]);
    }

    /// Takes the first write of a command.
    fn command(&self, state: &mut PflashState, command: u8) {
        let mode = match command {
            0x10 | 0x40 => Mode::Program,
            0x20 => Mode::Erase,
            0x60 => Mode::Lock,
            0x70 => Mode::Status,
            0x90 => Mode::Id,
            0x98 => Mode::Query,
            0xe8 => {
                state.status |= READY;
                Mode::BufferCount
            }
            0x50 => {
                self.hand_over(state);
                state.status = 0;
                Mode::Array
            }
            // 0xff, and whatever is no command.
            _ => Mode::Array,
        };
        self.enter(state, mode);
    }

    /// Ends a command: its success or failure can be read.
    fn done(&self, state: &mut PflashState) {
        state.status |= READY;
        self.enter(state, Mode::Status);
    }
}

impl<A: FlashArray> Stateful for Pflash<A> {
    type State = PflashState;

    fn save(&self) -> PflashState {
        self.lock().clone()
    }

    fn load(&self, state: PflashState) -> Result<(), StateError> {
        let len = self.array.len();
        if let Some(range) = &state.unstored
            && (range.start > range.end || range.end > len)
        {
            return Err(PflashState::refused(format!(
                "unstored: {range:?}, and the array has {len} bytes"
            )));
        }
        let mut own = self.lock();
        *own = state;
        self.array.show(own.mode == Mode::Array);
        Ok(())
    }
}

impl<A: FlashArray> BusDevice for Pflash<A> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        self.hand_over(&mut state);
        match state.mode {
            Mode::Array => self.array.read(offset, data),
            Mode::Id => {
                for (byte, at) in data.iter_mut().zip(offset..) {
                    *byte = query::id(at);
                }
            }
            Mode::Query => {
                for (byte, at) in data.iter_mut().zip(offset..) {
                    *byte = query::byte(self.array.len(), at);
                }
            }
            _ => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = state.status;
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&first) = data.first() else { return };
        let mut state = self.lock();
        match state.mode {
            Mode::Array | Mode::Status | Mode::Id | Mode::Query => {
                self.command(&mut state, first);
            }
            Mode::Program => {
                self.program(&mut state, offset, data);
                self.done(&mut state);
            }
            Mode::Erase if first == 0xd0 => {
                self.erase(&mut state, offset);
                self.done(&mut state);
            }
            Mode::Lock if matches!(first, 0x01 | 0xd0) => self.done(&mut state),
            Mode::BufferCount => {
                let count = u16::from(first) + 1;
                self.enter(&mut state, Mode::Buffer(count.min(BUFFER)));
            }
            Mode::Buffer(left) => {
                self.program(&mut state, offset, data);
                let done = u16::try_from(data.len()).unwrap_or(u16::MAX);
                let mode = match left.saturating_sub(done) {
                    0 => Mode::BufferEnd,
                    left => Mode::Buffer(left),
                };
                self.enter(&mut state, mode);
            }
            Mode::BufferEnd if first == 0xd0 => self.done(&mut state),
            Mode::Erase | Mode::Lock | Mode::BufferEnd => self.enter(&mut state, Mode::Array),
        }
    }
}

impl<A: FlashArray> Lifecycle for Pflash<A> {
    fn pause(&self) {
        self.hand_over(&mut self.lock());
        self.array.settle();
    }

    fn reset(&self) {
        let mut state = self.lock();
        self.enter(&mut state, Mode::Array);
        state.status = 0;
    }
}

#[cfg(test)]
mod tests;
