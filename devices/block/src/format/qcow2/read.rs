//! Reading what is not simply in the file.

use std::io;

use super::image::Image;
use super::map::Kind;
use crate::engine::{Io, Window};

impl Image {
    /// Reads a range, whatever it is made of.
    pub(super) async fn read(&self, io: &Io, guest: u64, into: Window<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = guest + done;
            let rest = into.part(done, u64::MAX);
            let run = self.find(io, at, rest.len()).await?;
            let part = rest.part(0, run.len);
            match run.kind {
                Kind::Zero => part.fill_zero(),
                Kind::Below => match self.below() {
                    None => part.fill_zero(),
                    Some(backing) => backing.read_into(io, at, part).await?,
                },
                Kind::Data { host, .. } => self.clusters().read_into(io, host, part).await?,
                Kind::Compressed { at, len, inside } => {
                    let cluster = self.unpack(io, at, len).await?;
                    let from = usize::try_from(inside).map_err(io::Error::other)?;
                    part.copy_from(cluster.get(from..).unwrap_or_default());
                }
            }
            drop(run.guard);
            done += part.len();
        }
        Ok(())
    }

    /// The bytes of a compressed cluster.
    pub(super) async fn unpack(&self, io: &Io, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let size = self.geometry.cluster_size();
        let packed = self.file().read(io, at, len.min(2 * size)).await?;
        let mut cluster = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        let unpacked = self.compression.decompress(&packed, &mut cluster);
        unpacked.map_err(|error| {
            let kind = self.compression.as_str();
            tracing::error!(node = self.name, at, %error, "qcow2: a {kind} cluster is broken");
            io::Error::from_raw_os_error(libc::EIO)
        })?;
        Ok(cluster)
    }

    /// Whether a range reads as zeros, as far as the tables know.
    pub(super) async fn is_zero(&self, io: &Io, guest: u64, len: u64) -> io::Result<bool> {
        let below = self.below().map_or(0, |below| below.len());
        let mut done = 0;
        while done < len {
            let run = self.find(io, guest + done, len - done).await?;
            match run.kind {
                Kind::Zero => {}
                Kind::Below if guest + done >= below => {}
                _ => return Ok(false),
            }
            done += run.len;
        }
        Ok(true)
    }
}
