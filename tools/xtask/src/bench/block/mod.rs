//! Disks against QEMU's: requests through virtio-blk without a guest, and jobs over QMP.
//!
//! ```text
//!   fronts.rs   the program `devices/benches/disk`, one process for each sample:
//!                 sesame      our device on an io-thread, in that process
//!                 qsd         qemu-storage-daemon's vhost-user-blk export, on an io-thread
//!                 QEMU        the same export of a running qemu-system
//!                 io_uring    the raw file by one ring, nothing between
//!   jobs.rs     commit and stream of a delta, from the command until all of it is on the disk
//!   pauses.rs   overlays for eight disks in one transaction: how long their guest waits
//! ```
//!
//! All subjects see the same image with the same options, one after the other, again and again.
//! The same driver sends the same requests through a queue in shared memory to all but `io_uring`,
//! which says what file and kernel can do. CPU time is that of who serves, without the driver's.
//! With the defaults all of it takes some six minutes. On a file system that tells its disk at once
//! of what is freed (`mount -o discard`) it can take ten times as long: `--folder` names another.
mod fronts;
mod jobs;
mod pauses;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use tests::vm::Vmm;

use super::table::print;
use crate::shell::{install_missing, step};

#[derive(Args)]
pub(crate) struct BlockOptions {
    /// Length of the disks under requests, in MiB.
    #[arg(long, default_value_t = 512)]
    disk_mib: u64,
    /// Length of the disks under jobs, in MiB; 4096 is the full measurement.
    #[arg(long, default_value_t = 1024)]
    job_mib: u64,
    /// How long each piece of work goes on, in milliseconds.
    #[arg(long, default_value_t = 400)]
    milliseconds: u64,
    /// Turns of each disk measurement.
    #[arg(long, default_value_t = 5)]
    disk_turns: usize,
    /// How the peer does its I/O: io_uring, native or threads.
    #[arg(long, default_value = "io_uring")]
    peer_aio: String,
    /// Only these: of disks requests, jobs, pauses; of packets guests, rings, sizes.
    #[arg(long, value_delimiter = ',')]
    pub(super) only: Vec<String>,
    /// Where the images lie, on the disk under test; below the folder of builds where it is not
    /// said.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Measures and prints; the images lie below `target`, unless another folder is named.
pub(super) fn run(pair: &[Vmm; 2], target: &Path, options: &BlockOptions) -> Result<()> {
    install_missing(&[
        ("qemu-storage-daemon", "qemu-system-common"),
        ("qemu-img", "qemu-utils"),
    ])?;
    let folder = tempfile::Builder::new()
        .prefix("disks")
        .tempdir_in(options.folder.as_deref().unwrap_or(target))?;
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|one| one == part);
    if wanted("requests") {
        step("measuring requests to disks");
        for (other, rows) in fronts::measure(&pair[1], folder.path(), options)? {
            print(other, &rows);
        }
    }
    if wanted("jobs") {
        step("measuring block jobs");
        print("QEMU", &jobs::measure(pair, folder.path(), options)?);
    }
    if wanted("pauses") {
        step("measuring pauses of snapshots");
        print("QEMU", &pauses::measure(pair, folder.path(), options)?);
    }
    Ok(())
}
