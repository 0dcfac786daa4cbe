//! A command's way: from an admitted call to its reply.
//!
//! ```text
//!   call ─► the monitor's own? ─► answered
//!             │ no
//!             ▼ does it open what nobody passed, and is there an open hook?
//!             ├─ yes ─► parked until the manager has answered ─► resume ┐
//!             └─ no ───────────────────────────────────────────────────┴─► dispatch ─► reply
//! ```

use std::sync::Arc;

use monitor::Call;
use qapi_schema::{
    Module, QmpError, Reply, block_core, block_stats, char, drivers, job, machine, migration, misc,
    open_hook, pci, qdev, qom, run_state, sandbox, transaction,
};

use super::Vm;
use crate::hook::round::Round;
use crate::plan::{self, Planned};

impl Vm {
    /// Runs one call and answers it.
    pub(super) fn serve(&mut self, call: Call) {
        // The monitor's own commands (fds, negotiation, introspection) need no VM.
        let Some(call) = self.server.serve_builtin(call) else {
            return;
        };
        let questions = self.questions(&call);
        if questions.is_empty() {
            self.carry_out(call);
        } else {
            self.open_hook.park(call, questions);
        }
    }

    /// Runs a call that has waited, with what the open hook has answered in its door.
    pub(super) fn resume(&mut self, call: Call, round: &Round) {
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

    /// What the open hook is to be asked before the call can run. Of a call that is wrong
    /// nothing: it will say so itself.
    fn questions(&self, call: &Call) -> Vec<Planned> {
        if !self.open_hook.is_set() {
            return Vec::new();
        }
        let plan = plan::command(call.command.name, call.arguments.clone()).unwrap_or_default();
        self.open_hook.questions(&self.door_of(call), plan)
    }

    fn dispatch(
        &mut self,
        call: &mut Call,
        mut arguments: serde_json::Value,
    ) -> Result<Reply, QmpError> {
        let name = call.command.name;
        match call.command.module {
            Module::BlockCore => block_core::dispatch(self, name, call, arguments),
            Module::BlockStats => block_stats::dispatch(self, name, call, arguments),
            Module::Char => char::dispatch(self, name, call, arguments),
            Module::Job => job::dispatch(self, name, call, arguments),
            Module::Machine => machine::dispatch(self, name, call, arguments),
            Module::Migration => migration::dispatch(self, name, call, arguments),
            Module::Misc => misc::dispatch(self, name, call, arguments),
            Module::OpenHook => open_hook::dispatch(self, name, call, arguments),
            Module::Pci => pci::dispatch(self, name, call, arguments),
            Module::Qdev => {
                drivers::resolve_alias(&mut arguments)?;
                qdev::dispatch(self, name, call, arguments)
            }
            Module::Qom => qom::dispatch(self, name, call, arguments),
            Module::RunState => run_state::dispatch(self, name, call, arguments),
            Module::Sandbox => sandbox::dispatch(self, name, call, arguments),
            Module::Transaction => transaction::dispatch(self, name, call, arguments),
            Module::Control | Module::Fds => Err(QmpError::command_not_found(name)),
        }
    }
}
