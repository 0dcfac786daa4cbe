//! `numa.json`: NUMA, while the machine is still to be built.

use qapi_schema::numa::{Commands, NumaOptions};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn set_numa_node(&mut self, _cx: &mut dyn Context, args: NumaOptions) -> Result<(), QmpError> {
        if self.rest.is_none() {
            return Err(QmpError::generic(
                "The command is permitted only before the machine has been created",
            ));
        }
        self.numa.take(args)
    }
}
