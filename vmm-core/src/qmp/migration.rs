//! `migration.json`: what moves of the machine can be told.

use qapi_schema::migration::{
    Commands, MigrateSetCapabilities, MigrationCapability, MigrationCapabilityStatus,
};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn query_migrate_capabilities(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<Vec<MigrationCapabilityStatus>, QmpError> {
        Ok(vec![MigrationCapabilityStatus {
            capability: MigrationCapability::Events,
            state: self.migration_events,
        }])
    }

    fn migrate_set_capabilities(
        &mut self,
        _cx: &mut dyn Context,
        args: MigrateSetCapabilities,
    ) -> Result<(), QmpError> {
        for status in args.capabilities {
            match status.capability {
                MigrationCapability::Events => self.migration_events = status.state,
            }
        }
        Ok(())
    }
}
