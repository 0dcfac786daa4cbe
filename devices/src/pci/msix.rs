//! MSI-X (PCI Local Bus 3.0, 6.8.2): a table of messages that the guest programs, a mask for each
//! vector and one for all, and pending bits for what happened behind a mask.
//!
//! ```text
//!   device: trigger(n) ── open? ──► MsiVector::trigger
//!                      └─ masked ─► pending bit ── unmasked ──► MsiVector::trigger
//!   guest: table, control ──► open/masked of each vector ──► MsiVector::route
//! ```

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;
use super::regs;
use crate::bus::BusDevice;
use crate::irq::{IrqError, MsiController, MsiMessage, MsiVector};
use crate::repeats::Repeats;
use crate::state::{SavedState, StateError, Stateful};

/// The most vectors a function can have.
pub const MAX_VECTORS: u16 = 2048;

const ENTRY: u64 = 16;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The table and the pending bits are on pages of their own.
const PAGE: u64 = 4096;

/// Four dwords: address, address high, data, control (bit 0: masked).
type Entry = [u32; 4];

struct Vector {
    interrupt: Box<dyn MsiVector>,
    /// Enabled, and masked neither by itself nor with all.
    open: AtomicBool,
    pending: AtomicBool,
}

/// One vector of a table, and what a snapshot keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// Where the message goes.
    pub address: u64,
    /// What it is.
    pub data: u32,
    /// Whether the guest has masked it.
    pub masked: bool,
    /// Whether it was raised behind a mask.
    pub pending: bool,
}

/// What a snapshot keeps of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Whether the guest uses it.
    pub enabled: bool,
    /// Whether all vectors are masked.
    pub masked: bool,
    /// The vectors.
    pub vectors: Vec<VectorState>,
}

impl SavedState for MsixState {
    const KIND: &'static str = "msix";
    const VERSION: u32 = 1;
}

struct Table {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

/// The vectors of one function; as a [`BusDevice`], the BAR with table and pending bits.
pub struct Msix {
    vectors: Vec<Vector>,
    table: Mutex<Table>,
    /// The table's `enabled`, for a look without its lock at each interrupt.
    enabled: AtomicBool,
    /// Makes "see what the table says, then route" one step. Held while calling
    /// [`MsiVector::route`], which never calls back.
    routing: Mutex<()>,
    /// Messages that KVM did not take: the guest may write them for ever.
    unrouted: Repeats,
}

impl Msix {
    /// `count` masked vectors (1 to [`MAX_VECTORS`]).
    ///
    /// # Errors
    /// The controller has not that many left.
    pub fn new(controller: &dyn MsiController, count: u16) -> Result<Arc<Self>, IrqError> {
        let count = usize::from(count.clamp(1, MAX_VECTORS));
        let mut vectors = Vec::with_capacity(count);
        for _ in 0..count {
            vectors.push(Vector {
                interrupt: controller.vector()?,
                open: AtomicBool::new(false),
                pending: AtomicBool::new(false),
            });
        }
        Ok(Arc::new(Self {
            vectors,
            table: Mutex::new(Table::new(count)),
            enabled: AtomicBool::new(false),
            routing: Mutex::new(()),
            unrouted: Repeats::default(),
        }))
    }

    /// How many vectors there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }

    /// Where in the BAR the pending bits start.
    #[must_use]
    pub fn pending_offset(&self) -> u64 {
        (u64::from(self.count()) * ENTRY).next_multiple_of(PAGE)
    }

    /// How large the BAR has to be.
    #[must_use]
    pub fn bar_size(&self) -> u64 {
        self.pending_offset() + PAGE
    }

    /// Adds the capability for a table in BAR `bar`; `None` without room. The function passes
    /// every later write of the control register to [`set_control`](Self::set_control).
    pub fn add(&self, config: &mut ConfigSpace, bar: u8) -> Option<u16> {
        let size = (self.count() - 1).to_le_bytes();
        let table = u32::from(bar & 7).to_le_bytes();
        let pending = u32::try_from(self.pending_offset()).ok()? | u32::from(bar & 7);
        let mut body = [0; 10];
        let parts: [&[u8]; 3] = [&size, &table, &pending.to_le_bytes()];
        for (to, &from) in body.iter_mut().zip(parts.into_iter().flatten()) {
            *to = from;
        }
        let control = (ENABLE | FUNCTION_MASK).to_le_bytes();
        config.add_capability(regs::CAP_MSIX, &body, &control)
    }

    /// The guest has written the capability's control register (offset 2 in it).
    pub fn set_control(&self, control: u16) {
        {
            let mut table = self.lock();
            let enabled = control & ENABLE != 0;
            let masked = control & FUNCTION_MASK != 0;
            if (table.enabled, table.masked) == (enabled, masked) {
                return;
            }
            (table.enabled, table.masked) = (enabled, masked);
            self.enabled.store(enabled, Ordering::SeqCst);
        }
        for index in 0..self.vectors.len() {
            self.settle_vector(index);
        }
    }

