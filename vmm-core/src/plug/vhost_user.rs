//! `vhost-user-blk-pci` and `vhost-user-fs-pci`: devices that another process serves.

use std::ops::RangeInclusive;
use std::sync::Arc;

use devices::vhost_user::device::{BLK_CONFIG, FS_TAG};
use devices::vhost_user::{
    Kind, Protocol, VhostUser, VhostUserDevice, VhostUserDeviceSpec, VhostUserError, VhostUserSpec,
    Wants,
};
use qapi_schema::QmpError;
use qapi_schema::vhost_user::{VhostUserBlkProperties, VhostUserFsProperties};
use vm_memory::GuestAddressSpace;

use super::Plug;
use super::pci::{VirtioPlace, plug_virtio, virtio_place};
use crate::device_tree::Part;

/// Entries of a queue where the client does not say.
const QUEUE_SIZE: u16 = 128;
/// How many entries a queue may have.
const QUEUE_SIZES: RangeInclusive<u16> = 4..=1024;
/// How many queues a device may have.
const QUEUES: RangeInclusive<u16> = 1..=1024;

pub(super) fn plug_blk(
    plug: &mut Plug<'_>,
    options: VhostUserBlkProperties,
) -> Result<Part, QmpError> {
    let size = queue_size(options.queue_size)?;
    if let Some(queues) = options.num_queues {
        in_range("num-queues", queues, &QUEUES)?;
    }
    let wants = Wants {
        protocol: Wants::ORDINARY
            | Protocol::CONFIG
            | Protocol::BACKEND_REQ
            | Protocol::INFLIGHT_SHMFD,
        needed: Protocol::CONFIG,
        config: BLK_CONFIG,
    };
    let most = options.num_queues.unwrap_or(*QUEUES.end());
    let vcpus = plug.vm.machine.board(&plug.name)?.vcpu_count();
    let front = front(plug, &options.chardev, wants, most)?;
    let has = front.offer().queues;
    let queues = match options.num_queues {
        Some(wanted) if has < u64::from(wanted) => {
            return Err(refused(&VhostUserError::Queues {
                name: name(plug),
                has,
                wanted: wanted.into(),
            }));
        }
        Some(wanted) => wanted,
        None => u16::try_from(has.min(vcpus.into()).max(1)).unwrap_or(1),
    };
    let kind = Kind::Blk {
        config_wce: options.config_wce.unwrap_or(true),
    };
    let sizes = vec![size; queues.into()];
    insert(plug, virtio_place!(options), kind, front, sizes)
}

pub(super) fn plug_fs(
    plug: &mut Plug<'_>,
    options: VhostUserFsProperties,
) -> Result<Part, QmpError> {
    let size = queue_size(options.queue_size)?;
    let requests = options.num_request_queues.unwrap_or(1);
    in_range("num-request-queues", requests, &(1..=1023))?;
    if options.tag.is_empty() || options.tag.len() > FS_TAG {
        return Err(QmpError::generic(format!(
            "Parameter 'tag' expects 1 to {FS_TAG} bytes, not {}",
            options.tag.len()
        )));
    }
    let wants = Wants {
        protocol: Wants::ORDINARY,
        needed: Protocol::empty(),
        config: 0,
    };
    // One more, for requests that cannot wait.
    let queues = requests.saturating_add(1);
    let front = front(plug, &options.chardev, wants, queues)?;
    let offer = front.offer();
    if offer.protocol.contains(Protocol::MQ) && offer.queues < u64::from(queues) {
        return Err(refused(&VhostUserError::Queues {
            name: name(plug),
            has: offer.queues,
            wanted: queues.into(),
        }));
    }
    let kind = Kind::Fs {
        tag: options.tag.clone(),
    };
    let sizes = vec![size; queues.into()];
    insert(plug, virtio_place!(options), kind, front, sizes)
}

/// The front end at a chardev, when a back end has come that could reach guest memory.
fn front(
    plug: &Plug<'_>,
    chardev: &str,
    wants: Wants,
    queues: u16,
) -> Result<Arc<VhostUser>, QmpError> {
    let board = plug.vm.machine.board(&plug.name)?;
    VhostUser::check_memory(&name(plug), &board.memory().memory()).map_err(|why| refused(&why))?;
    let chardev = plug.vm.chardevs.find(chardev).map_err(|error| {
        QmpError::generic(format!(
            "Property 'vhost-user-device.chardev' can't find value '{chardev}': {error}"
        ))
    })?;
    VhostUser::new(VhostUserSpec {
        name: name(plug),
        chardev,
        queues: queues.into(),
        wants,
        apart: 0,
        never: 0,
        reactor: plug.vm.reactor.clone(),
    })
    .map_err(|why| refused(&why))
}

fn insert(
    plug: &mut Plug<'_>,
    place: VirtioPlace,
    kind: Kind,
    front: Arc<VhostUser>,
    queue_sizes: Vec<u16>,
) -> Result<Part, QmpError> {
    let device = VhostUserDevice::new(VhostUserDeviceSpec {
        id: plug.name.clone(),
        kind,
        front,
        queue_sizes,
        reactor: plug.vm.reactor.clone(),
    });
    plug_virtio(plug, place, device)?;
    Ok(Part::Function)
}

fn name(plug: &Plug<'_>) -> String {
    format!("device '{}'", plug.name)
}

fn refused(why: &VhostUserError) -> QmpError {
    QmpError::from_error(why)
}

fn queue_size(wanted: Option<u16>) -> Result<u16, QmpError> {
    let size = wanted.unwrap_or(QUEUE_SIZE);
    if size.is_power_of_two() && QUEUE_SIZES.contains(&size) {
        return Ok(size);
    }
    Err(QmpError::generic(format!(
        "Parameter 'queue-size' expects a power of two from 4 to 1024, not {size}"
    )))
}

fn in_range(name: &str, came: u16, range: &RangeInclusive<u16>) -> Result<(), QmpError> {
    if range.contains(&came) {
        return Ok(());
    }
    Err(QmpError::generic(format!(
        "Parameter '{name}' expects {} to {}, not {came}",
        range.start(),
        range.end()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_queue_can_have_is_refused_by_its_name() {
        assert_eq!(queue_size(None).map_err(|error| error.desc), Ok(128));
        for size in [0, 2, 100, 2048] {
            let error = queue_size(Some(size)).expect_err("no size");
            assert!(error.desc.contains("'queue-size'"), "{}", error.desc);
        }
        assert!(in_range("num-queues", 0, &QUEUES).is_err());
    }
}
