//! A machine's PCI tree, from its host bridge to its end.

use std::sync::Arc;

use devices::pci::bus::PciBus;
use devices::pci::{PciHost, PciHostSpec, Spaces};

use super::wiring::Wiring;
use crate::kvm::Buses;

/// The GSIs of the root bus' wires, as QEMU's q35 has them.
pub(super) const INTX: [u32; 4] = [16, 17, 18, 19];

/// The tree with its host bridge; the other function that every q35 has is the board's.
pub(super) fn pci_tree(buses: &Buses, wiring: &Wiring) -> Arc<PciHost> {
    PciHost::new(PciHostSpec {
        spaces: Spaces {
            io: Arc::clone(&buses.pio),
            memory: Arc::clone(&buses.mmio),
        },
        intx: INTX.map(|gsi| wiring.line(gsi)),
    })
}

/// Takes all functions off a bus and what is behind it: mapped BARs hold the functions, and the
/// functions hold the buses.
pub(super) fn take_down(bus: &PciBus) {
    for (address, function) in bus.functions() {
        if let Some(bridge) = function.bridge() {
            take_down(bridge.bus());
        }
        bus.remove(address);
        function.detach();
    }
}
