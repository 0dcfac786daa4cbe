//! A command's way: from an admitted call to its reply.
//!
//! ```text
//!   call ─► the monitor's own? ─► answered
//!             │ no
//!             ▼ does it open what nobody passed, and is there an open hook?
//!             ├─ yes ─► parked until the manager has answered ─► go on ─┐
//!             │           └─ again, while headers of images name more   │
//!             └─ no ───────────────────────────────────────────────────┴─► dispatch ─► reply
//! ```

use std::sync::Arc;

use monitor::Call;
use qapi_schema::{
    Module, QmpError, Reply, acpi, balloon, block_bitmaps, block_core, block_create, block_graph,
    block_stats, block_throttle, block_watch, char, drivers, fw_cfg_devices, input, inspect, job,
    machine, memory_devices, migration, misc, net, numa, open_hook, pci, qdev, qom, run_state,
    sandbox, scsi, tpm, transaction, ui, virtio, watchdog,
};

use serde_json::Value;

use super::Vm;
use crate::hook::round::Round;
use crate::plan::chain::{self, Reader};
use crate::plan::{self, Planned, Step};

impl Vm {
    /// Runs one call and answers it.
    pub(super) fn serve(&mut self, call: Call) {
        // The monitor's own commands (fds, negotiation, introspection) need no VM.
        let Some(call) = self.server.serve_builtin(call) else {
            return;
        };
        let steps = self.unasked(&call);
        if steps.is_empty() {
            return self.carry_out(call);
        }
        let round = Round::new(Some(call.command.name));
        self.go_on(call, round, steps);
    }

    /// Asks the open hook for what is known to be needed and was not asked for yet: after each
    /// round the headers of images may name more. When nothing is left the call runs, with the
    /// answers in its door.
    pub(super) fn go_on(&mut self, call: Call, mut round: Round, mut steps: Vec<Step>) {
        let door = self
            .door_of(&call)
            .with_answers(Arc::clone(round.answers()));
        if !round.has_failed() {
            let reader = Reader {
                graph: &self.graph,
                door: &door,
                paths: false,
            };
            chain::expand(&mut steps, &[], &reader);
            let questions = self.open_hook.questions(&door, &mut steps);
            if !questions.is_empty() {
                self.open_hook.ask(&mut round, questions);
                return self.open_hook.park(call, round, steps);
            }
        }
        let answers = round.answers();
        let with_answers = self.door.clone().with_answers(Arc::clone(answers));
        let plain = std::mem::replace(&mut self.door, with_answers);
        self.carry_out(call);
        self.door = plain;
        answers.close();
    }

    fn carry_out(&mut self, mut call: Call) {
        let arguments = std::mem::take(&mut call.arguments);
        let result = self.dispatch(&mut call, arguments);
        self.cover_new_threads();
        call.finish(result);
    }

    /// What the open hook may have to be asked for before the call can run. Of a call that is wrong
    /// nothing: it will say so itself.
    fn unasked(&self, call: &Call) -> Vec<Step> {
        if !self.open_hook.is_set() {
            return Vec::new();
        }
        let plan = self.plan_of(call.command.name, call.arguments.clone());
        plan.unwrap_or_default()
    }

    /// What the command `name` will open.
    ///
    /// # Errors
    /// There is no such command, or its arguments are wrong.
    pub(crate) fn plan_of(&self, name: &str, arguments: Value) -> Result<Vec<Step>, QmpError> {
        let wishes = match name {
            "block-commit" => self.commit_opens(&input::arguments(arguments)?)?,
            "block-stream" => self.stream_opens(&input::arguments(arguments)?)?,
            "blockdev-reopen" => self.reopen_opens(&input::arguments(arguments)?)?,
            "change-backing-file" => self.backing_name_opens(&input::arguments(arguments)?)?,
            _ => return plan::command(name, arguments),
        };
        let opens = wishes.into_iter().map(Planned::of);
        Ok(opens.map(Step::Open).collect())
    }

    fn dispatch(&mut self, call: &mut Call, mut arguments: Value) -> Result<Reply, QmpError> {
        let name = call.command.name;
        match call.command.module {
            Module::Acpi => acpi::dispatch(self, name, call, arguments),
            Module::Balloon => balloon::dispatch(self, name, call, arguments),
            Module::BlockBitmaps => block_bitmaps::dispatch(self, name, call, arguments),
            Module::BlockCore => block_core::dispatch(self, name, call, arguments),
            Module::BlockCreate => block_create::dispatch(self, name, call, arguments),
            Module::BlockGraph => block_graph::dispatch(self, name, call, arguments),
            Module::BlockStats => block_stats::dispatch(self, name, call, arguments),
            Module::BlockThrottle => block_throttle::dispatch(self, name, call, arguments),
            Module::BlockWatch => block_watch::dispatch(self, name, call, arguments),
            Module::Char => char::dispatch(self, name, call, arguments),
            Module::FwCfgDevices => fw_cfg_devices::dispatch(self, name, call, arguments),
            Module::Inspect => inspect::dispatch(self, name, call, arguments),
            Module::Job => job::dispatch(self, name, call, arguments),
            Module::Machine => machine::dispatch(self, name, call, arguments),
            Module::MemoryDevices => memory_devices::dispatch(self, name, call, arguments),
            Module::Migration => migration::dispatch(self, name, call, arguments),
            Module::Misc => misc::dispatch(self, name, call, arguments),
            Module::Net => net::dispatch(self, name, call, arguments),
            Module::Numa => numa::dispatch(self, name, call, arguments),
            Module::OpenHook => open_hook::dispatch(self, name, call, arguments),
            Module::Pci => pci::dispatch(self, name, call, arguments),
            Module::Qdev => {
                drivers::resolve_alias(&mut arguments)?;
                qdev::dispatch(self, name, call, arguments)
            }
            Module::Qom => qom::dispatch(self, name, call, arguments),
            Module::RunState => run_state::dispatch(self, name, call, arguments),
            Module::Sandbox => sandbox::dispatch(self, name, call, arguments),
            Module::Scsi => scsi::dispatch(self, name, call, arguments),
            Module::Tpm => tpm::dispatch(self, name, call, arguments),
            Module::Transaction => transaction::dispatch(self, name, call, arguments),
            Module::Ui => ui::dispatch(self, name, call, arguments),
            Module::Virtio => virtio::dispatch(self, name, call, arguments),
            Module::Watchdog => watchdog::dispatch(self, name, call, arguments),
            Module::Control | Module::Fds => Err(QmpError::command_not_found(name)),
        }
    }
}
