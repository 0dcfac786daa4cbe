//! The loops over overlays in memory, with users that write meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use super::chain::Chain;
use super::commit::{CommitSpec, catch_up, commit, commit_active};
use super::stream::{StreamSpec, stream};
use super::*;
use crate::dirty::DirtyMap;
use crate::drain::Gate;
use crate::engine::executor::own_waker;
use crate::toy::{CLUSTER, Toy};
use crate::{
    BackingSlot, Drain, IoThread, IoThreadSpec, NodeRef, Place, Root, Segments, WriteFlags,
};

const LEN: u64 = 64 * CLUSTER;

fn iothread(id: &str) -> IoThread {
    IoThread::start(IoThreadSpec { id: id.to_owned() }).expect("io-thread")
}

fn fill(node: &NodeRef, cluster: u64, byte: u8) {
    let node = node.clone();
    let task = move |io| async move {
        let from = Segments::owned(4096, 1).expect("memory");
        from.all().copy_from(&[byte; 4096]);
        let flags = WriteFlags::default();
        node.write(&io, cluster * CLUSTER, from.all(), flags).await
    };
    iothread("fill")
        .run(task)
        .expect("answer")
        .expect("written");
}

/// The first byte of each cluster.
fn contents(node: &NodeRef) -> Vec<u8> {
    let node = node.clone();
    let task = move |io| async move {
        let into = Segments::owned(1, 1).expect("memory");
        let mut seen = Vec::new();
        for cluster in 0..node.len() / CLUSTER {
            node.read(&io, cluster * CLUSTER, into.all())
                .await
                .expect("read");
            let mut byte = [0];
            into.all().copy_to(&mut byte);
            seen.push(byte[0]);
        }
        seen
    };
    iothread("read").run(task).expect("answer")
}

struct Images {
    top: NodeRef,
    middle: NodeRef,
    base: NodeRef,
}

/// top: 3 at 3, 7 at 7. middle: 2 at 2 and at 3. base: 1 everywhere.
fn images() -> Images {
    let base = Toy::node("base", LEN, BackingSlot::new(None));
    for cluster in 0..64 {
        fill(&base, cluster, 1);
    }
    let middle = Toy::node("middle", LEN, BackingSlot::new(Some(base.clone())));
    fill(&middle, 2, 2);
    fill(&middle, 3, 2);
    let top = Toy::node("top", LEN, BackingSlot::new(Some(middle.clone())));
    fill(&top, 3, 3);
    fill(&top, 7, 7);
    Images { top, middle, base }
}

type Heard = mpsc::Receiver<JobNews>;

/// Runs a loop; its orders, and what it tells.
fn run<F>(
    thread: &IoThread,
    gate: &Gate,
    body: impl FnOnce(JobCx) -> F + Send + 'static,
) -> (Arc<Control>, Heard)
where
    F: Future<Output = Result<(), JobFailure>> + 'static,
{
    let control = Arc::new(Control::default());
    let (tell, heard) = mpsc::channel();
    let sink = JobSink::new(move |news| drop(tell.send(news)));
    let (theirs, gate) = (Arc::clone(&control), gate.clone());
    thread.spawn(move |io| async move {
        let cx = JobCx::new(io, theirs, sink.clone(), &gate).await;
        sink.send(JobNews::Ended(body(cx).await));
    });
    (control, heard)
}

fn end(heard: &Heard) -> Result<(), JobFailure> {
    loop {
        if let JobNews::Ended(result) = heard.recv().expect("the loop tells its end") {
            return result;
        }
    }
}

#[test]
fn stream_makes_the_top_independent_of_what_is_between_and_changes_nothing() {
    let images = images();
    let before = contents(&images.top);
    let thread = iothread("job");
    let spec = StreamSpec {
        top: images.top.clone(),
        between: Chain::new(vec![images.middle]),
        on_error: OnError::Report,
    };
    let (control, heard) = run(&thread, &Gate::new(), move |cx| stream(cx, spec));
    end(&heard).expect("streams");
    assert_eq!(control.progress(), (LEN, LEN));
    assert_eq!(contents(&images.top), before);
    let top = images.top.clone();
    let task = move |io| async move {
        let mut below = Vec::new();
        for cluster in 0..64 {
            let status = top.status(&io, cluster * CLUSTER, CLUSTER).await;
            if status.expect("status").place != Place::Below {
                below.push(cluster);
            }
        }
        below
    };
    assert_eq!(thread.run(task).expect("answer"), [2, 3, 7]);
}

