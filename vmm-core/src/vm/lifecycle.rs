//! Start, stop, reset and end; and what news from devices and vCPUs leads to.
//!
//! Which change is allowed when is [`RunState`]'s table; here is what each does, in which order,
//! and which events tell of it.

use std::process::ExitCode;

use block::job::ErrorAction;
use devices::notice::{Notice, OspmSlot};
use qapi_schema::block_core::{BlockErrorAction, BlockIoError, IoOperationType};
use qapi_schema::char::VserportChange;
use qapi_schema::run_state::{
    GuestCrashloaded, GuestPanicAction, GuestPanicked, PanicAction, RebootAction, Reset, Shutdown,
    ShutdownAction, ShutdownCause, VmInternalError,
};
use qapi_schema::{Event, QmpError};

use super::{EndPolicy, Vm};
use crate::device_tree::{Claim, path};
use crate::kvm::{VcpuEvent, VcpuFault};
use crate::letters::Letter;
use crate::messages::report;
use crate::plug;
use crate::process::EndRequest;
use crate::run_state::{Change, RunState};

impl Vm {
    /// Lets the machine run: `cont`, and the start without `-S`.
    ///
    /// # Errors
    /// The machine needs a reset first, waits for its state, or another process does not let go of the
    /// storage of an inactive node.
    pub fn start(&mut self) -> Result<(), QmpError> {
        if self.enter_running()? {
            for (_, _, disk) in self.devices.disks() {
                disk.failures().forget_trouble();
            }
            self.events.emit(Event::Resume);
            self.machine.resume()?;
        }
        Ok(())
    }

