//! `run-state.json`: start, stop, reset.

use qapi_schema::run_state::{
    Commands, RunState as WireState, SetAction, ShutdownCause, StatusInfo,
};
use qapi_schema::{Context, QmpError};

use crate::messages::report;
use crate::run_state::RunState;
use crate::vm::Vm;

impl Commands for Vm {
    fn query_status(&mut self, _cx: &mut dyn Context) -> Result<StatusInfo, QmpError> {
        let status = match self.run_state {
            RunState::Prelaunch => WireState::Prelaunch,
            RunState::Inmigrate => WireState::Inmigrate,
            RunState::Running => WireState::Running,
            RunState::Paused => WireState::Paused,
            RunState::Shutdown => WireState::Shutdown,
            RunState::IoError => WireState::IoError,
            RunState::GuestPanicked => WireState::GuestPanicked,
            RunState::Watchdog => WireState::Watchdog,
            RunState::InternalError => WireState::InternalError,
        };
        Ok(StatusInfo {
            running: self.run_state.is_running(),
            status,
        })
    }

    fn stop(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        Vm::stop(self);
        Ok(())
    }

    fn cont(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        self.start()
    }

    fn system_reset(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        self.reset(ShutdownCause::HostQmpSystemReset)
    }

    fn system_powerdown(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        self.power_down();
        Ok(())
    }

    fn x_exit_preconfig(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        let Some(rest) = self.rest.take() else {
            return Err(QmpError::generic(
                "The command is permitted only before machine initialization",
            ));
        };
        rest(self).map_err(|error| {
            report(format_args!("{error:#}"));
            self.give_up();
            QmpError::generic(format!("{error:#}"))
        })
    }

    fn set_action(&mut self, _cx: &mut dyn Context, args: SetAction) -> Result<(), QmpError> {
        self.end_policy.change(&args);
        Ok(())
    }

    fn inject_nmi(&mut self, _cx: &mut dyn Context) -> Result<(), QmpError> {
        self.send_nmi()
    }
}
