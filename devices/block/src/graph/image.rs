//! Nodes of a format whose header names further files: opened with what the header says, and
//! settled when they go.
//!
//! ```text
//!   file ─► header ─┬─ backing file ─► given, or by the name in the header ─┐
//!                   └─ data file ────► given, or by the name in the header ─┴─► the image
//! ```
//!
//! A name in a header is a wish of whoever made the image. It is opened as a path, an alias or by
//! the open hook, through the same door as everything else, in a role of its own and, behind an
//! image, read-only; it never names an fd that was handed over for something else.

use std::os::fd::AsFd;
use std::sync::Arc;

use fdset::{Door, Identity, OpenFile, Role};

use super::place::{Children, place_backing, place_child};
use super::{BlockGraph, Built, MAX_DEPTH, NodeView, agree_on_access};
use crate::bitmap::Bitmap;
use crate::corruption::CorruptionSink;
use crate::engine::IoThread;
use crate::error::BlockError;
use crate::format::blkdebug::limits::RequestLimits;
use crate::format::blkdebug::rules::Rules;
use crate::format::qcow2::{self, ImageError, Outside, Qcow2Node, Tuning};
use crate::node::{BlockNode, Extent, Intent, NodeRef};
use crate::spec::{
    BackingSpec, Behind, BlkdebugSpec, ChildSpec, DetectZeroes, DiscardMode, DriverSpec, FileSpec,
    NodeOptions, NodeSpec, Qcow2Spec, RawSpec,
};

/// The nodes of one command, while they are made.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) next_auto: u64,
    pub(super) built: Vec<Built>,
    /// Whether what is made now has its storage for itself, unless it says otherwise.
    pub(super) active: bool,
    /// Whether others may do with it what they want.
    pub(super) force_share: bool,
    /// The images that what is made now stands under.
    above: Vec<Option<HeaderPlace>>,
}

impl From<u64> for Building {
    fn from(next_auto: u64) -> Self {
        Self {
            next_auto,
            built: Vec::new(),
            active: true,
            force_share: false,
            above: Vec::new(),
        }
    }
}

impl BlockGraph {
    /// Gives the graph the thread on which images are opened and settled.
    pub fn use_thread(&mut self, thread: IoThread) {
        self.thread = Some(thread);
    }

    /// Has `sink` told of images, opened from now on, that turn out to be corrupt.
    pub fn tell_corruptions(&mut self, sink: CorruptionSink) {
        self.corruptions = sink;
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
        building: &mut Building,
    ) -> Result<(Box<dyn BlockNode>, String, Children), BlockError> {
        let thread = self.thread(name)?;
        let failed = |source| BlockError::Image {
            node: name.to_owned(),
            source,
        };
        if building.above.len() >= MAX_DEPTH {
            return Err(BlockError::TooDeep {
                name: name.to_owned(),
                limit: MAX_DEPTH,
            });
        }
        let mut children = Children::default();
        let (file, filename) = self.child(door, spec.file, building)?;
        agree_on_access(&file, options)?;
        let place = header_file(&file).map(|(place, _)| place);
        if place.is_some() && building.above.contains(&place) {
            return Err(failed(circle(&filename)));
        }
        let above = building.above.len();
        building.above.push(place);
        let image = file.clone();
        let outside = thread.run(move |io| async move { qcow2::peek(&io, &image).await });
        let outside = outside
            .map_err(|source| BlockError::Thread { source })?
            .map_err(failed)?;
        let data = match data_spec(spec.data_file, &outside, &filename, options).map_err(failed)? {
            Some(data) => Some(self.child(door, data, building)?.0),
            None => None,
        };
        if let Some(data) = &data {
            agree_on_access(data, options)?;
        }
        let backing = match spec.backing {
            BackingSpec::Nothing => None,
            BackingSpec::Child(child) => Some(child),
            BackingSpec::FromHeader(behind) => {
                let behind = behind.map(|behind| *behind);
                header_backing(outside.backing, behind, &filename, options).map_err(failed)?
            }
        };
        let backing = match backing {
            Some(child) => Some(self.child(door, child, building)?.0),
            None => None,
        };
        building.above.truncate(above);
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
        node.tell_corruption(self.corruptions.clone());
        Ok((Box::new(node), filename, children))
    }

    /// The node whose bytes are in this file, if there is one.
    #[must_use]
    pub fn stored_in(&self, file: Identity) -> Option<&str> {
        let found = self.nodes.iter().find(|(_, entry)| {
            let place = header_file(&entry.node).map(|(place, _)| place);
            place.is_some_and(|place| place.identity == file)
        });
        found.map(|(name, _)| name.as_str())
    }

