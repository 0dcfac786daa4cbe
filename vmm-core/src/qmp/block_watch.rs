//! `block-watch.json`: what is to be told of disks.

use std::sync::Arc;

use block::{Corruption, Crossing, Histograms, Operation};
use devices::notice::Notice;
use qapi_schema::block_stats::BlockLatencyHistogramInfo;
use qapi_schema::block_watch::{
    BlockImageCorrupted, BlockLatencyHistogramSet, BlockSetWriteThreshold, BlockWriteThreshold,
    Commands,
};
use qapi_schema::{Context, Event, QmpError};

use crate::messages;
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

    fn block_latency_histogram_set(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockLatencyHistogramSet,
    ) -> Result<(), QmpError> {
        let id = args.id;
        let disk = self.disk_called(&id)?;
        let wanted = [
            (Operation::Read, "read", args.boundaries_read),
            (Operation::Write, "write", args.boundaries_write),
            (Operation::Flush, "flush", args.boundaries_flush),
        ];
        let none = args.boundaries.is_none() && wanted.iter().all(|(.., own)| own.is_none());
        for (operation, what, own) in wanted {
            let boundaries = own.or_else(|| args.boundaries.clone());
            // Those that are not named stay as they are, unless none is.
            if (none || boundaries.is_some()) && !disk.histograms().set(operation, boundaries) {
                let why = format!("Device '{id}' set {what} boundaries fail");
                return Err(QmpError::generic(why));
            }
        }
        Ok(())
    }
}

/// What a disk's histogram says, for lists.
pub(super) fn histogram(
    histograms: &Histograms,
    operation: Operation,
) -> Option<BlockLatencyHistogramInfo> {
    let bins = histograms.bins(operation)?;
    Some(BlockLatencyHistogramInfo {
        boundaries: bins.boundaries,
        bins: bins.counts,
    })
}

impl Vm {
    /// Tells at once of images that a request has found to be corrupt, before what it says itself.
    pub(crate) fn tell_corruptions(&mut self) {
        for letter in self.mailbox.take_corruptions() {
            self.hear(letter);
        }
    }

    /// An image is corrupt. The line is QEMU's.
    pub(crate) fn image_is_corrupt(&self, corruption: Corruption) {
        let Corruption {
            node,
            driver,
            message,
            place,
            fatal,
        } = corruption;
        let (what, which) = match fatal {
            true => ("Marking image as corrupt", ""),
            false => ("Image is corrupt", "non-fatal "),
        };
        messages::say(format_args!(
            "{driver}: {what}: {message}; further {which}corruption events will be suppressed"
        ));
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let device = self.drives.of_node(&node).unwrap_or_default().to_owned();
        let corrupted = BlockImageCorrupted {
            device,
            node_name: Some(node),
            msg: message,
            offset: place.map(|(offset, _)| number(offset)),
            size: place.map(|(_, size)| number(size)),
            fatal,
        };
        self.events.emit(Event::BlockImageCorrupted(corrupted));
    }

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
