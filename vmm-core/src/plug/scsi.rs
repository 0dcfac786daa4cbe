//! `virtio-scsi-pci`, and what is plugged into its bus: `scsi-hd` and `scsi-cd`.

use std::sync::Arc;

use block::{Root, Usage};
use devices::geometry::Geometry;
use devices::scsi::unit::CD_BLOCK;
use devices::scsi::{Kind, ScsiUnit, ScsiUnitSpec};
use devices::virtio::scsi::{MAX_LUN, MAX_TARGET, VirtioScsi, VirtioScsiSpec};
use qapi_schema::QmpError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::scsi::{
    ScsiCdProperties, ScsiHdProperties, ScsiUnitProperties, VirtioScsiProperties,
};

use super::Plug;
use super::blk::{claim_drive, geometry, on_error};
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::{Claim, Part};
use crate::drives::Drive;
use crate::resolve::unmet;
use crate::vm::Vm;

/// What a controller has where the client does not say.
const QUEUE_SIZE: u16 = 256;
const MAX_SECTORS: u32 = 65535;
const CMD_PER_LUN: u32 = 128;
/// SPC-3.
const SCSI_VERSION: i32 = 5;
/// Bytes of a disk's block where the client does not say.
const BLOCK_SIZE: u64 = 512;

/// Takes what both kinds may be given out of one kind's properties.
macro_rules! unit_properties {
    ($of:expr) => {
        ScsiUnitProperties {
            channel: $of.channel,
            scsi_id: $of.scsi_id,
            lun: $of.lun,
            serial: $of.serial,
            device_id: $of.device_id,
            wwn: $of.wwn,
            port_wwn: $of.port_wwn,
            port_index: $of.port_index,
            scsi_version: $of.scsi_version,
            vendor: $of.vendor,
            product: $of.product,
            ver: $of.ver,
            write_cache: $of.write_cache,
            bootindex: $of.bootindex,
            werror: $of.werror,
            rerror: $of.rerror,
        }
    };
}

pub(super) fn plug(plug: &mut Plug<'_>, options: VirtioScsiProperties) -> Result<Part, QmpError> {
    let vcpus = plug.vm.machine.board(&plug.name)?.vcpu_count();
    let place = virtio_place!(options);
    let iothread = match &options.iothread {
        Some(id) => {
            let iothread = plug.vm.objects.claim_iothread(id, &plug.name)?;
            plug.claim(Claim::Object(id.clone()));
            iothread
        }
        None => plug.vm.default_iothread()?,
    };
    let spec = VirtioScsiSpec {
        id: plug.name.clone(),
        queues: options
            .num_queues
            .unwrap_or(u16::try_from(vcpus).unwrap_or(u16::MAX)),
        queue_size: options.virtqueue_size.unwrap_or(QUEUE_SIZE),
        max_sectors: options.max_sectors.unwrap_or(MAX_SECTORS),
        cmd_per_lun: options.cmd_per_lun.unwrap_or(CMD_PER_LUN),
        hotplug: options.hotplug.unwrap_or(true),
        param_change: options.param_change.unwrap_or(true),
        iothread,
    };
    let controller = VirtioScsi::new(spec, plug.vm.reactor.clone())
        .map_err(|error| QmpError::from_error(&error))?;
    plug_virtio(plug, place, Arc::clone(&controller) as _)?;
    Ok(Part::ScsiBus(controller))
}

pub(super) fn plug_disk(plug: &mut Plug<'_>, options: ScsiHdProperties) -> Result<Part, QmpError> {
    let logical = options.logical_block_size.unwrap_or(BLOCK_SIZE);
    let unit = Unit {
        kind: Kind::Disk,
        product: "HARDDISK",
        drive: Some(options.drive.clone()),
        removable: options.removable.unwrap_or(false),
        logical: block_size("logical_block_size", logical)?,
        physical: block_size(
            "physical_block_size",
            options.physical_block_size.unwrap_or(logical),
        )?,
        share_rw: options.share_rw.unwrap_or(false),
        rotation_rate: rotation_rate(options.rotation_rate.unwrap_or(0))?,
        geometry: geometry(options.cyls, options.heads, options.secs)?,
    };
    plug_unit(plug, unit, unit_properties!(options))
}

