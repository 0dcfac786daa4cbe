//! The VM: the owner of everything.
//!
//! One thread, `main`, owns [`Vm`]; everything else is borrowed from it or sends it letters.
//!
//! ```text
//!   EventLoop ──► Vm::attend ─┬─ end requests (signals) ─► shut_down
//!                             ├─ letters ─► hear: devices' news, vCPUs' faults
//!                             └─ calls ───► serve: one QMP command each ─► qmp/*.rs
//!
//!   Vm ── machine (vCPUs, buses, memory)   devices (what was plugged)   objects (backends)
//!      ── graph (block nodes)              chardevs                     server (QMP sessions)
//! ```
//!
//! Read next: [`lifecycle`] (start, stop, reset, end), `serve` (a command's way), and
//! [`crate::plug`] (devices).

pub mod lifecycle;
mod serve;

use std::sync::Arc;

use block::{BlockGraph, IoThread, IoThreadSpec};
use devices::chardev::ChardevRegistry;
use devices::reactor::Reactor;
use fdset::{Door, Scope};
use monitor::Server;
use qapi_schema::{Context, EventSink, QmpError};

use crate::device_tree::{Claim, DeviceTree};
use crate::event_loop::{EventLoop, Mailbox};
use crate::machine::Machine;
use crate::objects::Objects;
use crate::run_state::RunState;

/// The io-thread of disks that name none.
const DEFAULT_IOTHREAD: &str = "main-loop";

/// Who the VM is, for clients and for the guest's firmware tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `-name`.
    pub name: Option<String>,
    /// `-uuid`, in its written form; all zeros without one.
    pub uuid: String,
}

/// What happens when the guest ends its own run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndPolicy {
    /// `-no-reboot`: a guest's reset ends the process.
    pub no_reboot: bool,
    /// `-no-shutdown`: a guest that powers off leaves the process with a stopped machine.
    pub no_shutdown: bool,
}

/// What a VM is made of, once the command line is read.
pub struct VmSpec {
    /// Who it is.
    pub identity: Identity,
    /// What happens when the guest ends its run.
    pub end_policy: EndPolicy,
    /// What run state it begins in.
    pub run_state: RunState,
    /// The right to open, as the command line has it.
    pub door: Door,
    /// The QMP sessions.
    pub server: Server,
    /// The way to the main loop.
    pub mailbox: Mailbox,
}

/// A virtual machine and everything that belongs to it.
pub struct Vm {
    pub(crate) identity: Identity,
    pub(crate) end_policy: EndPolicy,
    pub(crate) run_state: RunState,
    pub(crate) door: Door,
    pub(crate) server: Server,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) mailbox: Mailbox,
    pub(crate) reactor: Reactor,
    // The order of the fields is the order of their end: what uses comes before what is used.
    pub(crate) devices: DeviceTree,
    pub(crate) machine: Machine,
    pub(crate) objects: Objects,
    pub(crate) graph: BlockGraph,
    pub(crate) chardevs: ChardevRegistry,
    default_iothread: Option<IoThread>,
    ended: Option<i32>,
}

impl Vm {
    /// A VM without a machine, devices or backends.
    pub fn new(spec: VmSpec) -> Self {
        let reactor = Reactor::new();
        Self {
            identity: spec.identity,
            end_policy: spec.end_policy,
            run_state: spec.run_state,
            door: spec.door,
            events: spec.server.events(),
            server: spec.server,
            mailbox: spec.mailbox,
            chardevs: ChardevRegistry::new(reactor.clone()),
            reactor,
            devices: DeviceTree::default(),
            machine: Machine::None,
            objects: Objects::default(),
            graph: BlockGraph::new(),
            default_iothread: None,
            ended: None,
        }
    }

    /// Runs until the VM has ended; gives the process's exit status.
    ///
    /// # Errors
    /// The main loop cannot wait any more.
    pub fn run(&mut self, event_loop: &mut EventLoop) -> std::io::Result<i32> {
        loop {
            self.attend(event_loop);
            if let Some(status) = self.ended {
                self.close();
                return Ok(status);
            }
            event_loop.wait()?;
        }
    }

    /// Looks at everything that may have happened.
    fn attend(&mut self, event_loop: &EventLoop) {
        while let Some(request) = event_loop.next_end_request() {
            self.end_by_signal(request);
        }
        while self.ended.is_none() {
            // A device's news came before the request that is looked at next: it goes first.
            if let Some(letter) = event_loop.next_letter() {
                self.hear(letter);
            } else if let Some(call) = self.server.next_request() {
                self.serve(call);
            } else {
                break;
            }
        }
    }

    /// The door as the client behind `cx` sees it: with its monitor's fd names.
    pub(crate) fn door_of(&self, cx: &dyn Context) -> Door {
        self.door.within(Scope::Monitor(cx.monitor().0))
    }

    /// The io-thread for disks that name none, started by the first of them.
    pub(crate) fn default_iothread(&mut self) -> Result<IoThread, QmpError> {
        if let Some(iothread) = &self.default_iothread {
            return Ok(iothread.clone());
        }
        let spec = IoThreadSpec { id: DEFAULT_IOTHREAD.to_owned() };
        let iothread = IoThread::start(spec).map_err(|error| QmpError::from_error(&error))?;
        self.default_iothread = Some(iothread.clone());
        Ok(iothread)
    }

    /// Gives back what the device `name` has claimed.
    pub(crate) fn release(&mut self, name: &str, claims: &[Claim]) {
        for claim in claims {
            match claim {
                Claim::Object(id) => self.objects.release(id, name),
                Claim::Node(node) => {
                    self.graph.detach(node, name);
                }
            }
        }
    }
}