    /// Has a new image say that the bitmaps it keeps are being recorded elsewhere: somebody may look
    /// at it before anything is written.
    pub(super) fn take_up_bitmaps(&self, node: &NodeRef) {
        let kept = |bitmap: &Bitmap| bitmap.persistent && bitmap.map.is_some();
        let any = node.is_writable() && node.bitmaps().list().iter().any(kept);
        let Some(thread) = self.thread.as_ref().filter(|_| any) else {
            return;
        };
        let new = node.clone();
        let told = thread.run(move |io| async move { new.take_up_bitmaps(&io).await });
        let error = match told {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        // The first write will try again, and fail with it.
        tracing::warn!(
            node = node.name(),
            error,
            "bitmaps are not marked as in use"
        );
    }

    /// Writes down what the driver of a node that goes still keeps in memory.
    pub(super) fn settle(&self, node: &NodeRef) {
        let Some(thread) = self.thread.as_ref().filter(|_| node.is_writable()) else {
            return;
        };
        let _hurry = self.throttling.hurry();
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

/// Where an image's header is: a file, and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPlace {
    /// The file.
    pub identity: Identity,
    /// Where in the file, in bytes.
    pub offset: u64,
}

impl HeaderPlace {
    /// Where the header is of an image whose first byte is at `offset` of `file`; `None` if the
    /// kernel would not say.
    pub fn of(file: &OpenFile, offset: u64) -> Option<Self> {
        let identity = file.identity().ok()?;
        Some(Self { identity, offset })
    }
}

/// Which nodes below an image were not given, so that its header names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Absent {
    /// The data file, if the image has one.
    pub data_file: bool,
    /// What backs it.
    pub backing: bool,
}

/// The nodes that a header brings along, in the order in which they are opened. `image` is the name
/// of the image's own file, and `options` are those of its node.
///
/// # Errors
/// A name in it leads to nothing that can be opened.
pub fn named_in_header(
    outside: Outside,
    absent: Absent,
    image: &str,
    options: &NodeOptions,
) -> Result<Vec<NodeSpec>, ImageError> {
    let mut children = Vec::new();
    if absent.data_file {
        children.extend(data_spec(None, &outside, image, options)?);
    }
    if absent.backing {
        children.extend(header_backing(outside.backing, None, image, options)?);
    }
    let inline = children.into_iter().filter_map(|child| match child {
        ChildSpec::Inline(spec) => Some(*spec),
        ChildSpec::Named(_) => None,
    });
    Ok(inline.collect())
}

/// That the image in `file` stands on itself.
pub fn circle(file: &str) -> ImageError {
    ImageError::Cannot(format!(
        "its backing files go in a circle: '{file}' is behind itself; give 'backing' as a node, or \
         correct the image with 'qemu-img rebase -u'"
    ))
}

/// The file with the first byte of a node, if the node's bytes are plainly there.
fn header_file(node: &NodeRef) -> Option<(HeaderPlace, Arc<OpenFile>)> {
    if node.is_empty() {
        return None;
    }
    match node.extent(0, node.len().min(1 << 21), Intent::Read) {
        Extent::At { file, offset, .. } => Some((HeaderPlace::of(&file, offset)?, file)),
        Extent::Zero { .. } | Extent::Slow { .. } => None,
    }
}

impl NodeView<'_> {
    /// Reads which other files the image wants whose file this node is, and where its header is;
    /// `None` if the node's bytes are not plainly in a file.
    pub fn look_into(&self) -> Option<(HeaderPlace, Result<Outside, ImageError>)> {
        let (place, file) = header_file(self.node())?;
        Some((place, qcow2::look_into(file.as_fd(), place.offset)))
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
    Ok(Some(file_child(
        beside(image, name)?,
        Role::DataFile,
        *options,
    )))
}

/// The node of the backing file that a header names, and of which `behind` is said.
fn header_backing(
    backing: Option<(String, Option<String>)>,
    behind: Option<Behind>,
    image: &str,
    options: &NodeOptions,
) -> Result<Option<ChildSpec>, ImageError> {
    let Some((name, format)) = backing else {
        return match behind {
            None => Ok(None),
            Some(behind) => Err(ImageError::Cannot(format!(
                "the header names no backing file, which was to be {}",
                behind
                    .name
                    .map_or("set up".to_owned(), |name| format!("the node '{name}'"))
            ))),
        };
    };
    let behind = behind.unwrap_or(Behind {
        name: None,
        backing: BackingSpec::FromHeader(None),
    });
    let options = NodeOptions {
        read_only: true,
        auto_read_only: false,
        discard: DiscardMode::Ignore,
        detect_zeroes: DetectZeroes::Off,
        cache: options.cache,
    };
    let file = storage(image, &name, options)?;
    let driver = match format.as_deref() {
        Some("raw") if !matches!(behind.backing, BackingSpec::FromHeader(None)) => {
            return Err(ImageError::Cannot(format!(
                "the backing file '{name}' is raw: nothing can be behind it"
            )));
        }
        Some("raw") => DriverSpec::Raw(RawSpec {
            file,
            offset: 0,
            size: None,
        }),
        Some("qcow2") => DriverSpec::Qcow2(Box::new(Qcow2Spec {
            file,
            data_file: None,
            backing: behind.backing,
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
        keeps_access: false,
        active: None,
        force_share: false,
        name: behind.name,
        options,
        driver,
    }))))
}

