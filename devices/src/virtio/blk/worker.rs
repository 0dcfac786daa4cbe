//! A queue at work: one task on an io-thread that owns the ring and its requests.
//!
//! ```text
//!            kick (eventfd through the io_uring), or    stop (flag + kick)
//!            the thread sees more in the available ring
//!                      │                                     │
//!                      ▼                                     ▼
//!   ┌─► Serving ── chain ──► request slots ── done ──► used ring, interrupt
//!   │      │                      │
//!   │      │                      └── failed, and the machine stops ──► kept for the next start
//!   │      ├── the driver broke the rules ──► Broken ────────┤ serves nothing more
//!   │      ├── gate closed ──► last request done ──► Parked ── gate open ──► Serving
//!   │      └── stop ──► Draining ── last request done ───────┴──► Queue handed back
//!   └─ next kick
//! ```

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use block::engine::{Look, TaskSet, Watch, executor::own_waker};
use block::{Io, Seat};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::Disk;
use super::request::{BrokenChain, Postponed, Request};
use crate::irq::Interrupt;
use crate::memory::{GuestMem, GuestMemView};
use crate::virtio::device::ActiveQueue;

/// Runs one queue until `stop` is set and the kick signalled, then gives it back, with nothing in
/// flight.
pub(super) async fn run(
    io: Io,
    disk: Arc<Disk>,
    index: usize,
    active: ActiveQueue,
    stop: Arc<AtomicBool>,
) -> Queue {
    let ActiveQueue {
        queue,
        memory,
        kick,
        interrupt,
    } = active;
    let watch = match io.watch(kick) {
        Ok(watch) => watch,
        Err(error) => {
            if let Some(times) = disk.unwatched.note() {
                tracing::error!(device = %disk.id, queue = index, times, %error, "cannot watch a doorbell");
            }
            disk.needs_reset();
            return queue;
        }
    };
    let waker = own_waker().await;
    let seat = disk.root.gate().take_seat(waker.clone());
    let mut requests = TaskSet::new(usize::from(queue.size()), waker);
    let seen = Rc::new(Cell::new(queue.next_avail()));
    let look = look_at_ring(&io, &queue, &memory, &seen);
    let mut worker = Worker {
        io: io.clone(),
        disk,
        index,
        queue,
        memory,
        interrupt,
        watch,
        look,
        seen,
        seat,
        stop,
        spare: Vec::new(),
        broken: false,
    };
    // Each has a descriptor of the queue. A snapshot may lie: of that, what has a slot is done.
    let slots = usize::from(worker.queue.size());
    for postponed in worker.disk.waiting.take(index).into_iter().take(slots) {
        if let Some(request) = worker.resume(postponed) {
            let again = serve(io.clone(), Arc::clone(&worker.disk), index, request);
            let refused = requests.push(again);
            debug_assert!(refused.is_ok(), "the set has a slot for each descriptor");
        }
    }
    poll_fn(|cx| {
        worker.poll(cx, &mut requests, |disk, request| {
            serve(io.clone(), disk, index, request)
        })
    })
    .await;
    worker.queue
}

/// One request from start to end, in its slot.
async fn serve(io: Io, disk: Arc<Disk>, queue: usize, mut request: Request) -> Request {
    request.execute(&io, &disk, queue).await;
    request
}

/// Has the thread look whether the driver made more available than was `seen`.
fn look_at_ring(io: &Io, queue: &Queue, memory: &GuestMem, seen: &Rc<Cell<u16>>) -> Look {
    let (memory, seen) = (memory.clone(), Rc::clone(seen));
    // The field `idx` (virtio 1.2, 2.7.6).
    let index = queue.avail_ring().checked_add(2).map(GuestAddress);
    io.look(move || {
        let view = memory.memory();
        index
            .and_then(|index| view.load::<u16>(index, Ordering::Acquire).ok())
            .is_some_and(|available| u16::from_le(available) != seen.get())
    })
}

struct Worker {
    io: Io,
    disk: Arc<Disk>,
    index: usize,
    queue: Queue,
    memory: GuestMem,
    interrupt: Arc<dyn Interrupt>,
    watch: Watch,
    /// The thread's look at the available ring, and the first entry there that was not taken.
    look: Look,
    seen: Rc<Cell<u16>>,
    /// At the gate of the disk's node.
    seat: Seat,
    stop: Arc<AtomicBool>,
    /// Requests whose slots wait for the next chain.
    spare: Vec<Request>,
    broken: bool,
}

