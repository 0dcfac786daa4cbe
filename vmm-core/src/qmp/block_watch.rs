//! `block-watch.json`: what is to be told of disks.

use std::sync::Arc;

use block::Crossing;
use devices::notice::Notice;
use qapi_schema::block_watch::{BlockSetWriteThreshold, BlockWriteThreshold, Commands};
use qapi_schema::{Context, Event, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn block_set_write_threshold(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockSetWriteThreshold,
    ) -> Result<(), QmpError> {
        let name = args.node_name;
        let view = self.graph.node(&name);
        let view = view.map_err(|_| QmpError::generic(format!("Device '{name}' not found")))?;
        let node = view.node().clone();
        let notices = self.mailbox.notices();
        let tell = move |crossing: Crossing| {
            notices.send(Notice::WriteThreshold {
                node: name.clone(),
                threshold: crossing.threshold,
                exceeded: crossing.exceeded,
            });
        };
        node.set_write_threshold(args.write_threshold, Arc::new(tell));
        Ok(())
    }
}

impl Vm {
    /// A write went beyond a node's threshold.
    pub(crate) fn threshold_crossed(&self, node: String, threshold: u64, exceeded: u64) {
        self.events
            .emit(Event::BlockWriteThreshold(BlockWriteThreshold {
                node_name: node,
                amount_exceeded: exceeded,
                write_threshold: threshold,
            }));
    }
}
