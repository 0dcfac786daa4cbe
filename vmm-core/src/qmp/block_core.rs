//! `block-core.json`: nodes, and the disks that stand on them.

use block::format::qcow2::ImageError;
use block::job::Jobs;
use block::spec::{BackingSpec, DriverSpec};
use block::{BlockError, Limiter, NodeRef, NodeView};
use devices::scsi::ScsiUnit;
use qapi_schema::block_core::{
    BlockCommit, BlockDeviceInfo, BlockInfo, BlockJobCancel, BlockJobComplete, BlockJobDismiss,
    BlockJobFinalize, BlockJobInfo, BlockJobPause, BlockJobResume, BlockJobSetSpeed, BlockResize,
    BlockStream, BlockdevCacheInfo, BlockdevDel, BlockdevDetectZeroesOptions, BlockdevOptions,
    Commands, FileSnapshot, ImageInfo, OverlaySnapshot, QueryNamedBlockNodes,
};
use qapi_schema::{Context, QmpError};

use super::block_bitmaps::infos;
use super::job;
use crate::cli::config::DriveSpec;
use crate::device_tree::{Disk, path};
use crate::drives::Drive;
use crate::jobs::{self, End};
use crate::plug::VIRTIO_CHILD;
use crate::resolve;
use crate::throttling;
use crate::transaction::Action;
use crate::vm::Vm;

impl Commands for Vm {
    fn blockdev_add(
        &mut self,
        cx: &mut dyn Context,
        args: BlockdevOptions,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.add_node(&door, args)
    }

    fn blockdev_del(&mut self, _cx: &mut dyn Context, args: BlockdevDel) -> Result<(), QmpError> {
        self.graph
            .remove(&args.node_name)
            .map_err(|error| QmpError::from_error(&error))
    }

    fn blockdev_snapshot(
        &mut self,
        cx: &mut dyn Context,
        args: OverlaySnapshot,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        let actions = vec![Action::Snapshot(args)];
        self.transact(&door, actions).map(drop)
    }

    fn blockdev_snapshot_sync(
        &mut self,
        cx: &mut dyn Context,
        args: FileSnapshot,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        let actions = vec![Action::SnapshotSync(args)];
        self.transact(&door, actions).map(drop)
    }

    fn block_resize(&mut self, _cx: &mut dyn Context, args: BlockResize) -> Result<(), QmpError> {
        let node = self.find_node(args.device.as_deref(), args.node_name.as_deref())?;
        let len = u64::try_from(args.size)
            .map_err(|_| QmpError::generic("Parameter 'size' expects a >0 size"))?;
        self.resize_node(&node, len)
    }

    fn query_block(&mut self, _cx: &mut dyn Context) -> Result<Vec<BlockInfo>, QmpError> {
        let idle = self.idle_drives().map(|(id, drive)| BlockInfo {
            device: id.to_owned(),
            qdev: None,
            r#type: "unknown".to_owned(),
            removable: true,
            locked: false,
            tray_open: None,
            inserted: self
                .graph
                .node(&drive.node)
                .ok()
                .map(|node| medium_info(&node, &drive.limiter)),
            io_status: None,
        });
        let info = self.disks().map(|disk| {
            let node = disk.node_name();
            let tray = disk.device.tray();
            let limiter = disk.device.limiter();
            let failures = disk.device.failures();
            BlockInfo {
                device: self.drive_of(&node),
                qdev: Some(disk.path),
                r#type: "unknown".to_owned(),
                removable: tray.is_some(),
                locked: tray.is_some_and(ScsiUnit::is_locked),
                tray_open: tray.map(ScsiUnit::is_open),
                inserted: self
                    .graph
                    .node(&node)
                    .ok()
                    .map(|node| medium_info(&node, limiter)),
                io_status: failures
                    .can_stop()
                    .then(|| job::io_status(failures.trouble())),
            }
        });
        Ok(info.chain(idle).collect())
    }