impl Worker {
    fn poll<F>(
        &mut self,
        cx: &mut Context<'_>,
        requests: &mut TaskSet<F>,
        serve: impl Fn(Arc<Disk>, Request) -> F,
    ) -> Poll<()>
    where
        F: Future<Output = Request>,
    {
        loop {
            let kicked = self.kicked(cx);
            let stopping = self.stop.load(Ordering::Acquire);
            let closed = !self.seat.is_open();
            let mut batch = self.io.batch();
            if !stopping && !closed && !self.broken {
                while batch > 0
                    && !requests.is_full()
                    && let Some(request) = self.next_request()
                {
                    let refused = requests.push(serve(Arc::clone(&self.disk), request));
                    debug_assert!(refused.is_ok(), "the set has a slot for each descriptor");
                    batch -= 1;
                }
            }
            self.settle(requests);
            if batch == 0 {
                // There may be more, after the kernel was asked for these.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if requests.is_empty() {
                if stopping {
                    return Poll::Ready(());
                }
                if closed {
                    self.seat.park();
                }
            }
            if kicked || requests.has_ready() {
                continue;
            }
            if stopping || closed || self.broken || requests.is_full() {
                return Poll::Pending;
            }
            if self.is_looked_for(cx) || !self.may_have_more() {
                return Poll::Pending;
            }
        }
    }

    /// Whether the doorbell rang since the last look. If not, the next ring wakes the task.
    fn kicked(&mut self, cx: &mut Context<'_>) -> bool {
        match self.watch.poll_event(cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                self.break_off(&error);
                false
            }
        }
    }

    /// A request that failed before the queue was stopped.
    fn resume(&mut self, postponed: Postponed) -> Option<Request> {
        let view = self.memory.memory().into_inner();
        let mut request = Request::new();
        match request.resume(&view, postponed) {
            Ok(()) => Some(request),
            Err(broken) => {
                self.break_off(&broken);
                None
            }
        }
    }

    /// Takes the next chain that can be served.
    fn next_request(&mut self) -> Option<Request> {
        let view = self.memory.memory().into_inner();
        let chain = match self.queue.iter(&*view) {
            Ok(mut chains) => chains.next()?,
            Err(error) => {
                self.break_off(&error);
                return None;
            }
        };
        let mut request = self.spare.pop().unwrap_or_else(Request::new);
        match request.parse(&view, chain) {
            Ok(()) => Some(request),
            Err(broken) => {
                self.spare.push(request);
                self.break_off(&broken);
                None
            }
        }
    }

    /// Gives finished requests back to the driver, with at most one interrupt for all.
    fn settle<F>(&mut self, requests: &mut TaskSet<F>)
    where
        F: Future<Output = Request>,
    {
        let mut any = false;
        while let Some(mut request) = requests.next_done() {
            if request.waits {
                let (waiting, size) = (&self.disk.waiting, self.queue.size());
                let kept = waiting.keep(self.index, size, request.postpone());
                self.spare.push(request);
                if let Err(surplus) = kept {
                    self.break_off(&surplus);
                }
                continue;
            }
            let view = self.memory.memory();
            any = true;
            if let Err(broken) = self.give_back(&view, &mut request) {
                self.break_off(&broken);
            }
            self.spare.push(request);
        }
        if any && !self.broken {
            let view = self.memory.memory();
            match self.queue.needs_notification(&*view) {
                Ok(true) => self.interrupt.trigger(),
                Ok(false) => {}
                Err(error) => self.break_off(&error),
            }
        }
    }

    fn give_back(&mut self, view: &GuestMemView, request: &mut Request) -> Result<(), BrokenChain> {
        let written = request.finish(view)?;
        self.queue
            .add_used(view, request.head, written)
            .map_err(|_| BrokenChain::Outside)
    }

    /// Whether the thread looks for more, so that the driver need not kick.
    fn is_looked_for(&mut self, cx: &Context<'_>) -> bool {
        self.seen.set(self.queue.next_avail());
        if !self.look.is_kept(cx) {
            return false;
        }
        let view = self.memory.memory();
        if let Err(error) = self.queue.disable_notification(&*view) {
            self.break_off(&error);
        }
        true
    }

    /// Asks for kicks again; whether chains came meanwhile.
    fn may_have_more(&mut self) -> bool {
        let view = self.memory.memory();
        match self.queue.enable_notification(&*view) {
            Ok(more) => more,
            Err(error) => {
                self.break_off(&error);
                false
            }
        }
    }

    /// The driver broke the rules (or the host failed it): serve nothing until it resets us.
    fn break_off(&mut self, why: &dyn std::error::Error) {
        if !self.broken {
            self.broken = true;
            if let Some(times) = self.disk.broken_queues.note() {
                tracing::warn!(device = %self.disk.id, queue = self.index, times, %why, "virtio-blk: queue is broken");
            }
            self.disk.needs_reset();
        }
    }
}
