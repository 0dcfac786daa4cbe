//! What moves blocks of the medium (SBC-3, section 5).

use std::time::Instant;

use block::throttle::Direction;
use block::{Io, NodeRef, Operation, Outcome, Segments, WriteFlags, ZeroFlags};

use super::answers::{MAX_CHANGE, MAX_RANGES};
use super::command::{Command, Range};
use super::sense::Sense;
use super::unit::{Kind, ScsiUnit, Stop};

/// How much of a repeated block is written at a time.
const PATTERN: u64 = 64 << 10;
/// The list of UNMAP: its header, and each range.
const LIST_HEADER: usize = 8;
const LIST_RANGE: usize = 16;

impl ScsiUnit {
    /// Does what a command asks of `node`, and enters it in the books.
    pub(super) async fn move_blocks(
        &self,
        io: &Io,
        command: Command,
        node: &NodeRef,
        out: &Segments,
        into: &Segments,
    ) -> Result<(), Stop> {
        let started = Instant::now();
        let (operation, bytes, outcome) = match command {
            Command::Read(range) => {
                let outcome = self.read(io, node, range, into).await;
                (Operation::Read, self.bytes(range), outcome)
            }
            Command::Write(range, durable) => {
                let outcome = self.write(io, node, range, durable, out).await;
                (Operation::Write, self.bytes(range), outcome)
            }
            Command::Flush => {
                let flushed = node.flush(io).await;
                let outcome = flushed.map_err(|error| Stop::Host(error, true));
                (Operation::Flush, 0, outcome)
            }
            Command::WriteSame {
                range,
                unmap,
                no_data,
            } => {
                let pattern = (!no_data).then_some(out);
                let outcome = self.write_same(io, node, range, unmap, pattern).await;
                (Operation::Write, self.bytes(range), outcome)
            }
            Command::Unmap => {
                let outcome = self.unmap(io, node, out).await;
                let bytes = *outcome.as_ref().unwrap_or(&0);
                (Operation::Unmap, bytes, outcome.map(drop))
            }
            // Without bytes to be compared it asks whether the blocks can be read; they are there.
            Command::Verify(range) => return self.place(node, range).map(drop),
            _ => return Err(Sense::INVALID_OPCODE.into()),
        };
        let ended = match &outcome {
            Ok(()) => Outcome::Done,
            Err(Stop::Host(..)) => Outcome::Failed,
            Err(_) => Outcome::Invalid,
        };
        self.account.enter_timed(operation, bytes, ended, started);
        self.histograms.enter(operation, ended, started);
        outcome
    }

    /// How many bytes of the guest's buffers a command moves when it is done.
    pub(super) fn moves(&self, command: Command, out: &Segments) -> u64 {
        match command {
            Command::Read(range) | Command::Write(range, _) => self.bytes(range),
            Command::WriteSame { no_data: false, .. } => self.spec.logical_block_size.into(),
            Command::Unmap => out.len(),
            _ => 0,
        }
    }

    /// What of a command limits are for: its direction and its bytes.
    pub(super) fn limited(&self, command: Command) -> Option<(Direction, u64)> {
        match command {
            Command::Read(range) => Some((Direction::Read, self.bytes(range))),
            Command::Write(range, _) | Command::WriteSame { range, .. } => {
                Some((Direction::Write, self.bytes(range)))
            }
            _ => None,
        }
    }

    fn bytes(&self, range: Range) -> u64 {
        u64::from(range.blocks) * u64::from(self.spec.logical_block_size)
    }

    /// Where a range is, in bytes, if it lies on the medium.
    fn place(&self, node: &NodeRef, range: Range) -> Result<u64, Stop> {
        let block = u64::from(self.spec.logical_block_size);
        let end = range.lba.checked_add(range.blocks.into());
        if end.is_none_or(|end| end > node.len() / block) {
            return Err(Sense::OUT_OF_RANGE.into());
        }
        Ok(range.lba * block)
    }

