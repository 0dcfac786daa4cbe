//! The descriptors of one connection, and the bytes that go through them.

use std::sync::Arc;

use fdset::OpenFile;
use nix::errno::Errno;
use nix::unistd;

/// How many bytes are read at once.
const INTAKE: usize = 4 << 10;

/// The descriptors of one connection. They may be the same file.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Where input comes from, if there is any.
    pub(super) input: Option<Arc<OpenFile>>,
    /// Where output goes.
    pub(super) output: Arc<OpenFile>,
    /// What `query-chardev` calls it.
    pub(super) name: String,
}

/// What became of bytes to send.
pub(super) enum Sent {
    /// All were taken.
    All,
    /// So many were taken; then the descriptor would have blocked.
    Some(usize),
    /// Nobody will take them.
    Gone,
}

/// What there was to read.
pub(super) enum Received {
    /// Something.
    Bytes,
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
}

impl Peer {
    /// A peer with one descriptor for both directions.
    pub(super) fn duplex(file: Arc<OpenFile>, name: String) -> Self {
        Self {
            input: Some(Arc::clone(&file)),
            output: file,
            name,
        }
    }

    /// Whether input and output are one descriptor.
    pub(super) fn is_duplex(&self) -> bool {
        self.input
            .as_ref()
            .is_some_and(|input| Arc::ptr_eq(input, &self.output))
    }

    /// Writes until all is written or the descriptor would block.
    pub(super) fn send(&self, bytes: &[u8]) -> Sent {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match unistd::write(&*self.output, rest) {
                Ok(0) | Err(Errno::EAGAIN) => return Sent::Some(sent),
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    tracing::debug!(%error, "a chardev's output is lost");
                    return Sent::Gone;
                }
            }
        }
        Sent::All
    }
}

/// Input that was read and is not taken yet.
pub(super) struct Intake {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Intake {
    /// With nothing in it.
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; INTAKE].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What is not taken yet.
    pub(super) fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The first `count` bytes were taken.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Drops what is not taken yet.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Reads at most `limit` bytes of `peer`, after everything before was taken.
    pub(super) fn refill(&mut self, peer: &Peer, limit: usize) -> Received {
        let Some(input) = &peer.input else {
            return Received::Nothing;
        };
        self.clear();
        let limit = limit.min(self.buffer.len());
        let room = self.buffer.get_mut(..limit).unwrap_or_default();
        loop {
            match unistd::read(&**input, room) {
                Ok(0) => return Received::End,
                Ok(count) => {
                    self.end = count;
                    return Received::Bytes;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Received::Nothing,
                // EIO: the last slave of a pty was closed; otherwise the connection broke.
                Err(_) => return Received::End,
            }
        }
    }
}