pub(super) fn plug_cd(plug: &mut Plug<'_>, options: ScsiCdProperties) -> Result<Part, QmpError> {
    let unit = Unit {
        kind: Kind::Cd,
        product: "CD-ROM",
        drive: options.drive.clone(),
        removable: true,
        logical: CD_BLOCK,
        physical: CD_BLOCK,
        share_rw: false,
        rotation_rate: 0,
        geometry: None,
    };
    plug_unit(plug, unit, unit_properties!(options))
}

/// What tells a disk from a CD drive.
struct Unit {
    kind: Kind,
    product: &'static str,
    drive: Option<String>,
    removable: bool,
    logical: u32,
    physical: u32,
    share_rw: bool,
    rotation_rate: u16,
    geometry: Option<Geometry>,
}

fn plug_unit(
    plug: &mut Plug<'_>,
    unit: Unit,
    options: ScsiUnitProperties,
) -> Result<Part, QmpError> {
    refuse_unmet(&options)?;
    let scsi_version = scsi_version(options.scsi_version)?;
    let Some((_, controller)) = plug.vm.devices.scsi_bus(plug.bus.as_deref()) else {
        return Err(QmpError::generic(match &plug.bus {
            Some(bus) => format!("Bus '{bus}' not found"),
            None => format!(
                "No 'SCSI' bus found for device '{}'; add a virtio-scsi-pci first",
                plug.name
            ),
        }));
    };
    let controller = Arc::clone(controller);
    let target = number(options.scsi_id, "scsi-id", MAX_TARGET)?;
    let lun = number(options.lun, "lun", MAX_LUN)?;
    let address = controller
        .place(target, lun)
        .map_err(|error| QmpError::from_error(&error))?;
    let drive = unit.drive.as_deref();
    let drive = drive.and_then(|name| plug.vm.drives.find(name)).cloned();
    let medium = match &unit.drive {
        Some(name) => Some(attach(
            plug,
            (name, drive.as_ref()),
            unit.kind,
            unit.share_rw,
        )?),
        None => None,
    };
    // Whatever medium is in when the device goes is given back.
    plug.claim(Claim::Node(unit.drive.unwrap_or_default()));
    let spec = ScsiUnitSpec {
        id: plug.name.clone(),
        kind: unit.kind,
        vendor: options.vendor.unwrap_or_else(|| "SESAME".to_owned()),
        product: options.product.unwrap_or_else(|| unit.product.to_owned()),
        version: options.ver.unwrap_or_else(|| "1.0".to_owned()),
        serial: options.serial.unwrap_or_default(),
        device_id: options.device_id,
        wwn: options.wwn.filter(|wwn| *wwn != 0),
        port_wwn: options.port_wwn.filter(|wwn| *wwn != 0),
        port_index: options.port_index.filter(|index| *index != 0),
        scsi_version,
        rotation_rate: unit.rotation_rate,
        geometry: unit.geometry,
        removable: unit.removable,
        logical_block_size: unit.logical,
        physical_block_size: unit.physical,
        write_cache: match options.write_cache {
            Some(OnOffAuto::On) => true,
            Some(OnOffAuto::Off) => false,
            Some(OnOffAuto::Auto) | None => drive.as_ref().is_none_or(|drive| drive.write_cache),
        },
        on_error: on_error([options.rerror, options.werror], drive.as_ref()),
        notices: plug.vm.mailbox.notices(),
    };
    let unit = ScsiUnit::new(spec, medium).map_err(|error| QmpError::from_error(&error))?;
    let unit = Arc::new(unit);
    controller.plug(address, Arc::clone(&unit));
    Ok(Part::ScsiUnit(controller, unit))
}

/// Takes the node of this name, or the drive that has it, as a medium.
fn attach(
    plug: &mut Plug<'_>,
    (name, drive): (&str, Option<&Drive>),
    kind: Kind,
    share_rw: bool,
) -> Result<Root, QmpError> {
    if drive.is_some() {
        claim_drive(plug, name)?;
    }
    let medium = drive.map_or(name, |drive| &drive.node);
    let root = plug.vm.attach_medium(medium, &plug.name, kind, share_rw)?;
    plug.claim(Claim::Node(medium.to_owned()));
    Ok(match drive {
        Some(drive) => root.limited_by(drive.limiter.clone()),
        None => root,
    })
}

