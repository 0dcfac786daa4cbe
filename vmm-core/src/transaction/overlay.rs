//! The overlay that a snapshot opens on its way, or makes.

use std::io::Write as _;

use block::format::qcow2::{NewImage, create};
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

/// Bytes of the smallest piece of which an image is made.
const SECTOR: u64 = 512;

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

/// Whether the overlay of a snapshot is to be made.
pub(crate) fn is_made(snapshot: &FileSnapshot) -> bool {
    snapshot.mode != Some(NewImageMode::Existing)
}

fn format(snapshot: &FileSnapshot) -> &str {
    snapshot.format.as_deref().unwrap_or("qcow2")
}

/// The overlay of a snapshot as a node, with nothing behind it: cached as what it goes above. Its
/// file is a node `file`, or opened with it.
///
/// # Errors
/// Its format is unknown.
pub(crate) fn spec(
    snapshot: &FileSnapshot,
    above: NodeOptions,
    file: Option<&str>,
) -> Result<NodeSpec, QmpError> {
    let file = match file {
        Some(node) => json!(node),
        None => json!({"driver": "file", "filename": snapshot.snapshot_file}),
    };
    let options = json!({"driver": format(snapshot), "backing": null, "file": file});
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

/// Says on standard output which image is made, as QEMU does; whoever closed it does not want to
/// know.
fn announce(filename: &str, image: &NewImage) {
    let (backing, format) = image.backing.clone().unwrap_or_default();
    let line = format!(
        "Formatting '{filename}', fmt=qcow2 cluster_size={} extended_l2=off compression_type=zlib \
         size={} backing_file={backing} backing_fmt={} lazy_refcounts=off refcount_bits={}",
        image.cluster_size,
        image.size,
        format.unwrap_or_default(),
        image.refcount_bits
    );
    let mut out = std::io::stdout().lock();
    let _shown = writeln!(out, "{line}").and_then(|()| out.flush());
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

    /// Opens the overlay of a snapshot of `node`, or makes it; it is in the graph from then on. Its
    /// name.
    ///
    /// # Errors
    /// It cannot be opened or made.
    pub(super) fn open_overlay(
        &mut self,
        door: &Door,
        snapshot: &FileSnapshot,
        node: &str,
    ) -> Result<String, QmpError> {
        if snapshot.node_name.is_some() && snapshot.snapshot_node_name.is_none() {
            return Err(QmpError::generic("New overlay node-name missing"));
        }
        let new = snapshot.snapshot_node_name.as_deref();
        if new.is_some_and(|name| self.find_node(Some(name), Some(name)).is_ok()) {
            return Err(QmpError::generic("New overlay node-name already in use"));
        }
        let options = self.node_options(node)?;
        if !is_made(snapshot) {
            return self.add_overlay(door, spec(snapshot, options, None)?);
        }
        let file = self.make_overlay(door, snapshot, node, options)?;
        let added =
            spec(snapshot, options, Some(&file)).and_then(|spec| self.add_overlay(door, spec));
        if added.is_err() {
            self.graph.abandon(&file);
        }
        added
    }

    fn add_overlay(&mut self, door: &Door, spec: NodeSpec) -> Result<String, QmpError> {
        self.lend_thread(&spec)?;
        let node = self.graph.add_overlay(door, spec);
        let node = node.map_err(|error| QmpError::from_error(&error))?;
        Ok(node.name().to_owned())
    }

    /// Makes an image that names `node` behind it; the name of the node of its file.
    fn make_overlay(
        &mut self,
        door: &Door,
        snapshot: &FileSnapshot,
        node: &str,
        options: NodeOptions,
    ) -> Result<String, QmpError> {
        let failed = |error: block::BlockError| QmpError::from_error(&error);
        match format(snapshot) {
            "qcow2" => {}
            "raw" => {
                return Err(QmpError::generic(
                    "Backing file not supported for file format 'raw'",
                ));
            }
            other => {
                return Err(QmpError::generic(format!("Unknown file format '{other}'")));
            }
        }
        let below = self.graph.node(node).map_err(failed)?;
        let driver = match below.node().driver() {
            "file" | "host_device" => "raw",
            other => other,
        };
        let size = below.node().len().next_multiple_of(SECTOR);
        let image = NewImage {
            backing: Some((below.filename().to_owned(), Some(driver.to_owned()))),
            ..NewImage::new(size)
        };
        announce(&snapshot.snapshot_file, &image);
        let iothread = self.default_iothread()?;
        let file = self
            .graph
            .add_new_file(door, &snapshot.snapshot_file, options);
        let file = file.map_err(failed)?;
        let name = file.name().to_owned();
        let made = iothread.run(move |io| async move { create(&io, &file, None, &image).await });
        let made = match made {
            Ok(made) => made.map_err(|error| QmpError::from_error(&error)),
            Err(error) => Err(QmpError::from_error(&error)),
        };
        if let Err(error) = made {
            self.graph.abandon(&name);
            return Err(error);
        }
        Ok(name)
    }
}