    fn block_stream(&mut self, cx: &mut dyn Context, args: BlockStream) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.begin_stream(&door, args)
    }

    fn block_commit(&mut self, cx: &mut dyn Context, args: BlockCommit) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.begin_commit(&door, args)
    }

    fn block_job_set_speed(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobSetSpeed,
    ) -> Result<(), QmpError> {
        self.block_job(&args.device, |jobs, _| {
            jobs.set_speed(&args.device, jobs::speed(args.speed)?)
                .map_err(job::refused)
        })
    }

    fn block_job_cancel(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobCancel,
    ) -> Result<(), QmpError> {
        let force = args.force.unwrap_or(false);
        self.block_job(&args.device, |jobs, vm| {
            jobs.cancel(&args.device, force, vm).map_err(job::refused)
        })
    }

    fn block_job_pause(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobPause,
    ) -> Result<(), QmpError> {
        self.block_job(&args.device, |jobs, _| {
            jobs.pause(&args.device).map_err(job::refused)
        })
    }

    fn block_job_resume(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobResume,
    ) -> Result<(), QmpError> {
        self.block_job(&args.device, |jobs, vm| {
            jobs.resume(&args.device, vm).map_err(job::refused)
        })
    }

    fn block_job_complete(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobComplete,
    ) -> Result<(), QmpError> {
        self.block_job(&args.device, |jobs, _| {
            jobs.complete(&args.device).map_err(job::refused)
        })
    }

    fn block_job_dismiss(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobDismiss,
    ) -> Result<(), QmpError> {
        self.block_job(&args.id, |jobs, vm| {
            jobs.dismiss(&args.id, vm).map_err(job::refused)
        })
    }

    fn block_job_finalize(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockJobFinalize,
    ) -> Result<(), QmpError> {
        self.block_job(&args.id, |jobs, vm| {
            jobs.finalize(&args.id, vm).map_err(job::refused)
        })
    }

    fn query_block_jobs(&mut self, _cx: &mut dyn Context) -> Result<Vec<BlockJobInfo>, QmpError> {
        let views = self.jobs.views().filter(|view| view.kind.is_block_job());
        Ok(views.map(job::block_job_info).collect())
    }

    fn query_named_block_nodes(
        &mut self,
        _cx: &mut dyn Context,
        _args: QueryNamedBlockNodes,
    ) -> Result<Vec<BlockDeviceInfo>, QmpError> {
        let newest_first = self.graph.nodes_as_made().into_iter().rev();
        Ok(newest_first.map(|node| node_info(&node)).collect())
    }
}

/// A disk as clients know it.
pub(super) struct DiskView {
    /// The id of what reads and writes, or its place in the object tree where it has none.
    pub(super) path: String,
    pub(super) device: Disk,
}

impl DiskView {
    /// The name of the node it stands on; empty without one.
    pub(super) fn node_name(&self) -> String {
        let node = self.device.node();
        node.map_or_else(String::new, |node| node.name().to_owned())
    }
}

impl Vm {
    /// The disks, in the order they were added.
    pub(super) fn disks(&self) -> impl Iterator<Item = DiskView> {
        self.devices.disks().map(|(name, device, disk)| {
            let path = path(name, device.id.is_some());
            let path = match &disk {
                Disk::Virtio(_) => format!("{path}/{VIRTIO_CHILD}"),
                // As in QEMU: what has an id goes by that.
                Disk::Scsi(..) => device.id.clone().unwrap_or(path),
            };
            DiskView { path, device: disk }
        })
    }

    /// The name of the node that a disk stands on, or of a node itself.
    ///
    /// # Errors
    /// There is neither such a disk nor such a node.
    pub(crate) fn find_node(
        &self,
        device: Option<&str>,
        node: Option<&str>,
    ) -> Result<String, QmpError> {
        if let Some(drive) = device.and_then(|id| self.drives.find(id)) {
            return Ok(drive.node.clone());
        }
        let disk = device.and_then(|id| self.devices.resolve(id));
        let medium = self.devices.disks().find_map(|(name, _, disk_of_name)| {
            let node = disk_of_name.node().filter(|_| Some(name) == disk)?;
            Some(node.name().to_owned())
        });
        let named = || {
            let name = node?;
            self.graph.node(name).ok().map(|_| name.to_owned())
        };
        medium.or_else(named).ok_or_else(|| {
            QmpError::generic(format!(
                "Cannot find device='{}' nor node-name='{}'",
                device.unwrap_or_default(),
                node.unwrap_or_default()
            ))
        })
    }

    /// Tells a job something that works for the users of block nodes.
    fn block_job(
        &mut self,
        id: &str,
        tell: impl FnOnce(&mut Jobs<End>, &mut Self) -> Result<(), QmpError>,
    ) -> Result<(), QmpError> {
        self.jobs.check_block_job(id).map_err(job::refused)?;
        self.with_jobs(tell)
    }

    fn resize_node(&mut self, name: &str, len: u64) -> Result<(), QmpError> {
        let failed = |error: BlockError| QmpError::from_error(&error);
        let node = self.graph.to_resize(name).map_err(failed)?;
        self.check_disks_on(name, len)?;
        let before = self.disk_lengths();
        let iothread = self.default_iothread()?;
        // Nothing may be on its way to what is cut off: it would make the storage long again.
        let drain = self.graph.drain(&[name]);
        let resized = iothread.run(move |io| async move { node.resize(&io, len).await });
        drop(drain);
        resized
            .map_err(|error| QmpError::from_error(&error))?
            .map_err(failed)?;
        Self::tell_lengths(before);
        Ok(())
    }

