//! Packets on a stream: each after its length, a 32-bit number in network order. What QEMU, passt and
//! vde speak. Pure: no socket is known here.
//!
//! ```text
//!   │ len │ packet ... │ len │ packet ... │ le
//!    └────── Inbox::next ──┘                └─ Inbox::room: the rest is read behind it
//! ```

use super::packet::Packet;
use super::{HEADER, LONGEST};

/// Bytes of the length before a packet.
const LENGTH: usize = 4;
/// The longest packet on the stream: it has no virtio header.
const LONGEST_FRAME: usize = LONGEST - HEADER;
/// How many bytes are read ahead: the longest packet, or many short ones.
const AHEAD: usize = 2 * (LENGTH + LONGEST_FRAME);

/// A peer claims that a packet is longer than any can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub usize);

/// Bytes that were read and are not yet packets.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            bytes: vec![0; AHEAD].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Inbox {
    /// Where to read more to; never empty after [`next`](Self::next) had nothing.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were read.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.bytes.len());
    }

    /// Forgets what was read.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Puts the next whole packet behind a header of zeros into `buffer`; returns the length of both.
    ///
    /// # Errors
    /// A packet is too long: what follows cannot be told apart any more.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, TooLong> {
        loop {
            let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
            let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() else {
                return Ok(None);
            };
            let length = u32::from_be_bytes(*length) as usize;
            if length > LONGEST_FRAME {
                return Err(TooLong(length));
            }
            let Some(packet) = rest.get(..length) else {
                return Ok(None);
            };
            self.start += LENGTH + length;
            if let Some(whole) = buffer.get_mut(..HEADER + length).filter(|_| length > 0) {
                let (header, body) = whole.split_at_mut(HEADER);
                header.fill(0);
                body.copy_from_slice(packet);
                return Ok(Some(HEADER + length));
            }
        }
    }
}

/// Bytes that are to be sent.
#[derive(Debug)]
pub struct Outbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            bytes: vec![0; LENGTH + LONGEST_FRAME].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Outbox {
    /// What is still to be sent.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Forgets what is still to be sent.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Takes a packet, without its header; whether there was room behind what waits. When nothing
    /// does there is for every packet, or it is too long and is dropped.
    pub fn put(&mut self, packet: &Packet<'_>) -> bool {
        if self.waiting().is_empty() {
            self.clear();
        }
        let length = packet.len().saturating_sub(HEADER);
        let end = self.end.saturating_add(LENGTH).saturating_add(length);
        let (Ok(number), Some(whole)) = (u32::try_from(length), self.bytes.get_mut(self.end..end))
        else {
            return self.end == 0;
        };
        let (head, body) = whole.split_at_mut(LENGTH);
        head.copy_from_slice(&number.to_be_bytes());
        packet.copy(HEADER, body);
        self.end = end;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::Pieces;
    use super::*;

    proptest! {
        /// However the stream is cut, the same packets come out.
        #[test]
        fn what_is_put_in_comes_out_whatever_the_cuts(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..20),
            cuts in prop::collection::vec(1_usize..500, 1..50),
        ) {
            let mut stream = Vec::new();
            let mut outbox = Outbox::default();
            for packet in &packets {
                let whole = [&[7; HEADER], packet.as_slice()].concat();
                outbox.put(&Pieces::default().of(&whole));
                stream.extend_from_slice(outbox.waiting());
                outbox.sent(usize::MAX);
            }
            let (mut inbox, mut came) = (Inbox::default(), Vec::new());
            let mut buffer = vec![1; LONGEST];
            let mut left = stream.as_slice();
            for cut in cuts.into_iter().cycle() {
                if left.is_empty() {
                    break;
                }
                let (now, later) = left.split_at(cut.min(left.len()));
                let room = inbox.room();
                room[..now.len()].copy_from_slice(now);
                inbox.filled(now.len());
                while let Some(count) = inbox.next(&mut buffer).unwrap() {
                    prop_assert_eq!(&buffer[..HEADER], &[0; HEADER]);
                    came.push(buffer[HEADER..count].to_vec());
                }
                left = later;
            }
            prop_assert_eq!(came, packets);
        }

        /// No stream breaks the reader, and there is always room after it had nothing.
        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut inbox = Inbox::default();
            inbox.room()[..bytes.len()].copy_from_slice(&bytes);
            inbox.filled(bytes.len());
            let mut buffer = vec![0; LONGEST];
            while let Ok(Some(_)) = inbox.next(&mut buffer) {}
            prop_assert!(!inbox.room().is_empty());
        }
    }

    #[test]
    fn a_packet_longer_than_any_ends_the_stream() {
        let mut inbox = Inbox::default();
        inbox.room()[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        inbox.filled(4);
        assert!(inbox.next(&mut [0; 64]).is_err());
    }
}
