//! `block-graph.json`: nodes with other options, names in headers, the graph shown.

use qapi_schema::block_graph::{BlockdevReopen, ChangeBackingFile, Commands, XDbgBlockGraph};
use qapi_schema::{Context, QmpError};

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

    fn change_backing_file(
        &mut self,
        cx: &mut dyn Context,
        args: ChangeBackingFile,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.change_backing_name(&door, &args)
    }

    fn x_debug_query_block_graph(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<XDbgBlockGraph, QmpError> {
        self.draw_graph()
    }
}
