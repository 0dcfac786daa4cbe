//! `virtio-blk-pci`.

use std::sync::Arc;

use block::Usage;
use block::job::OnError;
use devices::geometry::Geometry;
use devices::virtio::blk::{QUEUES, VirtioBlk, VirtioBlkSpec};
use qapi_schema::QmpError;
use qapi_schema::block_core::BlockdevOnError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::devices::VirtioBlkProperties;

use super::pci::{plug_virtio, virtio_place};
use super::{Plug, queue_threads};
use crate::device_tree::{Claim, Part};
use crate::drives::Drive;
use crate::resolve::unmet;

/// Entries of a queue where the client does not say.
const QUEUE_SIZE: u16 = 256;
/// Bytes of a block where the client does not say.
const BLOCK_SIZE: u64 = 512;

pub(super) fn plug(plug: &mut Plug<'_>, options: VirtioBlkProperties) -> Result<Part, QmpError> {
    // A place in vain would claim backends in vain.
    let vcpus = plug.vm.machine.board(&plug.name)?.vcpu_count();
    refuse_unmet(&options)?;
    let place = virtio_place!(options);
    let usual = u16::try_from(vcpus).unwrap_or(u16::MAX);
    let queues = options.num_queues.unwrap_or(usual.min(*QUEUES.end()));
    let iothreads = queue_threads::claim(
        plug,
        options.iothread.as_deref(),
        options.iothread_vq_mapping.as_deref(),
        queues,
    )?;
    let drive = plug.vm.drives.find(&options.drive).cloned();
    if drive.is_some() {
        claim_drive(plug, &options.drive)?;
    }
    let medium = drive.as_ref().map_or(&options.drive, |drive| &drive.node);
    let read_only = plug
        .vm
        .graph
        .node(medium)
        .map_err(|error| QmpError::from_error(&error))?
        .node()
        .is_read_only();
    plug.vm.check_at_work(medium)?;
    let usage = Usage::disk(read_only, options.share_rw.unwrap_or(false));
    let root = plug
        .vm
        .graph
        .attach(medium, &plug.name, usage)
        .map_err(|error| QmpError::from_error(&error))?;
    plug.claim(Claim::Node(medium.clone()));
    let root = match &drive {
        Some(drive) => root.limited_by(drive.limiter.clone()),
        None => root,
    };
    let logical = options.logical_block_size.unwrap_or(BLOCK_SIZE);
    let physical = options.physical_block_size.unwrap_or(logical);
    let disk = VirtioBlk::new(VirtioBlkSpec {
        id: plug.name.clone(),
        root,
        serial: options.serial.unwrap_or_default(),
        queues,
        queue_size: options.queue_size.unwrap_or(QUEUE_SIZE),
        logical_block_size: block_size("logical_block_size", logical)?,
        physical_block_size: block_size("physical_block_size", physical)?,
        geometry: geometry(options.cyls, options.heads, options.secs)?,
        write_cache: match options.write_cache {
            Some(OnOffAuto::On) => true,
            Some(OnOffAuto::Off) => false,
            Some(OnOffAuto::Auto) | None => drive.as_ref().is_none_or(|drive| drive.write_cache),
        },
        discard: options.discard.unwrap_or(true),
        write_zeroes: options.write_zeroes.unwrap_or(true),
        on_error: on_error([options.rerror, options.werror], drive.as_ref()),
        iothreads,
        notices: plug.vm.mailbox.notices(),
    })
    .map_err(|error| QmpError::from_error(&error))?;
    let disk = Arc::new(disk);
    plug_virtio(plug, place, Arc::clone(&disk) as _)?;
    Ok(Part::Disk(disk))
}

/// A drive is one device's.
pub(super) fn claim_drive(plug: &mut Plug<'_>, id: &str) -> Result<(), QmpError> {
    let claim = Claim::Drive(id.to_owned());
    let is_claimed = {
        let mut devices = plug.vm.devices.iter();
        devices.any(|(_, device)| device.claims.contains(&claim))
    };
    if is_claimed {
        return Err(QmpError::generic(format!(
            "Drive '{id}' is already in use by another device"
        )));
    }
    plug.claim(claim);
    Ok(())
}

fn refuse_unmet(options: &VirtioBlkProperties) -> Result<(), QmpError> {
    let logical = options.logical_block_size.unwrap_or(BLOCK_SIZE);
    unmet::refuse(&[
        (
            options.config_wce == Some(false),
            "config-wce=off",
            "the guest may always switch the write cache",
        ),
        (
            options.min_io_size.unwrap_or(0) != 0 || options.opt_io_size.unwrap_or(0) != 0,
            "min_io_size or opt_io_size",
            "the disk has no size that it likes best",
        ),
        (
            options
                .discard_granularity
                .is_some_and(|size| size != logical),
            "discard_granularity",
            "discards are in logical blocks",
        ),
    ])
}

