//! `block-stats.json`: what disks and nodes were asked.

use block::{NodeView, Operation, Sums, Totals};
use qapi_schema::block_stats::{BlockDeviceStats, BlockStats, Commands, QueryBlockstats};
use qapi_schema::{Context, QmpError};

use super::block_watch::histogram;
use crate::vm::Vm;

impl Commands for Vm {
    fn query_blockstats(
        &mut self,
        _cx: &mut dyn Context,
        args: QueryBlockstats,
    ) -> Result<Vec<BlockStats>, QmpError> {
        if args.query_nodes.unwrap_or(false) {
            return Ok(self
                .graph
                .nodes()
                .map(|view| of_node(&view, false))
                .collect());
        }
        let disks = self.disks().map(|disk| {
            // A disk's medium is named as it is, and its storage below counts for itself.
            let name = disk.node_name();
            let node = self.graph.node(&name).ok();
            let histograms = disk.device.histograms();
            let mut totals = disk.device.totals();
            totals.highest = disk.device.node().map_or(0, |node| node.totals().highest);
            BlockStats {
                device: Some(self.drive_of(&name)),
                qdev: Some(disk.path),
                node_name: (!name.is_empty()).then_some(name),
                stats: BlockDeviceStats {
                    rd_latency_histogram: histogram(histograms, Operation::Read),
                    wr_latency_histogram: histogram(histograms, Operation::Write),
                    flush_latency_histogram: histogram(histograms, Operation::Flush),
                    ..numbers(totals)
                },
                parent: node.and_then(|view| storage(&view, true)),
                backing: node.and_then(|view| backing(&view)),
            }
        });
        // Drives that no disk has yet: nothing was asked of them.
        let idle = self.idle_drives().map(|(id, drive)| {
            let node = self.graph.node(&drive.node).ok();
            BlockStats {
                device: Some(id.to_owned()),
                qdev: None,
                node_name: Some(drive.node.clone()),
                stats: numbers(Totals::default()),
                parent: node.and_then(|view| storage(&view, true)),
                backing: node.and_then(|view| backing(&view)),
            }
        });
        Ok(disks.chain(idle).collect())
    }
}

/// Of a node by itself; `whole` is with what is below a disk, all the way down.
fn of_node(view: &NodeView<'_>, whole: bool) -> BlockStats {
    BlockStats {
        device: None,
        qdev: None,
        node_name: Some(view.node().name().to_owned()),
        stats: numbers(view.node().totals()),
        parent: storage(view, whole),
        backing: if whole { backing(view) } else { None },
    }
}

fn storage(view: &NodeView<'_>, whole: bool) -> Option<Box<BlockStats>> {
    let (_, below) = view.below().find(|(role, _)| *role != "backing")?;
    Some(Box::new(of_node(&below, whole)))
}

fn backing(view: &NodeView<'_>) -> Option<Box<BlockStats>> {
    let (_, below) = view.below().find(|(role, _)| *role == "backing")?;
    Some(Box::new(of_node(&below, true)))
}

fn numbers(totals: Totals) -> BlockDeviceStats {
    let int = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let time = |sums: Sums| int(sums.nanoseconds);
    let Totals {
        reads,
        writes,
        flushes,
        unmaps,
        highest,
        ..
    } = totals;
    BlockDeviceStats {
        rd_bytes: int(reads.bytes),
        wr_bytes: int(writes.bytes),
        zone_append_bytes: 0,
        unmap_bytes: int(unmaps.bytes),
        rd_operations: int(reads.done),
        wr_operations: int(writes.done),
        zone_append_operations: 0,
        flush_operations: int(flushes.done),
        unmap_operations: int(unmaps.done),
        rd_total_time_ns: time(reads),
        wr_total_time_ns: time(writes),
        zone_append_total_time_ns: 0,
        flush_total_time_ns: time(flushes),
        unmap_total_time_ns: time(unmaps),
        wr_highest_offset: int(highest),
        // Requests are done as they come; the guest's own kernel has merged them.
        rd_merged: 0,
        wr_merged: 0,
        zone_append_merged: 0,
        unmap_merged: 0,
        idle_time_ns: totals
            .idle()
            .map(|idle| i64::try_from(idle.as_nanos()).unwrap_or(i64::MAX)),
        failed_rd_operations: int(reads.failed),
        failed_wr_operations: int(writes.failed),
        failed_zone_append_operations: 0,
        failed_flush_operations: int(flushes.failed),
        failed_unmap_operations: int(unmaps.failed),
        invalid_rd_operations: int(reads.invalid),
        invalid_wr_operations: int(writes.invalid),
        invalid_zone_append_operations: 0,
        invalid_flush_operations: int(flushes.invalid),
        invalid_unmap_operations: int(unmaps.invalid),
        account_invalid: true,
        account_failed: true,
        timed_stats: Vec::new(),
        rd_latency_histogram: None,
        wr_latency_histogram: None,
        flush_latency_histogram: None,
    }
}
