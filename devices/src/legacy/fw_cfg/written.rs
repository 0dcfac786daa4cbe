//! A file of fw_cfg that the guest writes: some bytes that stay until the machine's next reset.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The bytes.
#[derive(Debug)]
pub struct Written<const LEN: usize>(Mutex<[u8; LEN]>);

impl<const LEN: usize> Written<LEN> {
    /// A file of `bytes`.
    #[must_use]
    pub const fn new(bytes: [u8; LEN]) -> Self {
        Self(Mutex::new(bytes))
    }

    /// How long it is, as fw_cfg tells it.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(LEN).unwrap_or(u32::MAX)
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        LEN == 0
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> [u8; LEN] {
        *self.lock()
    }

    /// Puts these in the place of all.
    pub fn set(&self, bytes: [u8; LEN]) {
        *self.lock() = bytes;
    }

    /// Fills `data` from `offset` as far as there are bytes.
    pub fn read(&self, offset: u32, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(LEN);
        for (to, from) in data.iter_mut().zip(self.bytes().iter().skip(from)) {
            *to = *from;
        }
    }

    /// The guest writes `data` at `offset`; what would be behind the end is lost.
    pub fn write(&self, offset: u32, data: &[u8]) {
        let from = usize::try_from(offset).unwrap_or(LEN);
        for (to, from) in self.lock().iter_mut().skip(from).zip(data) {
            *to = *from;
        }
    }

    fn lock(&self) -> MutexGuard<'_, [u8; LEN]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