    /// How long each disk is, in bytes.
    pub(crate) fn disk_lengths(&self) -> Vec<(Disk, u64)> {
        let disks = self.devices.disks().map(|(_, _, disk)| disk);
        let with_length = |disk: Disk| disk.node().map(|node| node.len()).map(|len| (disk, len));
        disks.filter_map(with_length).collect()
    }

    /// Has disks tell their guest that they are not as long any more as they were.
    pub(crate) fn tell_lengths(before: Vec<(Disk, u64)>) {
        for (disk, before) in before {
            if disk.node().is_some_and(|node| node.len() != before) {
                disk.capacity_changed();
            }
        }
    }

    /// A disk is made of whole blocks.
    fn check_disks_on(&self, node: &str, len: u64) -> Result<(), QmpError> {
        for (_, _, disk) in self.devices.disks() {
            let block = u64::from(disk.block_size());
            let stands = |medium: NodeRef| self.graph.stands_on(medium.name(), node);
            if !len.is_multiple_of(block) && disk.node().is_some_and(stands) {
                return Err(QmpError::generic(format!(
                    "Node '{node}' cannot be resized to {len} bytes: a disk stands on it, whose \
                     length is a multiple of {block} bytes"
                )));
            }
        }
        Ok(())
    }

    /// Makes a drive of the command line.
    ///
    /// # Errors
    /// As [`add_node`](Self::add_node).
    pub(crate) fn add_drive(
        &mut self,
        door: &fdset::Door,
        drive: DriveSpec,
    ) -> Result<(), QmpError> {
        if self.graph.node(&drive.id).is_ok() {
            return Err(QmpError::generic(format!(
                "Device with id '{}' already exists: it is a block node",
                drive.id
            )));
        }
        let mut spec = resolve::node::node(drive.node)?;
        if let (Some(behind), DriverSpec::Qcow2(image)) = (drive.behind, &mut spec.driver) {
            image.backing = BackingSpec::FromHeader(Some(Box::new(behind)));
        }
        self.lend_thread(&spec)?;
        let node = self.graph.add_drive(door, spec).map_err(|error| {
            let unknown = matches!(
                &error,
                BlockError::Image {
                    source: ImageError::NotQcow2,
                    ..
                }
            );
            let mut error = QmpError::from_error(&error);
            if drive.recognised && unknown {
                error.desc.push_str(
                    "; of images without 'format' only qcow2 is recognised: say what it is, as \
                     format=raw",
                );
            }
            error
        })?;
        let node = node.name().to_owned();
        let limiter = Limiter::default();
        let (group, limits) = drive.throttling;
        let limited = self
            .graph
            .limit(&limiter, &drive.id, group.as_deref(), limits);
        if let Err(error) = limited {
            drop(self.graph.remove_drive(&node));
            return Err(QmpError::from_error(&error));
        }
        self.drives.add(
            drive.id,
            Drive {
                node,
                write_cache: drive.write_cache,
                on_error: drive.on_error,
                limiter,
            },
        );
        Ok(())
    }

    /// Removes a drive whose device is gone.
    pub(crate) fn remove_drive(&mut self, id: &str) {
        let Some(drive) = self.drives.remove(id) else {
            return;
        };
        if let Err(error) = self.graph.remove_drive(&drive.node) {
            // Another node or device has it still: it stays with that.
            tracing::debug!(id, %error, "a drive's node stays");
        }
    }

    /// The drives that no disk has.
    pub(super) fn idle_drives(&self) -> impl Iterator<Item = (&str, &Drive)> {
        self.drives.iter().filter(|(_, drive)| {
            let on_it = |disk: DiskView| disk.node_name() == drive.node;
            !self.disks().any(on_it)
        })
    }

    /// The id of the drive that a disk stands on; empty without one.
    pub(super) fn drive_of(&self, node: &str) -> String {
        self.drives.of_node(node).unwrap_or_default().to_owned()
    }

    /// Gives the graph a thread if it will need one.
    pub(crate) fn lend_thread(&mut self, spec: &block::spec::NodeSpec) -> Result<(), QmpError> {
        match spec.driver.needs_thread() {
            true => self.lend_io_thread(),
            false => Ok(()),
        }
    }

    /// Gives the graph a thread.
    pub(crate) fn lend_io_thread(&mut self) -> Result<(), QmpError> {
        let thread = self.default_iothread()?;
        self.graph.use_thread(thread);
        Ok(())
    }

    /// Adds a block node, from a command or from the command line.
    ///
    /// # Errors
    /// As `block::BlockGraph::add`.
    pub fn add_node(
        &mut self,
        door: &fdset::Door,
        options: BlockdevOptions,
    ) -> Result<(), QmpError> {
        let name = options.node_name.as_deref();
        if let Some(name) = name.filter(|name| self.drives.find(name).is_some()) {
            return Err(QmpError::generic(format!(
                "node-name={name} is conflicting with a device id"
            )));
        }
        let spec = resolve::node::node(options)?;
        self.lend_thread(&spec)?;
        self.graph
            .add(door, spec)
            .map(drop)
            .map_err(|error| QmpError::from_error(&error))
    }
}

