//! One request of the guest: from a descriptor chain to a checked order, and to its status.
//!
//! ```text
//!   chain     readable …  | header 16 | data to the disk …|
//!             writable …                                  | data from the disk … | status 1 |
//!
//!   parse ─► Order ─► execute ─► Outcome ─► status byte
//! ```
//!
//! Everything here was written by the guest: each number is checked before it is used, and nothing
//! relies on how the driver cut its buffers (virtio 1.2, 2.7.4.2).

use std::io;
use std::sync::Arc;
use std::time::Instant;

use block::job::ErrorAction;
use block::throttle::Direction;
use block::{GuestView, Io, Operation, Outcome, Segments, WriteFlags, ZeroFlags};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Disk;

/// The unit of every sector number (virtio 1.2, 5.2.6).
pub(super) const SECTOR: u64 = 512;
/// The most ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: usize = 16;
/// The longest range of a discard or write-zeroes, in sectors: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// The length of the string that GET_ID gives.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

const HEADER_LEN: usize = size_of::<Header>();

/// The first readable bytes of each request (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// One range of a discard or write-zeroes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Range {
    sector: U64,
    sectors: U32,
    flags: U32,
}

/// The driver broke the rules of the ring: there is no way to answer (virtio 1.2, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BrokenChain {
    #[error("a descriptor chain has a loop, or leads out of guest memory")]
    Unterminated,
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    #[error("a request has no room for its status")]
    NoStatus,
    #[error("a buffer is not inside guest memory")]
    Outside,
}

/// What the guest wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Read,
    Write,
    Flush,
    Identify,
    Discard,
    WriteZeroes,
    /// The header was cut short.
    Malformed,
    /// A type this device does not have.
    Unknown,
}

impl Kind {
    fn of(number: u32) -> Self {
        match number {
            VIRTIO_BLK_T_IN => Self::Read,
            VIRTIO_BLK_T_OUT => Self::Write,
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_GET_ID => Self::Identify,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Unknown,
        }
    }

    /// What it counts as; a request that asks nothing of the storage counts as nothing.
    fn operation(self) -> Option<Operation> {
        match self {
            Self::Read => Some(Operation::Read),
            Self::Write | Self::WriteZeroes => Some(Operation::Write),
            Self::Flush => Some(Operation::Flush),
            Self::Discard => Some(Operation::Unmap),
            Self::Identify | Self::Malformed | Self::Unknown => None,
        }
    }

    fn data_is_written_by_device(self) -> bool {
        matches!(self, Self::Read | Self::Identify)
    }
}

/// How a request can fail.
#[derive(Debug)]
enum Refusal {
    /// The guest asked for what cannot be; no news for anybody but the guest.
    Invalid,
    /// The guest asked for what this device does not do.
    Unsupported,
    /// The host failed.
    Host(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// A request that this device does not have was not tried, as one that cannot be.
fn ended(outcome: &Result<(), Refusal>) -> Outcome {
    match outcome {
        Ok(()) => Outcome::Done,
        Err(Refusal::Host(_)) => Outcome::Failed,
        Err(Refusal::Invalid | Refusal::Unsupported) => Outcome::Invalid,
    }
}

/// A request that failed and is done again when its queue is started again, and what a snapshot keeps
/// of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postponed {
    head: u16,
    kind: Kind,
    sector: u64,
    /// Where its data is in the guest.
    pieces: Vec<(u64, u32)>,
    /// Where in the guest its outcome is written.
    status: u64,
}

/// One request in flight. Reused: its lists keep their room.
#[derive(Debug)]
pub(super) struct Request {
    /// The chain's head, for the used ring.
    pub(super) head: u16,
    kind: Kind,
    sector: u64,
    data: Segments,
    /// Bytes of the disk in all ranges of a discard or write-zeroes.
    ranged: u64,
    status_address: GuestAddress,
    status: u8,
    /// Whether it failed and is to be tried again later, which the guest does not see.
    pub(super) waits: bool,
}

impl Request {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self {
            head: 0,
            kind: Kind::Malformed,
            sector: 0,
            data: Segments::with_capacity(2),
            ranged: 0,
            status_address: GuestAddress(0),
            status: 0,
            waits: false,
        }
    }