/// The storage of a backing file: a file, or one whose requests fail as rules say. A tester writes
/// such a name into an image; both files in it are opened as any other that a header names.
fn storage(image: &str, name: &str, options: NodeOptions) -> Result<ChildSpec, ImageError> {
    let Some(rest) = name.strip_prefix("blkdebug:") else {
        return Ok(file_child(beside(image, name)?, Role::Backing, options));
    };
    let (rules, name) = rest.split_once(':').unwrap_or(("", rest));
    let config = (!rules.is_empty()).then(|| beside(image, rules));
    let driver = DriverSpec::Blkdebug(BlkdebugSpec {
        image: file_child(beside(image, name)?, Role::Backing, options),
        config: config.transpose()?,
        rules: Rules::new(Vec::new(), Vec::new()),
        limits: RequestLimits::default(),
    });
    Ok(ChildSpec::Inline(Box::new(NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: None,
        options,
        driver,
    })))
}

fn file_child(filename: String, role: Role, options: NodeOptions) -> ChildSpec {
    ChildSpec::Inline(Box::new(NodeSpec {
        keeps_access: false,
        active: None,
        force_share: false,
        name: None,
        options,
        driver: DriverSpec::File(FileSpec {
            filename,
            role,
            locking: crate::spec::Locking::Auto,
        }),
    }))
}

/// The path of a file that a header names: relative to where the image is. Of an image that was
/// handed in nobody knows where it is, so that its names stay as they are: an alias can be set.
pub(super) fn beside(image: &str, name: &str) -> Result<String, ImageError> {
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
    let is_passed = image.starts_with("fd:") || image.starts_with("/dev/fdset/");
    match image.rsplit_once('/') {
        Some((folder, _)) if !name.starts_with('/') && !is_passed => Ok(format!("{folder}/{name}")),
        _ => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_may_name_rules_and_the_file_they_are_for() {
        let options = NodeOptions {
            read_only: true,
            auto_read_only: false,
            discard: DiscardMode::Ignore,
            detect_zeroes: DetectZeroes::Off,
            cache: crate::spec::CacheSpec {
                direct: false,
                no_flush: false,
            },
        };
        let Ok(ChildSpec::Inline(node)) = storage("/a/b", "blkdebug:rules:c", options) else {
            panic!("a node");
        };
        let DriverSpec::Blkdebug(spec) = node.driver else {
            panic!("{node:?}");
        };
        assert_eq!(spec.config.as_deref(), Some("/a/rules"));
        let file = file_child("/a/c".to_owned(), Role::Backing, options);
        assert_eq!(spec.image, file);
        for name in [
            "blkdebug:fd:x:c",
            "blkdebug:/rules:nbd://h",
            "blkdebug:x:fd:y",
        ] {
            assert!(storage("/a/b", name, options).is_err(), "{name}");
        }
    }

    #[test]
    fn names_in_headers_are_paths_beside_the_image_and_nothing_else() {
        let path = |image, name| beside(image, name).ok();
        assert_eq!(path("/a/b.qcow2", "c"), Some("/a/c".to_owned()));
        assert_eq!(path("/a/b.qcow2", "../c"), Some("/a/../c".to_owned()));
        assert_eq!(path("b.qcow2", "c"), Some("c".to_owned()));
        assert_eq!(path("/a/b.qcow2", "/c"), Some("/c".to_owned()));
        assert_eq!(path("/dev/fdset/3", "c"), Some("c".to_owned()));
        assert_eq!(path("fd:a/b", "c"), Some("c".to_owned()));
        assert_eq!(path("/a/b", "file:/c"), Some("/c".to_owned()));
        for name in ["nbd://h/x", "json:{}", "fd:secret", "/dev/fdset/7"] {
            assert_eq!(path("/a/b", name), None, "{name}");
        }
    }
}