    /// Lets the machine run at the end of its launch. Clients who are there already did not ask for
    /// it, and are not told: they find it running, however quick they are.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn begin(&mut self) -> Result<(), QmpError> {
        if self.enter_running()? {
            self.machine.resume()?;
        }
        Ok(())
    }

    /// Changes the run state; whether the machine is to be let run.
    fn enter_running(&mut self) -> Result<bool, QmpError> {
        if self.run_state.needs_reset() {
            return Err(QmpError::generic(
                "Resetting the Virtual Machine is required",
            ));
        }
        let Some(next) = self.run_state.next(Change::Start) else {
            return Err(QmpError::generic(format!(
                "the machine cannot be started from state '{}'",
                self.run_state.as_str()
            )));
        };
        let started = next.is_running() && !self.run_state.is_running();
        if started {
            self.activate_nodes(None)?;
        }
        self.run_state = next;
        Ok(started)
    }

    /// Stops the machine: when this returns no vCPU runs and no request is in flight.
    pub fn stop(&mut self) {
        self.halt(Change::Stop);
    }

    /// Asks the guest to power itself off, by the ACPI power button.
    pub fn power_down(&mut self) {
        self.events.emit(Event::Powerdown);
        self.machine.press_power_button();
    }

    /// Sends each vCPU a non-maskable interrupt.
    ///
    /// # Errors
    /// There is no board, or KVM refuses.
    pub fn send_nmi(&mut self) -> Result<(), QmpError> {
        let runs = self.run_state.is_running();
        self.machine
            .board("inject-nmi")?
            .inject_nmi(runs)
            .map_err(|error| QmpError::from_error(&error))
    }

    /// Resets the machine.
    ///
    /// # Errors
    /// The kernel cannot be loaded again; the machine is then stopped for good.
    pub fn reset(&mut self, cause: ShutdownCause) -> Result<(), QmpError> {
        let runs = self.run_state.is_running();
        self.machine.pause();
        let reset = self.tell_boot_order().and_then(|()| self.machine.reset());
        if let Err(error) = reset {
            self.halt(Change::InternalError);
            return Err(error);
        }
        if let Some(next) = self.run_state.next(Change::Reset) {
            self.run_state = next;
        }
        self.events.emit(Event::Reset(Reset {
            guest: is_guest(cause),
            reason: cause,
        }));
        if runs { self.machine.resume() } else { Ok(()) }
    }

    /// Ends the process, after what `cause` says; a guest's own power-off may leave it.
    pub fn shut_down(&mut self, cause: ShutdownCause) {
        self.events.emit(Event::Shutdown(Shutdown {
            guest: is_guest(cause),
            reason: cause,
        }));
        if is_guest(cause) && self.end_policy.shutdown == ShutdownAction::Pause {
            self.halt(Change::PowerOff);
        } else {
            self.ended = Some(ExitCode::SUCCESS);
        }
    }

    pub(super) fn end_by_signal(&mut self, request: EndRequest) {
        report(format_args!(
            "terminating on signal {} from pid {}",
            request.signal, request.sender
        ));
        self.shut_down(ShutdownCause::HostSignal);
    }

    /// Takes note of a letter.
    pub(crate) fn hear(&mut self, letter: Letter) {
        match letter {
            Letter::Device(notice) | Letter::Vcpu(VcpuEvent::Notice(notice)) => {
                self.hear_notice(notice);
            }
            Letter::Ask(question) => self.open_hook.ask_for(question),
            Letter::Job(id, news) => self.hear_job(&id, news),
            Letter::Corrupt(corruption) => self.image_is_corrupt(corruption),
            // Clients have been told, before the reply.
            Letter::Quit => self.ended = Some(ExitCode::SUCCESS),
            Letter::Vcpu(VcpuEvent::Fault { index, fault }) => self.hear_fault(index, &fault),
        }
    }

    fn hear_notice(&mut self, notice: Notice) {
        match notice {
            Notice::PowerOff => self.shut_down(ShutdownCause::GuestShutdown),
            Notice::Reset => self.reset_by_guest(),
            Notice::GuestPanicked => self.guest_panicked(),
            Notice::Watchdog => self.watchdog_ran_out(),
            Notice::GuestPvShutdown => {
                self.events.emit(Event::GuestPvshutdown);
                self.shut_down(ShutdownCause::GuestShutdown);
            }
            Notice::GuestCrashLoaded => {
                let action = GuestPanicAction::Run;
                self.events
                    .emit(Event::GuestCrashloaded(GuestCrashloaded { action }));
                if let Some(times) = self.crash_kernels.note() {
                    tracing::warn!(times, "the guest loads its crash kernel");
                }
            }
            Notice::PortChange { id, open } => {
                self.events
                    .emit(Event::VserportChange(VserportChange { id, open }));
            }
            Notice::WriteThreshold {
                node,
                threshold,
                exceeded,
            } => self.threshold_crossed(node, threshold, exceeded),
            Notice::MemorySizeChange { device, size } => self.memory_size_changed(&device, size),
            Notice::BalloonChange { pages } => self.balloon_changed(pages),
            Notice::BlockError {
                device,
                node,
                write,
                errno,
                action,
            } => self.block_error(&device, node, write, (errno, action)),
            Notice::TrayMoved { id, open } => self.tray_moved(&id, open),
            Notice::Unplugged { id } => plug::unplugged(self, &id),
            Notice::UnplugRefused { id } => plug::refused(self, &id),
            Notice::CpuEjected { index } => self.cpu_ejected(index),
            Notice::OspmStatus {
                slot: OspmSlot::Cpu(index),
                event,
                status,
            } => self.cpu_spoken_of(index, event, status),
            Notice::MemoryEjected { slot } => self.module_ejected(slot),
            Notice::OspmStatus {
                slot: OspmSlot::Dimm(slot),
                event,
                status,
            } => self.module_spoken_of(slot, event, status),
            Notice::ChardevChange { .. } => {}
            Notice::NetStream { id, peer } => self.stream_changed(id, peer),
            Notice::NetVhostUser { id, chardev } => self.vhost_user_changed(id, chardev),
            Notice::RxFilterChanged { device } => self.filter_changed(&device),
        }
    }

    pub(super) fn reset_by_guest(&mut self) {
        if self.end_policy.reboot == RebootAction::Shutdown {
            self.shut_down(ShutdownCause::GuestReset);
            return;
        }
        if let Err(error) = self.reset(ShutdownCause::GuestReset) {
            report(format_args!("the machine cannot be reset: {error}"));
        }
    }

    fn guest_panicked(&mut self) {
        let EndPolicy {
            panic, shutdown, ..
        } = self.end_policy;
        let action = match (panic, shutdown) {
            (PanicAction::None, _) => GuestPanicAction::Run,
            (PanicAction::Pause, _) | (PanicAction::Shutdown, ShutdownAction::Pause) => {
                GuestPanicAction::Pause
            }
            (PanicAction::Shutdown | PanicAction::ExitFailure, _) => GuestPanicAction::Poweroff,
        };
        self.events
            .emit(Event::GuestPanicked(GuestPanicked { action }));
        if action == GuestPanicAction::Run {
            return;
        }
        self.halt(Change::Panic);
        if action == GuestPanicAction::Poweroff {
            self.shut_down(ShutdownCause::GuestPanic);
        }
        if panic == PanicAction::ExitFailure {
            self.ended = Some(ExitCode::FAILURE);
        }
    }

    fn hear_fault(&mut self, index: usize, fault: &VcpuFault) {
        report(format_args!("vCPU {index}: {fault}"));
        if self.run_state == RunState::InternalError {
            // The other vCPUs often fall over the same thing.
            return;
        }
        let (suberror, instruction) = match fault {
            VcpuFault::Internal {
                suberror,
                instruction,
                length,
                ..
            } => {
                let bytes = instruction.get(..usize::from(*length)).unwrap_or_default();
                (
                    *suberror,
                    bytes
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect::<String>(),
                )
            }
            _ => (0, String::new()),
        };
        self.halt(Change::InternalError);
        self.events.emit(Event::VmInternalError(VmInternalError {
            cpu_index: i64::try_from(index).unwrap_or(i64::MAX),
            suberror,
            instruction: (!instruction.is_empty()).then_some(instruction),
            reason: fault.to_string(),
        }));
    }

    fn block_error(
        &mut self,
        device: &str,
        node: String,
        write: bool,
        (errno, action): (i32, ErrorAction),
    ) {
        let found = self.devices.find(device);
        let has_id = found.is_some_and(|device| device.id.is_some());
        let drive = found.and_then(|device| {
            device.claims.iter().find_map(|claim| match claim {
                Claim::Drive(id) => Some(id.clone()),
                _ => None,
            })
        });
        self.events.emit(Event::BlockIoError(BlockIoError {
            qom_path: path(device, has_id),
            device: drive.unwrap_or_default(),
            node_name: Some(node),
            operation: if write {
                IoOperationType::Write
            } else {
                IoOperationType::Read
            },
            action: match action {
                ErrorAction::Report => BlockErrorAction::Report,
                ErrorAction::Ignore => BlockErrorAction::Ignore,
                ErrorAction::Stop => BlockErrorAction::Stop,
            },
            nospace: Some(errno == libc::ENOSPC),
            reason: std::io::Error::from_raw_os_error(errno).to_string(),
        }));
        if action == ErrorAction::Stop {
            // The request waits for the disk's next start.
            self.halt(Change::IoError);
        }
    }

    /// Stops what runs, for whatever reason, and takes the state that follows.
    pub(super) fn halt(&mut self, change: Change) {
        let Some(next) = self.run_state.next(change) else {
            return;
        };
        let stopped = self.run_state.is_running() && !next.is_running();
        if stopped {
            self.machine.pause();
        }
        self.run_state = next;
        if stopped {
            self.events.emit(Event::Stop);
        }
    }

    /// The end: the machine stops, images are written down, clients get what is still on its way
    /// to them.
    pub(super) fn close(&mut self) {
        self.machine.pause();
        self.graph.settle_all();
        self.open_hook.end();
        self.server.shutdown();
    }
}

/// Whether the guest itself brought it about.
fn is_guest(cause: ShutdownCause) -> bool {
    matches!(
        cause,
        ShutdownCause::GuestShutdown | ShutdownCause::GuestReset | ShutdownCause::GuestPanic
    )
}