impl Vm {
    /// Gives a node to a unit as its medium. A CD is only read.
    ///
    /// # Errors
    /// There is no such node, or another user of it does not agree.
    pub(crate) fn attach_medium(
        &mut self,
        node: &str,
        device: &str,
        kind: Kind,
        share_rw: bool,
    ) -> Result<Root, QmpError> {
        let failed = |error: block::BlockError| QmpError::from_error(&error);
        let view = self.graph.node(node).map_err(failed)?;
        let read_only = kind == Kind::Cd || view.node().is_read_only();
        self.check_at_work(node)?;
        let usage = Usage::disk(read_only, share_rw);
        self.graph.attach(node, device, usage).map_err(failed)
    }

    /// Takes the medium out of a unit, with nothing in flight on it, and gives its node back.
    pub(crate) fn take_medium(&mut self, device: &str, unit: &ScsiUnit) -> bool {
        let Some(root) = unit.take_medium() else {
            return false;
        };
        let name = root.node().name().to_owned();
        drop(root);
        drop(self.graph.drain(&[&name]));
        self.graph.detach_device(device)
    }
}

/// A unit leaves its bus.
pub(super) fn leave(vm: &mut Vm, name: &str, controller: &VirtioScsi, unit: &Arc<ScsiUnit>) {
    controller.unplug(unit);
    vm.take_medium(name, unit);
}

fn number<T: TryFrom<u32> + Into<u32> + Copy + PartialOrd>(
    given: Option<u32>,
    name: &str,
    most: T,
) -> Result<Option<T>, QmpError> {
    let Some(given) = given else {
        return Ok(None);
    };
    let fits = T::try_from(given).ok().filter(|number| *number <= most);
    fits.map(Some).ok_or_else(|| {
        QmpError::generic(format!(
            "Parameter '{name}' expects 0 to {}, not {given}",
            most.into()
        ))
    })
}

fn refuse_unmet(options: &ScsiUnitProperties) -> Result<(), QmpError> {
    unmet::refuse(&[(
        options.channel.unwrap_or(0) != 0,
        "channel",
        "a bus has channel 0 only",
    )])
}

fn scsi_version(given: Option<i32>) -> Result<u8, QmpError> {
    let given = given.unwrap_or(SCSI_VERSION);
    let known = u8::try_from(given)
        .ok()
        .filter(|version| (3..=7).contains(version));
    known.ok_or_else(|| {
        QmpError::generic(format!(
            "Parameter 'scsi_version' expects 3 (SPC) to 7 (SPC-5), not {given}"
        ))
    })
}

/// The numbers between are reserved (SBC-3, 6.5.2).
fn rotation_rate(given: u16) -> Result<u16, QmpError> {
    match given {
        0 | 1 | 0x401..=0xfffe => Ok(given),
        _ => Err(QmpError::generic(format!(
            "Parameter 'rotation_rate' expects 1 for a medium that does not rotate, 1025 to 65534 \
             rotations in a minute, or 0 to say nothing, not {given}"
        ))),
    }
}

fn block_size(name: &str, bytes: u64) -> Result<u32, QmpError> {
    u32::try_from(bytes).map_err(|_| {
        QmpError::generic(format!(
            "Parameter '{name}' expects 512 to 32768 bytes, not {bytes}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_standard_knows_are_refused_with_those_it_does() {
        assert_eq!(scsi_version(None).ok(), Some(5));
        assert_eq!(scsi_version(Some(7)).ok(), Some(7));
        let error = scsi_version(Some(-1)).unwrap_err().desc;
        assert!(
            error.ends_with("expects 3 (SPC) to 7 (SPC-5), not -1"),
            "{error}"
        );
        let known = [0, 1, 1025, 65534].map(|rate| rotation_rate(rate).ok());
        assert_eq!(known, [Some(0), Some(1), Some(1025), Some(65534)]);
        for reserved in [2, 1024, 65535] {
            let error = rotation_rate(reserved).unwrap_err().desc;
            assert!(error.contains("'rotation_rate'"), "{error}");
        }
    }
}
