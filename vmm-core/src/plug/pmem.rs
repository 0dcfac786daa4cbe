//! `virtio-pmem-pci`: memory with a file behind it, in which the guest keeps what is to last.

use std::sync::Arc;

use devices::virtio::pmem::{FileMemory, PmemHost, PmemSpec, VirtioPmem};
use qapi_schema::QmpError;
use qapi_schema::memory_devices::VirtioPmemProperties;

use super::Plug;
use super::pci::{plug_virtio, virtio_place};
use crate::device_tree::{Claim, Part};
use crate::memory::PlaceWish;
use crate::qom::Object;
use crate::resolve::memory_device;

pub(super) fn plug(plug: &mut Plug<'_>, options: &VirtioPmemProperties) -> Result<Part, QmpError> {
    let memdev = memory_device::memdev(options.memdev.as_deref())?;
    let iothread = plug.vm.default_iothread()?;
    let board = plug.vm.machine.board_mut(&plug.name)?;
    let backend = plug.vm.objects.claim_memory(memdev, &plug.name)?;
    plug.claims.push(Claim::Object(memdev.to_owned()));
    memory_device::lasting(backend.spec())?;
    let size = backend.spec().size;
    let wish = PlaceWish {
        size,
        align: memory_device::module_alignment(backend.page(), size)?,
        address: options.memaddr.filter(|address| *address != 0),
    };
    let file = backend
        .another_file()
        .map_err(|error| QmpError::from_error(&error))?;
    let address = board
        .plug_memory(&plug.name, backend, wish)
        .map_err(|error| QmpError::from_error(&error))?;
    let spec = PmemSpec { address, size };
    let host = PmemHost {
        memory: Arc::new(FileMemory::new(file, iothread)),
        reactor: plug.vm.reactor.clone(),
    };
    let device = VirtioPmem::new(spec, host);
    let outcome = plug_virtio(plug, virtio_place!(options), device);
    if outcome.is_err() {
        plug.vm
            .machine
            .board_mut(&plug.name)?
            .unplug_memory(&plug.name);
    }
    outcome.map(|()| Part::Persistent(spec))
}

/// Adds to the picture of a device where its region is.
pub fn show(spec: PmemSpec, mut object: Object) -> Object {
    object.set("memaddr", "uint64", spec.address);
    object
}
