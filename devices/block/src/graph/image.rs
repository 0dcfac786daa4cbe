//! Nodes of a format whose header names further files: opened with what the header says, and
//! settled when they go.
//!
//! ```text
//!   file ─► header ─┬─ backing file ─► given, or by the name in the header ─┐
//!                   └─ data file ────► given, or by the name in the header ─┴─► the image
//! ```
//!
//! A name in a header is a wish of whoever made the image. It is opened as a path, through the
//! same door as everything else and read-only below an image; it never names an fd that was handed
//! over for something else.

use fdset::Door;

use super::place::{Children, place_backing, place_child};
use super::{BlockGraph, Built, MAX_DEPTH, agree_on_access};
use crate::engine::IoThread;
use crate::error::BlockError;
use crate::format::qcow2::{self, ImageError, Outside, Qcow2Node, Tuning};
use crate::node::{BlockNode, NodeRef};
use crate::spec::{
    BackingSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec, NodeOptions, NodeSpec,
    Qcow2Spec, RawSpec,
};

impl BlockGraph {
    /// Gives the graph the thread on which images are opened and settled.
    pub fn use_thread(&mut self, thread: IoThread) {
        self.thread = Some(thread);
    }

    fn thread(&self, node: &str) -> Result<IoThread, BlockError> {
        let thread = self.thread.clone();
        thread.ok_or_else(|| BlockError::NoThread {
            node: node.to_owned(),
        })
    }

    /// Opens an image, with the nodes it stands on.
    pub(super) fn build_image(
        &self,
        door: &Door,
        name: &str,
        spec: Qcow2Spec,
        options: &mut NodeOptions,
        next_auto: &mut u64,
        built: &mut Vec<Built>,
    ) -> Result<(Box<dyn BlockNode>, String, Children), BlockError> {
        let thread = self.thread(name)?;
        let failed = |source| BlockError::Image {
            node: name.to_owned(),
            source,
        };
        // Every image of a chain adds its file first, so a chain in a circle comes to this end.
        if built.len() > 2 * MAX_DEPTH {
            return Err(BlockError::TooDeep {
                name: name.to_owned(),
                limit: MAX_DEPTH,
            });
        }
        let mut children = Children::default();
        let (file, filename) = self.child(door, spec.file, next_auto, built)?;
        agree_on_access(&file, options)?;
        let image = file.clone();
        let outside = thread.run(move |io| async move { qcow2::peek(&io, &image).await });
        let outside = outside
            .map_err(|source| BlockError::Thread { source })?
            .map_err(failed)?;
        let data = match data_spec(spec.data_file, &outside, &filename, options).map_err(failed)? {
            Some(data) => Some(self.child(door, data, next_auto, built)?.0),
            None => None,
        };
        if let Some(data) = &data {
            agree_on_access(data, options)?;
        }
        let backing = match spec.backing {
            BackingSpec::Nothing => None,
            BackingSpec::Child(child) => Some(child),
            BackingSpec::FromHeader => {
                header_backing(outside.backing, &filename, options).map_err(failed)?
            }
        };
        let backing = match backing {
            Some(child) => Some(self.child(door, child, next_auto, built)?.0),
            None => None,
        };
        let stands_on = qcow2::Children {
            file: place_child(&mut children, "file", file),
            data: data.map(|data| place_child(&mut children, "data-file", data)),
            backing: place_backing(&mut children, backing),
        };
        let tuning = Tuning {
            pass_discard: spec
                .pass_discard
                .unwrap_or(options.discard == DiscardMode::Unmap),
            ..spec.tuning
        };
        let (own, read_only) = (name.to_owned(), options.read_only);
        let node = thread.run(move |io| async move {
            Qcow2Node::open(&io, &own, stands_on, tuning, read_only).await
        });
        let node = node
            .map_err(|source| BlockError::Thread { source })?
            .map_err(failed)?;
        Ok((Box::new(node), filename, children))
    }

