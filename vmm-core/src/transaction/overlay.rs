//! The overlay that a snapshot opens on its way.

use block::spec::{CacheSpec, DetectZeroes, DiscardMode, NodeOptions, NodeSpec};
use fdset::Door;
use qapi_schema::block_core::{
    BlockdevCacheOptions, BlockdevDetectZeroesOptions, BlockdevDiscardOptions, BlockdevOptions,
    FileSnapshot, NewImageMode,
};
use qapi_schema::{QmpError, input};
use serde_json::json;

use crate::resolve;
use crate::vm::Vm;

/// What an overlay has where it is not known what it goes above.
pub(crate) const PLAIN: NodeOptions = NodeOptions {
    read_only: false,
    auto_read_only: false,
    discard: DiscardMode::Ignore,
    detect_zeroes: DetectZeroes::Off,
    cache: CacheSpec {
        direct: false,
        no_flush: false,
    },
};

/// The overlay of a snapshot as a node, with nothing behind it: cached as what it goes above.
///
/// # Errors
/// Its format is unknown, or it would have to be made.
pub(crate) fn spec(snapshot: &FileSnapshot, above: NodeOptions) -> Result<NodeSpec, QmpError> {
    if snapshot.mode != Some(NewImageMode::Existing) {
        return Err(QmpError::generic(
            "Parameter 'mode' expects 'existing': images are not created here; make the overlay \
             with qemu-img create, or hand in one that is made",
        ));
    }
    let format = snapshot.format.as_deref().unwrap_or("qcow2");
    let options = json!({
        "driver": format,
        "backing": null,
        "file": {"driver": "file", "filename": snapshot.snapshot_file},
    });
    let mut options: BlockdevOptions = input::arguments(options)?;
    options.node_name.clone_from(&snapshot.snapshot_node_name);
    options.cache = Some(BlockdevCacheOptions {
        direct: Some(above.cache.direct),
        no_flush: Some(above.cache.no_flush),
    });
    options.discard = Some(match above.discard {
        DiscardMode::Ignore => BlockdevDiscardOptions::Ignore,
        DiscardMode::Unmap => BlockdevDiscardOptions::Unmap,
    });
    options.detect_zeroes = Some(match above.detect_zeroes {
        DetectZeroes::Off => BlockdevDetectZeroesOptions::Off,
        DetectZeroes::On => BlockdevDetectZeroesOptions::On,
        DetectZeroes::Unmap => BlockdevDetectZeroesOptions::Unmap,
    });
    resolve::node::node(options)
}

impl Vm {
    /// The node of this name.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn named_node(&self, name: &str) -> Result<String, QmpError> {
        self.find_node(Some(name), Some(name))
    }

    /// The node that a snapshot is of.
    ///
    /// # Errors
    /// There is none, or none is named.
    pub(super) fn snapshot_source(&self, snapshot: &FileSnapshot) -> Result<String, QmpError> {
        let (device, node) = (snapshot.device.as_deref(), snapshot.node_name.as_deref());
        self.find_node(device, node)
    }

    pub(super) fn node_options(&self, node: &str) -> Result<NodeOptions, QmpError> {
        let view = self.graph.node(node);
        let view = view.map_err(|error| QmpError::from_error(&error))?;
        Ok(NodeOptions {
            read_only: false,
            ..view.node().options()
        })
    }

    /// Opens an overlay, which is in the graph from then on; its name.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn open_overlay(&mut self, door: &Door, spec: NodeSpec) -> Result<String, QmpError> {
        self.lend_thread(&spec)?;
        let node = self.graph.add_overlay(door, spec);
        let node = node.map_err(|error| QmpError::from_error(&error))?;
        Ok(node.name().to_owned())
    }
}