    /// Takes a chain apart. What can be answered with a status is no error here.
    pub(super) fn parse(
        &mut self,
        view: &Arc<GuestView>,
        chain: DescriptorChain<&GuestView>,
    ) -> Result<(), BrokenChain> {
        self.head = chain.head_index();
        self.kind = Kind::Malformed;
        self.data.reset(Arc::clone(view));
        let mut header = [0; HEADER_LEN];
        let mut header_len = 0;
        let mut last_writable: Option<(u64, u32)> = None;
        let mut unterminated = true;
        for descriptor in chain {
            unterminated = descriptor.has_next();
            let (mut address, mut len) = (descriptor.addr().0, descriptor.len());
            if len == 0 {
                continue;
            }
            if descriptor.is_write_only() {
                if let Some(before) = last_writable.replace((address, len)) {
                    self.push_in(before)?;
                }
                continue;
            }
            if last_writable.is_some() {
                return Err(BrokenChain::Order);
            }
            if header_len < HEADER_LEN {
                let part = (HEADER_LEN - header_len).min(len as usize);
                view.read_slice(
                    &mut header[header_len..header_len + part],
                    GuestAddress(address),
                )
                .map_err(|_| BrokenChain::Outside)?;
                header_len += part;
                if header_len == HEADER_LEN {
                    self.take_header(header);
                }
                // At most HEADER_LEN, and no more than `len`.
                address = address
                    .checked_add(part as u64)
                    .ok_or(BrokenChain::Outside)?;
                len -= u32::try_from(part).unwrap_or(len);
            }
            if len > 0 && !self.kind.data_is_written_by_device() {
                self.push(address, len)?;
            }
        }
        if unterminated {
            return Err(BrokenChain::Unterminated);
        }
        let (address, len) = last_writable.ok_or(BrokenChain::NoStatus)?;
        let last = u64::from(len) - 1;
        self.push_in((address, len - 1))?;
        self.status_address = GuestAddress(address.checked_add(last).ok_or(BrokenChain::Outside)?);
        if !view.address_in_range(self.status_address) {
            return Err(BrokenChain::Outside);
        }
        Ok(())
    }

    /// What is needed to do it again, from any thread.
    pub(super) fn postpone(&self) -> Postponed {
        Postponed {
            head: self.head,
            kind: self.kind,
            sector: self.sector,
            pieces: self.data.guest_pieces().collect(),
            status: self.status_address.0,
        }
    }

    /// Becomes a request that was postponed.
    pub(super) fn resume(
        &mut self,
        view: &Arc<GuestView>,
        from: Postponed,
    ) -> Result<(), BrokenChain> {
        self.head = from.head;
        self.kind = from.kind;
        self.sector = from.sector;
        self.status_address = GuestAddress(from.status);
        self.data.reset(Arc::clone(view));
        for (address, len) in from.pieces {
            self.push(address, len)?;
        }
        Ok(())
    }

    fn take_header(&mut self, bytes: [u8; HEADER_LEN]) {
        let header: Header = zerocopy::transmute!(bytes);
        self.kind = Kind::of(header.kind.get());
        self.sector = header.sector.get();
    }

    fn push(&mut self, address: u64, len: u32) -> Result<(), BrokenChain> {
        self.data
            .push_guest(address, len)
            .map_err(|_| BrokenChain::Outside)
    }

    fn push_in(&mut self, (address, len): (u64, u32)) -> Result<(), BrokenChain> {
        if len > 0 && self.kind.data_is_written_by_device() {
            self.push(address, len)?;
        }
        Ok(())
    }

