//! One chain of the driver, taken apart: a header and bytes to be read, a response and bytes to be
//! filled. Control requests have the same shape without bytes.
//!
//! ```text
//!   readable   | header | data to the unit …   |
//!   writable                                   | response | data from the unit … |
//! ```
//!
//! Everything here was written by the guest, however it cut its buffers (virtio 1.2, 2.7.4.2).

use std::sync::Arc;

use block::{GuestView, Segments};
use serde::{Deserialize, Serialize};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::units::{Address, Seated};

/// The most bytes of a header: a CDB of 255.
const HEADER: usize = 19 + 255;

/// The driver broke the rules of the ring: there is no way to answer (virtio 1.2, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BrokenChain {
    #[error("a descriptor chain has a loop, or leads out of guest memory")]
    Unterminated,
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    #[error("a request has no room for its response")]
    NoResponse,
    #[error("a buffer is not inside guest memory")]
    Outside,
}

/// How long the fixed parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Bytes of the header, at most 274.
    pub(super) header: usize,
    /// Bytes of the response.
    pub(super) response: usize,
}

/// A request that is done again when its queue is started again, and what a snapshot keeps of it:
/// one that failed while the machine is told to stop at failures, or task management that waits for
/// such a one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postponed {
    head: u16,
    /// The fields and the command.
    header: Vec<u8>,
    /// Where in the guest is what the driver gives, what it wants filled, and its response.
    out: Vec<(u64, u32)>,
    into: Vec<(u64, u32)>,
    response: Vec<(u64, u32)>,
    /// Whether its unit has left the bus: it is not for another one that came there.
    orphan: bool,
}

impl Postponed {
    /// Whether it is a command for the unit at this address. Task management begins otherwise.
    pub(super) fn is_for(&self, address: Address) -> bool {
        let lun = self
            .header
            .first_chunk()
            .and_then(|lun| Address::parse(*lun));
        !self.orphan && lun == Some(address)
    }

    /// Its unit has left the bus.
    pub(super) fn leave(&mut self) {
        self.orphan = true;
    }
}