fn node_info(view: &NodeView<'_>) -> BlockDeviceInfo {
    let node = view.node();
    let options = node.options();
    let details = node.details();
    let backing = details.and_then(|details| details.backing);
    let mut info = BlockDeviceInfo {
        file: view.full_name(),
        node_name: Some(node.name().to_owned()),
        ro: node.is_read_only(),
        drv: node.driver().to_owned(),
        backing_file: backing.map(|(name, _)| name),
        backing_file_depth: i64::try_from(backing_depth(view)).unwrap_or(i64::MAX),
        active: node.is_active(),
        encrypted: false,
        detect_zeroes: match options.detect_zeroes {
            block::spec::DetectZeroes::Off => BlockdevDetectZeroesOptions::Off,
            block::spec::DetectZeroes::On => BlockdevDetectZeroesOptions::On,
            block::spec::DetectZeroes::Unmap => BlockdevDetectZeroesOptions::Unmap,
        },
        bps: 0,
        bps_rd: 0,
        bps_wr: 0,
        iops: 0,
        iops_rd: 0,
        iops_wr: 0,
        image: image_info(view),
        bps_max: None,
        bps_rd_max: None,
        bps_wr_max: None,
        iops_max: None,
        iops_rd_max: None,
        iops_wr_max: None,
        bps_max_length: None,
        bps_rd_max_length: None,
        bps_wr_max_length: None,
        iops_max_length: None,
        iops_rd_max_length: None,
        iops_wr_max_length: None,
        iops_size: None,
        group: None,
        cache: BlockdevCacheInfo {
            writeback: true,
            direct: options.cache.direct,
            no_flush: options.cache.no_flush,
        },
        write_threshold: i64::try_from(node.write_threshold()).unwrap_or(i64::MAX),
        dirty_bitmaps: infos(node.bitmaps()),
    };
    if let Some(group) = view.throttle_group() {
        throttling::show(&mut info, &group);
    }
    info
}

/// What is in a disk or drive, with the limits that it has itself.
fn medium_info(view: &NodeView<'_>, limiter: &Limiter) -> BlockDeviceInfo {
    let mut info = node_info(view);
    if let Some(group) = limiter.group() {
        throttling::show(&mut info, &group);
    }
    info
}

/// How many nodes are behind a node.
fn backing_depth(view: &NodeView<'_>) -> usize {
    let mut below = view.below();
    let behind = below.find(|(role, _)| *role == "backing");
    behind.map_or(0, |(_, behind)| 1 + backing_depth(&behind))
}

/// The bytes that a node takes on the host, without what is behind it.
fn stored(view: &NodeView<'_>) -> Option<u64> {
    if let Some(own) = view.node().stored() {
        return Some(own);
    }
    let below = view.below().filter(|(role, _)| *role != "backing");
    let sizes: Option<Vec<u64>> = below.map(|(_, below)| stored(&below)).collect();
    sizes
        .filter(|sizes| !sizes.is_empty())
        .map(|sizes| sizes.iter().sum())
}

/// What is stored in a node, and behind it.
fn image_info(view: &NodeView<'_>) -> ImageInfo {
    let node = view.node();
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let (details, stored) = (node.details(), stored(view));
    let behind = view.below().find(|(role, _)| *role == "backing");
    let behind = behind.map(|(_, behind)| behind);
    let named = details.as_ref().and_then(|details| details.backing.clone());
    let snapshots = details.iter().flat_map(|details| &details.snapshots);
    let snapshots: Vec<_> = snapshots.map(resolve::qcow2::snapshot).collect();
    ImageInfo {
        filename: view.full_name(),
        format: node.driver().to_owned(),
        dirty_flag: details
            .as_ref()
            .map(|details| details.dirty)
            .or(stored.map(|_| false)),
        actual_size: stored.map(number),
        // Images are counted in whole sectors.
        virtual_size: number(node.len().next_multiple_of(512)),
        cluster_size: details.as_ref().map(|details| number(details.cluster_size)),
        full_backing_filename: behind
            .filter(|_| named.is_some())
            .map(|behind| behind.filename().to_owned()),
        backing_filename_format: named.as_ref().and_then(|(_, format)| format.clone()),
        backing_filename: named.map(|(name, _)| name),
        snapshots: (!snapshots.is_empty()).then_some(snapshots),
        backing_image: behind.map(|behind| Box::new(image_info(&behind))),
        format_specific: details.as_ref().map(resolve::qcow2::specific),
    }
}
