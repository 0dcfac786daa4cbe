//! Pieces in flight at the same time, counted by a storage that holds its reads back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::Poll;

use super::chain::Chain;
use super::commit::{CommitSpec, commit, commit_active, take_dirty};
use super::control::{Control, JobCx, JobFailure, JobNews, JobSink, OnError};
use super::flight::PIECES;
use super::stream::{StreamSpec, stream};
use crate::dirty::DirtyMap;
use crate::drain::Gate;
use crate::engine::{Io, IoThread, IoThreadSpec, Segments, Window};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, WriteFlags, ZeroFlags, errno,
};
use crate::slot::BackingSlot;
use crate::toy::{CLUSTER, OPTIONS, Toy};

const PIECE: u64 = 1 << 20;
const LEN: u64 = 20 * PIECE;
/// How often a read looks whether enough others have come, before it goes on without them.
const PATIENCE: u32 = 1000;

#[derive(Debug, Default)]
struct Reads {
    /// Reads that wait now, and the most that ever did.
    waiting: usize,
    most: usize,
    /// All go on: enough have come, or the test says so.
    is_open: bool,
    /// Told when enough have come, which then wait for the test.
    tell: Option<mpsc::Sender<()>>,
    /// Offsets of reads that shall fail, each once.
    bad: Vec<u64>,
}

/// Sevens everywhere, read once as many reads wait as there can be.
#[derive(Clone, Debug, Default)]
struct Held(Arc<Mutex<Reads>>);

impl Held {
    fn node(&self) -> NodeRef {
        let body = Box::new(self.clone());
        NodeRef::new("held".to_owned(), "held", OPTIONS, body).expect("node")
    }

    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait(&self) {
        {
            let mut reads = self.reads();
            reads.waiting += 1;
            reads.most = reads.most.max(reads.waiting);
            if reads.waiting == PIECES {
                match &reads.tell {
                    Some(tell) => tell.send(()).expect("the test listens"),
                    None => reads.is_open = true,
                }
            }
        }
        let mut left = PATIENCE;
        std::future::poll_fn(|cx| {
            let mut reads = self.reads();
            left -= u32::from(reads.tell.is_none());
            if reads.is_open || left == 0 {
                reads.waiting -= 1;
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl BlockNode for Held {
    fn length(&self) -> u64 {
        LEN
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard: false,
            write_zeroes: false,
        }
    }

    fn extent(&self, _: u64, len: u64, _: Intent) -> Extent {
        Extent::Slow { len }
    }

    fn read<'a>(&'a self, _: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move {
            self.wait().await;
            let bad = &mut self.reads().bad;
            let place = bad.iter().position(|at| *at == offset);
            if place.map(|place| bad.remove(place)).is_some() {
                return Err(errno(libc::EIO));
            }
            into.copy_from(&vec![7; usize::try_from(into.len()).expect("small")]);
            Ok(())
        })
    }

    fn write<'a>(&'a self, _: &'a Io, _: u64, _: Window<'a>, _: WriteFlags) -> IoFuture<'a> {
        Box::pin(std::future::ready(Err(errno(libc::EIO))))
    }

    fn write_zeroes<'a>(&'a self, _: &'a Io, _: u64, _: u64, _: ZeroFlags) -> IoFuture<'a> {
        Box::pin(std::future::ready(Err(errno(libc::EIO))))
    }

    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> IoFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn flush<'a>(&'a self, _: &'a Io) -> IoFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A job of its own thread: its orders, and what it tells.
struct Running {
    control: Arc<Control>,
    heard: mpsc::Receiver<JobNews>,
    _thread: IoThread,
}

impl Running {
    /// Starts with a limit, where one is given.
    fn start<F>(speed: u64, body: impl FnOnce(JobCx) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), JobFailure>> + 'static,
    {
        let id = "job".to_owned();
        let thread = IoThread::start(IoThreadSpec { id }).expect("io-thread");
        let control = Arc::new(Control::default());
        control.set_speed(speed);
        let (tell, heard) = mpsc::channel();
        let sink = JobSink::new(move |news| drop(tell.send(news)));
        let theirs = Arc::clone(&control);
        thread.spawn(move |io| async move {
            let cx = JobCx::new(io, theirs, sink.clone(), &Gate::new()).await;
            sink.ended(body(cx).await);
        });
        Self {
            control,
            heard,
            _thread: thread,
        }
    }

