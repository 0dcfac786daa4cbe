//! `fw-cfg-devices.json`: the machine's generation id.

use qapi_schema::fw_cfg_devices::{Commands, GuidInfo};
use qapi_schema::{Context, QmpError};

use crate::uuid;
use crate::vm::{Vm, VmMachine};

impl Commands for Vm {
    fn query_vm_generation_id(&mut self, _cx: &mut dyn Context) -> Result<GuidInfo, QmpError> {
        let generation = match &self.machine {
            VmMachine::Q35(q35) => q35.generation(),
            VmMachine::None => None,
        };
        let generation =
            generation.ok_or_else(|| QmpError::generic("VM Generation ID device not found"))?;
        Ok(GuidInfo {
            guid: uuid::text(generation),
        })
    }
}
