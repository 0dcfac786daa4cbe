//! A request whose extent is known allocates nothing: counted, not believed.
#![expect(
    unsafe_code,
    reason = "a counting allocator is an implementation of GlobalAlloc"
)]
// UNSAFETY: the allocator hands every call on to the system's, with the same arguments.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use block::engine::{TaskSet, executor::own_waker};
use block::spec::{
    CacheSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec,
};
use block::{BlockGraph, IoThread, IoThreadSpec, NodeRef, Segments, WriteFlags};
use fdset::{Door, FdRegistry, Scope};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all calls are the system allocator's; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn node(file: &tempfile::NamedTempFile) -> NodeRef {
    let options = NodeOptions {
        read_only: false,
        auto_read_only: false,
        discard: DiscardMode::Unmap,
        detect_zeroes: DetectZeroes::Off,
        cache: CacheSpec {
            direct: false,
            no_flush: false,
        },
    };
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
    let door = Door::new(Arc::new(FdRegistry::new()), Scope::Process);
    BlockGraph::new().add(&door, spec).expect("node")
}

#[test]
fn known_extent_is_read_and_written_without_an_allocation() {
    let file = tempfile::NamedTempFile::new().expect("image");
    file.as_file().set_len(64 << 10).expect("length");
    let node = node(&file);
    let thread = IoThread::start(IoThreadSpec {
        id: "count".to_owned(),
    })
    .expect("io-thread");
    let rounds = thread.run(move |io| async move {
        let memory = Segments::owned(64 << 10, 4096).expect("memory");
        let memory = &memory;
        let request = async |slot: u64| {
            let part = memory.all().part(slot * 4096, 4096);
            node.read(&io, slot * 4096, part).await.expect("read");
            node.write(&io, slot * 4096, part, WriteFlags::default())
                .await
                .expect("write");
        };
        let mut running = TaskSet::new(8, own_waker().await);
        let mut rounds = Vec::new();
        for _ in 0..20 {
            let before = ALLOCATIONS.with(Cell::get);
            for slot in 0..8 {
                assert!(running.push(request(slot)).is_ok(), "eight slots");
            }
            std::future::poll_fn(|_| {
                while running.next_done().is_some() {}
                if running.is_empty() {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
            rounds.push(ALLOCATIONS.with(Cell::get) - before);
        }
        rounds
    });
    let rounds = rounds.expect("answer");
    assert!(rounds[0] > 0, "the first round makes the slots");
    assert!(rounds[1..].iter().all(|count| *count == 0), "{rounds:?}");
}
