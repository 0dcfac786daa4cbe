//! The two ways into configuration space: the ports 0xcf8..0xcff and the ECAM window.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::address::{Bdf, SlotAddress};
use super::config::EXTENDED;
use super::host::PciHost;
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::state::{SavedState, StateError, Stateful};

/// Where [`ConfigPorts`] are mapped.
pub const PORTS_BASE: u64 = 0xcf8;
/// How many ports they take.
pub const PORTS_LEN: u64 = 8;

/// Configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2): an address at 0xcf8, its dword at
/// 0xcfc.
///
/// A chipset ignores the lowest two bits of the address; as in QEMU they count here, so that a
/// driver may name a byte at 0xcf8 and read it at 0xcfc. Nobody else sets them.
///
/// The address register takes only accesses of four bytes. A narrower one at 0xcf9 is the
/// chipset's reset register, which lies inside; it is handed on.
pub struct ConfigPorts {
    host: Arc<PciHost>,
    reset: Arc<dyn BusDevice>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// The ports of `host`; `reset` answers byte accesses to 0xcf9.
    #[must_use]
    pub fn new(host: Arc<PciHost>, reset: Arc<dyn BusDevice>) -> Self {
        Self {
            host,
            reset,
            address: AtomicU32::new(0),
        }
    }

    /// The function and register that an access to 0xcfc + `low` reaches, and how many bytes it is
    /// to the end of the dword, where an access ends.
    fn target(&self, low: u64) -> Option<(Bdf, u16, usize)> {
        let [register, devfn, bus, enable] = self.address.load(Ordering::Acquire).to_le_bytes();
        if enable & 0x80 == 0 {
            return None;
        }
        let bdf = Bdf {
            bus,
            slot: SlotAddress::from_devfn(devfn),
        };
        let low = u8::try_from(low & 3).unwrap_or(0);
        let register = register | low;
        Some((bdf, u16::from(register), 4 - usize::from(register & 3)))
    }
}

/// What a snapshot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPortsState {
    /// What 0xcf8 holds.
    pub address: u32,
}

impl SavedState for ConfigPortsState {
    const KIND: &'static str = "pci-config-ports";
    const VERSION: u32 = 1;
}

impl Stateful for ConfigPorts {
    type State = ConfigPortsState;

    fn save(&self) -> ConfigPortsState {
        let address = self.address.load(Ordering::Acquire);
        ConfigPortsState { address }
    }

    fn load(&self, state: ConfigPortsState) -> Result<(), StateError> {
        self.address.store(state.address, Ordering::Release);
        Ok(())
    }
}

impl Lifecycle for ConfigPorts {
    fn reset(&self) {
        self.address.store(0, Ordering::Release);
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.load(Ordering::Acquire).to_le_bytes()),
            (1, 1) => self.reset.read(0, data),
            (4..=7, _) => {
                if let Some((bdf, register, room)) = self.target(offset - 4) {
                    let (within, _) = data.split_at_mut(room.min(data.len()));
                    self.host.config_read(bdf, register, within);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self
                .address
                .store(u32::from_le_bytes([a, b, c, d]), Ordering::Release),
            (1, [_]) => self.reset.write(0, data),
            (4..=7, _) => {
                if let Some((bdf, register, room)) = self.target(offset - 4) {
                    let (within, _) = data.split_at(room.min(data.len()));
                    self.host.config_write(bdf, register, within);
                }
            }
            _ => {}
        }
    }
}

/// The memory-mapped window: 4 KiB for each function of each bus (PCI Express Base 5.0, 7.2.2).
///
/// It is mapped by a function of the tree, and so does not keep the tree.
pub struct Ecam(Weak<PciHost>);

impl Ecam {
    /// The window of `host`.
    #[must_use]
    pub const fn new(host: Weak<PciHost>) -> Self {
        Self(host)
    }
}

fn decode(offset: u64) -> (Bdf, u16) {
    let [low, middle, devfn_or_bus, bus, ..] = offset.to_le_bytes();
    let register = u16::from_le_bytes([low, middle & 0x0f]);
    let bdf = Bdf {
        bus: bus << 4 | devfn_or_bus >> 4,
        slot: SlotAddress::from_devfn(devfn_or_bus << 4 | middle >> 4),
    };
    (bdf, register)
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (bdf, register) = decode(offset);
        let room = EXTENDED - usize::from(register);
        let within = data.len().min(room);
        if let (Some(host), Some(data)) = (self.0.upgrade(), data.get_mut(..within)) {
            host.config_read(bdf, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (bdf, register) = decode(offset);
        let room = EXTENDED - usize::from(register);
        if let (Some(host), Some(data)) = (self.0.upgrade(), data.get(..data.len().min(room))) {
            host.config_write(bdf, register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ecam_offset_names_bus_device_function_and_register() {
        let (bdf, register) = decode(0x12 << 20 | 0x1f << 15 | 3 << 12 | 0xabc);
        assert_eq!(bdf.to_string(), "12:1f.3");
        assert_eq!(register, 0xabc);
    }
}
