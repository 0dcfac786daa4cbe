//! `acpi.json`: what the guest says of CPUs and memory that come and go.

use qapi_schema::acpi::{ACPIOSTInfo, Commands};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn query_acpi_ospm_status(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<Vec<ACPIOSTInfo>, QmpError> {
        let board = self.machine.board("query-acpi-ospm-status")?.board();
        let cpus = board.cpu_hotplug().map(|places| places.ospm_status());
        let cpus = (0..).zip(cpus.unwrap_or_default());
        let cpus = cpus.map(|(index, (event, status))| self.cpu_ospm_status(index, event, status));
        let modules = board.memory_hotplug().map(|places| places.ospm_status());
        let modules = (0..).zip(modules.unwrap_or_default());
        let modules =
            modules.map(|(slot, (event, status))| self.module_ospm_status(slot, event, status));
        Ok(modules.chain(cpus).collect())
    }
}