    /// Whether the guest has enabled MSI-X (else the function uses INTx).
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::SeqCst)
    }

    /// Raises vector `index`, or remembers it while masked. Vectors that do not exist are ignored.
    pub fn trigger(&self, index: u16) {
        let Some(vector) = self.vectors.get(usize::from(index)) else {
            return;
        };
        if !vector.open.load(Ordering::SeqCst) {
            vector.pending.store(true, Ordering::SeqCst);
            // Opened in between: whoever takes the pending bit triggers.
            if !vector.open.load(Ordering::SeqCst) || !vector.pending.swap(false, Ordering::SeqCst)
            {
                return;
            }
        }
        vector.interrupt.trigger();
    }

    /// The eventfd of vector `index`. What is written to it while the vector is masked is delivered
    /// when it is unmasked; the pending bit does not show it.
    #[must_use]
    pub fn eventfd(&self, index: u16) -> Option<BorrowedFd<'_>> {
        self.vectors.get(usize::from(index))?.interrupt.eventfd()
    }

    /// Everything masked and disabled, nothing pending.
    pub fn reset(&self) {
        {
            let mut table = self.lock();
            *table = Table::new(self.vectors.len());
            self.enabled.store(false, Ordering::SeqCst);
        }
        for (index, vector) in self.vectors.iter().enumerate() {
            vector.pending.store(false, Ordering::SeqCst);
            self.settle_vector(index);
        }
    }

    /// Brings one vector in line with the table.
    fn settle_vector(&self, index: usize) {
        let Some(vector) = self.vectors.get(index) else {
            return;
        };
        let _routing = self.routing.lock().unwrap_or_else(PoisonError::into_inner);
        let message = self.lock().message(index);
        let was_open = vector.open.load(Ordering::SeqCst);
        if message.is_none() {
            vector.open.store(false, Ordering::SeqCst);
            if !was_open {
                return;
            }
        }
        if let Err(error) = vector.interrupt.route(message) {
            if let Some(times) = self.unrouted.note() {
                tracing::warn!(vector = index, times, %error, "MSI-X vector stays masked");
            }
            return;
        }
        if message.is_some() {
            vector.open.store(true, Ordering::SeqCst);
            if vector.pending.swap(false, Ordering::SeqCst) {
                vector.interrupt.trigger();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The byte of the pending bits at `offset` in their array.
    fn pending_byte(&self, offset: u64) -> u8 {
        let Some(first) = usize::try_from(offset)
            .ok()
            .and_then(|at| at.checked_mul(8))
        else {
            return 0;
        };
        (0..8).fold(0, |byte, bit| {
            let pending = self
                .vectors
                .get(first.saturating_add(bit))
                .is_some_and(|vector| vector.pending.load(Ordering::SeqCst));
            byte | u8::from(pending) << bit
        })
    }
}

impl Table {
    fn new(count: usize) -> Self {
        Self {
            entries: vec![[0, 0, 0, 1]; count],
            enabled: false,
            masked: false,
        }
    }

    fn message(&self, index: usize) -> Option<MsiMessage> {
        let &[low, high, data, control] = self.entries.get(index)?;
        (self.enabled && !self.masked && control & 1 == 0).then(|| MsiMessage {
            address: u64::from(high) << 32 | u64::from(low & !0b11),
            data,
        })
    }
}

impl Stateful for Msix {
    type State = MsixState;

    fn save(&self) -> MsixState {
        let table = self.lock();
        let vector = |(&[low, high, data, control], vector): (&Entry, &Vector)| VectorState {
            address: u64::from(high) << 32 | u64::from(low),
            data,
            masked: control & 1 != 0,
            pending: vector.pending.load(Ordering::SeqCst),
        };
        MsixState {
            enabled: table.enabled,
            masked: table.masked,
            vectors: table
                .entries
                .iter()
                .zip(&self.vectors)
                .map(vector)
                .collect(),
        }
    }

    fn load(&self, state: MsixState) -> Result<(), StateError> {
        let (here, there) = (self.vectors.len(), state.vectors.len());
        if here != there {
            return Err(MsixState::refused(format!(
                "vectors: {there}, and this function has {here} (vectors=)"
            )));
        }
        {
            let mut table = self.lock();
            for (entry, saved) in table.entries.iter_mut().zip(&state.vectors) {
                *entry = saved.entry();
            }
            (table.enabled, table.masked) = (state.enabled, state.masked);
            self.enabled.store(state.enabled, Ordering::SeqCst);
        }
        for (index, (vector, saved)) in self.vectors.iter().zip(&state.vectors).enumerate() {
            vector.pending.store(saved.pending, Ordering::SeqCst);
            self.settle_vector(index);
        }
        Ok(())
    }
}

impl VectorState {
    fn entry(&self) -> Entry {
        let [a, b, c, d, high @ ..] = self.address.to_le_bytes();
        let low = u32::from_le_bytes([a, b, c, d]);
        [
            low,
            u32::from_le_bytes(high),
            self.data,
            u32::from(self.masked),
        ]
    }
}

/// Which entry and which dword of it `offset` is in.
fn dword(offset: u64) -> Option<(usize, usize)> {
    let entry = usize::try_from(offset / ENTRY).ok()?;
    let dword = usize::try_from(offset % ENTRY / 4).ok()?;
    Some((entry, dword))
}

impl BusDevice for Msix {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(self.pending_offset()) {
            for (index, byte) in (at..).zip(data) {
                *byte = self.pending_byte(index);
            }
            return;
        }
        let table = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let Some((entry, part)) = dword(at) else {
                return;
            };
            let Some(value) = table.entries.get(entry).and_then(|entry| entry.get(part)) else {
                return;
            };
            let [a, b, c, d] = value.to_le_bytes();
            *byte = match at % 4 {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            };
        }
    }

    /// Only aligned dwords and pairs of them may be written (6.8.2); others are ignored.
    fn write(&self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        let Some((first, _)) = dword(offset) else {
            return;
        };
        {
            let mut table = self.lock();
            for (at, bytes) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
                let (Some((entry, part)), &[a, b, c, d]) = (dword(at), bytes) else {
                    return;
                };
                let Some(value) = table
                    .entries
                    .get_mut(entry)
                    .and_then(|entry| entry.get_mut(part))
                else {
                    return;
                };
                let written = u32::from_le_bytes([a, b, c, d]);
                *value = if part == 3 { written & 1 } else { written };
            }
        }
        self.settle_vector(first);
        // Eight bytes at an entry's last dword reach into the next.
        if let Some((last, _)) = dword(offset.saturating_add(4)).filter(|_| data.len() == 8)
            && last != first
        {
            self.settle_vector(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pci::mock::Controller;
    use crate::state::{AnyStateful, trial};

    fn msix(count: u16) -> (Arc<Controller>, Arc<Msix>) {
        let controller = Arc::new(Controller::default());
        let msix = Msix::new(controller.as_ref(), count).unwrap();
        (controller, msix)
    }

    fn program(msix: &Msix, vector: u64, masked: bool) {
        msix.write(vector * ENTRY, &0xfee0_1000_u64.to_le_bytes());
        msix.write(vector * ENTRY + 8, &0x31_u32.to_le_bytes());
        msix.write(vector * ENTRY + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(msix: &Msix) -> u8 {
        let mut byte = [0];
        msix.read(msix.pending_offset(), &mut byte);
        byte[0]
    }

    #[test]
    fn what_happens_behind_a_mask_is_pending_and_comes_with_the_unmasking() {
        let (controller, msix) = msix(2);
        program(&msix, 0, false);
        program(&msix, 1, true);
        msix.set_control(ENABLE);
        msix.trigger(0);
        msix.trigger(1);
        msix.trigger(1);
        assert_eq!((controller.triggered(0), controller.triggered(1)), (1, 0));
        assert_eq!(pending(&msix), 0b10);
        program(&msix, 1, false);
        assert_eq!(controller.triggered(1), 1);
        assert_eq!(pending(&msix), 0);
        let route = *controller.vector_log(1).route.lock().unwrap();
        let expected = MsiMessage {
            address: 0xfee0_1000,
            data: 0x31,
        };
        assert_eq!(route, Some(expected));
    }

    #[test]
    fn the_function_mask_holds_all_vectors() {
        let (controller, msix) = msix(1);
        program(&msix, 0, false);
        msix.set_control(ENABLE | FUNCTION_MASK);
        msix.trigger(0);
        assert_eq!((controller.triggered(0), pending(&msix)), (0, 1));
        msix.set_control(ENABLE);
        assert_eq!(controller.triggered(0), 1);
        msix.reset();
        assert!(!msix.enabled());
        assert!(controller.vector_log(0).route.lock().unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_access_breaks_the_table(
            accesses in prop::collection::vec(
                (0u64..0x3000, prop::collection::vec(any::<u8>(), 1..9), any::<u16>()), 0..40),
        ) {
            let (_, msix) = msix(5);
            for (offset, data, control) in accesses {
                msix.write(offset, &data);
                msix.set_control(control);
                msix.trigger(control % 8);
                let mut back = data;
                msix.read(offset, &mut back);
            }
        }
    }

    #[test]
    fn a_table_goes_on_where_a_snapshot_was_taken() {
        let (_, from) = msix(3);
        program(&from, 0, false);
        program(&from, 2, true);
        from.set_control(ENABLE);
        from.trigger(2);
        let (controller, to) = msix(3);
        trial::carry(&*from, &*to);
        assert_eq!((to.enabled(), pending(&to)), (true, 0b100));
        to.trigger(0);
        program(&to, 2, false);
        assert_eq!((controller.triggered(0), controller.triggered(2)), (1, 1));
        let tree = from.tree().unwrap();
        let refused = msix(2).1.restore(&tree).unwrap_err().to_string();
        assert_eq!(
            refused,
            "state 'msix': vectors: 3, and this function has 2 (vectors=)"
        );
        assert!(trial::offend(&*to, &tree, || to.trigger(1)) > 20);
    }
}
