//! The node `copy-on-read`: another node, into which whatever is read is copied from below it.
//!
//! ```text
//!   read ─► shows through from behind? ─ yes ─► populate ─┐
//!                │ no, or it lies below the bottom        │
//!                └──────────────────────────► read ◄──────┘
//!   write, discard, flush ─► as they are
//! ```
//!
//! Copying is a favour: where it fails (no space, no backing node), the read goes on. It never
//! changes what is read, so a copy that comes too late or of too much does no harm.

use std::io;

use super::filter::Filter;
use crate::engine::{Io, Window};
use crate::node::{Extent, Intent, IoFuture, NodeRef, Place};
use crate::slot::ChildSlot;

/// The most that is looked at and copied at once, in bytes.
const PIECE: u64 = 1 << 20;

/// A node that keeps what was read.
#[derive(Debug)]
pub struct CopyOnReadNode {
    file: ChildSlot,
    /// The nodes from the one below this down to the lowest from which is copied; empty for all.
    span: Vec<NodeRef>,
}

impl CopyOnReadNode {
    /// Copies into the node in `file` what is read: from wherever, or only from nodes of `span`
    /// (which begins with that in `file`).
    #[must_use]
    pub fn new(file: ChildSlot, span: Vec<NodeRef>) -> Self {
        Self { file, span }
    }

    /// Copies into `file` what of a range lies in the span.
    async fn copy(&self, io: &Io, file: &NodeRef, offset: u64, len: u64) -> io::Result<()> {
        if self.span.is_empty() {
            return file.populate(io, offset, len).await;
        }
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (inside, len) = self.lies_inside(io, at, (end - at).min(PIECE)).await?;
            if inside {
                file.populate(io, at, len).await?;
            }
            at += len;
        }
        Ok(())
    }

    /// Whether the first bytes of a range lie in the span, and how many are alike.
    async fn lies_inside(&self, io: &Io, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let mut len = len;
        for node in &self.span {
            let rest = node.len().saturating_sub(offset);
            if rest == 0 {
                // Zeros behind a node that ends: nothing below shows through.
                return Ok((true, len));
            }
            let status = node.status(io, offset, len.min(rest)).await?;
            len = status.len;
            if status.place != Place::Below {
                return Ok((true, len));
            }
        }
        Ok((false, len))
    }
}

impl Filter for CopyOnReadNode {
    fn under(&self) -> NodeRef {
        self.file.load()
    }

    /// Reads must be seen; writes need not.
    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        match intent {
            Intent::Read => Extent::Slow { len },
            Intent::Write => self.file.load().extent(offset, len, intent),
        }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.file.load();
            if file.is_writable()
                && let Err(error) = self.copy(io, &file, offset, into.len()).await
            {
                tracing::debug!(node = file.name(), %error, "what was read is not kept");
            }
            file.read(io, offset, into).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{IoThread, IoThreadSpec, Segments};
    use crate::node::WriteFlags;
    use crate::slot::BackingSlot;
    use crate::spec::{CacheSpec, DetectZeroes, DiscardMode, NodeOptions};
    use crate::toy::{CLUSTER, Toy};

    const OPTIONS: NodeOptions = NodeOptions {
        read_only: false,
        auto_read_only: false,
        discard: DiscardMode::Ignore,
        detect_zeroes: DetectZeroes::Off,
        cache: CacheSpec {
            direct: false,
            no_flush: false,
        },
    };
    const LEN: u64 = 4 * CLUSTER;
    const PART: usize = 4096;

    /// A node's cluster in each of three nodes of a chain, and what the topmost then stores.
    fn stored_after_reading(bottom: Option<usize>) -> Vec<bool> {
        let id = "test".to_owned();
        let thread = IoThread::start(IoThreadSpec { id }).expect("io-thread");
        let stored = thread.run(move |io| async move {
            let base = Toy::node("base", LEN, BackingSlot::new(None));
            let mid = Toy::node("mid", LEN, BackingSlot::new(Some(base.clone())));
            let top = Toy::node("top", LEN, BackingSlot::new(Some(mid.clone())));
            let size = usize::try_from(LEN).expect("small");
            let buffer = Segments::owned(size, 4096).expect("memory");
            for (node, index) in [(&top, 0), (&mid, 1), (&base, 2)] {
                let part = buffer.all().part(0, CLUSTER);
                part.copy_from(&[index + 1; PART]);
                let at = u64::from(index) * CLUSTER;
                node.write(&io, at, part, WriteFlags::default())
                    .await
                    .expect("write");
            }
            let span = match bottom {
                Some(count) => [&top, &mid, &base][..count]
                    .iter()
                    .copied()
                    .cloned()
                    .collect(),
                None => Vec::new(),
            };
            let body = CopyOnReadNode::new(ChildSlot::from(top.clone()), span);
            let node = NodeRef::new("cor".to_owned(), "copy-on-read", OPTIONS, Box::new(body));
            node.expect("node")
                .read(&io, 0, buffer.all())
                .await
                .expect("read");
            let mut bytes = vec![0; size];
            buffer.all().copy_to(&mut bytes);
            let read: Vec<u8> = bytes.chunks(PART).map(|one| one[0]).collect();
            assert_eq!(read, [1, 2, 3, 0]);
            let mut stored = Vec::new();
            for index in 0..3 {
                let status = top
                    .status(&io, index * CLUSTER, CLUSTER)
                    .await
                    .expect("status");
                stored.push(status.place != Place::Below);
            }
            stored
        });
        stored.expect("the thread answers")
    }

    #[test]
    fn what_is_read_is_kept_down_to_the_bottom() {
        assert_eq!(stored_after_reading(None), [true, true, true]);
        assert_eq!(stored_after_reading(Some(2)), [true, true, false]);
        assert_eq!(stored_after_reading(Some(1)), [true, false, false]);
    }
}
