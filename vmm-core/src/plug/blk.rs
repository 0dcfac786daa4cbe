//! `virtio-blk-pci`.

use std::sync::Arc;

use block::Usage;
use devices::virtio::blk::{VirtioBlk, VirtioBlkSpec};
use qapi_schema::QmpError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::devices::{BlockdevOnError, VirtioBlkProperties};

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::{Claim, Part};
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
    let iothread = match &options.iothread {
        Some(id) => {
            let iothread = plug.vm.objects.claim_iothread(id, &plug.name)?;
            plug.claim(Claim::Object(id.clone()));
            iothread
        }
        None => plug.vm.default_iothread()?,
    };
    let read_only = plug
        .vm
        .graph
        .node(&options.drive)
        .map_err(|error| QmpError::from_error(&error))?
        .node()
        .is_read_only();
    let usage = Usage::disk(read_only, options.share_rw.unwrap_or(false));
    let node = plug
        .vm
        .graph
        .attach(&options.drive, &plug.name, usage)
        .map_err(|error| QmpError::from_error(&error))?;
    plug.claim(Claim::Node(options.drive.clone()));
    let logical = options.logical_block_size.unwrap_or(BLOCK_SIZE);
    let physical = options.physical_block_size.unwrap_or(logical);
    let disk = VirtioBlk::new(VirtioBlkSpec {
        id: plug.name.clone(),
        node,
        serial: options.serial.unwrap_or_default(),
        queues: options
            .num_queues
            .unwrap_or(u16::try_from(vcpus).unwrap_or(u16::MAX)),
        queue_size: options.queue_size.unwrap_or(QUEUE_SIZE),
        logical_block_size: block_size("logical_block_size", logical)?,
        physical_block_size: block_size("physical_block_size", physical)?,
        write_cache: options.write_cache != Some(OnOffAuto::Off),
        discard: options.discard.unwrap_or(true),
        write_zeroes: options.write_zeroes.unwrap_or(true),
        iothread,
        notices: plug.vm.mailbox.notices(),
    })
    .map_err(|error| QmpError::from_error(&error))?;
    let disk = Arc::new(disk);
    plug_virtio(plug, place, Arc::clone(&disk) as _)?;
    Ok(Part::Disk(disk))
}

fn refuse_unmet(options: &VirtioBlkProperties) -> Result<(), QmpError> {
    let stops = |policy: Option<BlockdevOnError>| {
        !matches!(
            policy,
            None | Some(BlockdevOnError::Auto | BlockdevOnError::Report)
        )
    };
    let logical = options.logical_block_size.unwrap_or(BLOCK_SIZE);
    let reported = "failed requests are reported to the guest and to clients";
    unmet::refuse(&[
        (stops(options.werror), "werror", reported),
        (stops(options.rerror), "rerror", reported),
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

fn block_size(name: &str, bytes: u64) -> Result<u32, QmpError> {
    u32::try_from(bytes).map_err(|_| {
        QmpError::generic(format!(
            "Parameter '{name}' expects 512 to 32768 bytes, not {bytes}"
        ))
    })
}
