//! `scsi.json`: trays and what lies in them.
//!
//! ```text
//!   open tray ─► remove medium ─► insert medium ─► close tray        eject: the first two
//! ```

use std::sync::Arc;

use devices::scsi::{Kind, ScsiUnit};
use qapi_schema::scsi::{
    BlockdevCloseTray, BlockdevInsertMedium, BlockdevOpenTray, BlockdevRemoveMedium, Commands,
    DeviceTrayMoved, Eject,
};
use qapi_schema::{Context, Event, QmpError};

use crate::device_tree::{Disk, path};
use crate::vm::Vm;

impl Commands for Vm {
    fn eject(&mut self, _cx: &mut dyn Context, args: Eject) -> Result<(), QmpError> {
        let drive = self.tray_of(args.device.as_deref(), args.id.as_deref())?;
        if !self.open(&drive, args.force.unwrap_or(false)) {
            return Err(locked(&drive));
        }
        self.take_medium(&drive.name, &drive.unit);
        Ok(())
    }

    fn blockdev_open_tray(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockdevOpenTray,
    ) -> Result<(), QmpError> {
        let drive = self.tray_of(args.device.as_deref(), args.id.as_deref())?;
        // A guest that holds the medium opens the tray by itself, and everybody hears of it.
        self.open(&drive, args.force.unwrap_or(false));
        Ok(())
    }

    fn blockdev_close_tray(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockdevCloseTray,
    ) -> Result<(), QmpError> {
        let drive = self.tray_of(args.device.as_deref(), args.id.as_deref())?;
        if drive.unit.move_tray(false) {
            self.tray_moved(&drive.name, false);
        }
        Ok(())
    }

    fn blockdev_remove_medium(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockdevRemoveMedium,
    ) -> Result<(), QmpError> {
        let drive = self.tray_of(None, Some(&args.id))?;
        check_open(&drive)?;
        self.take_medium(&drive.name, &drive.unit);
        Ok(())
    }

    fn blockdev_insert_medium(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockdevInsertMedium,
    ) -> Result<(), QmpError> {
        let drive = self.tray_of(None, Some(&args.id))?;
        check_open(&drive)?;
        if drive.unit.node().is_some() {
            return Err(QmpError::generic(format!(
                "There already is a medium in device '{}'",
                drive.name
            )));
        }
        let failed = |error: block::BlockError| QmpError::from_error(&error);
        let view = self.graph.node(&args.node_name).map_err(failed)?;
        drive.unit.check_medium(view.node()).map_err(failed)?;
        let medium = self.attach_medium(&args.node_name, &drive.name, drive.unit.kind(), false)?;
        drive.unit.insert_medium(medium);
        Ok(())
    }
}

/// A drive with a tray.
struct Drive {
    name: String,
    unit: Arc<ScsiUnit>,
}

fn locked(drive: &Drive) -> QmpError {
    QmpError::generic(format!(
        "Device '{}' is locked and force was not specified, wait for tray to open and try again",
        drive.name
    ))
}

/// What events about trays call a device: by its id, and only one without by its path. libvirt waits
/// for the id.
fn event_id(name: &str, has_id: bool) -> String {
    if has_id {
        return name.to_owned();
    }
    path(name, has_id)
}

fn check_open(drive: &Drive) -> Result<(), QmpError> {
    if drive.unit.is_open() {
        return Ok(());
    }
    Err(QmpError::generic(format!(
        "Tray of device '{}' is not open",
        drive.name
    )))
}

impl Vm {
    /// The drive that a client calls by its backend's name or by its own.
    fn tray_of(&self, device: Option<&str>, id: Option<&str>) -> Result<Drive, QmpError> {
        if device.is_some() == id.is_some() {
            return Err(QmpError::generic("Need exactly one of 'device' and 'id'"));
        }
        let called = device.or(id).unwrap_or_default();
        let wanted = self.devices.resolve(called);
        let node = device.and_then(|device| self.drives.find(device));
        let found = self.devices.disks().find(|(name, _, disk)| {
            let of_drive =
                node.is_some_and(|drive| disk.node().is_some_and(|node| node.name() == drive.node));
            wanted == Some(*name) || of_drive
        });
        match found {
            Some((name, _, Disk::Scsi(_, unit))) if unit.kind() == Kind::Cd => Ok(Drive {
                name: name.to_owned(),
                unit,
            }),
            Some(_) => Err(QmpError::generic(format!(
                "Device '{called}' is not removable"
            ))),
            None => Err(QmpError::device_not_found(called)),
        }
    }

    /// Opens a tray, or asks the guest to; whether it is open.
    fn open(&self, drive: &Drive, force: bool) -> bool {
        let unit = &drive.unit;
        if !unit.is_open() && unit.is_locked() && !force {
            unit.request_eject();
            return false;
        }
        if unit.move_tray(true) {
            self.tray_moved(&drive.name, true);
        }
        true
    }

    /// Tells of a tray.
    pub(crate) fn tray_moved(&self, name: &str, tray_open: bool) {
        let Some(device) = self.devices.find(name) else {
            return;
        };
        let mut disks = self.devices.disks();
        let disk = disks.find_map(|(of, _, disk)| (of == name).then_some(disk));
        let node = disk.and_then(|disk| disk.node());
        let backend = node.and_then(|node| self.drives.of_node(node.name()).map(str::to_owned));
        self.events.emit(Event::DeviceTrayMoved(DeviceTrayMoved {
            device: backend.unwrap_or_default(),
            id: event_id(name, device.id.is_some()),
            tray_open,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_call_a_drive_by_its_id_and_one_without_by_its_path() {
        assert_eq!(event_id("cd0", true), "cd0");
        assert_eq!(
            event_id("device[0]", false),
            "/machine/peripheral-anon/device[0]"
        );
    }
}
