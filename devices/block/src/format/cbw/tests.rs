//! A disk that is written to, and who reads what it held.

use super::*;
use crate::dirty::DirtyMap;
use crate::drain::Gate;
use crate::engine::{IoThread, IoThreadSpec, Segments};
use crate::slot::BackingSlot;
use crate::spec::{CbwFailure, NodeOptions};
use crate::toy::{CLUSTER, OPTIONS, Toy};

const LEN: u64 = 4 * CLUSTER;
const PIECE: usize = 4096;

struct Rig {
    disk: NodeRef,
    target: NodeRef,
    guest: NodeRef,
    reader: NodeRef,
}

fn node(name: &str, driver: &'static str, body: Box<dyn crate::node::BlockNode>) -> NodeRef {
    NodeRef::new(name.to_owned(), driver, OPTIONS, body).expect("node")
}

async fn fill(io: &Io, node: &NodeRef, offset: u64, len: u64, with: u8) -> io::Result<()> {
    let size = usize::try_from(len).expect("small");
    let buffer = Segments::owned(size, 4096)?;
    buffer.all().copy_from(&vec![with; size]);
    node.write(io, offset, buffer.all(), WriteFlags::default())
        .await
}

/// The first byte of each piece.
async fn look(io: &Io, node: &NodeRef) -> io::Result<Vec<u8>> {
    let size = usize::try_from(LEN).expect("small");
    let buffer = Segments::owned(size, 4096)?;
    node.read(io, 0, buffer.all()).await?;
    let mut bytes = vec![0; size];
    buffer.all().copy_to(&mut bytes);
    assert!(
        bytes
            .chunks(PIECE)
            .all(|piece| piece.iter().all(|byte| *byte == piece[0]))
    );
    Ok(bytes.chunks(PIECE).map(|piece| piece[0]).collect())
}

/// A disk with 1, 2, 3, 4 in its pieces, under both nodes.
async fn rig(io: &Io, only: Option<&DirtyMap>, on_failure: CbwFailure, can_save: bool) -> Rig {
    let disk = Toy::node("disk", LEN, BackingSlot::new(None));
    for (piece, byte) in (0..4).zip(1..) {
        fill(io, &disk, piece * CLUSTER, CLUSTER, byte)
            .await
            .expect("write");
    }
    let body = Box::new(Toy::new(LEN, BackingSlot::new(None)));
    let options = NodeOptions {
        read_only: !can_save,
        ..OPTIONS
    };
    let target = NodeRef::new("target".to_owned(), "toy", options, body).expect("node");
    let file = ChildSlot::from(disk.clone());
    let rules = SnapshotRules {
        on_failure,
        timeout: None,
    };
    let children = (file.clone(), ChildSlot::from(target.clone()));
    let snapshot = Arc::new(Snapshot::new(children, CLUSTER, only, rules, Gate::new()));
    let access = SnapshotAccessNode::new(Arc::clone(&snapshot));
    let guest = CopyBeforeWriteNode::new(file, snapshot);
    Rig {
        guest: node("cbw", "copy-before-write", Box::new(guest)),
        reader: node("access", "snapshot-access", Box::new(access)),
        disk,
        target,
    }
}

fn run<T: Send + 'static, F: Future<Output = T> + 'static>(
    make: impl FnOnce(Io) -> F + Send + 'static,
) -> T {
    let id = "test".to_owned();
    let thread = IoThread::start(IoThreadSpec { id }).expect("io-thread");
    thread.run(make).expect("answer")
}

#[test]
fn what_a_write_a_zeroing_or_a_discard_takes_away_is_read_as_it_was() {
    run(|io| async move {
        let rig = rig(&io, None, CbwFailure::BreakGuestWrite, true).await;
        assert_eq!(look(&io, &rig.reader).await.expect("read"), [1, 2, 3, 4]);
        assert_eq!(look(&io, &rig.target).await.expect("read"), [0; 4]);
        // A part of a piece has all of it saved.
        let part = rig
            .guest
            .write_zeroes(&io, CLUSTER, CLUSTER / 2, ZeroFlags::default());
        part.await.expect("zeroes");
        fill(&io, &rig.guest, CLUSTER, CLUSTER, 9)
            .await
            .expect("write");
        rig.guest
            .discard(&io, 3 * CLUSTER, CLUSTER)
            .await
            .expect("discard");
        assert_eq!(look(&io, &rig.reader).await.expect("read"), [1, 2, 3, 4]);
        assert_eq!(look(&io, &rig.target).await.expect("read"), [0, 2, 0, 4]);
        let guest = look(&io, &rig.guest).await.expect("read");
        assert_eq!((guest[0], guest[1], guest[2]), (1, 9, 3));
        assert_eq!(guest, look(&io, &rig.disk).await.expect("read"));
        // What is saved is not saved again.
        fill(&io, &rig.guest, CLUSTER, CLUSTER, 8)
            .await
            .expect("write");
        assert_eq!(look(&io, &rig.reader).await.expect("read"), [1, 2, 3, 4]);
        assert!(rig.guest.resize(&io, 2 * LEN).await.is_err());
        assert!(fill(&io, &rig.reader, 0, CLUSTER, 7).await.is_err());
    });
}

#[test]
fn copy_that_fails_is_the_writers_or_the_readers_loss() {
    run(|io| async move {
        let strict = rig(&io, None, CbwFailure::BreakGuestWrite, false).await;
        let refused = fill(&io, &strict.guest, 0, CLUSTER, 9).await;
        assert_eq!(
            refused.expect_err("not saved").raw_os_error(),
            Some(libc::EPERM)
        );
        assert_eq!(look(&io, &strict.reader).await.expect("read"), [1, 2, 3, 4]);
        assert_eq!(look(&io, &strict.disk).await.expect("read"), [1, 2, 3, 4]);
        let lax = rig(&io, None, CbwFailure::BreakSnapshot, false).await;
        fill(&io, &lax.guest, 0, CLUSTER, 9).await.expect("goes on");
        let lost = look(&io, &lax.reader).await;
        assert_eq!(
            lost.expect_err("given up").raw_os_error(),
            Some(libc::EACCES)
        );
        assert_eq!(look(&io, &lax.disk).await.expect("read"), [9, 2, 3, 4]);
    });
}

#[test]
fn only_what_a_bitmap_marks_is_saved_and_read_and_no_more_of_it_than_the_reader_wants() {
    run(|io| async move {
        let only = DirtyMap::new(LEN, CLUSTER);
        only.mark(0, 2 * CLUSTER);
        let rig = rig(&io, Some(&only), CbwFailure::BreakGuestWrite, true).await;
        fill(&io, &rig.guest, 0, LEN, 9).await.expect("write");
        assert_eq!(look(&io, &rig.target).await.expect("read"), [1, 2, 0, 0]);
        let piece = |offset| {
            let (io, reader) = (io.clone(), rig.reader.clone());
            async move {
                let buffer = Segments::owned(PIECE, 4096)?;
                reader.read(&io, offset, buffer.all()).await
            }
        };
        piece(CLUSTER).await.expect("marked");
        let refused = piece(2 * CLUSTER).await.expect_err("not marked");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        // Parts of pieces stay.
        rig.reader
            .discard(&io, 1, 2 * CLUSTER - 1)
            .await
            .expect("discard");
        piece(0).await.expect("a part of it was not discarded");
        piece(CLUSTER).await.expect_err("discarded");
        assert_eq!(look(&io, &rig.guest).await.expect("read"), [9; 4]);
    });
}