/// What is done when a read fails, and when anything else does: what the device says, else its drive,
/// else what is usual.
pub(super) fn on_error(
    device: [Option<BlockdevOnError>; 2],
    drive: Option<&Drive>,
) -> [OnError; 2] {
    let said = |policy: Option<BlockdevOnError>| match policy? {
        BlockdevOnError::Report => Some(OnError::Report),
        BlockdevOnError::Ignore => Some(OnError::Ignore),
        BlockdevOnError::Enospc => Some(OnError::Enospc),
        BlockdevOnError::Stop => Some(OnError::Stop),
        BlockdevOnError::Auto => None,
    };
    let [rerror, werror] = device.map(said);
    let [drive_rerror, drive_werror] = drive.map_or([None; 2], |drive| drive.on_error).map(said);
    [
        rerror.or(drive_rerror).unwrap_or(OnError::Report),
        werror.or(drive_werror).unwrap_or(OnError::Enospc),
    ]
}

/// What the guest is told of cylinders, if anything.
pub(super) fn geometry(
    cyls: Option<u32>,
    heads: Option<u32>,
    secs: Option<u32>,
) -> Result<Option<Geometry>, QmpError> {
    let [cyls, heads, secs] = [cyls, heads, secs].map(Option::unwrap_or_default);
    Geometry::new(cyls, heads, secs).map_err(|error| QmpError::from_error(&error))
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
    use block::Limiter;
    use devices::virtio::blk::QUEUE_SIZES;
    use qapi_schema::drivers::find_driver;
    use serde_json::{Value, json};

    use super::*;

    fn refusal(wish: (&str, Value)) -> Option<String> {
        let mut options = json!({"drive": "d"});
        options[wish.0] = wish.1;
        let options: VirtioBlkProperties =
            qapi_schema::input::arguments(options).expect("of the schema");
        let place = virtio_place!(options);
        refuse_unmet(&options)
            .and_then(|()| unmet::refuse(&place.unmet))
            .err()
            .map(|error| error.desc)
    }

    #[test]
    fn a_wish_for_a_disk_or_its_slot_that_cannot_be_met_is_refused_by_its_name() {
        for (name, met, unmet) in [
            ("config-wce", json!(true), json!(false)),
            ("min_io_size", json!(0), json!(4096)),
            ("opt_io_size", json!(0), json!(4096)),
            ("discard_granularity", json!(512), json!(4096)),
            ("iommu_platform", json!(false), json!(true)),
            ("ats", json!(false), json!(true)),
            ("ioeventfd", json!(true), json!(false)),
            ("acpi-index", json!(0), json!(1)),
        ] {
            assert_eq!(refusal((name, met)), None, "{name}");
            let error = refusal((name, unmet)).expect(name);
            let wish = error.split('\'').nth(1).unwrap_or_default();
            let named = wish.split(" or ").filter_map(|one| one.split('=').next());
            assert!(named.into_iter().any(|one| one == name), "{error}");
        }
    }

    #[test]
    fn a_device_says_more_about_errors_than_its_drive_and_that_more_than_nobody() {
        use BlockdevOnError::{Auto, Ignore, Stop};
        let drive = Drive {
            node: "n".to_owned(),
            write_cache: true,
            on_error: [Some(Ignore), Some(Auto)],
            limiter: Limiter::default(),
        };
        for (device, drive, expected) in [
            ([None, None], None, [OnError::Report, OnError::Enospc]),
            (
                [None, None],
                Some(&drive),
                [OnError::Ignore, OnError::Enospc],
            ),
            (
                [Some(Stop), Some(Auto)],
                Some(&drive),
                [OnError::Stop, OnError::Enospc],
            ),
        ] {
            assert_eq!(on_error(device, drive), expected);
        }
    }

    #[test]
    fn the_schema_gives_the_ranges_that_a_disk_checks() {
        let disk = find_driver("virtio-blk-pci").expect("in the table");
        for (name, range) in [("num-queues", QUEUES), ("queue-size", QUEUE_SIZES)] {
            let property = disk.properties().iter().find(|one| one.name == name);
            let text = property.map_or("", |one| one.description);
            let wanted = format!("{} to {}", range.start(), range.end());
            assert!(text.contains(&wanted), "{name}: '{text}', wanted {wanted}");
        }
    }
}
