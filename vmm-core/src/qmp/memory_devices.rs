//! `memory-devices.json`: memory that comes and goes.

use devices::virtio::mem::VirtioMem;
use qapi_schema::memory_devices::{
    Commands, MemoryDeviceInfo, MemoryDeviceInfoVariant, MemoryDeviceSizeChange, PCDIMMDeviceInfo,
    PCDIMMDeviceInfoWrapper, VirtioMEMDeviceInfo, VirtioMEMDeviceInfoWrapper, VirtioPMEMDeviceInfo,
    VirtioPMEMDeviceInfoWrapper,
};
use qapi_schema::{Context, Event, QmpError};

use crate::device_tree::{Claim, Device, Module, Part, path};
use crate::vm::Vm;

impl Commands for Vm {
    fn query_memory_devices(
        &mut self,
        _cx: &mut dyn Context,
    ) -> Result<Vec<MemoryDeviceInfo>, QmpError> {
        let devices = self.devices.iter().filter_map(|(_, device)| info(device));
        let mut devices: Vec<_> = devices.collect();
        devices.sort_by_key(|(address, _)| *address);
        Ok(devices.into_iter().map(|(_, info)| info).collect())
    }
}

/// A memory device as clients see it, with its address.
fn info(device: &Device) -> Option<(u64, MemoryDeviceInfo)> {
    match &device.part {
        Part::Memory(memory) => {
            let data = by_the_block(device, memory);
            let info = MemoryDeviceInfo {
                r#type: MemoryDeviceInfoVariant::VirtioMem(VirtioMEMDeviceInfoWrapper { data }),
            };
            Some((memory.spec().address, info))
        }
        Part::Module(module) => {
            let data = in_a_place(device, *module);
            let r#type = MemoryDeviceInfoVariant::Dimm(PCDIMMDeviceInfoWrapper { data });
            Some((module.spec.address, MemoryDeviceInfo { r#type }))
        }
        Part::Persistent(spec) => {
            let data = VirtioPMEMDeviceInfo {
                id: device.id.clone(),
                memaddr: spec.address,
                size: spec.size,
                memdev: memdev(device),
            };
            let r#type = MemoryDeviceInfoVariant::VirtioPmem(VirtioPMEMDeviceInfoWrapper { data });
            Some((spec.address, MemoryDeviceInfo { r#type }))
        }
        _ => None,
    }
}

fn in_a_place(device: &Device, module: Module) -> PCDIMMDeviceInfo {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    PCDIMMDeviceInfo {
        id: device.id.clone(),
        addr: number(module.spec.address),
        size: number(module.spec.size),
        slot: module.slot.into(),
        node: module.spec.node.into(),
        memdev: memdev(device),
        hotplugged: module.hot,
        hotpluggable: true,
    }
}

fn by_the_block(device: &Device, memory: &VirtioMem) -> VirtioMEMDeviceInfo {
    let spec = memory.spec();
    VirtioMEMDeviceInfo {
        id: device.id.clone(),
        memaddr: spec.address,
        requested_size: memory.requested(),
        size: memory.size(),
        max_size: spec.size,
        block_size: spec.block,
        node: spec.node.unwrap_or(0).into(),
        memdev: memdev(device),
    }
}

/// The path of the memory backend that a device has.
fn memdev(device: &Device) -> String {
    let backend = device.claims.iter().find_map(|claim| match claim {
        Claim::Object(id) => Some(id.as_str()),
        _ => None,
    });
    format!("/objects/{}", backend.unwrap_or_default())
}

impl Vm {
    /// How many bytes the guest has of memory devices.
    pub(crate) fn plugged_memory(&self) -> u64 {
        let sizes = self.devices.iter().map(|(_, device)| match &device.part {
            Part::Memory(memory) => memory.size(),
            Part::Module(module) => module.spec.size,
            Part::Persistent(spec) => spec.size,
            _ => 0,
        });
        sizes.sum()
    }

    /// The same of one NUMA node.
    pub(crate) fn plugged_into_node(&self, node: u32) -> u64 {
        let sizes = self.devices.iter().map(|(_, device)| match &device.part {
            Part::Memory(memory) if memory.spec().node.map(u32::from) == Some(node) => {
                memory.size()
            }
            Part::Module(module) if module.spec.node == node => module.spec.size,
            // It says nothing of nodes, and QEMU counts it with the first.
            Part::Persistent(spec) if node == 0 => spec.size,
            _ => 0,
        });
        sizes.sum()
    }

    /// The guest uses `size` bytes of the memory device `name` now.
    pub(crate) fn memory_size_changed(&self, name: &str, size: u64) {
        let Some(device) = self.devices.find(name) else {
            return;
        };
        let id = device.id.clone();
        let qom_path = path(name, id.is_some());
        let change = MemoryDeviceSizeChange { id, size, qom_path };
        self.events.emit(Event::MemoryDeviceSizeChange(change));
    }
}
