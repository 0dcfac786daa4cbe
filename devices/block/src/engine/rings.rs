//! The one place that makes io_uring rings, and makes them unable to open anything.
//!
//! A ring is a second way into the kernel that no system call filter sees: with the right
//! submission entry it opens, connects and binds. So every ring starts disabled, is restricted to
//! the operations of [`super::ring`], and is enabled only then; the kernel never lifts that again
//! (io_uring_register(2), `IORING_REGISTER_RESTRICTIONS`, Linux 5.10).
//!
//! ```text
//!   setup (disabled) ─► restrict to OPERATIONS, no flags, no registering ─► enable
//!
//!   before the seal:   io-thread ── Rings::take ──► a new ring of its own
//!   Rings::stock_up:   as many as will ever be needed at once, made before the seal
//!   after the seal:    io-thread ── Rings::take ──► one of the stock ── end ──► back to the stock
//! ```

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::register::Restriction;
use io_uring::{Builder, IoUring, opcode};

/// Entries of the submission queue: how much is handed to the kernel at once, not how much may be
/// in flight.
const ENTRIES: u32 = 256;

/// All that a ring of ours can do.
const OPERATIONS: [u8; 7] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::Timeout::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
];

/// Where io-threads get their rings: made when asked for, until [`Rings::stock_up`]; from the
/// stock and nowhere else from then on.
#[derive(Clone, Default)]
pub struct Rings(Arc<Mutex<Option<Vec<IoUring>>>>);

impl Rings {
    /// Makes `count` rings now, so that none need be made later. A second call changes nothing.
    ///
    /// # Errors
    /// The kernel refuses a ring; nothing has changed then.
    pub fn stock_up(&self, count: usize) -> io::Result<()> {
        if self.stock().is_some() {
            return Ok(());
        }
        let made = (0..count)
            .map(|_| first_that_works(&FOR_ANY_THREAD))
            .collect::<io::Result<Vec<_>>>()?;
        let unused = self.stock().replace(made);
        drop(unused);
        Ok(())
    }

    /// A ring for the calling thread.
    pub(super) fn take(&self) -> Result<IoUring, NoRing> {
        if let Some(stock) = &mut *self.stock() {
            return stock.pop().ok_or(NoRing::OutOfStock);
        }
        first_that_works(&FOR_ONE_THREAD).map_err(NoRing::Refused)
    }

    /// Takes back a ring with nothing in flight. One that was made for its thread just ends.
    pub(super) fn give_back(&self, ring: IoUring) {
        let not_needed = match &mut *self.stock() {
            Some(stock) if !ring.params().is_setup_single_issuer() => {
                stock.push(ring);
                None
            }
            _ => Some(ring),
        };
        drop(not_needed);
    }

    fn stock(&self) -> MutexGuard<'_, Option<Vec<IoUring>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings")
            .field("in_stock", &self.stock().as_ref().map(Vec::len))
            .finish()
    }
}

/// Why there is no ring.
#[derive(Debug)]
pub(super) enum NoRing {
    /// The kernel does not give one.
    Refused(io::Error),
    /// All that were made before the seal are in use.
    OutOfStock,
}

type Flags = fn(&mut Builder);

/// The best flags this kernel knows, for a ring that stays on the thread that makes it: task work
/// only when we ask for it (6.1), then without interrupts to the thread (5.19), then plain.
const FOR_ONE_THREAD: [Flags; 3] = [
    |ring| {
        ring.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
    },
    without_interrupts,
    |_| {},
];

/// The same for a ring that goes from thread to thread.
const FOR_ANY_THREAD: [Flags; 2] = [without_interrupts, |_| {}];

fn without_interrupts(ring: &mut Builder) {
    ring.setup_coop_taskrun().setup_taskrun_flag();
}

fn first_that_works(attempts: &[Flags]) -> io::Result<IoUring> {
    let mut refused = io::Error::from_raw_os_error(libc::ENOSYS);
    for flags in attempts {
        match make(*flags) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            other => return other,
        }
    }
    Err(refused)
}

fn make(flags: Flags) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_clamp()
        .setup_cqsize(ENTRIES * 8)
        .setup_r_disabled()
        .dontfork();
    flags(&mut builder);
    let ring = builder.build(ENTRIES)?;
    let mut allowed = OPERATIONS.map(Restriction::sqe_op);
    let submitter = ring.submitter();
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
#[expect(unsafe_code, reason = "entries that no safe constructor makes")]
mod tests {
    // UNSAFETY: the point is to submit what the engine never would, byte by byte.
    use std::mem;

    use io_uring::squeue::Entry;

