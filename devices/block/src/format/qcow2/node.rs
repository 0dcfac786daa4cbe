//! The driver's face to the graph.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::details::Details;
use super::error::ImageError;
use super::image::Image;
use super::map::{Kind, Look};
use super::open::{Anew, Children, Tuning, open};
use super::snapshots::SnapshotChange;
use crate::bitmap::Bitmaps;
use crate::corruption::CorruptionSink;
use crate::engine::{Io, Window};
use crate::error::BlockError;
use crate::node::{
    BlockNode, Extent, ImageFuture, Intent, IoFuture, Limits, NodeRef, Place, ResizeFuture,
    SnapshotFuture, Status, WriteFlags, ZeroFlags,
};
use crate::reopen::{Prepared, Untouched};
use crate::spec::DriverSpec;

/// A qcow2 image as a node.
pub struct Qcow2Node {
    image: Arc<Image>,
}

impl Qcow2Node {
    /// Opens the image in `children.file` for the node `name`.
    ///
    /// # Errors
    /// It is not an image, not one that can be used, or a child is missing or of no use.
    pub async fn open(
        io: &Io,
        name: &str,
        children: Children,
        tuning: Tuning,
        read_only: bool,
    ) -> Result<Self, ImageError> {
        let image = open(io, name, children, tuning, read_only).await?;
        Ok(Self {
            image: Arc::new(image),
        })
    }

    /// Has `sink` told if the image turns out to be corrupt. The first counts.
    pub fn tell_corruption(&self, sink: CorruptionSink) {
        let _first = self.image.sink.set(sink);
    }

    /// Whether the first bytes of a run that may be written are written in place.
    fn is_in_place(&self, copied: bool) -> bool {
        copied
            && self.image.writing.load(Ordering::Acquire)
            && !self.image.corrupt.load(Ordering::Acquire)
    }

    fn below_extent(&self, offset: u64, len: u64) -> Extent {
        let Some(below) = self.image.below() else {
            return Extent::Zero { len };
        };
        let end = below.len();
        if offset >= end {
            return Extent::Zero { len };
        }
        let len = len.min(end - offset);
        if below.is_aligned(offset | len) {
            below.node().extent(offset, len, Intent::Read)
        } else {
            Extent::Slow { len }
        }
    }
}

impl BlockNode for Qcow2Node {
    fn length(&self) -> u64 {
        self.image.size.load(Ordering::Relaxed)
    }

    fn limits(&self) -> Limits {
        let file = self.image.clusters();
        Limits {
            request_alignment: file.node().limits().request_alignment,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, offset: u64, len: u64, intent: Intent) -> Extent {
        let image = &self.image;
        let Look::Found(run) = image.map.look(&image.holders, offset, len) else {
            return Extent::Slow { len };
        };
        let len = run.len;
        match (run.kind, intent) {
            (Kind::Zero, Intent::Read) => Extent::Zero { len },
            (Kind::Below, Intent::Read) => self.below_extent(offset, len),
            (Kind::Data { host, copied }, _) => {
                let clusters = image.clusters();
                let inside = host.saturating_add(len) <= clusters.len();
                if !inside || (intent == Intent::Write && !self.is_in_place(copied)) {
                    return Extent::Slow { len };
                }
                match clusters.node().extent(host, len, intent) {
                    Extent::At {
                        file,
                        offset,
                        len,
                        memory_alignment,
                        guard,
                    } if guard.is_unmoving() => Extent::At {
                        file,
                        offset,
                        len,
                        memory_alignment,
                        guard: run.guard,
                    },
                    Extent::Zero { len } if intent == Intent::Read => Extent::Zero { len },
                    // A mapping below that may move is that node's own business.
                    other => Extent::Slow { len: other.len() },
                }
            }
            _ => Extent::Slow { len },
        }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(self.image.read(io, offset, into))
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        flags: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(self.image.write(io, offset, from, flags))
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoFuture<'a> {
        Box::pin(self.image.write_zeroes(io, offset, len, flags))
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(self.image.discard(io, offset, len))
    }

    fn flush<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(self.image.flush(io))
    }

