//! `block-throttle.json`: limits on what disks may do.

use block::Limiter;
use qapi_schema::block_throttle::{BlockIOThrottle, Commands};
use qapi_schema::{Context, QmpError};

use crate::device_tree::Disk;
use crate::plug::VIRTIO_CHILD;
use crate::throttling;
use crate::vm::Vm;

impl Commands for Vm {
    fn block_set_io_throttle(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockIOThrottle,
    ) -> Result<(), QmpError> {
        let (called, limiter) = self.limiter_of(args.device.as_deref(), args.id.as_deref())?;
        let limits = throttling::of_disk(&args)?;
        self.graph
            .limit(&limiter, &called, args.group.as_deref(), limits)
            .map_err(|error| QmpError::from_error(&error))?;
        if let Some(group) = limiter.group() {
            // Where the group is an object, too.
            self.objects.show(group.name(), throttling::shown(limits));
        }
        Ok(())
    }
}

impl Vm {
    /// What the requests of a drive, or of a disk, ask, and what it was called by.
    fn limiter_of(
        &self,
        device: Option<&str>,
        id: Option<&str>,
    ) -> Result<(String, Limiter), QmpError> {
        let (called, found) = match (device, id) {
            (Some(device), None) => {
                let drive = self.drives.find(device);
                (device, drive.map(|drive| drive.limiter.clone()))
            }
            (None, Some(id)) => {
                let disk = self.disk_called(id)?;
                if disk.node().is_none() {
                    return Err(QmpError::generic("Device has no medium"));
                }
                (id, Some(disk.limiter().clone()))
            }
            _ => {
                return Err(QmpError::generic("Need exactly one of 'device' and 'id'"));
            }
        };
        let limiter = found.ok_or_else(|| QmpError::device_not_found(called))?;
        Ok((called.to_owned(), limiter))
    }

    /// The disk that a client calls by its device's id, or by its path in the object tree: that of
    /// the device, or of what reads and writes.
    ///
    /// # Errors
    /// There is no such device, or it is no disk.
    pub(super) fn disk_called(&self, id: &str) -> Result<Disk, QmpError> {
        let inner = id
            .strip_suffix(VIRTIO_CHILD)
            .and_then(|id| id.strip_suffix('/'));
        let name = self.devices.resolve(id);
        let name = name.or_else(|| {
            self.devices
                .resolve(inner.filter(|id| id.starts_with('/'))?)
        });
        let name = name.ok_or_else(|| QmpError::device_not_found(id))?;
        let mut disks = self.devices.disks();
        let disk = disks.find_map(|(own, _, disk)| (own == name).then_some(disk));
        disk.ok_or_else(|| QmpError::generic("Device does not have a block device backend"))
    }
}