/// One chain, parsed. Reused: its lists keep their room.
#[derive(Debug)]
pub(super) struct Request {
    /// The chain's head, for the used ring.
    pub(super) head: u16,
    header: [u8; HEADER],
    header_len: usize,
    /// What the driver gives.
    pub(super) out: Segments,
    /// What it wants filled.
    pub(super) into: Segments,
    response: Segments,
    /// How many bytes of `into` were filled.
    pub(super) filled: u64,
    response_bytes: Vec<u8>,
    /// Whether it is to be done again later, which the guest does not see; and by whom.
    pub(super) waits: bool,
    pub(super) unit: Option<Arc<Seated>>,
    /// Whether its unit has left the bus.
    pub(super) orphan: bool,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            head: 0,
            header: [0; HEADER],
            header_len: 0,
            out: Segments::with_capacity(2),
            into: Segments::with_capacity(2),
            response: Segments::with_capacity(1),
            filled: 0,
            response_bytes: Vec::new(),
            waits: false,
            unit: None,
            orphan: false,
        }
    }

    fn reset(&mut self, view: &Arc<GuestView>, head: u16) {
        self.head = head;
        (self.header_len, self.filled) = (0, 0);
        (self.waits, self.unit, self.orphan) = (false, None, false);
        self.response_bytes.clear();
        for segments in [&mut self.out, &mut self.into, &mut self.response] {
            segments.reset(Arc::clone(view));
        }
    }

    /// What is needed to do it again, from any thread.
    pub(super) fn postpone(&self) -> Postponed {
        let pieces = |segments: &Segments| segments.guest_pieces().collect();
        Postponed {
            head: self.head,
            header: self.header().to_vec(),
            out: pieces(&self.out),
            into: pieces(&self.into),
            response: pieces(&self.response),
            orphan: self.orphan,
        }
    }

    /// Becomes a request that was postponed.
    pub(super) fn resume(
        &mut self,
        view: &Arc<GuestView>,
        from: &Postponed,
    ) -> Result<(), BrokenChain> {
        self.reset(view, from.head);
        let header = self.header.get_mut(..from.header.len());
        let header = header.ok_or(BrokenChain::Outside)?;
        header.copy_from_slice(&from.header);
        (self.header_len, self.orphan) = (from.header.len(), from.orphan);
        let lists = [
            (&mut self.out, &from.out),
            (&mut self.into, &from.into),
            (&mut self.response, &from.response),
        ];
        for (list, pieces) in lists {
            for (address, len) in pieces {
                push(list, *address, *len, 0)?;
            }
        }
        Ok(())
    }

    /// Takes a chain apart.
    pub(super) fn parse(
        &mut self,
        view: &Arc<GuestView>,
        chain: DescriptorChain<&GuestView>,
        sizes: Sizes,
    ) -> Result<(), BrokenChain> {
        self.reset(view, chain.head_index());
        let (mut unterminated, mut is_writable) = (true, false);
        for descriptor in chain {
            unterminated = descriptor.has_next();
            let (address, len) = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                is_writable = true;
                self.take_writable(address, len, sizes)?;
            } else if is_writable {
                return Err(BrokenChain::Order);
            } else {
                self.take_readable(view, address, len, sizes)?;
            }
        }
        if unterminated {
            return Err(BrokenChain::Unterminated);
        }
        if self.response.len() < sizes.response as u64 || self.header_len < sizes.header {
            return Err(BrokenChain::NoResponse);
        }
        Ok(())
    }

    fn take_readable(
        &mut self,
        view: &GuestView,
        address: u64,
        len: u32,
        sizes: Sizes,
    ) -> Result<(), BrokenChain> {
        let wanted = sizes.header.min(HEADER).saturating_sub(self.header_len);
        let part = wanted.min(len as usize);
        let target = self.header.get_mut(self.header_len..self.header_len + part);
        if let Some(target) = target.filter(|_| part > 0) {
            view.read_slice(target, GuestAddress(address))
                .map_err(|_| BrokenChain::Outside)?;
            self.header_len += part;
        }
        push(&mut self.out, address, len, part)
    }

    fn take_writable(&mut self, address: u64, len: u32, sizes: Sizes) -> Result<(), BrokenChain> {
        let wanted = (sizes.response as u64).saturating_sub(self.response.len());
        let part = len.min(u32::try_from(wanted).unwrap_or(u32::MAX));
        push(&mut self.response, address, part, 0)?;
        push(&mut self.into, address, len, part as usize)
    }

    /// The header.
    pub(super) fn header(&self) -> &[u8] {
        self.header.get(..self.header_len).unwrap_or_default()
    }

    /// What the driver will find as the response; zeroes behind it.
    pub(super) fn respond(&mut self, bytes: &[u8]) {
        self.response_bytes.clear();
        self.response_bytes.extend_from_slice(bytes);
    }

    /// Writes the response and tells the dirty bitmap. Returns how many bytes the driver finds.
    pub(super) fn finish(&mut self) -> u32 {
        let room = self.response.len();
        self.response.all().fill_zero();
        self.response.all().copy_from(&self.response_bytes);
        self.response.mark_dirty(room);
        // Also after a failure: part of the data may have arrived.
        self.into.mark_dirty(self.into.len());
        let written = room.saturating_add(self.filled);
        for segments in [&mut self.out, &mut self.into, &mut self.response] {
            segments.clear();
        }
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

/// Adds what of a buffer lies behind its first `skip` bytes.
fn push(list: &mut Segments, address: u64, len: u32, skip: usize) -> Result<(), BrokenChain> {
    let skip = u32::try_from(skip).map_err(|_| BrokenChain::Outside)?;
    let rest = len.saturating_sub(skip);
    if rest == 0 {
        return Ok(());
    }
    let address = address
        .checked_add(skip.into())
        .ok_or(BrokenChain::Outside)?;
    list.push_guest(address, rest)
        .map_err(|_| BrokenChain::Outside)
}
