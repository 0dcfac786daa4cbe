//! The VM: the owner of everything.
//!
//! One thread, `main`, owns [`Vm`]; everything else is borrowed from it or sends it letters. Only
//! quick commands run on another, while `main` sleeps ([`VmCell`]).
//!
//! ```text
//!   EventLoop ──► Vm::attend ─┬─ end requests (signals) ─► shut_down
//!                             ├─ letters ─► hear: devices' news, vCPUs' faults
//!                             ├─ calls ───► serve: one QMP command each ─► qmp/*.rs
//!                             └─ open hook: answers for the commands that wait for them
//!
//!   Vm ── machine (vCPUs, buses, memory)   devices (what was plugged)   objects (backends)
//!      ── graph (block nodes)              chardevs                     server (QMP sessions)
//! ```
//!
//! Read next: [`lifecycle`] (start, stop, reset, end), `serve` (a command's way), and
//! [`crate::plug`] (devices).

mod cell;
pub mod lifecycle;
mod machine;
mod seal;
mod serve;
mod watchdog;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

pub use cell::VmCell;
pub use machine::{CpuView, VmMachine, cpu_path};

use block::job::Jobs;
use block::{BlockGraph, IoThread, IoThreadSpec, Rings};
use devices::chardev::{ChardevRegistry, ChardevSpec};
use devices::net::Netdevs;
use devices::reactor::Reactor;
use devices::repeats::Repeats;
use devices::vm_clock::{Timed, VmClock};
use fdset::{Door, OpenFile};
use indexmap::IndexMap;
use monitor::Server;
use qapi_schema::char::ChardevReturn;
use qapi_schema::run_state::{PanicAction, RebootAction, SetAction, ShutdownAction};
use qapi_schema::watchdog::WatchdogAction;
use qapi_schema::{Context, Event, EventSink, QmpError};

use crate::announcer::Announcer;
use crate::boot_order;
use crate::cli::config::GlobalSpec;
use crate::device_tree::{Claim, DeviceTree};
use crate::drives::Drives;
use crate::event_loop::{EventLoop, Mailbox};
use crate::hmp::qemu_io::Outstanding;
use crate::hook::OpenHook;
use crate::input::Typist;
use crate::jobs::End;
use crate::memory::RamBackend;
use crate::nodes::pauses::Pauses;
use crate::objects::Objects;
use crate::qtest::Qtest;
use crate::resolve::numa::NumaDraft;
use crate::run_state::RunState;
use crate::sandbox::Sandbox;
use crate::tpm::TpmBackend;

/// The io-thread of disks that name none.
const DEFAULT_IOTHREAD: &str = "main-loop";

/// The second half of a launch.
pub type Rest = Box<dyn FnOnce(&mut Vm) -> anyhow::Result<()> + Send>;

/// Who the VM is, for clients and for the guest's firmware tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `-name`.
    pub name: Option<String>,
    /// `-uuid`, in its written form; all zeros without one.
    pub uuid: String,
}

/// What happens when the guest ends its own run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndPolicy {
    /// A reset; `-no-reboot` makes it a power-off.
    pub reboot: RebootAction,
    /// A power-off; `-no-shutdown` leaves the process with a stopped machine.
    pub shutdown: ShutdownAction,
    /// A panic.
    pub panic: PanicAction,
    /// A watchdog that runs out.
    pub watchdog: WatchdogAction,
}

impl EndPolicy {
    /// What happens unless somebody says otherwise.
    pub const DEFAULT: Self = Self {
        reboot: RebootAction::Reset,
        shutdown: ShutdownAction::Poweroff,
        panic: PanicAction::Shutdown,
        watchdog: WatchdogAction::Reset,
    };

