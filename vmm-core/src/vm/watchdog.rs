//! What follows when a watchdog has run out.

use std::process::ExitCode;

use qapi_schema::Event;
use qapi_schema::watchdog::{Watchdog, WatchdogAction};

use super::Vm;
use crate::messages::report;
use crate::run_state::Change;

impl Vm {
    /// Tells of it, and does what the policy says.
    pub(super) fn watchdog_ran_out(&mut self) {
        let action = self.end_policy.watchdog;
        self.events.emit(Event::Watchdog(Watchdog { action }));
        match action {
            WatchdogAction::Reset => self.reset_by_guest(),
            WatchdogAction::Shutdown => self.power_down(),
            // As QEMU, with no word of a shutdown: the guest is not what asked for it.
            WatchdogAction::Poweroff => self.ended = Some(ExitCode::SUCCESS),
            WatchdogAction::InjectNmi => {
                if let Err(error) = self.send_nmi() {
                    report(format_args!("the watchdog's NMI cannot be sent: {error}"));
                }
            }
            WatchdogAction::Pause => self.halt(Change::Watchdog),
            WatchdogAction::Debug => report(format_args!("the guest's watchdog has run out")),
            WatchdogAction::None => {}
        }
    }
}