    use super::*;

    /// What a ring answers to an operation on no file, with no address and no length.
    fn answer(ring: &mut IoUring, operation: u8, flags: u8) -> i32 {
        let mut bytes = [0_u8; 64];
        bytes[0] = operation;
        bytes[1] = flags;
        bytes[4..8].copy_from_slice(&(-1_i32).to_ne_bytes());
        // SAFETY: an entry is 64 bytes of plain numbers; this one names no memory and no file.
        let entry = unsafe { mem::transmute::<[u8; 64], Entry>(bytes) };
        // SAFETY: as above: there is nothing that must live until the completion.
        unsafe { ring.submission().push(&entry) }.expect("room");
        ring.submit_and_wait(1).expect("submitted");
        ring.completion().next().expect("an answer").result()
    }

    fn both_kinds() -> [IoUring; 2] {
        let rings = Rings::default();
        let own = rings.take().expect("a ring");
        rings.stock_up(1).expect("a stock");
        [own, rings.take().expect("a ring of the stock")]
    }

    #[test]
    fn rings_refuse_to_open_connect_bind_send_or_reach_another_ring() {
        // The numbers are the kernel's (`enum io_uring_op`).
        let refused = [
            (opcode::Socket::CODE, "socket"),
            (opcode::Connect::CODE, "connect"),
            (opcode::Accept::CODE, "accept"),
            (opcode::OpenAt::CODE, "openat"),
            (opcode::OpenAt2::CODE, "openat2"),
            (opcode::Close::CODE, "close"),
            (opcode::Statx::CODE, "statx"),
            (opcode::SendMsg::CODE, "sendmsg"),
            (opcode::RecvMsg::CODE, "recvmsg"),
            (opcode::Send::CODE, "send"),
            (opcode::Recv::CODE, "recv"),
            (opcode::UnlinkAt::CODE, "unlinkat"),
            (opcode::RenameAt::CODE, "renameat"),
            (opcode::MkDirAt::CODE, "mkdirat"),
            (opcode::SymlinkAt::CODE, "symlinkat"),
            (opcode::LinkAt::CODE, "linkat"),
            (opcode::Splice::CODE, "splice"),
            (opcode::EpollCtl::CODE, "epoll_ctl"),
            (opcode::FilesUpdate::CODE, "files_update"),
            (opcode::MsgRingData::CODE, "msg_ring"),
            (opcode::UringCmd16::CODE, "uring_cmd"),
            (opcode::Nop::CODE, "nop"),
        ];
        for mut ring in both_kinds() {
            for (operation, name) in refused {
                assert_eq!(answer(&mut ring, operation, 0), -libc::EACCES, "{name}");
            }
        }
    }

    #[test]
    fn nothing_but_the_engines_operations_passes() {
        for mut ring in both_kinds() {
            for operation in 0..=u8::MAX {
                let answer = answer(&mut ring, operation, 0);
                if OPERATIONS.contains(&operation) {
                    assert_ne!(answer, -libc::EACCES, "operation {operation}");
                } else {
                    // EINVAL: this kernel has no such operation.
                    assert!(
                        matches!(-answer, libc::EACCES | libc::EINVAL),
                        "operation {operation}: {answer}"
                    );
                }
            }
        }
    }

    #[test]
    fn rings_take_no_flags_and_nothing_can_be_registered() {
        for mut ring in both_kinds() {
            for bit in 0..8 {
                let answer = answer(&mut ring, opcode::Fsync::CODE, 1 << bit);
                assert!(
                    matches!(-answer, libc::EACCES | libc::EINVAL | libc::EOPNOTSUPP),
                    "flag {bit}: {answer}"
                );
            }
            let submitter = ring.submitter();
            let again = submitter.register_restrictions(&mut [Restriction::sqe_op(18)]);
            assert!(again.is_err(), "restrictions are for ever");
            let files = submitter.register_files(&[0]);
            assert_eq!(
                files.expect_err("refused").raw_os_error(),
                Some(libc::EACCES)
            );
        }
    }

    #[test]
    fn a_stock_is_all_there_is_and_what_comes_back_can_be_taken_again() {
        let rings = Rings::default();
        let own = rings.take().expect("a ring");
        rings.stock_up(1).expect("a stock");
        rings.give_back(own);
        let only = rings.take().expect("the one in stock");
        assert!(matches!(rings.take(), Err(NoRing::OutOfStock)));
        rings.give_back(only);
        rings.stock_up(5).expect("nothing happens");
        assert!(rings.take().is_ok());
        assert!(matches!(rings.take(), Err(NoRing::OutOfStock)));
    }
}
