//! Packets that wait, in memory of a fixed size. Pure.
//!
//! ```text
//!   │ ... │ packet │ packet │ packet │ free ... │     lengths: [n, n, n]
//!         start                      end
//! ```

use std::collections::VecDeque;

use crate::net::LONGEST;
use crate::net::packet::Packet;

/// How many packets wait, at most.
const MOST: usize = 256;
/// How many bytes, with headers: some of the longest packets.
const BYTES: usize = 4 * LONGEST;

/// Packets with their headers, the oldest first.
#[derive(Debug)]
pub struct Store {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    lengths: VecDeque<usize>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            bytes: vec![0; BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            lengths: VecDeque::with_capacity(MOST),
        }
    }
}

impl Store {
    /// Whether there is room for any packet.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let used = self.end - self.start;
        self.lengths.len() < MOST && self.bytes.len() - used >= LONGEST
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Keeps a packet; whether there was room. One that is longer than any loses its end.
    pub fn put(&mut self, packet: &Packet<'_>) -> bool {
        if !self.has_room() {
            return false;
        }
        if self.bytes.len() - self.end < LONGEST {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.end..self.end + LONGEST;
        let count = packet.copy(0, self.bytes.get_mut(room).unwrap_or_default());
        self.end += count;
        self.lengths.push_back(count);
        true
    }

    /// The oldest packet.
    #[must_use]
    pub fn first(&self) -> Option<&[u8]> {
        let length = self.lengths.front()?;
        self.bytes.get(self.start..self.start + length)
    }

    /// Drops the oldest packet.
    pub fn pop(&mut self) {
        self.start += self.lengths.pop_front().unwrap_or(0);
        if self.lengths.is_empty() {
            self.clear();
        }
    }

    /// Moves the oldest packet into `buffer`; its length. One that has no room there is dropped.
    pub fn take(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let packet = self.first()?;
            let count = packet.len();
            let fits = buffer.get_mut(..count).map(|to| to.copy_from_slice(packet));
            self.pop();
            if fits.is_some() {
                return Some(count);
            }
        }
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.lengths.clear();
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::net::packet::Whole;

    proptest! {
        /// Whatever is put in and taken out, packets come out as they went in, and in their order.
        #[test]
        fn packets_come_out_in_their_order(
            steps in prop::collection::vec((any::<bool>(), 1..LONGEST), 1..80),
        ) {
            let (mut store, mut model) = (Store::default(), VecDeque::new());
            let mut buffer = vec![0; LONGEST];
            for (number, (puts, length)) in steps.into_iter().enumerate() {
                if puts {
                    let packet = vec![u8::try_from(number).unwrap(); length];
                    let has_room = store.has_room();
                    prop_assert_eq!(store.put(&Whole::new(&packet).packet()), has_room);
                    if has_room {
                        model.push_back(packet);
                    }
                } else {
                    let taken = store.take(&mut buffer).map(|count| buffer[..count].to_vec());
                    prop_assert_eq!(taken, model.pop_front());
                }
                prop_assert_eq!(store.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let mut store = Store::default();
        let put = |store: &mut Store, length| store.put(&Whole::new(&vec![1; length]).packet());
        assert_eq!((0..1000).filter(|_| put(&mut store, 1)).count(), MOST);
        store.clear();
        assert_eq!((0..1000).filter(|_| put(&mut store, LONGEST)).count(), 4);
        store.clear();
        assert!(put(&mut store, LONGEST + 1));
        assert_eq!(store.first().map(<[u8]>::len), Some(LONGEST));
    }
}
