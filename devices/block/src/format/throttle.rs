//! The node `throttle`: another node, whose requests wait as the limits of a group say.
//!
//! ```text
//!   no limits: extents are those of the node below, and nothing is in the way
//!   limits:    read, write, discard ─► Member::pass (waits) ─► the node below
//!              flush, status ─────────────────────────────────► as they are
//! ```

use std::io;

use super::filter::Filter;
use crate::engine::{Io, Window};
use crate::node::{Extent, Intent, IoFuture, NodeRef, WriteFlags, ZeroFlags};
use crate::slot::ChildSlot;
use crate::throttle::{Direction, Member};

/// A node with limits.
#[derive(Debug)]
pub struct ThrottleNode {
    file: ChildSlot,
    member: Member,
}

impl ThrottleNode {
    /// Lets requests through to the node in `file` as the group of `member` allows.
    #[must_use]
    pub fn new(file: ChildSlot, member: Member) -> Self {
        Self { file, member }
    }

    /// The node below, when a request of so many bytes may go to it.
    async fn below_in_turn(&self, io: &Io, to: Direction, bytes: u64) -> io::Result<NodeRef> {
        self.member.pass(io, to, bytes).await?;
        Ok(self.file.load())
    }
}

impl Filter for ThrottleNode {
    fn under(&self) -> NodeRef {
        self.file.load()
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        if self.member.is_limited() {
            return Extent::Slow { len };
        }
        self.file.load().extent(offset, len, intent)
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.below_in_turn(io, Direction::Read, into.len()).await?;
            file.read(io, offset, into).await
        })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.below_in_turn(io, Direction::Write, from.len()).await?;
            file.write(io, offset, from, flags).await
        })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.below_in_turn(io, Direction::Write, len).await?;
            file.write_zeroes(io, offset, len, flags).await
        })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.below_in_turn(io, Direction::Write, len).await?;
            file.discard(io, offset, len).await
        })
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move {
            let file = self.below_in_turn(io, Direction::Write, len).await?;
            file.populate(io, offset, len).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::drain::{Drain, Gate};
    use crate::engine::{IoThread, IoThreadSpec, Segments};
    use crate::protocol::null::NullNode;
    use crate::spec::NullSpec;
    use crate::throttle::{ThrottleGroup, ThrottleLimits};
    use crate::toy::{CLUSTER, OPTIONS};

    /// So few bytes a second that what waits would wait for more than an hour.
    fn hardly_any() -> ThrottleLimits {
        let mut limits = ThrottleLimits::default();
        limits.bytes.total.average = 1;
        limits
    }

    struct Room {
        thread: IoThread,
        group: Arc<ThrottleGroup>,
        hurry: Gate,
        node: NodeRef,
        below: NodeRef,
        tell: Sender<bool>,
        told: Receiver<bool>,
    }

    fn room(limits: ThrottleLimits) -> Room {
        let id = "test".to_owned();
        let thread = IoThread::start(IoThreadSpec { id }).expect("io-thread");
        let hurry = Gate::new();
        let group = ThrottleGroup::new("g".to_owned(), limits, hurry.clone());
        let group = Arc::new(group);
        let nothing = NullNode::new(NullSpec {
            size: 8 * CLUSTER,
            read_zeroes: true,
        });
        let below = NodeRef::new("below".to_owned(), "null-co", OPTIONS, Box::new(nothing));
        let below = below.expect("node");
        let body = ThrottleNode::new(ChildSlot::from(below.clone()), group.join("slow"));
        let node = NodeRef::new("slow".to_owned(), "throttle", OPTIONS, Box::new(body));
        let (tell, told) = channel();
        Room {
            thread,
            group,
            hurry,
            node: node.expect("node"),
            below,
            tell,
            told,
        }
    }

    impl Room {
        /// Begins so many writes, and returns when each has asked the group.
        fn begin_writes(&self, count: usize) {
            for _ in 0..count {
                let (node, tell) = (self.node.clone(), self.tell.clone());
                self.thread.spawn(move |io| async move {
                    let size = usize::try_from(CLUSTER).expect("small");
                    let buffer = Segments::owned(size, 4096).expect("memory");
                    let written = node.write(&io, 0, buffer.all(), WriteFlags::default());
                    tell.send(written.await.is_ok()).expect("listener");
                });
            }
            let asked = self.thread.run(|io| async move { io.sleep(MOMENT).await });
            asked.expect("the thread answers").expect("timer");
        }

        fn writes_below(&self) -> u64 {
            self.below.totals().writes.done
        }

        fn await_writes(&self, count: usize) {
            for _ in 0..count {
                assert!(self.told.recv().expect("an answer"), "the write went");
            }
        }
    }

    /// For the thread's tasks to be polled; nothing is measured by it.
    const MOMENT: std::time::Duration = std::time::Duration::from_millis(1);

    #[test]
    fn requests_beyond_the_limits_wait_and_a_drain_lets_them_through() {
        let room = room(hardly_any());
        room.begin_writes(6);
        room.await_writes(1);
        assert_eq!(room.writes_below(), 1);
        let drain = Drain::begin(vec![room.hurry.clone()]);
        room.await_writes(5);
        assert_eq!(room.writes_below(), 6);
        room.begin_writes(2);
        room.await_writes(2);
        drop(drain);
        room.begin_writes(1);
        assert_eq!(room.writes_below(), 8, "what went in a hurry was counted");
        drop(Drain::begin(vec![room.hurry.clone()]));
        room.await_writes(1);
    }

    #[test]
    fn requests_that_wait_go_when_the_limits_are_lifted() {
        let room = room(hardly_any());
        room.begin_writes(4);
        room.await_writes(1);
        assert_eq!(room.writes_below(), 1);
        room.group.set_limits(ThrottleLimits::default());
        room.await_writes(3);
        room.begin_writes(3);
        room.await_writes(3);
        assert_eq!(room.writes_below(), 7);
    }

    #[test]
    fn requests_that_wait_a_little_go_one_after_the_other_by_themselves() {
        let mut limits = ThrottleLimits::default();
        limits.requests.write.average = 1000;
        let room = room(limits);
        room.begin_writes(150);
        room.await_writes(150);
        assert_eq!(room.writes_below(), 150);
    }

    #[test]
    fn without_limits_extents_are_those_below() {
        let room = room(ThrottleLimits::default());
        let extent = || room.node.extent(0, CLUSTER, Intent::Read);
        assert!(!matches!(extent(), Extent::Slow { .. }));
        room.group.set_limits(hardly_any());
        assert!(matches!(extent(), Extent::Slow { .. }));
    }

    #[test]
    fn a_group_knows_its_nodes_while_they_are_there() {
        let room = room(hardly_any());
        assert_eq!(room.group.first_member().as_deref(), Some("slow"));
        drop(room.node);
        assert_eq!(room.group.first_member(), None);
    }
}
