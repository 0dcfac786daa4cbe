//! `block-graph.json`: nodes with other options, names and states in images, the graph shown.

use qapi_schema::block_core::SnapshotInfo;
use qapi_schema::block_graph::{
    BlockPauses, BlockdevReopen, BlockdevSetActive, BlockdevSnapshotDeleteInternalSync,
    BlockdevSnapshotInternal, ChangeBackingFile, Commands, StrOrNull, XBlockdevSetIothread,
    XDbgBlockGraph,
};
use qapi_schema::{Context, QmpError};

use crate::transaction::Action;
use crate::vm::Vm;

impl Commands for Vm {
    fn blockdev_reopen(
        &mut self,
        cx: &mut dyn Context,
        args: BlockdevReopen,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.reopen_nodes(&door, &args)
    }

    fn blockdev_set_active(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockdevSetActive,
    ) -> Result<(), QmpError> {
        self.set_active(&args)
    }

    fn change_backing_file(
        &mut self,
        cx: &mut dyn Context,
        args: ChangeBackingFile,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.change_backing_name(&door, &args)
    }

    fn x_blockdev_set_iothread(
        &mut self,
        _cx: &mut dyn Context,
        args: XBlockdevSetIothread,
    ) -> Result<(), QmpError> {
        let name = &args.node_name;
        let view = self.graph.node(name);
        let view = view.map_err(|error| QmpError::from_error(&error))?;
        let in_use = view.devices().next().is_some();
        if in_use && !args.force.unwrap_or(false) {
            return Err(QmpError::generic(format!(
                "Node {name} is associated with a BlockBackend and could be in use (use \
                 force=true to override this check)"
            )));
        }
        match args.iothread {
            StrOrNull::N(()) => Ok(()),
            StrOrNull::S(id) if self.objects.iothreads().any(|one| one.id() == id) => Ok(()),
            StrOrNull::S(id) => Err(QmpError::generic(format!("Cannot find iothread {id}"))),
        }
    }

    fn x_debug_query_block_graph(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<XDbgBlockGraph, QmpError> {
        self.draw_graph()
    }

    fn blockdev_snapshot_internal_sync(
        &mut self,
        cx: &mut dyn Context,
        args: BlockdevSnapshotInternal,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.transact(&door, vec![Action::Internal(args)]).map(drop)
    }

    fn blockdev_snapshot_delete_internal_sync(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockdevSnapshotDeleteInternalSync,
    ) -> Result<SnapshotInfo, QmpError> {
        self.delete_state(&args)
    }

    fn query_block_pauses(&mut self, _cx: &mut dyn Context) -> Result<BlockPauses, QmpError> {
        Ok(self.pauses.shown())
    }
}
