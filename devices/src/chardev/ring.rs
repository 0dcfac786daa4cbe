//! The ring buffer behind a `ringbuf` chardev: keeps the newest bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps at most `size` bytes; the oldest give way.
#[derive(Debug)]
pub(super) struct Ring {
    size: usize,
    kept: Mutex<VecDeque<u8>>,
}

impl Ring {
    /// An empty ring of `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            kept: Mutex::new(VecDeque::with_capacity(size)),
        }
    }

    /// Adds `bytes`.
    pub(super) fn write(&self, bytes: &[u8]) {
        let newest = &bytes[bytes.len().saturating_sub(self.size)..];
        let mut kept = self.kept();
        let surplus = (kept.len() + newest.len()).saturating_sub(self.size);
        kept.drain(..surplus);
        kept.extend(newest);
    }

    /// Takes out at most `limit` bytes, oldest first.
    pub(super) fn read(&self, limit: usize) -> Vec<u8> {
        let mut kept = self.kept();
        let count = limit.min(kept.len());
        kept.drain(..count).collect()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_kept_and_read_once_oldest_first() {
        let ring = Ring::new(4);
        ring.write(b"ab");
        ring.write(b"cde");
        assert_eq!(ring.read(2), b"bc");
        ring.write(b"0123456789");
        assert_eq!(ring.read(10), b"6789");
        assert_eq!(ring.read(10), b"");
    }
}