    /// Takes what `actions` name.
    pub fn change(&mut self, actions: &SetAction) {
        self.reboot = actions.reboot.unwrap_or(self.reboot);
        self.shutdown = actions.shutdown.unwrap_or(self.shutdown);
        self.panic = actions.panic.unwrap_or(self.panic);
        self.watchdog = actions.watchdog.unwrap_or(self.watchdog);
    }
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
    pub(crate) open_hook: OpenHook,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) mailbox: Mailbox,
    pub(crate) reactor: Reactor,
    /// The time that devices live in.
    pub(crate) clock: VmClock,
    /// Keeps the limits of events on a tester's clock.
    pub(crate) held_events: Option<Arc<dyn Timed>>,
    /// A tester that drives the machine.
    pub(crate) qtest: Option<Arc<Qtest>>,
    // The order of the fields is the order of their end: what uses comes before what is used.
    pub(crate) devices: DeviceTree,
    pub(crate) machine: VmMachine,
    pub(crate) objects: Objects,
    pub(crate) drives: Drives,
    pub(crate) graph: BlockGraph,
    pub(crate) jobs: Jobs<End>,
    /// How long guests waited for changes of the graph.
    pub(crate) pauses: Pauses,
    pub(crate) netdevs: Netdevs,
    /// Who makes the cards' addresses known, by the name of the series.
    pub(crate) announcers: IndexMap<String, Announcer>,
    /// Who types keys, once some were to be typed.
    pub(crate) typist: Option<Arc<Typist>>,
    pub(crate) chardevs: ChardevRegistry,
    /// What carries out the commands of the machine's TPM.
    pub(crate) tpm: Option<TpmBackend>,
    /// The chardevs that monitors talk through, and where each leads.
    pub(crate) monitor_chardevs: IndexMap<String, String>,
    /// `-global`: what devices of a model have unless told otherwise.
    pub(crate) globals: Vec<GlobalSpec>,
    /// Whether firmware tries only devices that have a place in the order.
    pub(crate) boot_strict: bool,
    /// Whether there is a KVM to run guests.
    pub(crate) kvm_enabled: bool,
    /// KVM, where no machine uses it: to tell what it could do.
    pub(crate) spare_kvm: Option<OpenFile>,
    /// The memory of a machine that has no board to put it in.
    pub(crate) spare_memory: Option<RamBackend>,
    /// Which capabilities moves of the machine have.
    pub(crate) migration_events: bool,
    /// What has been said of NUMA.
    pub(crate) numa: NumaDraft,
    /// What is left to be built once `x-exit-preconfig` comes.
    pub(crate) rest: Option<Rest>,
    default_iothread: Option<IoThread>,
    /// Requests of testers that are under way.
    pub(crate) outstanding: Outstanding,
    /// Where io-threads get their rings.
    pub(crate) rings: Rings,
    pub(crate) sandbox: Sandbox,
    crash_kernels: Repeats,
    powered_on: bool,
    ended: Option<ExitCode>,
}

impl Vm {
    /// A VM without a machine, devices or backends.
    pub fn new(spec: VmSpec) -> Self {
        let reactor = Reactor::new();
        let mut graph = BlockGraph::new();
        graph.tell_corruptions(spec.mailbox.corruptions());
        Self {
            identity: spec.identity,
            end_policy: spec.end_policy,
            run_state: spec.run_state,
            door: spec.door,
            events: spec.server.events(),
            server: spec.server,
            open_hook: OpenHook::new(spec.mailbox.hook_mark()),
            netdevs: Netdevs::new(reactor.clone(), spec.mailbox.notices()),
            announcers: IndexMap::new(),
            typist: None,
            chardevs: ChardevRegistry::new(reactor.clone()),
            mailbox: spec.mailbox,
            reactor,
            qtest: None,
            devices: DeviceTree::default(),
            machine: VmMachine::None,
            objects: Objects::default(),
            clock: VmClock::default(),
            held_events: None,
            drives: Drives::default(),
            graph,
            jobs: Jobs::default(),
            pauses: Pauses::default(),
            tpm: None,
            monitor_chardevs: IndexMap::new(),
            globals: Vec::new(),
            boot_strict: false,
            kvm_enabled: false,
            spare_kvm: None,
            spare_memory: None,
            migration_events: false,
            numa: NumaDraft::default(),
            rest: None,
            default_iothread: None,
            outstanding: Outstanding::default(),
            rings: Rings::default(),
            sandbox: Sandbox::default(),
            crash_kernels: Repeats::default(),
            powered_on: false,
            ended: None,
        }
    }

    /// Has the main loop listen to the open hook, if that is new.
    fn watch_hook(&mut self, event_loop: &mut EventLoop) {
        if let Some(fd) = self.open_hook.take_unwatched()
            && let Err(error) = event_loop.watch_hook(fd)
        {
            self.open_hook
                .give_up(&format!("its socket cannot be watched: {error}"));
        }
    }