    /// Does what the request of this queue asks, settles its status and enters it in the books.
    pub(super) async fn execute(&mut self, io: &Io, disk: &Disk, queue: usize) {
        let started = Instant::now();
        self.waits = false;
        let outcome = match self.kind {
            Kind::Read => self.read(io, disk).await,
            Kind::Write => self.write(io, disk).await,
            Kind::Flush => disk.node().flush(io).await.map_err(Refusal::Host),
            Kind::Identify => self.identify(disk),
            Kind::Discard | Kind::WriteZeroes => self.change_ranges(io, disk).await,
            Kind::Malformed => Err(Refusal::Invalid),
            Kind::Unknown => Err(Refusal::Unsupported),
        };
        if let (Some(operation), Some(account)) = (self.kind.operation(), disk.accounts.get(queue))
        {
            let bytes = self.moves(operation);
            account.enter_timed(operation, bytes, ended(&outcome), started);
            disk.histograms.enter(operation, ended(&outcome), started);
        }
        let status = match outcome {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refusal::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Refusal::Invalid) => VIRTIO_BLK_S_IOERR,
            Err(Refusal::Host(error)) => {
                let (node, write) = (disk.node(), self.kind != Kind::Read);
                match disk.failures.report(node.name(), &error, write) {
                    ErrorAction::Report => VIRTIO_BLK_S_IOERR,
                    ErrorAction::Ignore => VIRTIO_BLK_S_OK,
                    ErrorAction::Stop => {
                        self.waits = true;
                        return;
                    }
                }
            }
        };
        self.status = u8::try_from(status).unwrap_or(u8::MAX);
    }

    /// How many bytes of the disk it moves, once its ranges have been checked.
    fn moves(&self, operation: Operation) -> u64 {
        match operation {
            Operation::Flush => 0,
            _ if matches!(self.kind, Kind::Discard | Kind::WriteZeroes) => self.ranged,
            _ => self.data.len(),
        }
    }

    async fn read(&self, io: &Io, disk: &Disk) -> Result<(), Refusal> {
        let offset = disk
            .locate(self.sector, self.data.len())
            .ok_or(Refusal::Invalid)?;
        let (limiter, len) = (disk.root.limiter(), self.data.len());
        limiter.pass(io, Direction::Read, len).await?;
        Ok(disk.node().read(io, offset, self.data.all()).await?)
    }

    async fn write(&self, io: &Io, disk: &Disk) -> Result<(), Refusal> {
        let offset = disk
            .locate(self.sector, self.data.len())
            .ok_or(Refusal::Invalid)?;
        if disk.node().is_read_only() {
            return Err(Refusal::Invalid);
        }
        let (limiter, len) = (disk.root.limiter(), self.data.len());
        limiter.pass(io, Direction::Write, len).await?;
        let flags = WriteFlags {
            durable: disk.is_writethrough(),
            ..WriteFlags::default()
        };
        Ok(disk
            .node()
            .write(io, offset, self.data.all(), flags)
            .await?)
    }

    fn identify(&self, disk: &Disk) -> Result<(), Refusal> {
        self.data.all().copy_from(&disk.serial);
        Ok(())
    }

    async fn change_ranges(&mut self, io: &Io, disk: &Disk) -> Result<(), Refusal> {
        let offered = match self.kind {
            Kind::Discard => disk.discard,
            _ => disk.write_zeroes,
        };
        let len = usize::try_from(self.data.len()).map_err(|_| Refusal::Invalid)?;
        if !offered || len > size_of::<[Range; MAX_RANGES]>() {
            return Err(Refusal::Unsupported);
        }
        if len == 0 || !len.is_multiple_of(size_of::<Range>()) {
            return Err(Refusal::Invalid);
        }
        let mut ranges = [Range::default(); MAX_RANGES];
        self.data.all().copy_to(ranges.as_mut_bytes());
        let ranges = &ranges[..len / size_of::<Range>()];
        // All are checked before the first is done.
        self.ranged = 0;
        for range in ranges {
            self.check_range(disk, range)?;
            self.ranged += u64::from(range.sectors.get()) * SECTOR;
        }
        for range in ranges {
            self.change_range(io, disk, range).await?;
        }
        Ok(())
    }

    fn check_range(&self, disk: &Disk, range: &Range) -> Result<u64, Refusal> {
        let known = match self.kind {
            Kind::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        if range.flags.get() & !known != 0 {
            return Err(Refusal::Unsupported);
        }
        let sectors = range.sectors.get();
        if sectors > MAX_RANGE_SECTORS || disk.node().is_read_only() {
            return Err(Refusal::Invalid);
        }
        disk.locate(range.sector.get(), u64::from(sectors) * SECTOR)
            .ok_or(Refusal::Invalid)
    }

    async fn change_range(&self, io: &Io, disk: &Disk, range: &Range) -> Result<(), Refusal> {
        let offset = self.check_range(disk, range)?;
        let len = u64::from(range.sectors.get()) * SECTOR;
        if self.kind == Kind::Discard {
            return Ok(disk.node().discard(io, offset, len).await?);
        }
        disk.root.limiter().pass(io, Direction::Write, len).await?;
        let unmap = range.flags.get() & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let flags = ZeroFlags {
            unmap,
            durable: disk.is_writethrough(),
        };
        Ok(disk.node().write_zeroes(io, offset, len, flags).await?)
    }

    /// Tells the guest's memory: the dirty bitmap and the status byte. Returns the number of bytes
    /// written, for the used ring.
    pub(super) fn finish(&mut self, view: &GuestView) -> Result<u32, BrokenChain> {
        let mut written = 1;
        if self.kind.data_is_written_by_device() {
            // Also after a failure: part of the data may have arrived.
            self.data.mark_dirty(self.data.len());
            let data = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
            written = data.saturating_add(written);
        }
        self.data.clear();
        view.write_obj(self.status, self.status_address)
            .map_err(|_| BrokenChain::Outside)?;
        Ok(written)
    }
}