    fn status<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        Box::pin(async move {
            let run = self.image.find(io, offset, len).await?;
            let place = match run.kind {
                Kind::Zero => Place::Zero,
                Kind::Below => Place::Below,
                Kind::Data { host, .. } => Place::Data { at: Some(host) },
                Kind::Compressed { .. } => Place::Data { at: None },
            };
            Ok(Status {
                len: run.len,
                place,
            })
        })
    }

    fn resize<'a>(&'a self, io: &'a Io, len: u64) -> ResizeFuture<'a> {
        Box::pin(self.image.resize(io, len))
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(self.image.populate(io, offset, len))
    }

    fn settle<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(self.image.settle(io))
    }

    fn renew<'a>(&'a self, io: &'a Io, read_only: bool) -> IoFuture<'a> {
        Box::pin(async move {
            let (image, file) = (Arc::clone(&self.image), self.image.file.load());
            let anew = Anew::open(io, image, file, read_only).await;
            Box::new(anew.map_err(io::Error::other)?).commit();
            Ok(())
        })
    }

    fn prepare_image<'a>(&'a self, io: &'a Io, file: NodeRef, read_only: bool) -> ImageFuture<'a> {
        Box::pin(async move {
            let anew = Anew::open(io, Arc::clone(&self.image), file, read_only).await?;
            Ok(anew.into())
        })
    }

    fn change_backing<'a>(
        &'a self,
        io: &'a Io,
        file: Option<&'a str>,
        format: Option<&'a str>,
    ) -> IoFuture<'a> {
        Box::pin(self.image.change_backing(io, file, format))
    }

    fn prepare_driver(
        &self,
        _name: &str,
        to: &DriverSpec,
        _over: Option<&NodeRef>,
    ) -> Result<Box<dyn Prepared>, BlockError> {
        let DriverSpec::Qcow2(to) = to else {
            return Ok(Box::new(Untouched));
        };
        let cluster = self.image.geometry.cluster_size();
        if to.tuning.l2_slice > cluster.max(Tuning::default().l2_slice) {
            return Err(BlockError::L2Slice { cluster });
        }
        Ok(Box::new(OtherTuning {
            image: Arc::clone(&self.image),
            tuning: to.tuning,
            pass_discard: to.pass_discard.unwrap_or(false),
        }))
    }

    fn backing_name(&self) -> Option<(String, Option<String>)> {
        self.details()?.backing
    }

    fn change_snapshots<'a>(&'a self, io: &'a Io, change: SnapshotChange) -> SnapshotFuture<'a> {
        Box::pin(self.image.change_snapshots(io, change))
    }

    fn bitmaps(&self) -> Arc<Bitmaps> {
        Arc::clone(&self.image.bitmaps)
    }

    fn check_storable(&self, name: &str, granularity: u64) -> Result<(), String> {
        self.image.check_storable(name, granularity)
    }

    fn claim_bitmaps<'a>(&'a self, io: &'a Io) -> IoFuture<'a> {
        Box::pin(self.image.claim_bitmaps(io))
    }

    fn compresses(&self) -> bool {
        !self.image.geometry.external
    }

    fn details(&self) -> Option<Details> {
        let details = self.image.details.read();
        Some(details.unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// An image about to be handled otherwise.
struct OtherTuning {
    image: Arc<Image>,
    tuning: Tuning,
    pass_discard: bool,
}

impl Prepared for OtherTuning {
    fn commit(self: Box<Self>) {
        let Tuning {
            l2_cache, l2_slice, ..
        } = self.tuning;
        self.image.map.tune(l2_cache, l2_slice);
        let place = &self.image.pass_discard;
        place.store(self.pass_discard, Ordering::Relaxed);
    }
}

impl fmt::Debug for Qcow2Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Node")
            .field("name", &self.image.name)
            .finish_non_exhaustive()
    }
}
