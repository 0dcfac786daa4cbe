//! Limits, as they show in what reaches the node below.

use std::io;
use std::sync::mpsc;

use super::rules::{ErrorRule, RuleEvent};
use super::*;
use crate::engine::{IoThread, IoThreadSpec, Segments};
use crate::node::NodeRef;
use crate::slot::BackingSlot;
use crate::toy::{CLUSTER, OPTIONS, Toy};

const SECTOR: u64 = 512;

fn thread() -> IoThread {
    let id = "limits".to_owned();
    IoThread::start(IoThreadSpec { id }).expect("io-thread")
}

/// A node of four clusters within limits, of which one kind of request fails at one sector.
fn node(limits: RequestLimits, fails: Option<(RequestKind, u64)>) -> NodeRef {
    let below = Toy::node("below", 4 * CLUSTER, BackingSlot::new(None));
    let rule = fails.map(|(kind, sector)| ErrorRule {
        event: RuleEvent::None,
        state: None,
        kind: Some(kind),
        errno: libc::ENODATA,
        sector: Some(sector),
        once: false,
    });
    let rules = Rules::new(rule.into_iter().collect(), Vec::new());
    let body = BlkdebugNode::new(ChildSlot::new(below), rules, limits, Gate::default());
    NodeRef::new("above".to_owned(), "blkdebug", OPTIONS, Box::new(body)).expect("node")
}

async fn write(node: &NodeRef, io: &Io, offset: u64, len: u64, byte: u8) -> io::Result<()> {
    let bytes = vec![byte; usize::try_from(len).expect("small")];
    let from = Segments::owned(bytes.len(), 1)?;
    from.all().copy_from(&bytes);
    node.write(io, offset, from.all(), WriteFlags::default())
        .await
}

async fn read(node: &NodeRef, io: &Io, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).expect("small")];
    let into = Segments::owned(bytes.len(), 1)?;
    node.read(io, offset, into.all()).await?;
    into.all().copy_to(&mut bytes);
    Ok(bytes)
}

fn is_failure(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::ENODATA))
}

#[test]
fn writes_to_parts_of_one_block_at_once_lose_nothing() {
    let limits = RequestLimits {
        align: CLUSTER,
        ..RequestLimits::default()
    };
    let node = node(limits, None);
    assert_eq!(node.limits().request_alignment, 1, "it widens by itself");
    let threads = [thread(), thread()];
    let (tell, told) = mpsc::channel();
    for sector in 0..8_u8 {
        let (node, tell) = (node.clone(), tell.clone());
        threads[usize::from(sector) % 2].spawn(move |io| async move {
            for round in 1..=50 {
                let at = CLUSTER + u64::from(sector) * SECTOR;
                write(&node, &io, at, SECTOR, round).await.expect("written");
                let bytes = read(&node, &io, at + 1, 100).await.expect("read");
                assert_eq!(bytes, [round; 100]);
            }
            tell.send(()).expect("listener");
        });
    }
    drop(tell);
    assert_eq!(told.iter().count(), 8);
    let all = threads[0].run(move |io| async move { read(&node, &io, 0, 3 * CLUSTER).await });
    let all = all.expect("answer").expect("read");
    let cluster = usize::try_from(CLUSTER).expect("small");
    let wanted = [vec![0; cluster], vec![50; cluster], vec![0; cluster]].concat();
    assert_eq!(all, wanted);
}

#[test]
fn a_part_of_a_block_is_written_with_what_was_read_of_it() {
    let limits = RequestLimits {
        align: CLUSTER,
        ..RequestLimits::default()
    };
    let node = node(limits, Some((RequestKind::Read, 0)));
    let task = move |io| async move {
        assert!(is_failure(write(&node, &io, SECTOR, SECTOR, 1).await));
        write(&node, &io, 0, CLUSTER, 1).await?;
        write(&node, &io, CLUSTER, SECTOR, 1).await
    };
    thread()
        .run(task)
        .expect("answer")
        .expect("whole blocks, and others");
}

#[test]
fn long_transfers_become_several() {
    let limits = RequestLimits {
        max_transfer: CLUSTER,
        ..RequestLimits::default()
    };
    let node = node(limits, Some((RequestKind::Write, 16)));
    let task = move |io| async move {
        assert!(is_failure(write(&node, &io, 0, 4 * CLUSTER, 7).await));
        read(&node, &io, 0, 4 * CLUSTER).await
    };
    let bytes = thread().run(task).expect("answer").expect("read");
    let written = bytes.iter().filter(|byte| **byte == 7).count() as u64;
    assert_eq!(written, 2 * CLUSTER, "those before the one that failed");
}

#[test]
fn zeros_that_are_no_whole_grain_are_written_as_bytes() {
    let limits = RequestLimits {
        opt_write_zero: CLUSTER,
        max_write_zero: CLUSTER,
        ..RequestLimits::default()
    };
    let node = node(limits, Some((RequestKind::WriteZeroes, 16)));
    let task = move |io| async move {
        write(&node, &io, 0, 4 * CLUSTER, 7).await?;
        let flags = ZeroFlags::default();
        let grains = node.write_zeroes(&io, SECTOR, 3 * CLUSTER, flags).await;
        assert!(is_failure(grains), "the second whole one");
        let few = 2 * CLUSTER + SECTOR;
        node.write_zeroes(&io, few, SECTOR, flags).await?;
        read(&node, &io, 0, 4 * CLUSTER).await
    };
    let bytes = thread().run(task).expect("answer").expect("read");
    let zeros = bytes.iter().filter(|byte| **byte == 0).count() as u64;
    assert_eq!(zeros, (CLUSTER - SECTOR) + CLUSTER + SECTOR);
}

#[test]
fn discards_that_are_no_whole_grain_are_left_out() {
    let limits = RequestLimits {
        opt_discard: CLUSTER,
        ..RequestLimits::default()
    };
    let node = node(limits, Some((RequestKind::Discard, 1)));
    let task = move |io| async move {
        node.discard(&io, SECTOR, 3 * CLUSTER).await?;
        node.discard(&io, 0, CLUSTER - 1).await?;
        assert!(is_failure(node.discard(&io, 0, CLUSTER).await));
        Ok::<_, io::Error>(())
    };
    thread()
        .run(task)
        .expect("answer")
        .expect("the rule's sector stays");
}
