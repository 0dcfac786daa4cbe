//! The schema is served from where it stands in the program: counted, not believed. In a program of
//! its own, because the allocator is the program's.
#![expect(
    unsafe_code,
    reason = "a counting allocator is an implementation of GlobalAlloc"
)]
// UNSAFETY: the allocator hands every call on to the system's, with the same arguments.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;

use fdset::FdRegistry;
use monitor::{Endpoint, MonitorSpec, Phase, Server, ServerSpec, Version};
use qapi_schema::{INTROSPECTION, MonitorId};

struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all calls are the system allocator's; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size()));
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

#[test]
fn who_asks_for_the_schema_gets_it_without_a_copy_being_made() {
    let (wake, woken) = channel();
    let server = Server::new(ServerSpec {
        registry: Arc::new(FdRegistry::new()),
        version: Version {
            major: 10,
            minor: 0,
            micro: 0,
            package: "test".into(),
        },
        phase: Phase::Ready,
        wake_main: Box::new(move || wake.send(()).expect("the test waits")),
        serve_now: Box::new(Some),
        out_of_band: Box::new(drop),
        quit: Box::new(|_| ()),
    });
    let (client, theirs) = UnixStream::pair().expect("a pair");
    let spec = MonitorSpec::new(MonitorId(0), Endpoint::Stream(theirs.into()));
    server.add_monitor(spec).expect("a monitor");
    (&client)
        .write_all(b"{'execute': 'qmp_capabilities'}{'execute': 'query-qmp-schema', 'id': 1}")
        .expect("sent");

    woken.recv().expect("a request");
    let call = server.next_request().expect("a request");
    let before = BYTES.get();
    assert!(server.serve_builtin(call).is_none(), "it is a builtin");
    let bytes = BYTES.get() - before;
    assert!(bytes < 1024, "{bytes} bytes allocated");

    let lines = BufReader::new(&client).lines();
    let answer = lines.map(|line| line.expect("a line")).nth(2);
    let schema = format!("{{\"return\": {INTROSPECTION}, \"id\": 1}}");
    assert!(answer == Some(schema), "the whole schema");
    server.shutdown();
}
