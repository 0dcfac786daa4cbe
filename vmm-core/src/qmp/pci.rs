//! `pci.json`: `query-pci`.

use devices::pci::BarKind;
use devices::pci::inspect::{BridgeView, FunctionView, RegionView, WindowView};
use qapi_schema::pci::{
    Commands, PciBridgeInfo, PciBusInfo, PciDeviceClass, PciDeviceId, PciDeviceInfo, PciInfo,
    PciMemoryRange, PciMemoryRegion,
};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn query_pci(&mut self, _cx: &mut dyn Context) -> Result<Vec<PciInfo>, QmpError> {
        let Ok(pci) = self.machine.pci_host("query-pci") else {
            return Err(QmpError::generic("the machine has no PCI bus"));
        };
        let devices = pci.inspect().iter().map(function).collect();
        Ok(vec![PciInfo { bus: 0, devices }])
    }
}

fn function(view: &FunctionView) -> PciDeviceInfo {
    PciDeviceInfo {
        bus: i64::from(view.bus),
        slot: i64::from(view.address.device()),
        function: i64::from(view.address.function()),
        class_info: PciDeviceClass {
            desc: class_name(view.class).map(str::to_owned),
            class: i64::from(view.class),
        },
        id: PciDeviceId {
            device: i64::from(view.device),
            vendor: i64::from(view.vendor),
            subsystem: view.subsystem.map(|(_, device)| i64::from(device)),
            subsystem_vendor: view.subsystem.map(|(vendor, _)| i64::from(vendor)),
        },
        irq: (view.irq_pin != 0).then(|| i64::from(view.irq)),
        irq_pin: i64::from(view.irq_pin),
        qdev_id: view.id.clone(),
        pci_bridge: view.bridge.as_ref().map(bridge),
        regions: view.regions.iter().map(region).collect(),
    }
}

fn bridge(view: &BridgeView) -> PciBridgeInfo {
    let functions: Vec<_> = view.functions.iter().map(function).collect();
    PciBridgeInfo {
        bus: PciBusInfo {
            number: i64::from(view.primary),
            secondary: i64::from(view.secondary),
            subordinate: i64::from(view.subordinate),
            // Our ports forward no port accesses: the window is closed, base above limit.
            io_range: PciMemoryRange {
                base: 0xf000,
                limit: 0xfff,
            },
            memory_range: range(view.memory),
            prefetchable_range: range(view.prefetchable),
        },
        devices: (!functions.is_empty()).then_some(functions),
    }
}

fn range(window: WindowView) -> PciMemoryRange {
    PciMemoryRange {
        base: address(window.base),
        limit: address(window.limit),
    }
}

fn region(view: &RegionView) -> PciMemoryRegion {
    let (kind, prefetch, wide) = match view.kind {
        BarKind::Io => ("io", None, None),
        BarKind::Memory32 => ("memory", Some(false), Some(false)),
        BarKind::Memory64 => ("memory", Some(true), Some(true)),
    };
    PciMemoryRegion {
        bar: i64::try_from(view.index).unwrap_or(i64::MAX),
        r#type: kind.to_owned(),
        // As in QEMU: all ones while it is not mapped.
        address: view.address.map_or(-1, address),
        size: address(view.size),
        prefetch,
        mem_type_64: wide,
    }
}

/// Guest physical addresses have at most 52 bits.
fn address(address: u64) -> i64 {
    i64::try_from(address).unwrap_or(i64::MAX)
}

/// The classes our functions have (PCI Code and ID Assignment, section 1).
fn class_name(class: u16) -> Option<&'static str> {
    Some(match class {
        0x0100 => "SCSI controller",
        0x0180 => "Storage controller",
        0x0600 => "Host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0780 => "Class 1920",
        _ => return None,
    })
}
