//! Another image in the place of the one that a node has, as for two nodes that change theirs.
//!
//! ```text
//!   disk a ─► x      users parked ─► x and y settled ─► both opened anew ─► disk a ─► y
//!   disk b ─► y                                             │ refused      disk b ─► x
//!                                                           └─► all as before
//! ```
//!
//! Only a settled file says what its image holds, so they are opened while users wait.

use crate::error::BlockError;
use crate::graph::BlockGraph;
use crate::node::NodeRef;
use crate::reopen::OtherImage;

/// An image that a node is to get.
pub(super) struct NewImage {
    pub(super) node: NodeRef,
    /// The file with it.
    pub(super) file: NodeRef,
    /// Whether the node will be read-only.
    pub(super) read_only: bool,
    /// Whether it was said what is behind it, or that nothing is.
    pub(super) behind_said: bool,
}

impl BlockGraph {
    /// Opens for each node the image that it gets. Their users are parked.
    ///
    /// # Errors
    /// One could not write down what it had, or cannot have what is in its file.
    pub(super) fn open_images(
        &self,
        images: Vec<NewImage>,
    ) -> Result<Vec<(NodeRef, OtherImage)>, BlockError> {
        for image in &images {
            self.write_down(&image.node)?;
        }
        let opened = images.into_iter().map(|new| {
            let image = self.open_image(&new)?;
            Ok((new.node, image))
        });
        opened.collect()
    }

    fn open_image(&self, new: &NewImage) -> Result<OtherImage, BlockError> {
        let name = || new.node.name().to_owned();
        let thread = self.thread.clone();
        let thread = thread.ok_or_else(|| BlockError::NoThread { node: name() })?;
        let (node, file, read_only) = (new.node.clone(), new.file.clone(), new.read_only);
        let opened =
            thread.run(move |io| async move { node.prepare_image(&io, file, read_only).await });
        let opened = opened.map_err(|source| BlockError::Thread { source })?;
        let opened = opened.map_err(|source| BlockError::Image {
            node: name(),
            source,
        })?;
        if opened.is_backed && !new.behind_said {
            return Err(BlockError::BackingNotGiven { node: name() });
        }
        if opened.len != new.node.len() && self.is_used(new.node.name()) {
            return Err(BlockError::OtherLength {
                node: name(),
                had: new.node.len(),
                len: opened.len,
            });
        }
        Ok(opened)
    }
}