    fn check_writable(&self, node: &NodeRef) -> Result<(), Stop> {
        if node.is_read_only() || self.spec.kind == Kind::Cd {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        Ok(())
    }

    async fn read(
        &self,
        io: &Io,
        node: &NodeRef,
        range: Range,
        into: &Segments,
    ) -> Result<(), Stop> {
        let (offset, bytes) = (self.place(node, range)?, self.bytes(range));
        if into.len() < bytes {
            return Err(Stop::Overrun);
        }
        let read = node.read(io, offset, into.all().part(0, bytes)).await;
        read.map_err(|error| Stop::Host(error, false))
    }

    async fn write(
        &self,
        io: &Io,
        node: &NodeRef,
        range: Range,
        durable: bool,
        out: &Segments,
    ) -> Result<(), Stop> {
        self.check_writable(node)?;
        let (offset, bytes) = (self.place(node, range)?, self.bytes(range));
        if out.len() < bytes {
            return Err(Stop::Overrun);
        }
        let flags = self.flags(durable);
        let written = node.write(io, offset, out.all().part(0, bytes), flags);
        written.await.map_err(|error| Stop::Host(error, true))
    }

    fn flags(&self, durable: bool) -> WriteFlags {
        WriteFlags {
            durable: durable || !self.spec.write_cache,
            ..WriteFlags::default()
        }
    }

    async fn write_same(
        &self,
        io: &Io,
        node: &NodeRef,
        range: Range,
        unmap: bool,
        pattern: Option<&Segments>,
    ) -> Result<(), Stop> {
        self.check_writable(node)?;
        let (offset, bytes) = (self.place(node, range)?, self.bytes(range));
        if bytes > MAX_CHANGE {
            return Err(Sense::INVALID_FIELD.into());
        }
        let block = u64::from(self.spec.logical_block_size);
        let failed = |error| Stop::Host(error, true);
        let Some(pattern) = pattern.filter(|pattern| !pattern.all().part(0, block).is_zero())
        else {
            let flags = ZeroFlags {
                unmap,
                durable: !self.spec.write_cache,
            };
            let zeroed = node.write_zeroes(io, offset, bytes, flags).await;
            return zeroed.map_err(failed);
        };
        if pattern.len() < block {
            return Err(Stop::Overrun);
        }
        let chunk = PATTERN.min(bytes);
        let room = usize::try_from(chunk).map_err(|_| Sense::INVALID_FIELD)?;
        let repeated = Segments::owned(room, 4096).map_err(failed)?;
        let mut one = vec![0; usize::try_from(block).map_err(|_| Sense::INVALID_FIELD)?];
        pattern.all().part(0, block).copy_to(&mut one);
        for at in (0..chunk).step_by(one.len()) {
            repeated.all().part(at, block).copy_from(&one);
        }
        let mut done = 0;
        while done < bytes {
            let part = repeated.all().part(0, bytes - done);
            let written = node.write(io, offset + done, part, self.flags(false)).await;
            written.map_err(failed)?;
            done += part.len();
        }
        Ok(())
    }

    /// UNMAP: all ranges are checked before the first is done. How many bytes they are.
    async fn unmap(&self, io: &Io, node: &NodeRef, out: &Segments) -> Result<u64, Stop> {
        self.check_writable(node)?;
        let mut list = [0; LIST_HEADER + MAX_RANGES * LIST_RANGE];
        let len = usize::try_from(out.len()).unwrap_or(list.len());
        let list = list.get_mut(..len.min(LIST_HEADER + MAX_RANGES * LIST_RANGE));
        let list = list.unwrap_or_default();
        out.all().copy_to(list);
        let Some((header, ranges)) = list.split_first_chunk::<LIST_HEADER>() else {
            // No list at all asks for nothing.
            return if list.is_empty() {
                Ok(0)
            } else {
                Err(Sense::INVALID_PARAMETERS.into())
            };
        };
        let named = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let ranges = ranges.get(..named).ok_or(Sense::INVALID_PARAMETERS)?;
        let ranges = ranges.as_chunks::<LIST_RANGE>().0;
        let mut total = 0;
        for range in ranges.iter().map(unmap_range) {
            self.place(node, range)?;
            total += self.bytes(range);
        }
        if total > MAX_CHANGE * MAX_RANGES as u64 {
            return Err(Sense::INVALID_PARAMETERS.into());
        }
        for range in ranges.iter().map(unmap_range) {
            let offset = self.place(node, range)?;
            let discarded = node.discard(io, offset, self.bytes(range)).await;
            discarded.map_err(|error| Stop::Host(error, true))?;
        }
        Ok(total)
    }
}

fn unmap_range(bytes: &[u8; LIST_RANGE]) -> Range {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *bytes;
    Range {
        lba: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        blocks: u32::from_be_bytes([i, j, k, l]),
    }
}
