//! What all PCI devices share: their place, the virtio transport, root ports and bridges.

use std::sync::Arc;

use devices::legacy::pvpanic;
use devices::pci::{
    I6300esb, PciFunction, PciePciBridge, PvpanicPci, RootPort, RootPortSpec, SlotAddress,
};
use devices::virtio::device::VirtioDevice;
use devices::virtio::transport::{VirtioPci, VirtioPciSpec};
use devices::watchdog::WatchdogHost;
use qapi_schema::QmpError;
use qapi_schema::common::OnOffAuto;
use qapi_schema::devices::{PciProperties, PcieRootPortProperties};
use qapi_schema::pvpanic::PvpanicPciProperties;
use qapi_schema::watchdog::I6300esbProperties;

use super::Plug;
use crate::device_tree::Part;
use crate::resolve::unmet::{self, Wish};

/// The properties that place a virtio device, with their defaults decided.
pub(super) struct VirtioPlace {
    pub(super) addr: Option<String>,
    pub(super) multifunction: Option<bool>,
    pub(super) disable_legacy: Option<OnOffAuto>,
    pub(super) disable_modern: Option<bool>,
    pub(super) vectors: Option<u32>,
    pub(super) unmet: [Wish; 4],
}

/// Takes the placing properties out of any virtio device's properties.
macro_rules! virtio_place {
    ($properties:expr) => {
        $crate::plug::pci::VirtioPlace {
            addr: $properties.addr.clone(),
            multifunction: $properties.multifunction,
            disable_legacy: $properties.disable_legacy,
            disable_modern: $properties.disable_modern,
            vectors: $properties.vectors,
            unmet: [
                (
                    $properties.iommu_platform == Some(true),
                    "iommu_platform=on",
                    "the machine has no IOMMU",
                ),
                (
                    $properties.ats == Some(true),
                    "ats=on",
                    "the machine has no IOMMU",
                ),
                (
                    $properties.ioeventfd == Some(false),
                    "ioeventfd=off",
                    "the kernel takes the guest's kicks",
                ),
                (
                    $properties.acpi_index.unwrap_or(0) != 0,
                    "acpi-index",
                    "the firmware tables name no slots",
                ),
            ],
        }
    };
}
pub(super) use virtio_place;

/// Puts a virtio device into a PCI slot.
pub(super) fn plug_virtio(
    plug: &mut Plug<'_>,
    place: VirtioPlace,
    device: Arc<dyn VirtioDevice>,
) -> Result<(), QmpError> {
    unmet::refuse(&place.unmet)?;
    if place.disable_modern == Some(true) || place.disable_legacy == Some(OnOffAuto::Off) {
        return Err(QmpError::generic(
            "only modern virtio devices (virtio 1.2): leave 'disable-modern' off and \
             'disable-legacy' on or auto",
        ));
    }
    let vectors = match place.vectors {
        None => VirtioPciSpec::vectors_for(device.as_ref()),
        Some(vectors) => u16::try_from(vectors)
            .ok()
            .filter(|vectors| (1..=2048).contains(vectors))
            .ok_or_else(|| QmpError::generic("Parameter 'vectors' expects 1 to 2048"))?,
    };
    let board = plug.vm.machine.board(&plug.name)?;
    let function = VirtioPci::new(VirtioPciSpec {
        id: plug.name.clone(),
        device,
        memory: board.memory().clone(),
        msi: board.msi(),
        doorbells: board.doorbells(),
        vectors,
        multifunction: place.multifunction.unwrap_or(false),
    })
    .map_err(|error| QmpError::from_error(&error))?;
    let virtio = Arc::downgrade(&function);
    insert(plug, place.addr.as_deref(), function)?;
    plug.virtio = virtio;
    Ok(())
}

/// `pcie-root-port`.
pub(super) fn plug_root_port(
    plug: &mut Plug<'_>,
    options: PcieRootPortProperties,
) -> Result<Part, QmpError> {
    refuse_acpi_index(options.acpi_index)?;
    if options.hotplug == Some(false) {
        return Err(QmpError::generic(
            "Parameter 'hotplug' does not accept value 'off': the slots of root ports take \
             devices at any time",
        ));
    }
    let board = plug.vm.machine.board(&plug.name)?;
    // Guests name slots by this number; the chassis tells apart the slots of several boxes.
    let slot = options.slot.or(options.chassis.map(u16::from)).unwrap_or(0);
    let port = RootPort::new(RootPortSpec {
        id: plug.name.clone(),
        port: options.port.unwrap_or(0),
        slot,
        multifunction: options.multifunction.unwrap_or(false),
        msi: board.msi(),
        notices: plug.vm.mailbox.notices(),
    })
    .map_err(|error| QmpError::from_error(&error))?;
    insert(plug, options.addr.as_deref(), port)?;
    Ok(Part::Function)
}

/// `pcie-pci-bridge`.
pub(super) fn plug_pci_bridge(plug: &mut Plug<'_>, place: PciProperties) -> Result<Part, QmpError> {
    refuse_acpi_index(place.acpi_index)?;
    let notices = plug.vm.mailbox.notices();
    let bridge = PciePciBridge::new(&plug.name, place.multifunction.unwrap_or(false), notices)
        .map_err(|error| QmpError::from_error(&error))?;
    insert(plug, place.addr.as_deref(), bridge)?;
    Ok(Part::Function)
}

/// `pvpanic-pci`.
pub(super) fn plug_pvpanic(
    plug: &mut Plug<'_>,
    options: PvpanicPciProperties,
) -> Result<Part, QmpError> {
    refuse_acpi_index(options.acpi_index)?;
    let function = PvpanicPci::new(
        &plug.name,
        plug.vm.mailbox.notices(),
        options.events.unwrap_or(pvpanic::EVENTS),
        options.multifunction.unwrap_or(false),
    );
    insert(plug, options.addr.as_deref(), function)?;
    Ok(Part::Function)
}

/// `i6300esb`.
pub(super) fn plug_watchdog(
    plug: &mut Plug<'_>,
    options: I6300esbProperties,
) -> Result<Part, QmpError> {
    refuse_acpi_index(options.acpi_index)?;
    let host = WatchdogHost {
        reactor: plug.vm.reactor.clone(),
        clock: plug.vm.clock.clone(),
        notices: plug.vm.mailbox.notices(),
    };
    let function = I6300esb::new(&plug.name, host, options.multifunction.unwrap_or(false))
        .map_err(|error| QmpError::generic(format!("the watchdog's timer: {error}")))?;
    insert(plug, options.addr.as_deref(), function)?;
    Ok(Part::Function)
}

fn refuse_acpi_index(index: Option<u32>) -> Result<(), QmpError> {
    unmet::refuse(&[(
        index.unwrap_or(0) != 0,
        "acpi-index",
        "the firmware tables name no slots",
    )])
}

fn insert(
    plug: &Plug<'_>,
    addr: Option<&str>,
    function: Arc<dyn PciFunction>,
) -> Result<(), QmpError> {
    let address: Option<SlotAddress> = addr
        .map(str::parse)
        .transpose()
        .map_err(|error: devices::pci::address::AddressError| QmpError::from_error(&error))?;
    let pci = plug.vm.machine.pci_host(&plug.name)?;
    pci.plug(plug.bus.as_deref(), address, function)
        .map(drop)
        .map_err(|error| QmpError::from_error(&error))
}
