//! `blockdev-set-active`: nodes whose storage another process has for a while.

use block::BlockError;
use qapi_schema::QmpError;
use qapi_schema::block_graph::BlockdevSetActive;

use crate::vm::Vm;

fn refused(error: &BlockError) -> QmpError {
    QmpError::from_error(error)
}

impl Vm {
    /// Leaves the storage of nodes to another process, or takes it back.
    ///
    /// # Errors
    /// As [`block::BlockGraph::inactivate`] and [`block::BlockGraph::activate`]; the guest runs and
    /// writes there.
    pub(crate) fn set_active(&mut self, args: &BlockdevSetActive) -> Result<(), QmpError> {
        let name = args.node_name.as_deref();
        if args.active {
            return self.activate_nodes(name);
        }
        let names = self.graph.to_inactivate(name);
        let names = names.map_err(|error| refused(&error))?;
        self.check_quiet(&names)?;
        self.lend_io_thread()?;
        let left = self.graph.inactivate(&names);
        left.map_err(|error| refused(&error))
    }

    /// Takes back the storage of a node and what is below it, or of all nodes. Disks whose length
    /// another process has changed tell their guest.
    ///
    /// # Errors
    /// As [`block::BlockGraph::activate`].
    pub(crate) fn activate_nodes(&mut self, name: Option<&str>) -> Result<(), QmpError> {
        if name.is_none() && self.graph.nodes().all(|view| view.node().is_active()) {
            return Ok(());
        }
        self.lend_io_thread()?;
        let before = self.disk_lengths();
        let taken = self.graph.activate(name);
        taken.map_err(|error| refused(&error))?;
        Self::tell_lengths(before);
        Ok(())
    }

    /// Whether a node can be given to a device now: a guest that runs would write to it.
    ///
    /// # Errors
    /// It is inactive, and the guest runs.
    pub(crate) fn check_at_work(&self, node: &str) -> Result<(), QmpError> {
        if !self.run_state.is_running() {
            return Ok(());
        }
        let active = self.graph.check_active([node]);
        active.map_err(|error| refused(&error))
    }

    /// Whether the guest uses none of these nodes.
    fn check_quiet(&self, names: &[String]) -> Result<(), QmpError> {
        if !self.run_state.is_running() {
            return Ok(());
        }
        for name in names {
            let view = self.graph.node(name).map_err(|error| refused(&error))?;
            if let Some(device) = view.devices().next() {
                return Err(QmpError::generic(format!(
                    "Node '{name}' is used by device '{device}' of the machine, which is running: \
                     stop it first"
                )));
            }
        }
        Ok(())
    }
}
