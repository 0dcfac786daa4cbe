//! `pc-dimm`: memory modules, and what the guest says of their coming and going.

use std::sync::Arc;

use devices::legacy::DimmSpec;
use qapi_schema::acpi::{ACPIOSTInfo, ACPISlotType, AcpiDeviceOst};
use qapi_schema::memory_devices::{MemUnplugError, PCDIMMProperties};
use qapi_schema::qdev::DeviceUnplugGuestError;
use qapi_schema::{Event, QmpError};

use super::cpu::is_refusal;
use super::{Plug, unplugged};
use crate::device_tree::{Claim, Module, Part, path};
use crate::memory::PlaceWish;
use crate::qom::Object;
use crate::resolve::memory_device;
use crate::vm::Vm;

pub(super) fn plug(plug: &mut Plug<'_>, options: &PCDIMMProperties) -> Result<Part, QmpError> {
    let hot = plug.vm.is_powered_on();
    let taken = plug.vm.devices.modules().map(|(_, module)| module.slot);
    let taken: Vec<u32> = taken.collect();
    let board = plug.vm.machine.board_mut(&plug.name)?;
    let registers = board.board().memory_hotplug().map(Arc::clone);
    let places = registers.as_ref().map_or(0, |places| places.places());
    let node = memory_device::node(options.node, board.numa())?;
    let memdev = memory_device::memdev(options.memdev.as_deref())?;
    let backend = plug.vm.objects.claim_memory(memdev, &plug.name)?;
    plug.claims.push(Claim::Object(memdev.to_owned()));
    memory_device::writable(backend.spec())?;
    let size = backend.spec().size;
    let align = memory_device::module_alignment(backend.page(), size)?;
    let wish = PlaceWish {
        size,
        align,
        address: options.addr.filter(|address| *address != 0),
    };
    // A machine without any room says so, and not that it has no places.
    let slot = match board.layout().devices.is_empty() {
        true => 0,
        false => memory_device::slot(options.slot, places, &taken)?,
    };
    let address = board
        .plug_memory(&plug.name, backend, wish)
        .map_err(|error| QmpError::from_error(&error))?;
    let spec = DimmSpec {
        address,
        size,
        node: node.unwrap_or(0).into(),
    };
    if let Some(registers) = registers {
        registers.plug(slot, spec, hot);
    }
    Ok(Part::Module(Module { slot, spec, hot }))
}

/// Asks the guest to let a module go.
pub(super) fn request_unplug(vm: &Vm, module: Module) -> Result<(), QmpError> {
    let registers = vm.machine.board("device_del")?.board().memory_hotplug();
    if let Some(registers) = registers {
        registers.request_unplug(module.slot);
    }
    Ok(())
}

/// Adds to the picture of a module what it was not given.
pub fn show(module: Module, mut object: Object) -> Object {
    object.set("addr", "uint64", module.spec.address);
    object.set("slot", "int32", module.slot);
    object.set("node", "uint32", module.spec.node);
    object.set("size", "uint64", module.spec.size);
    object
}

impl Vm {
    /// The name of the module in the place `slot`, and whether a client gave it.
    fn module_in(&self, slot: u32) -> Option<(&str, bool)> {
        let name = self.devices.modules().find(|(_, one)| one.slot == slot)?.0;
        let has_id = self.devices.find(name)?.id.is_some();
        Some((name, has_id))
    }

    /// The guest has let go of the module in the place `slot`.
    pub(crate) fn module_ejected(&mut self, slot: u32) {
        let name = self.module_in(slot).map(|(name, _)| name.to_owned());
        if let Some(name) = name {
            unplugged(self, &name);
        }
    }

    /// What the guest said last of a place for a module.
    pub(crate) fn module_ospm_status(&self, slot: u32, event: u32, status: u32) -> ACPIOSTInfo {
        let module = self.module_in(slot);
        ACPIOSTInfo {
            device: module.and_then(|(name, has_id)| has_id.then(|| name.to_owned())),
            slot: slot.to_string(),
            slot_type: ACPISlotType::Dimm,
            source: i64::from(event),
            status: i64::from(status),
        }
    }

    /// The guest says how it gets on with the module in the place `slot`.
    pub(crate) fn module_spoken_of(&self, slot: u32, event: u32, status: u32) {
        let info = self.module_ospm_status(slot, event, status);
        let device = info.device.clone();
        self.events
            .emit(Event::AcpiDeviceOst(AcpiDeviceOst { info }));
        let Some((name, has_id)) = self.module_in(slot) else {
            return;
        };
        if is_refusal(event, status) {
            let refused = MemUnplugError {
                device: device.clone().unwrap_or_default(),
                msg: format!("the guest refuses with ACPI status {status:#x}"),
            };
            self.events.emit(Event::MemUnplugError(refused));
            let path = path(name, has_id);
            let refused = DeviceUnplugGuestError { device, path };
            self.events.emit(Event::DeviceUnplugGuestError(refused));
        }
    }
}
