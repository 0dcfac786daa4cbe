//! `virtio-mem-pci`, and what its object shows while it lives.

use std::sync::Arc;

use devices::virtio::mem::{MemHost, MemSpec, VirtioMem};
use qapi_schema::QmpError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::memory_devices::VirtioMemProperties;
use serde_json::Value;

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::{Claim, Part};
use crate::memory::{PlaceWish, RamReclaim};
use crate::objects::read_only;
use crate::qom::Object;
use crate::resolve::memory_device::{self, BlockSize};

const REQUESTED: &str = "requested-size";

pub(super) fn plug(plug: &mut Plug<'_>, options: VirtioMemProperties) -> Result<Part, QmpError> {
    let board = plug.vm.machine.board_mut(&plug.name)?;
    let node = memory_device::node(options.node, board.numa())?;
    let memdev = memory_device::memdev(options.memdev.as_deref())?;
    let backend = plug.vm.objects.claim_memory(memdev, &plug.name)?;
    plug.claims.push(Claim::Object(memdev.to_owned()));
    memory_device::writable(backend.spec())?;
    let page = backend.page();
    let size = backend.spec().size;
    let BlockSize(block) = memory_device::block_size(options.block_size, page, size)?;
    let wish = PlaceWish {
        size,
        align: block,
        address: options.memaddr.filter(|address| *address != 0),
    };
    let address = board
        .plug_memory(&plug.name, backend, wish)
        .map_err(|error| QmpError::from_error(&error))?;
    let spec = MemSpec {
        id: plug.name.clone(),
        address,
        size,
        block,
        node,
        requested: options.requested_size.unwrap_or(0),
        prealloc: options.prealloc.unwrap_or(false),
        inaccessible: options.unplugged_inaccessible != Some(OnOffAuto::Off),
    };
    let reclaim = RamReclaim::new(board.memory().clone(), page);
    let outcome = insert(plug, &options, spec, reclaim);
    if outcome.is_err() {
        plug.vm
            .machine
            .board_mut(&plug.name)?
            .unplug_memory(&plug.name);
    }
    outcome.map(Part::Memory)
}

/// Puts the device over its memory into a slot.
fn insert(
    plug: &mut Plug<'_>,
    options: &VirtioMemProperties,
    spec: MemSpec,
    reclaim: RamReclaim,
) -> Result<Arc<VirtioMem>, QmpError> {
    let host = MemHost {
        memory: Arc::new(reclaim),
        reactor: plug.vm.reactor.clone(),
        notices: plug.vm.mailbox.notices(),
    };
    let device = VirtioMem::new(spec, host).map_err(|error| QmpError::from_error(&error))?;
    plug_virtio(plug, virtio_place!(options), Arc::clone(&device) as _)?;
    let board = plug.vm.machine.board_mut(&plug.name)?;
    board.follow_resets(&plug.name, Arc::clone(&device) as _);
    Ok(device)
}

/// Adds to the picture of a device what it knows now.
pub fn show(device: &VirtioMem, object: Object) -> Object {
    let spec = device.spec();
    [
        (REQUESTED, "size", device.requested()),
        ("size", "size", device.size()),
        ("block-size", "size", spec.block),
        ("memaddr", "uint64", spec.address),
        ("node", "uint32", spec.node.unwrap_or(0).into()),
    ]
    .into_iter()
    .fold(object, |mut object, (name, kind, value)| {
        object.set(name, kind, value);
        object
    })
}

/// Changes a property of a device.
///
/// # Errors
/// It is another than the requested size, or the value is no size that it can have.
pub fn set(
    device: &VirtioMem,
    object: &Object,
    property: &str,
    value: &Value,
) -> Result<(), QmpError> {
    if property != REQUESTED {
        return Err(read_only(object, property));
    }
    let Some(bytes) = value.as_u64() else {
        return Err(QmpError::generic(format!(
            "Parameter '{property}' expects a size in bytes, not {value}"
        )));
    };
    device
        .set_requested(bytes)
        .map_err(|error| QmpError::from_error(&error))
}