    /// How often it tells of an error until it ends well. It goes on whenever it waits.
    fn errors(&self) -> usize {
        let mut errors = 0;
        loop {
            match self.heard.recv().expect("the loop tells its end") {
                JobNews::Error { .. } => errors += 1,
                JobNews::Paused => self.control.set_paused(false),
                JobNews::Ended(result) => {
                    result.expect("done");
                    return errors;
                }
                _ => {}
            }
        }
    }
}

fn commit_spec(top: &Held, on_error: OnError) -> CommitSpec {
    let top = top.node();
    CommitSpec {
        above: Chain::new(vec![top.clone()]),
        top,
        base: Toy::node("base", LEN, BackingSlot::new(None)),
        on_error,
    }
}

fn assert_sevens(node: &NodeRef) {
    let id = "read".to_owned();
    let thread = IoThread::start(IoThreadSpec { id }).expect("io-thread");
    let node = node.clone();
    let task = move |io| async move {
        let into = Segments::owned(1 << 20, 1).expect("memory");
        let mut bytes = vec![0; 1 << 20];
        for piece in 0..LEN / PIECE {
            node.read(&io, piece * PIECE, into.all())
                .await
                .expect("read");
            into.all().copy_to(&mut bytes);
            assert!(bytes.iter().all(|byte| *byte == 7), "piece {piece}");
        }
    };
    thread.run(task).expect("all sevens");
}

#[test]
fn commit_has_many_pieces_in_flight_and_moves_all_of_them() {
    let held = Held::default();
    let spec = commit_spec(&held, OnError::Report);
    let base = spec.base.clone();
    let job = Running::start(0, move |cx| commit(cx, spec));
    assert_eq!(job.errors(), 0);
    assert_eq!(held.reads().most, PIECES);
    assert_eq!(job.control.progress(), (LEN, LEN));
    assert_sevens(&base);
}

#[test]
fn active_commit_has_many_pieces_in_flight_and_moves_all_of_them() {
    let held = Held::default();
    let spec = commit_spec(&held, OnError::Report);
    let base = spec.base.clone();
    let dirty = Arc::new(DirtyMap::new(LEN, 64 << 10));
    let job = Running::start(0, move |cx| commit_active(cx, spec, dirty));
    job.control.complete();
    assert_eq!(job.errors(), 0);
    assert_eq!(held.reads().most, PIECES);
    assert_eq!(job.control.progress(), (LEN, LEN));
    assert_sevens(&base);
}

#[test]
fn stream_has_many_pieces_in_flight_and_moves_all_of_them() {
    let held = Held::default();
    let below = held.node();
    let top = Toy::node("top", LEN, BackingSlot::new(Some(below.clone())));
    let spec = StreamSpec {
        top: top.clone(),
        between: Chain::new(vec![below]),
        on_error: OnError::Report,
    };
    let job = Running::start(0, move |cx| stream(cx, spec));
    assert_eq!(job.errors(), 0);
    assert_eq!(held.reads().most, PIECES);
    assert_eq!(job.control.progress(), (LEN, LEN));
    assert_sevens(&top);
}

#[test]
fn limited_job_has_one_piece_in_flight() {
    let held = Held::default();
    let spec = commit_spec(&held, OnError::Report);
    // So much that it never rests.
    let job = Running::start(1 << 40, move |cx| commit(cx, spec));
    assert_eq!(job.errors(), 0);
    assert_eq!(held.reads().most, 1);
}

#[test]
fn paused_job_lands_what_is_in_flight_and_starts_no_more() {
    let held = Held::default();
    let (tell, told) = mpsc::channel();
    held.reads().tell = Some(tell);
    let spec = commit_spec(&held, OnError::Report);
    let job = Running::start(0, move |cx| commit(cx, spec));
    told.recv().expect("many reads wait");
    job.control.set_paused(true);
    held.reads().is_open = true;
    assert!(matches!(job.heard.recv(), Ok(JobNews::Paused)));
    let landed = PIECE * PIECES as u64;
    assert_eq!(job.control.progress(), (landed, LEN));
    assert_eq!(held.reads().waiting, 0);
    held.reads().tell = None;
    job.control.set_paused(false);
    assert_eq!(job.errors(), 0);
}

#[test]
fn pieces_that_fail_together_stop_a_job_once_and_are_copied_when_it_goes_on() {
    for (policy, told) in [(OnError::Stop, 1), (OnError::Ignore, 2)] {
        let held = Held::default();
        held.reads().bad = vec![3 * PIECE, 5 * PIECE];
        let spec = commit_spec(&held, policy);
        let base = spec.base.clone();
        let job = Running::start(0, move |cx| commit(cx, spec));
        assert_eq!(job.errors(), told, "{policy:?}");
        assert_eq!(job.control.progress(), (LEN, LEN));
        assert_sevens(&base);
    }
}

#[test]
fn piece_written_again_while_it_is_copied_waits_and_stays_marked() {
    let dirty = DirtyMap::new(LEN, CLUSTER);
    let control = Control::default();
    dirty.mark(PIECE, PIECE);
    let first = take_dirty(&control, &dirty, &[]).expect("marked");
    dirty.mark(PIECE + CLUSTER, 1);
    assert_eq!(take_dirty(&control, &dirty, &[first]), None);
    assert_eq!(dirty.count(), CLUSTER);
    let again = take_dirty(&control, &dirty, &[]).expect("marked again");
    assert_eq!((again.at, again.len), (PIECE + CLUSTER, CLUSTER));
}
