//! vhost-vsock: the kernel connects a guest's sockets with those of this machine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fdset::OpenFile;

use super::ioctl;
use super::kernel::KernelVhost;
use super::server::{QueueServer, ServedQueue};
use crate::memory::GuestMemView;

/// The queues that the kernel serves: one in, one out. It begins when it has both.
const QUEUES: usize = 2;

/// An instance of vhost-vsock.
pub struct VhostVsock {
    vhost: KernelVhost,
    /// Which queues were given to it. Leaf lock: only the kernel is called with it.
    given: Mutex<[bool; QUEUES]>,
}

impl VhostVsock {
    /// The instance behind `file`, whose guest is called `cid`.
    ///
    /// # Errors
    /// It is no vhost-vsock or has another owner, or the name is taken (`EADDRINUSE`).
    pub fn new(file: OpenFile, cid: u32) -> io::Result<Self> {
        let vhost = KernelVhost::own_again(file)?;
        ioctl::vsock_set_guest_cid(vhost.fd(), cid.into())?;
        Ok(Self {
            vhost,
            given: Mutex::default(),
        })
    }

    fn given(&self) -> MutexGuard<'_, [bool; QUEUES]> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(index: usize) -> io::Result<u32> {
    if index >= QUEUES {
        return Err(io::ErrorKind::NotFound.into());
    }
    u32::try_from(index).map_err(io::Error::other)
}

impl QueueServer for VhostVsock {
    fn features(&self) -> u64 {
        self.vhost.features()
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.vhost.set_features(features & self.vhost.features())
    }

    fn set_memory(&self, memory: &GuestMemView) -> io::Result<()> {
        self.vhost.set_memory(memory)
    }

    fn start_queue(&self, index: usize, queue: &ServedQueue<'_>) -> io::Result<()> {
        self.vhost.set_queue(number(index)?, queue)?;
        let mut given = self.given();
        if let Some(place) = given.get_mut(index) {
            *place = true;
        }
        if given.iter().all(|given| *given) {
            ioctl::vsock_set_running(self.vhost.fd(), 1)?;
        }
        Ok(())
    }

    fn set_call(&self, index: usize, call: BorrowedFd<'_>) -> io::Result<()> {
        self.vhost.set_call(number(index)?, call)
    }

    fn stop_queue(&self, index: usize) -> io::Result<u16> {
        let number = number(index)?;
        let mut given = self.given();
        if given.iter().all(|given| *given) {
            ioctl::vsock_set_running(self.vhost.fd(), 0)?;
        }
        if let Some(place) = given.get_mut(index) {
            *place = false;
        }
        self.vhost.next(number)
    }
}
