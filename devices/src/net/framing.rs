//! Packets on a stream: each after its length, a 32-bit number in network order. What QEMU, passt and
//! vde speak. Pure: no socket is known here.
//!
//! ```text
//!   │ len │ packet ... │ len │ packet ... │ le
//!    └────── Inbox::next ──┘                └─ Inbox::room: the rest is read behind it
//! ```
//!
//! Filters can be told to pass the virtio header on as well ([`Frames::Headed`]): its length, which
//! may be 0, comes behind that of the packet, and counts in it.
//!
//! ```text
//!   │ len of both │ len of header │ header │ packet ... │
//! ```

use super::packet::Packet;
use super::{HEADER, LONGEST};

/// Bytes of the length before a packet.
const LENGTH: usize = 4;
/// The longest packet on the stream: it has no virtio header.
const LONGEST_FRAME: usize = LONGEST - HEADER;
/// How many bytes are read ahead: the longest packet, or many short ones.
const AHEAD: usize = 2 * (2 * LENGTH + LONGEST);
/// The virtio header of old drivers, which lacks the number of buffers (virtio 1.2, 5.1.6.1).
const SHORT_HEADER: usize = 10;

/// What comes before a packet on a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Frames {
    /// Its length.
    #[default]
    Plain,
    /// Its length with its header, the header's length, and the header.
    Headed,
}

/// A peer sends what cannot be packets: what follows cannot be told apart any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    /// A packet is longer than any can be.
    #[error("it announces a packet of {0} bytes; the longest has {LONGEST_FRAME}")]
    TooLong(usize),
    /// A header that is none.
    #[error(
        "it announces a virtio header of {header} bytes in a packet of {whole}; known are \
         0, {SHORT_HEADER} and {HEADER}"
    )]
    Header {
        /// The header's length.
        header: usize,
        /// The length of both.
        whole: usize,
    },
}

/// Bytes that were read and are not yet packets.
#[derive(Debug)]
pub struct Inbox {
    frames: Frames,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new(Frames::Plain)
    }
}

impl Inbox {
    /// For packets behind what `frames` says.
    #[must_use]
    pub fn new(frames: Frames) -> Self {
        Self {
            frames,
            bytes: vec![0; AHEAD].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

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

    /// Puts the next whole packet into `buffer`, behind its header, or one of zeros where none came;
    /// returns the length of both.
    ///
    /// # Errors
    /// A packet is too long, or its header is none.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Garbled> {
        loop {
            let waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
            let Some(frame) = self.frames.first(waiting)? else {
                return Ok(None);
            };
            self.start += frame.taken;
            let count = HEADER + frame.packet.len();
            if let Some(whole) = buffer.get_mut(..count).filter(|_| count > HEADER) {
                let (header, body) = whole.split_at_mut(HEADER);
                header.fill(0);
                // How many buffers a packet fills is for who receives it to say.
                for (to, from) in header
                    .iter_mut()
                    .zip(frame.header.iter().take(SHORT_HEADER))
                {
                    *to = *from;
                }
                body.copy_from_slice(frame.packet);
                return Ok(Some(count));
            }
        }
    }
}

/// A whole packet in what was read.
struct Frame<'a> {
    header: &'a [u8],
    packet: &'a [u8],
    /// How many bytes it is with all that is before it.
    taken: usize,
}

