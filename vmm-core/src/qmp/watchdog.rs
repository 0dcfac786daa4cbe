//! `watchdog.json`: what a watchdog that runs out leads to.

use qapi_schema::watchdog::{Commands, WatchdogSetAction};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn watchdog_set_action(
        &mut self,
        _cx: &mut dyn Context,
        args: WatchdogSetAction,
    ) -> Result<(), QmpError> {
        self.end_policy.watchdog = args.action;
        Ok(())
    }
}
