//! A command's way: from an admitted call to its reply.

use monitor::Call;
use qapi_schema::{
    Module, QmpError, Reply, block_core, char, drivers, machine, pci, qdev, qom, run_state, sandbox,
};

use super::Vm;

impl Vm {
    /// Runs one call and answers it.
    pub(super) fn serve(&mut self, call: Call) {
        // The monitor's own commands (fds, negotiation, introspection) need no VM.
        let Some(mut call) = self.server.serve_builtin(call) else {
            return;
        };
        let arguments = std::mem::take(&mut call.arguments);
        let result = self.dispatch(&mut call, arguments);
        self.cover_new_threads();
        call.finish(result);
    }

    fn dispatch(
        &mut self,
        call: &mut Call,
        mut arguments: serde_json::Value,
    ) -> Result<Reply, QmpError> {
        let name = call.command.name;
        match call.command.module {
            Module::BlockCore => block_core::dispatch(self, name, call, arguments),
            Module::Char => char::dispatch(self, name, call, arguments),
            Module::Machine => machine::dispatch(self, name, call, arguments),
            Module::Pci => pci::dispatch(self, name, call, arguments),
            Module::Qdev => {
                drivers::resolve_alias(&mut arguments)?;
                qdev::dispatch(self, name, call, arguments)
            }
            Module::Qom => qom::dispatch(self, name, call, arguments),
            Module::RunState => run_state::dispatch(self, name, call, arguments),
            Module::Sandbox => sandbox::dispatch(self, name, call, arguments),
            Module::Control | Module::Fds => Err(QmpError::command_not_found(name)),
        }
    }
}
