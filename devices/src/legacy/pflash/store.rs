//! The way of a chip's blocks to a block node: behind the guest's back, and in the guest's order.
//!
//! ```text
//!   chip (vcpu-N) ── write ─► Log ── one task while there is something ──► node.write .. flush
//!                              ▲           (io-thread; a seat at the node's gate)
//!   main ── settle: waits until it is empty ┘
//! ```
//!
//! A machine that dies leaves what a power cut would: everything up to some moment, and nothing
//! after it. Only where the storage lags far behind, a block that is written again and again is
//! stored once.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::engine::executor::own_waker;
use block::{Io, IoThread, IoThreadError, Root, Segments, WriteFlags};

use crate::repeats::Repeats;

/// What memory for requests is aligned to; it does for any storage.
const ALIGNMENT: usize = 4096;
/// How much is read at once.
const PIECE: u64 = 1 << 20;
/// How many blocks wait before the order of their writes is given up to save memory.
const PATIENCE: usize = 256;

/// A block that is to be stored.
#[derive(Debug)]
struct Piece {
    offset: u64,
    bytes: Vec<u8>,
}

/// What is still to be stored.
#[derive(Debug, Default)]
struct Log {
    waiting: VecDeque<Piece>,
    /// Whether a task is on its way through it.
    at_work: bool,
    /// Whether something could not be stored.
    failed: bool,
}

#[derive(Debug)]
struct Shared {
    root: Root,
    /// Leaf lock.
    log: Mutex<Log>,
    /// The log is empty.
    done: Condvar,
    failures: Repeats,
}

/// The storage of one chip. Clones are the same.
#[derive(Clone, Debug)]
pub struct FlashStore {
    shared: Arc<Shared>,
    iothread: IoThread,
}

impl FlashStore {
    /// Storage in `root`'s node, whose length is a multiple of [`BLOCK`](super::BLOCK) and whose
    /// requests may be that short.
    #[must_use]
    pub fn new(root: Root, iothread: IoThread) -> Self {
        let shared = Shared {
            root,
            log: Mutex::default(),
            done: Condvar::new(),
            failures: Repeats::default(),
        };
        Self {
            shared: Arc::new(shared),
            iothread,
        }
    }

    /// All that is stored. Never called on an io-thread.
    ///
    /// # Errors
    /// The storage does not tell, or the io-thread has ended.
    pub fn load(&self) -> Result<io::Result<Vec<u8>>, IoThreadError> {
        let shared = Arc::clone(&self.shared);
        self.iothread
            .run(move |io| async move { shared.load(&io).await })
    }

    /// Begins to store `bytes` at `offset`, both multiples of [`BLOCK`](super::BLOCK).
    pub fn write(&self, offset: u64, bytes: Vec<u8>) {
        let begins = {
            let mut log = self.shared.lock();
            if log.waiting.len() >= PATIENCE {
                log.waiting.retain(|piece| piece.offset != offset);
            }
            log.waiting.push_back(Piece { offset, bytes });
            !std::mem::replace(&mut log.at_work, true)
        };
        if begins {
            let shared = Arc::clone(&self.shared);
            self.iothread
                .spawn(move |io| async move { shared.work(&io).await });
        }
    }

    /// Whether something could not be stored, since this was asked last.
    #[must_use]
    pub fn take_failure(&self) -> bool {
        std::mem::take(&mut self.shared.lock().failed)
    }

    /// Waits until all is stored. Never called on an io-thread, nor during a drain.
    pub fn settle(&self) {
        let _soon = self.shared.root.hurry();
        let mut log = self.shared.lock();
        while log.at_work {
            log = self
                .shared
                .done
                .wait(log)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self, io: &Io) -> io::Result<Vec<u8>> {
        let seat = self.root.gate().take_seat(own_waker().await);
        seat.pass().await;
        let node = self.root.node();
        let mut all = Vec::new();
        while (all.len() as u64) < node.len() {
            let offset = all.len() as u64;
            let len = usize::try_from(PIECE.min(node.len() - offset)).map_err(io::Error::other)?;
            let segments = Segments::owned(len, ALIGNMENT)?;
            node.read(io, offset, segments.all()).await?;
            let mut piece = vec![0; len];
            segments.all().copy_to(&mut piece);
            all.extend(piece);
        }
        Ok(all)
    }

    /// Stores what waits, and flushes, until nothing does.
    async fn work(&self, io: &Io) {
        let seat = self.root.gate().take_seat(own_waker().await);
        loop {
            seat.pass().await;
            let piece = self.lock().waiting.pop_front();
            let result = match &piece {
                Some(piece) => self.store(io, piece).await,
                None => self.root.node().flush(io).await,
            };
            if let Err(error) = result {
                self.lock().failed = true;
                if let Some(times) = self.failures.note() {
                    let node = self.root.node().name().to_owned();
                    tracing::error!(%error, times, node, "a flash chip's bytes are not stored");
                }
            }
            if piece.is_none() {
                let mut log = self.lock();
                if log.waiting.is_empty() {
                    log.at_work = false;
                    break;
                }
            }
        }
        self.done.notify_all();
    }

    async fn store(&self, io: &Io, piece: &Piece) -> io::Result<()> {
        let segments = Segments::owned(piece.bytes.len(), ALIGNMENT)?;
        segments.all().copy_from(&piece.bytes);
        let node = self.root.node();
        node.write(io, piece.offset, segments.all(), WriteFlags::default())
            .await
    }
}
