//! `change-backing-file`: another name in an image's header.

use fdset::{Door, Wish};
use qapi_schema::QmpError;
use qapi_schema::block_graph::ChangeBackingFile;

use crate::jobs::{Rights, recorded_name};
use crate::vm::Vm;

impl Vm {
    /// What [`change_backing_name`](Self::change_backing_name) will open.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn backing_name_opens(
        &self,
        args: &ChangeBackingFile,
    ) -> Result<Vec<Wish>, QmpError> {
        let wishes = Rights::opens(&self.graph, &[&args.image_node_name]);
        wishes.map_err(|error| QmpError::from_error(&error))
    }

    /// Writes another backing file's name into an image's header.
    ///
    /// # Errors
    /// The nodes are not in one chain, nothing is behind the image, or it cannot be written.
    pub(crate) fn change_backing_name(
        &mut self,
        door: &Door,
        args: &ChangeBackingFile,
    ) -> Result<(), QmpError> {
        let failed = |error: &block::BlockError| QmpError::from_error(error);
        let image = &args.image_node_name;
        let top = self.find_node(Some(&args.device), Some(&args.device))?;
        self.find_node(None, Some(image))?;
        let below = self
            .graph
            .backing_of(image)
            .map_err(|error| failed(&error))?;
        let below = below.map(str::to_owned).ok_or_else(|| {
            QmpError::generic("not allowing backing file change on an image without a backing file")
        })?;
        if !self.graph.chain(&top).contains(image) {
            return Err(QmpError::generic(format!(
                "'{}' and image file are not in the same chain",
                args.device
            )));
        }
        for node in [&top, image] {
            self.graph
                .check_idle(node)
                .map_err(|error| failed(&error))?;
        }
        let rights = Rights::take(&self.graph, door, &[image]);
        let mut rights = rights.map_err(|error| failed(&error))?;
        let view = self.graph.node(image).map_err(|error| failed(&error))?;
        let node = view.node().clone();
        let (_, format) = recorded_name(&self.graph, &below, &node);
        let name = args.backing_file.clone();
        let drain = self.graph.drain(&[image]);
        let changed = self.run_on_nodes(move |io| async move {
            node.change_backing(&io, Some(&name), Some(&format)).await
        });
        drop(drain);
        self.give_back(&mut rights);
        changed.map_err(|error| {
            QmpError::generic(format!(
                "Could not change backing file to '{}': {error}",
                args.backing_file
            ))
        })
    }
}
