//! `block-core.json`: nodes, and the disks that stand on them.

use block::NodeView;
use qapi_schema::block_core::{
    BlockDeviceInfo, BlockDeviceIoStatus, BlockInfo, BlockJobInfo, BlockdevCacheInfo, BlockdevDel,
    BlockdevDetectZeroesOptions, BlockdevOptions, Commands, ImageInfo, QueryNamedBlockNodes,
};
use qapi_schema::{Context, QmpError};

use crate::device_tree::{Claim, Part, path};
use crate::plug::VIRTIO_CHILD;
use crate::resolve;
use crate::vm::Vm;

impl Commands for Vm {
    fn blockdev_add(
        &mut self,
        cx: &mut dyn Context,
        args: BlockdevOptions,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.add_node(&door, args)
    }

    fn blockdev_del(&mut self, _cx: &mut dyn Context, args: BlockdevDel) -> Result<(), QmpError> {
        self.graph
            .remove(&args.node_name)
            .map_err(|error| QmpError::from_error(&error))
    }

    fn query_block(&mut self, _cx: &mut dyn Context) -> Result<Vec<BlockInfo>, QmpError> {
        let disks = self
            .devices
            .iter()
            .filter(|(_, device)| matches!(device.part, Part::Disk(_)));
        let info = disks.map(|(name, device)| {
            let node = device.claims.iter().find_map(|claim| match claim {
                Claim::Node(node) => self.graph.node(node).ok(),
                Claim::Object(_) => None,
            });
            BlockInfo {
                // The name of a legacy drive, which ours never have.
                device: String::new(),
                qdev: Some(format!(
                    "{}/{VIRTIO_CHILD}",
                    path(name, device.id.is_some())
                )),
                r#type: "unknown".to_owned(),
                removable: false,
                locked: false,
                inserted: node.map(|node| node_info(&node)),
                io_status: Some(BlockDeviceIoStatus::Ok),
            }
        });
        Ok(info.collect())
    }

    fn query_block_jobs(&mut self, _cx: &mut dyn Context) -> Result<Vec<BlockJobInfo>, QmpError> {
        // No command begins one.
        Ok(Vec::new())
    }

    fn query_named_block_nodes(
        &mut self,
        _cx: &mut dyn Context,
        _args: QueryNamedBlockNodes,
    ) -> Result<Vec<BlockDeviceInfo>, QmpError> {
        Ok(self.graph.nodes().map(|node| node_info(&node)).collect())
    }
}

impl Vm {
    /// Adds a block node, from a command or from the command line.
    ///
    /// # Errors
    /// As `block::BlockGraph::add`.
    pub fn add_node(
        &mut self,
        door: &fdset::Door,
        options: BlockdevOptions,
    ) -> Result<(), QmpError> {
        let spec = resolve::node::node(options)?;
        self.graph
            .add(door, spec)
            .map(drop)
            .map_err(|error| QmpError::from_error(&error))
    }
}

fn node_info(view: &NodeView<'_>) -> BlockDeviceInfo {
    let node = view.node();
    let options = node.options();
    let size = i64::try_from(node.len()).unwrap_or(i64::MAX);
    BlockDeviceInfo {
        file: view.filename().to_owned(),
        node_name: Some(node.name().to_owned()),
        ro: node.is_read_only(),
        drv: node.driver().to_owned(),
        backing_file_depth: 0,
        active: true,
        encrypted: false,
        detect_zeroes: match options.detect_zeroes {
            block::spec::DetectZeroes::Off => BlockdevDetectZeroesOptions::Off,
            block::spec::DetectZeroes::On => BlockdevDetectZeroesOptions::On,
            block::spec::DetectZeroes::Unmap => BlockdevDetectZeroesOptions::Unmap,
        },
        // No throttling: 0 is "no limit".
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image: ImageInfo {
            filename: view.filename().to_owned(),
            format: node.driver().to_owned(),
            actual_size: None,
            virtual_size: size,
        },
        cache: BlockdevCacheInfo {
            writeback: true,
            direct: options.cache.direct,
            no_flush: options.cache.no_flush,
        },
        write_threshold: 0,
    }
}
