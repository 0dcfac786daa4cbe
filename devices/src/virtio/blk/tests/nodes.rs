//! Nodes to stand a disk on: a temporary file, and a probe that holds, fails and remembers.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Poll, Waker};

use block::node::IoFuture;
use block::spec::{
    CacheSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec,
};
use block::{
    BlockGraph, BlockNode, Extent, Intent, Io, Limits, NodeRef, Window, WriteFlags, ZeroFlags,
};
use fdset::{Door, FdRegistry, Scope};
use tempfile::NamedTempFile;

const OPTIONS: NodeOptions = NodeOptions {
    read_only: false,
    auto_read_only: false,
    discard: DiscardMode::Unmap,
    detect_zeroes: DetectZeroes::Off,
    cache: CacheSpec {
        direct: false,
        no_flush: false,
    },
};

fn node_over_file(len: u64, options: NodeOptions) -> (NodeRef, NamedTempFile) {
    let file = NamedTempFile::new().expect("temporary file");
    file.as_file().set_len(len).expect("length");
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    let filename = file.path().to_str().expect("plain path").to_owned();
    let driver = DriverSpec::File(FileSpec {
        filename,
        role: fdset::Role::Image,
        locking: block::spec::Locking::Auto,
    });
    let spec = NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: Some("disk".to_owned()),
        options,
        driver,
    };
    (BlockGraph::new().add(&door, spec).expect("node"), file)
}

pub(super) fn file_node(len: u64) -> (NodeRef, NamedTempFile) {
    node_over_file(len, OPTIONS)
}

pub(super) fn read_only_file_node(len: u64) -> (NodeRef, NamedTempFile) {
    node_over_file(
        len,
        NodeOptions {
            read_only: true,
            ..OPTIONS
        },
    )
}

#[derive(Default)]
struct ProbeState {
    events: Mutex<Vec<String>>,
    released: AtomicBool,
    errno: AtomicI32,
    held: Mutex<Vec<Waker>>,
    someone_held: Condvar,
}

/// The test's hand on a [`ProbeNode`].
#[derive(Clone, Default)]
pub(super) struct Probe(Arc<ProbeState>);

impl Probe {
    pub(super) fn log(&self, event: &str) {
        self.0.events.lock().expect("events").push(event.to_owned());
    }

    pub(super) fn events(&self) -> Vec<String> {
        self.0.events.lock().expect("events").clone()
    }

    /// Lets every request go on, now and later.
    pub(super) fn release(&self) {
        self.0.released.store(true, Ordering::SeqCst);
        let held = mem::take(&mut *self.0.held.lock().expect("held"));
        held.into_iter().for_each(Waker::wake);
    }

    pub(super) fn wait_for_a_held_request(&self) {
        self.wait_for_held_requests(1);
    }

    pub(super) fn wait_for_held_requests(&self, count: usize) {
        let mut held = self.0.held.lock().expect("held");
        while held.len() < count {
            held = self.0.someone_held.wait(held).expect("held");
        }
    }

    pub(super) fn fail_with(&self, errno: i32) {
        self.0.errno.store(errno, Ordering::SeqCst);
    }

    /// How many hold the probe: this handle, and the node while it lives.
    pub(super) fn users(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    async fn pass(&self) -> io::Result<()> {
        poll_fn(|cx| {
            let mut held = self.0.held.lock().expect("held");
            if self.0.released.load(Ordering::SeqCst) {
                return Poll::Ready(());
            }
            if !held.iter().any(|other| other.will_wake(cx.waker())) {
                held.push(cx.waker().clone());
            }
            self.0.someone_held.notify_all();
            Poll::Pending
        })
        .await;
        match self.0.errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A node of 1 MiB that does what the probe says.
pub(super) struct ProbeNode(Probe);

impl ProbeNode {
    pub(super) fn node(probe: &Probe) -> NodeRef {
        let body = Box::new(Self(probe.clone()));
        NodeRef::new("probe".to_owned(), "probe", OPTIONS, body).expect("node")
    }
}

impl BlockNode for ProbeNode {
    fn length(&self) -> u64 {
        1 << 20
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, _: u64, len: u64, _: Intent) -> Extent {
        Extent::Slow { len }
    }

    fn read<'a>(&'a self, _: &'a Io, _: u64, _: Window<'a>) -> IoFuture<'a> {
        Box::pin(self.0.pass())
    }

    fn write<'a>(&'a self, _: &'a Io, _: u64, _: Window<'a>, flags: WriteFlags) -> IoFuture<'a> {
        self.0.log(if flags.durable {
            "durable write"
        } else {
            "write"
        });
        Box::pin(self.0.pass())
    }

    fn write_zeroes<'a>(&'a self, _: &'a Io, _: u64, _: u64, _: ZeroFlags) -> IoFuture<'a> {
        Box::pin(self.0.pass())
    }

    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> IoFuture<'a> {
        Box::pin(self.0.pass())
    }

    fn flush<'a>(&'a self, _: &'a Io) -> IoFuture<'a> {
        Box::pin(self.0.pass())
    }
}
