//! An overlay in memory, for tests of what every format must do: clusters that are written here,
//! and a backing node for the others.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::{Io, Segments, Window};
use crate::node::{
    BlockNode, Extent, Intent, IoFuture, Limits, NodeRef, Place, ResizeFuture, Status, WriteFlags,
    ZeroFlags,
};
use crate::slot::BackingSlot;
use crate::spec::{CacheSpec, DetectZeroes, DiscardMode, NodeOptions};

/// Bytes of a cluster.
pub(crate) const CLUSTER: u64 = 4096;

/// What a test's nodes have.
pub(crate) const OPTIONS: NodeOptions = NodeOptions {
    read_only: false,
    auto_read_only: false,
    discard: DiscardMode::Unmap,
    detect_zeroes: DetectZeroes::Off,
    cache: CacheSpec {
        direct: false,
        no_flush: false,
    },
};

#[derive(Debug, Default)]
struct Image {
    len: u64,
    /// `None` is a cluster of zeros.
    clusters: BTreeMap<u64, Option<Vec<u8>>>,
    backing: Option<(String, Option<String>)>,
}

/// The overlay.
#[derive(Debug)]
pub(crate) struct Toy {
    image: Mutex<Image>,
    backing: BackingSlot,
}

impl Toy {
    pub(crate) fn new(len: u64, backing: BackingSlot) -> Self {
        let image = Image {
            len,
            ..Image::default()
        };
        Self {
            image: Mutex::new(image),
            backing,
        }
    }

    pub(crate) fn node(name: &str, len: u64, backing: BackingSlot) -> NodeRef {
        let body = Box::new(Self::new(len, backing));
        NodeRef::new(name.to_owned(), "toy", OPTIONS, body).expect("node")
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's bytes as they read now.
    async fn cluster(&self, io: &Io, index: u64) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(CLUSTER).expect("small")];
        match self.image().clusters.get(&index) {
            Some(Some(own)) => return Ok(own.clone()),
            Some(None) => return Ok(bytes),
            None => {}
        }
        if let Some(backing) = self.backing.load() {
            let rest = backing.len().saturating_sub(index * CLUSTER);
            let part = Segments::owned(bytes.len(), 4096)?;
            let part = part.all().part(0, rest);
            if !part.is_empty() {
                backing.read(io, index * CLUSTER, part).await?;
            }
            part.copy_to(&mut bytes);
        }
        Ok(bytes)
    }
}

fn split(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let at = offset + done;
            let within = at % CLUSTER;
            let part = (CLUSTER - within).min(len - done);
            let piece = (
                at / CLUSTER,
                usize::try_from(within).expect("small"),
                done,
                part,
            );
            done += part;
            piece
        })
    })
}

impl BlockNode for Toy {
    fn length(&self) -> u64 {
        self.image().len
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard: true,
            write_zeroes: true,
        }
    }

    fn extent(&self, _: u64, len: u64, _: Intent) -> Extent {
        Extent::Slow { len }
    }

    fn read<'a>(&'a self, io: &'a Io, offset: u64, into: Window<'a>) -> IoFuture<'a> {
        Box::pin(async move {
            for (index, within, done, part) in split(offset, into.len()) {
                let cluster = self.cluster(io, index).await?;
                into.part(done, part).copy_from(&cluster[within..]);
            }
            Ok(())
        })
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        from: Window<'a>,
        _: WriteFlags,
    ) -> IoFuture<'a> {
        Box::pin(async move {
            for (index, within, done, part) in split(offset, from.len()) {
                let mut cluster = self.cluster(io, index).await?;
                let end = within + usize::try_from(part).expect("small");
                from.part(done, part).copy_to(&mut cluster[within..end]);
                self.image().clusters.insert(index, Some(cluster));
            }
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, io: &'a Io, offset: u64, len: u64, _: ZeroFlags) -> IoFuture<'a> {
        Box::pin(async move {
            for (index, within, _, part) in split(offset, len) {
                let cluster = if part == CLUSTER {
                    None
                } else {
                    let mut cluster = self.cluster(io, index).await?;
                    cluster[within..within + usize::try_from(part).expect("small")].fill(0);
                    Some(cluster)
                };
                self.image().clusters.insert(index, cluster);
            }
            Ok(())
        })
    }

    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> IoFuture<'a> {
        Box::pin(ready(Ok(())))
    }

    fn flush<'a>(&'a self, _: &'a Io) -> IoFuture<'a> {
        Box::pin(ready(Ok(())))
    }

    fn status<'a>(&'a self, _: &'a Io, offset: u64, len: u64) -> IoFuture<'a, Status> {
        let image = self.image();
        let len = len.min(CLUSTER - offset % CLUSTER);
        let place = match image.clusters.get(&(offset / CLUSTER)) {
            Some(Some(_)) => Place::Data { at: None },
            Some(None) => Place::Zero,
            None => Place::Below,
        };
        Box::pin(ready(Ok(Status { len, place })))
    }

    fn resize<'a>(&'a self, _: &'a Io, len: u64) -> ResizeFuture<'a> {
        let mut image = self.image();
        let first_new = image.len.div_ceil(CLUSTER);
        for index in first_new..len.div_ceil(CLUSTER) {
            image.clusters.insert(index, None);
        }
        image.len = len;
        Box::pin(ready(Ok(())))
    }

    fn change_backing<'a>(
        &'a self,
        _: &'a Io,
        file: Option<&'a str>,
        format: Option<&'a str>,
    ) -> IoFuture<'a> {
        let name = |text: &str| text.to_owned();
        self.image().backing = file.map(|file| (name(file), format.map(name)));
        Box::pin(ready(Ok(())))
    }

    fn backing_name(&self) -> Option<(String, Option<String>)> {
        self.image().backing.clone()
    }

    fn populate<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> IoFuture<'a> {
        Box::pin(async move {
            for (index, ..) in split(offset, len) {
                let bytes = self.cluster(io, index).await?;
                // What was written meanwhile stays.
                self.image().clusters.entry(index).or_insert(Some(bytes));
            }
            Ok(())
        })
    }
}