    /// Writes down what the driver of a node that goes still keeps in memory.
    pub(super) fn settle(&self, node: &NodeRef) {
        let Some(thread) = self.thread.as_ref().filter(|_| !node.is_read_only()) else {
            return;
        };
        let going = node.clone();
        let settled = thread.run(move |io| async move { going.settle(&io).await });
        let error = match settled {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(node = node.name(), error, "a node could not be settled");
    }

    /// Writes down what all drivers still keep in memory: the process ends. Nobody uses a node any
    /// more.
    pub fn settle_all(&self) {
        // Those that stand on others come after them.
        for view in self.nodes.values().rev() {
            self.settle(&view.node);
        }
    }
}

/// The node of an image's data file: the one given, or the one that its header names.
fn data_spec(
    given: Option<ChildSpec>,
    outside: &Outside,
    image: &str,
    options: &NodeOptions,
) -> Result<Option<ChildSpec>, ImageError> {
    if given.is_some() || !outside.needs_data_file {
        return Ok(given);
    }
    let name = outside.data_file.as_deref();
    let name = name.ok_or(ImageError::ChildMissing("data-file"))?;
    Ok(Some(file_child(beside(image, name)?, *options)))
}

/// The node of the backing file that a header names.
fn header_backing(
    backing: Option<(String, Option<String>)>,
    image: &str,
    options: &NodeOptions,
) -> Result<Option<ChildSpec>, ImageError> {
    let Some((name, format)) = backing else {
        return Ok(None);
    };
    let options = NodeOptions {
        read_only: true,
        auto_read_only: false,
        discard: DiscardMode::Ignore,
        detect_zeroes: DetectZeroes::Off,
        cache: options.cache,
    };
    let file = file_child(beside(image, &name)?, options);
    let driver = match format.as_deref() {
        Some("raw") => DriverSpec::Raw(RawSpec {
            file,
            offset: 0,
            size: None,
        }),
        Some("qcow2") => DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file,
            data_file: None,
            backing: BackingSpec::FromHeader,
            pass_discard: None,
            tuning: Tuning::default(),
        })),
        other => {
            let came = other.map_or("no format".to_owned(), |other| format!("format '{other}'"));
            return Err(ImageError::Cannot(format!(
                "the header names the backing file '{name}' with {came}: formats are not guessed; \
                 give 'backing' as a node, or write the format into the image with \
                 'qemu-img rebase -u -F'"
            )));
        }
    };
    Ok(Some(ChildSpec::Inline(Box::new(NodeSpec {
        name: None,
        options,
        driver,
    }))))
}

fn file_child(filename: String, options: NodeOptions) -> ChildSpec {
    ChildSpec::Inline(Box::new(NodeSpec {
        name: None,
        options,
        driver: DriverSpec::File(FileSpec { filename }),
    }))
}

/// The path of a file that a header names: relative to where the image is.
fn beside(image: &str, name: &str) -> Result<String, ImageError> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let scheme = name
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'));
    if scheme || name.starts_with("/dev/fdset/") {
        return Err(ImageError::Cannot(format!(
            "the header names the file '{name}', which is not a plain path: give the node yourself \
             ('backing', 'data-file')"
        )));
    }
    match image.rsplit_once('/') {
        Some((folder, _)) if !name.starts_with('/') && !image.starts_with("/dev/fdset/") => {
            Ok(format!("{folder}/{name}"))
        }
        _ => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_headers_are_paths_beside_the_image_and_nothing_else() {
        let path = |image, name| beside(image, name).ok();
        assert_eq!(path("/a/b.qcow2", "c"), Some("/a/c".to_owned()));
        assert_eq!(path("/a/b.qcow2", "../c"), Some("/a/../c".to_owned()));
        assert_eq!(path("b.qcow2", "c"), Some("c".to_owned()));
        assert_eq!(path("/a/b.qcow2", "/c"), Some("/c".to_owned()));
        assert_eq!(path("/dev/fdset/3", "c"), Some("c".to_owned()));
        assert_eq!(path("/a/b", "file:/c"), Some("/c".to_owned()));
        for name in ["nbd://h/x", "json:{}", "fd:secret", "/dev/fdset/7"] {
            assert_eq!(path("/a/b", name), None, "{name}");
        }
    }
}