impl Frames {
    /// The first packet in `bytes`, if it is there whole.
    fn first(self, bytes: &[u8]) -> Result<Option<Frame<'_>>, Garbled> {
        let Some((whole, rest)) = number(bytes) else {
            return Ok(None);
        };
        let (header, rest) = match self {
            Self::Plain => (0, rest),
            Self::Headed => match number(rest) {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        if !matches!(header, 0 | SHORT_HEADER | HEADER) || header > whole {
            return Err(Garbled::Header { header, whole });
        }
        if whole - header > LONGEST_FRAME {
            return Err(Garbled::TooLong(whole - header));
        }
        let Some((header, packet)) = rest.get(..whole).map(|whole| whole.split_at(header)) else {
            return Ok(None);
        };
        Ok(Some(Frame {
            header,
            packet,
            taken: bytes.len() - rest.len() + whole,
        }))
    }
}

/// A number at the beginning of `bytes`, and what is behind it.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<LENGTH>()?;
    Some((u32::from_be_bytes(*number) as usize, rest))
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
            bytes: vec![0; 2 * LENGTH + LONGEST].into_boxed_slice(),
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
        let length = packet.len().saturating_sub(HEADER);
        self.put_behind(&[length], HEADER, packet)
    }

    /// The same of a packet with its header, if it is to be `carried`, and the lengths of both.
    pub fn put_headed(&mut self, packet: &Packet<'_>, carried: bool) -> bool {
        let (header, skip) = if carried { (HEADER, 0) } else { (0, HEADER) };
        let length = packet.len().saturating_sub(skip);
        self.put_behind(&[length, header], skip, packet)
    }

    /// Takes what comes after the first `skip` bytes of a packet, behind `numbers`.
    fn put_behind(&mut self, numbers: &[usize], skip: usize, packet: &Packet<'_>) -> bool {
        if self.waiting().is_empty() {
            self.clear();
        }
        let head = LENGTH * numbers.len();
        let length = packet.len().saturating_sub(skip);
        let end = self.end.saturating_add(head).saturating_add(length);
        let longest = length > LONGEST - skip;
        let Some(whole) = self.bytes.get_mut(self.end..end).filter(|_| !longest) else {
            return self.end == 0;
        };
        let (head, body) = whole.split_at_mut(head);
        for (place, number) in head.chunks_exact_mut(LENGTH).zip(numbers) {
            // Both are lengths within what has room here.
            place.copy_from_slice(&u32::try_from(*number).unwrap_or(0).to_be_bytes());
        }
        packet.copy(skip, body);
        self.end = end;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::{Pieces, Whole};
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
        fn no_bytes_break_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..4000),
            headed: bool,
            few in 0_u8..250,
        ) {
            // Zeros, mostly: the first bytes of lengths that can be.
            let bytes: Vec<u8> = bytes.iter().map(|byte| byte.saturating_sub(few)).collect();
            let mut inbox = Inbox::new(if headed { Frames::Headed } else { Frames::Plain });
            inbox.room()[..bytes.len()].copy_from_slice(&bytes);
            inbox.filled(bytes.len());
            let mut buffer = vec![0; LONGEST];
            while let Ok(Some(_)) = inbox.next(&mut buffer) {}
            prop_assert!(!inbox.room().is_empty());
        }
    }

    fn inbox_with(frames: Frames, numbers: &[u32]) -> Inbox {
        let mut inbox = Inbox::new(frames);
        let bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_be_bytes()).collect();
        inbox.room()[..bytes.len()].copy_from_slice(&bytes);
        inbox.filled(bytes.len());
        inbox
    }

    #[test]
    fn a_packet_longer_than_any_ends_the_stream() {
        for length in [LONGEST_FRAME + 1, u32::MAX as usize] {
            let number = u32::try_from(length).unwrap();
            let told = inbox_with(Frames::Plain, &[number]).next(&mut [0; 64]);
            assert_eq!(told, Err(Garbled::TooLong(length)));
            let told = inbox_with(Frames::Headed, &[number, 0]).next(&mut [0; 64]);
            assert_eq!(told, Err(Garbled::TooLong(length)));
        }
    }

    #[test]
    fn a_header_of_a_length_that_none_has_ends_the_stream() {
        for (whole, header) in [(100, 1), (100, 13), (9, 10), (0, u32::MAX), (u32::MAX, 100)] {
            let told = inbox_with(Frames::Headed, &[whole, header]).next(&mut [0; 64]);
            let (whole, header) = (whole as usize, header as usize);
            assert_eq!(told, Err(Garbled::Header { header, whole }));
        }
    }

    #[test]
    fn a_header_is_passed_on_where_it_is_carried_and_is_zeros_where_not() {
        let header: [u8; HEADER] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let whole = [header.as_slice(), b"packet"].concat();
        let mut buffer = [0xff; 64];
        for (carried, wanted) in [
            (true, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0]),
            (false, [0; HEADER]),
        ] {
            let mut outbox = Outbox::default();
            assert!(outbox.put_headed(&Whole::new(&whole).packet(), carried));
            let mut inbox = Inbox::new(Frames::Headed);
            let count = outbox.waiting().len();
            inbox.room()[..count].copy_from_slice(outbox.waiting());
            inbox.filled(count);
            assert_eq!(inbox.next(&mut buffer), Ok(Some(HEADER + 6)));
            assert_eq!(buffer[..HEADER], wanted);
            assert_eq!(&buffer[HEADER..HEADER + 6], b"packet");
        }
    }

    #[test]
    fn the_longest_packet_has_room_with_its_header_when_nothing_waits() {
        let longest = vec![1; LONGEST];
        let mut outbox = Outbox::default();
        assert!(outbox.put_headed(&Whole::new(&longest).packet(), true));
        assert_eq!(outbox.waiting().len(), 2 * LENGTH + LONGEST);
        assert!(!outbox.put_headed(&Whole::new(&[0; 20]).packet(), true));
        outbox.clear();
        let longer = vec![1; LONGEST + 1];
        assert!(outbox.put(&Whole::new(&longer).packet()));
        assert!(outbox.waiting().is_empty());
    }
}