#[test]
fn commit_moves_what_is_above_into_the_base_and_makes_it_longer() {
    let images = images();
    let top = images.top.clone();
    let thread = iothread("job");
    let task = move |io| async move { top.resize(&io, LEN + CLUSTER).await };
    thread.run(task).expect("answer").expect("longer");
    let before = contents(&images.top);
    let spec = CommitSpec {
        above: Chain::new(vec![images.top.clone(), images.middle.clone()]),
        top: images.top,
        base: images.base.clone(),
        on_error: OnError::Report,
    };
    let (_, heard) = run(&thread, &Gate::new(), move |cx| commit(cx, spec));
    end(&heard).expect("commits");
    assert_eq!(contents(&images.base), before);
}

#[test]
fn cancelled_or_limited_loop_ends_in_its_time_and_the_chain_reads_as_before() {
    let images = images();
    let before = contents(&images.top);
    let thread = iothread("job");
    let spec = CommitSpec {
        above: Chain::new(vec![images.top.clone(), images.middle.clone()]),
        top: images.top.clone(),
        base: images.base,
        on_error: OnError::Report,
    };
    let gate = Gate::new();
    let drain = Drain::begin(vec![gate.clone()]);
    let (control, heard) = run(&thread, &gate, move |cx| commit(cx, spec));
    // One cluster in a second: without the cancel it would rest for long.
    control.set_speed(4096);
    drop(drain);
    control.cancel();
    assert!(matches!(end(&heard), Err(JobFailure::Cancelled)));
    assert_eq!(contents(&images.top), before);
}

#[test]
fn paused_loop_says_so_waits_and_goes_on() {
    let images = images();
    let thread = iothread("job");
    let spec = StreamSpec {
        top: images.top,
        between: Chain::new(vec![images.middle]),
        on_error: OnError::Report,
    };
    let gate = Gate::new();
    let drain = Drain::begin(vec![gate.clone()]);
    let (control, heard) = run(&thread, &gate, move |cx| stream(cx, spec));
    control.set_paused(true);
    drop(drain);
    assert!(matches!(heard.recv(), Ok(JobNews::Paused)));
    // Parked while it is paused: nobody waits for it.
    drop(Drain::begin(vec![gate]));
    control.set_paused(false);
    assert!(matches!(heard.recv(), Ok(JobNews::Resumed)));
    end(&heard).expect("streams");
}

/// A user writes to the top all along; at the end the base is what the top was.
#[test]
fn active_commit_follows_its_writer_until_the_pivot() {
    let images = images();
    let root = Root::from(images.top.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = iothread("writer");
    let (tell, written) = mpsc::channel();
    let (theirs, done) = (root.clone(), Arc::clone(&stop));
    writer.spawn(move |io| async move {
        let seat = theirs.gate().take_seat(own_waker().await);
        let from = Segments::owned(16, 1).expect("memory");
        let mut round = 0_u64;
        while !done.load(Ordering::SeqCst) {
            seat.pass().await;
            from.all().copy_from(&round.to_le_bytes());
            let at = (round * 7 % 64) * CLUSTER;
            let part = from.all().part(0, 8);
            let node = theirs.node();
            node.write(&io, at, part, WriteFlags::default())
                .await
                .expect("write");
            round += 1;
            std::thread::yield_now();
        }
        tell.send(round).expect("the test listens");
    });
    let dirty = Arc::new(DirtyMap::new(LEN, CLUSTER));
    let drain = Drain::begin(vec![root.gate().clone()]);
    images.top.track(Arc::clone(&dirty));
    drop(drain);
    let spec = CommitSpec {
        above: Chain::new(vec![images.top.clone(), images.middle.clone()]),
        top: images.top.clone(),
        base: images.base.clone(),
        on_error: OnError::Report,
    };
    let thread = iothread("job");
    let (marks, its) = (Arc::clone(&dirty), spec.clone());
    let (control, heard) = run(&thread, &Gate::new(), move |cx| {
        commit_active(cx, its, marks)
    });
    control.complete();
    end(&heard).expect("catches up as far as it can");
    let drain = Drain::begin(vec![root.gate().clone()]);
    let marks = Arc::clone(&dirty);
    let caught = thread.run(move |io| async move { catch_up(&io, &spec, &marks).await });
    caught.expect("answer").expect("caught up");
    let (top, base) = (contents(&images.top), contents(&images.base));
    images.top.untrack(&dirty);
    drop(root.replace(images.base.clone()));
    drop(drain);
    assert_eq!(top, base);
    stop.store(true, Ordering::SeqCst);
    assert!(written.recv().expect("the writer ends") > 0);
    assert_eq!(dirty.count(), 0, "nobody writes to the top any more");
}
