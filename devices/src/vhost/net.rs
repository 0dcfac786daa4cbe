//! vhost-net: the kernel moves packets between queues and a tap.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use fdset::OpenFile;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_RSS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::ioctl::{self, File};
use super::kernel::KernelVhost;
use super::server::{QueueServer, ServedQueue};
use crate::memory::GuestMemView;

/// vhost-net's own feature: it makes the headers, because the tap has none (`linux/vhost.h`).
const VHOST_NET_F_VIRTIO_NET_HDR: u64 = 1 << 27;
/// What of a card's features depends on the kernel's side.
const CONCERNED: u64 =
    1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Nothing tells the kernel what to hash, and where hashes lead.
const NEVER: u64 = 1 << VIRTIO_NET_F_RSS | 1 << VIRTIO_NET_F_HASH_REPORT;

/// Serves all pairs of a card's queues: an instance of vhost-net for each, and a queue of the tap.
pub struct VhostNet {
    pairs: Vec<(KernelVhost, Arc<OpenFile>)>,
    /// Whether the tap's packets carry a virtio header.
    header: bool,
}

impl VhostNet {
    /// Instances of vhost-net with the queues of the tap that they work for.
    #[must_use]
    pub fn new(pairs: Vec<(KernelVhost, Arc<OpenFile>)>, header: bool) -> Self {
        Self { pairs, header }
    }

    /// The instance that has queue `index`, its tap, and what it calls the queue.
    fn find(&self, index: usize) -> io::Result<(&KernelVhost, &OpenFile, u32)> {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let (vhost, tap) = self.pairs.get(index / 2).ok_or_else(none)?;
        Ok((vhost, tap, u32::from(!index.is_multiple_of(2))))
    }
}

impl QueueServer for VhostNet {
    fn features(&self) -> u64 {
        let kernel = self.pairs.iter().map(|(vhost, _)| vhost.features());
        let able = kernel.fold(u64::MAX, |all, one| all & one);
        (!CONCERNED | able) & !NEVER
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        let header = if self.header {
            0
        } else {
            VHOST_NET_F_VIRTIO_NET_HDR
        };
        self.pairs
            .iter()
            .try_for_each(|(vhost, _)| vhost.set_features(features & vhost.features() | header))
    }

    fn set_memory(&self, memory: &GuestMemView) -> io::Result<()> {
        self.pairs
            .iter()
            .try_for_each(|(vhost, _)| vhost.set_memory(memory))
    }

    fn start_queue(&self, index: usize, queue: &ServedQueue<'_>) -> io::Result<()> {
        let (vhost, tap, index) = self.find(index)?;
        vhost.set_queue(index, queue)?;
        let fd = tap.as_raw_fd();
        ioctl::net_set_backend(vhost.fd(), File { index, fd })
    }

    fn set_call(&self, index: usize, call: BorrowedFd<'_>) -> io::Result<()> {
        let (vhost, _, index) = self.find(index)?;
        vhost.set_call(index, call)
    }

    fn stop_queue(&self, index: usize) -> io::Result<u16> {
        let (vhost, _, index) = self.find(index)?;
        ioctl::net_set_backend(vhost.fd(), File { index, fd: -1 })?;
        vhost.next(index)
    }
}
