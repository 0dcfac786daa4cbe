//! A queue at work, control or requests: one task on an io-thread that owns the ring.
//!
//! ```text
//!            kick                                stop (flag + kick)
//!             ▼                                      ▼
//!   ┌─► Serving ── chain ──► request slots ── done ──► used ring, interrupt
//!   │      │                      └── failed, and the machine stops ──► kept for the next start
//!   │      ├── the driver broke the rules ──► Broken ─┤ serves nothing more
//!   │      └── stop ──► Draining ── last request done ┴──► Queue handed back
//!   └─ next kick
//! ```
//!
//! Gates are the units' affair: each request sits at its own medium's.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use block::Io;
use block::engine::executor::own_waker;
use block::engine::{TaskSet, Watch};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;

use super::control;
use super::device::Controller;
use super::request::{Postponed, Request, Sizes};
use super::units::Address;
use crate::irq::Interrupt;
use crate::memory::GuestMem;
use crate::scsi::Done;
use crate::virtio::device::ActiveQueue;

/// Responses of the transport (5.6.6.1).
const OK: u8 = 0;
const OVERRUN: u8 = 1;
const BAD_TARGET: u8 = 3;
/// The status of a unit that has sense bytes to tell (SAM-5).
const CHECK_CONDITION: u8 = 2;
/// Where the CDB begins in a header.
const CDB: usize = 19;
/// The length of a response without its sense bytes.
const RESPONSE: usize = 12;

/// What a queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    Control,
    Requests,
}

/// Runs one queue until `stop` is set and the kick signalled, then gives it back, with nothing in
/// flight.
pub(super) async fn run(
    io: Io,
    controller: Arc<Controller>,
    (index, carries): (usize, Carries),
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
            controller.break_off("cannot watch a doorbell", &error);
            return queue;
        }
    };
    let mut requests = TaskSet::new(usize::from(queue.size()), own_waker().await);
    let mut worker = Worker {
        controller,
        index,
        carries,
        queue,
        memory,
        interrupt,
        watch,
        stop,
        spare: Vec::new(),
        broken: false,
    };
    let halt = Arc::clone(&worker.stop);
    let serve = |controller, request| {
        let halt = Arc::clone(&halt);
        serve(io.clone(), controller, carries, request, halt)
    };
    // Each has a descriptor of the queue. A snapshot may lie: of that, what has a slot is done.
    let slots = usize::from(worker.queue.size());
    for postponed in worker.controller.waiting.take(index).iter().take(slots) {
        if let Some(request) = worker.resume(postponed) {
            let again = serve(Arc::clone(&worker.controller), request);
            let refused = requests.push(again);
            debug_assert!(refused.is_ok(), "the set has a slot for each descriptor");
        }
    }
    poll_fn(|cx| worker.poll(cx, &mut requests, serve)).await;
    worker.queue
}

/// One request from start to end, in its slot.
async fn serve(
    io: Io,
    controller: Arc<Controller>,
    carries: Carries,
    mut request: Request,
    stop: Arc<AtomicBool>,
) -> Request {
    request.waits = false;
    match carries {
        Carries::Control => match control::execute(&io, &controller, request.header(), &stop).await
        {
            Some(response) => request.respond(&response),
            None => request.waits = true,
        },
        Carries::Requests => execute(&io, &controller, &mut request).await,
    }
    request
}