    /// Looks at everything that may have happened.
    fn attend(&mut self, event_loop: &mut EventLoop) {
        event_loop.begin();
        while let Some(request) = event_loop.next_end_request() {
            self.end_by_signal(request);
        }
        self.open_hook.drop_deserted();
        self.open_hook.tend(Instant::now(), None);
        if let Some(gone) = self.open_hook.take_departure() {
            self.events.emit(Event::OpenHookGone(gone));
        }
        while self.ended.is_none() {
            // A device's news came before the request that is looked at next: it goes first.
            if let Some(letter) = event_loop.next_letter() {
                self.hear(letter);
            } else if let Some((call, round, steps)) = self.open_hook.next_ready() {
                self.go_on(call, round, steps);
            } else if let Some(call) = self.server.next_request() {
                self.serve(call);
            } else {
                break;
            }
        }
    }

    /// Ends the building: from here on only hot-pluggable buses take devices.
    ///
    /// # Errors
    /// The kernel cannot be loaded, or KVM refuses.
    pub fn power_on(&mut self) -> Result<(), QmpError> {
        self.tell_boot_order()?;
        if let VmMachine::Q35(q35) = &self.machine {
            q35.power_on()
                .map_err(|error| QmpError::from_error(&error))?;
        }
        self.powered_on = true;
        Ok(())
    }

    /// Tells firmware which devices to try, and in which order. The machine is paused or not built.
    fn tell_boot_order(&self) -> Result<(), QmpError> {
        let VmMachine::Q35(q35) = &self.machine else {
            return Ok(());
        };
        let order = boot_order::file(&self.devices, &q35.pci().inspect(), self.boot_strict);
        q35.fw_cfg()
            .set_file(boot_order::FILE, order)
            .map_err(|error| QmpError::from_error(&error))
    }

    /// Ends with a failure: the machine is half built, and nobody can complete it.
    pub(crate) fn give_up(&mut self) {
        self.ended = Some(ExitCode::FAILURE);
    }

    /// Whether the machine is built: what is soldered on can no longer change.
    pub(crate) fn is_powered_on(&self) -> bool {
        self.powered_on
    }

    /// Adds a chardev for a device, from a command or from the command line.
    ///
    /// # Errors
    /// The id is taken, or what it stands for cannot be opened.
    pub fn add_chardev(
        &mut self,
        door: &Door,
        id: &str,
        spec: &ChardevSpec,
    ) -> Result<ChardevReturn, QmpError> {
        if self.monitor_chardevs.contains_key(id) {
            return Err(QmpError::generic(format!(
                "Chardev with id '{id}' already exists"
            )));
        }
        let chardev = self
            .chardevs
            .add(id, spec, door)
            .map_err(|error| QmpError::from_error(&error))?;
        let filename = chardev.filename();
        Ok(ChardevReturn {
            pty: filename.strip_prefix("pty:").map(str::to_owned),
        })
    }

    /// The door as the client behind `cx` sees it: with its monitor's fd names.
    pub(crate) fn door_of(&self, cx: &dyn Context) -> Door {
        self.door.within(monitor::scope_of(cx))
    }

    /// The io-thread for disks that name none, started by the first of them.
    pub(crate) fn default_iothread(&mut self) -> Result<IoThread, QmpError> {
        if let Some(iothread) = &self.default_iothread {
            return Ok(iothread.clone());
        }
        let spec = IoThreadSpec {
            id: DEFAULT_IOTHREAD.to_owned(),
        };
        let iothread = IoThread::start_from(&self.rings, spec)
            .map_err(|error| QmpError::from_error(&error))?;
        self.default_iothread = Some(iothread.clone());
        Ok(iothread)
    }

    /// Gives back what the device `name` has claimed.
    pub(crate) fn release(&mut self, name: &str, claims: &[Claim]) {
        for claim in claims {
            match claim {
                Claim::Object(id) => self.objects.release(id, name),
                // It may have another one by now: a snapshot's overlay.
                Claim::Node(_) => {
                    self.graph.detach_device(name);
                }
                // It goes only with a device that was there.
                Claim::Drive(_) => {}
            }
        }
    }
}
