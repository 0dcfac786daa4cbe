//! What all servers in the kernel share: an fd, a table of memory, and queues.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use fdset::OpenFile;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::ioctl::{self, Addresses, File, MOST_REGIONS, Region, State, Table};
use super::server::ServedQueue;
use crate::memory::GuestMemView;

/// One instance of vhost in the kernel.
///
/// It reaches guest memory by this process's addresses, so the view that it was told of is kept until
/// it is told of another, or closed.
pub struct KernelVhost {
    file: OpenFile,
    features: u64,
    /// The memory that the kernel uses. Leaf lock: only the kernel is called with it.
    memory: Mutex<Option<GuestMemView>>,
}

impl KernelVhost {
    /// Makes this process the owner of the instance behind `file`.
    ///
    /// # Errors
    /// It is no vhost, or it has an owner (`EBUSY`).
    pub fn own(file: OpenFile) -> io::Result<Self> {
        ioctl::set_owner(file.as_fd())?;
        Self::owned(file)
    }

    /// The same, of a kind that keeps its owner as long as anybody has it open: it may be ours since
    /// it was used before.
    ///
    /// # Errors
    /// It is no vhost, or another process owns it (`EBUSY`).
    pub fn own_again(file: OpenFile) -> io::Result<Self> {
        match ioctl::set_owner(file.as_fd()) {
            Err(busy) if busy.raw_os_error() == Some(libc::EBUSY) => {
                // Only the owner may say where memory is.
                ioctl::set_mem_table(file.as_fd(), &table(None)?).map_err(|_| busy)?;
            }
            other => other?,
        }
        Self::owned(file)
    }

    fn owned(file: OpenFile) -> io::Result<Self> {
        Ok(Self {
            features: ioctl::get_features(file.as_fd())?,
            file,
            memory: Mutex::default(),
        })
    }

    /// The features that the kernel has.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.features
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn set_features(&self, features: u64) -> io::Result<()> {
        ioctl::set_features(self.fd(), features)
    }

    pub(super) fn set_memory(&self, memory: &GuestMemView) -> io::Result<()> {
        let mut kept = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        ioctl::set_mem_table(self.fd(), &table(Some(memory))?)?;
        let before = kept.replace(memory.clone());
        drop(kept);
        drop(before);
        Ok(())
    }

    /// Describes a queue. It is not worked on before it has a backend.
    pub(super) fn set_queue(&self, index: u32, queue: &ServedQueue<'_>) -> io::Result<()> {
        let fd = self.fd();
        let number = queue.size.into();
        ioctl::set_vring_num(fd, State { index, number })?;
        let number = queue.next.into();
        ioctl::set_vring_base(fd, State { index, number })?;
        let rings = queue.rings;
        ioctl::set_vring_addr(
            fd,
            Addresses {
                index,
                flags: 0,
                descriptors: rings.descriptors,
                used: rings.used,
                available: rings.available,
                log: 0,
            },
        )?;
        ioctl::set_vring_kick(fd, file(index, queue.kick))?;
        ioctl::set_vring_call(fd, file(index, queue.call))?;
        ioctl::set_vring_err(fd, file(index, queue.error))
    }

    pub(super) fn set_call(&self, index: u32, call: BorrowedFd<'_>) -> io::Result<()> {
        ioctl::set_vring_call(self.fd(), file(index, call))
    }

    /// Where a queue stands that has no backend any more; it holds none of our fds after that.
    pub(super) fn next(&self, index: u32) -> io::Result<u16> {
        let none = File { index, fd: -1 };
        let next = ioctl::get_vring_base(self.fd(), index);
        for forget in [
            ioctl::set_vring_kick,
            ioctl::set_vring_call,
            ioctl::set_vring_err,
        ] {
            forget(self.fd(), none)?;
        }
        // Of a split queue it is an index of 16 bits.
        u16::try_from(next? & 0xffff).map_err(io::Error::other)
    }
}

impl Drop for KernelVhost {
    fn drop(&mut self) {
        // Somebody else may hold the same instance and give it to another process. vhost-vsock does
        // not know the word, and goes with its last fd.
        if let Err(error) = ioctl::reset_owner(self.fd()) {
            tracing::debug!(%error, "vhost keeps its owner until it is closed");
            // No page is reached any more that may be unmapped now.
            if let Ok(nothing) = table(None) {
                let told = ioctl::set_mem_table(self.fd(), &nothing);
                tracing::debug!(?told, "vhost has no memory");
            }
        }
    }
}

fn file(index: u32, fd: BorrowedFd<'_>) -> File {
    File {
        index,
        fd: fd.as_raw_fd(),
    }
}

/// The kernel's table of all regions; of none without memory.
fn table(memory: Option<&GuestMemView>) -> io::Result<Table> {
    let mut table = Table {
        count: 0,
        padding: 0,
        regions: [Region::default(); MOST_REGIONS],
    };
    let count = memory.map_or(0, GuestMemoryBackend::num_regions);
    let rooms = table.regions.get_mut(..count).ok_or_else(|| {
        io::Error::other(format!(
            "vhost takes {MOST_REGIONS} regions of memory, and there are {count}"
        ))
    })?;
    let regions = memory.into_iter().flat_map(GuestMemoryBackend::iter);
    for (room, region) in rooms.iter_mut().zip(regions) {
        *room = Region {
            guest: region.start_addr().raw_value(),
            size: region.len(),
            here: region.get_mmap().as_ptr() as u64,
            padding: 0,
        };
    }
    table.count = u32::try_from(count).map_err(io::Error::other)?;
    Ok(table)
}