async fn execute(io: &Io, controller: &Controller, request: &mut Request) {
    let (address, cdb) = match request.header().split_at_checked(CDB) {
        Some((fields, cdb)) => (
            fields.first_chunk().and_then(|lun| Address::parse(*lun)),
            cdb,
        ),
        None => (None, &[][..]),
    };
    let asked = request.out.len().max(request.into.len());
    let address = address.filter(|_| !request.orphan);
    let unit = address.and_then(|at| controller.units.asked(at, cdb));
    let done = match (&unit, address) {
        (Some(unit), _) => Some(unit.execute(io, cdb, &request.out, &request.into).await),
        (None, Some(at)) => controller.units.answer(at.target, cdb, &request.into),
        (None, None) => None,
    };
    let mut response = [0; RESPONSE + crate::scsi::sense::LEN];
    match done {
        Some(Done { waits: true, .. }) => {
            (request.waits, request.unit) = (true, unit);
            return;
        }
        None => response[11] = BAD_TARGET,
        Some(Done { overrun: true, .. }) => response[11] = OVERRUN,
        Some(Done { sense, moved, .. }) => {
            response[11] = OK;
            let residual = u32::try_from(asked.saturating_sub(moved)).unwrap_or(u32::MAX);
            response[4..8].copy_from_slice(&residual.to_le_bytes());
            if let Some(sense) = sense {
                let bytes = sense.bytes();
                response[0] = u8::try_from(bytes.len()).unwrap_or(0);
                response[10] = CHECK_CONDITION;
                response[RESPONSE..].copy_from_slice(&bytes);
            }
            request.filled = moved.min(request.into.len());
        }
    }
    request.respond(&response);
}

struct Worker {
    controller: Arc<Controller>,
    index: usize,
    carries: Carries,
    queue: Queue,
    memory: GuestMem,
    interrupt: Arc<dyn Interrupt>,
    watch: Watch,
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
        serve: impl Fn(Arc<Controller>, Request) -> F,
    ) -> Poll<()>
    where
        F: Future<Output = Request>,
    {
        loop {
            let kicked = self.kicked(cx);
            let stopping = self.stop.load(Ordering::Acquire);
            if !stopping && !self.broken {
                while !requests.is_full()
                    && let Some(request) = self.next_request()
                {
                    let refused = requests.push(serve(Arc::clone(&self.controller), request));
                    debug_assert!(refused.is_ok(), "the set has a slot for each descriptor");
                }
            }
            self.settle(requests);
            if stopping && requests.is_empty() {
                return Poll::Ready(());
            }
            if kicked || requests.has_ready() {
                continue;
            }
            if stopping || self.broken || requests.is_full() || !self.may_have_more() {
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

    fn sizes(&self, is_event_question: bool) -> Sizes {
        match self.carries {
            Carries::Requests => self.controller.sizes(),
            Carries::Control => Sizes {
                // Asking for events takes 16 bytes, managing 24.
                header: if is_event_question {
                    16
                } else {
                    control::HEADER
                },
                response: if is_event_question {
                    control::RESPONSE
                } else {
                    control::SHORT
                },
            },
        }
    }

    /// A request that failed before the queue was stopped.
    fn resume(&mut self, postponed: &Postponed) -> Option<Request> {
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
        let mut parsed = request.parse(&view, chain.clone(), self.sizes(false));
        // Only the header tells the two control requests apart, and one is shorter.
        let is_other = parsed.is_err() || request.header().first() != Some(&0);
        if self.carries == Carries::Control && is_other {
            parsed = request.parse(&view, chain, self.sizes(true));
        }
        match parsed {
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
                self.keep_waiting(&mut request);
                self.spare.push(request);
                continue;
            }
            let view = self.memory.memory();
            any = true;
            let written = request.finish();
            if let Err(error) = self.queue.add_used(&*view, request.head, written) {
                self.break_off(&error);
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

    fn keep_waiting(&mut self, request: &mut Request) {
        let (waiting, postponed) = (&self.controller.waiting, request.postpone());
        let kept = waiting.keep(self.index, self.queue.size(), postponed.clone());
        // Whoever takes a unit off the bus looks behind that for what waits for it: one of both sees
        // the other.
        let unit = request.unit.take();
        if unit.is_some_and(|unit| !self.controller.units.has(&unit)) {
            waiting.change(|other| {
                if *other == postponed {
                    other.leave();
                }
            });
        }
        if let Err(surplus) = kept {
            self.break_off(&surplus);
        }
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
            self.controller.break_off("a queue is broken", why);
        }
    }
}
