//! The two address spaces of an x86 guest: ports and memory.
//!
//! A vCPU exit brings an address and bytes; [`Bus`] finds the device and its offset. Lookups take
//! a read lock for a clone of one `Arc` and call the device outside it, so a device may change
//! the map (a BAR that moves) from inside its own write.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A device that answers on a range of ports or memory. Hostile input: any offset inside the
/// range, any length from 1 to 8.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset`. Unknown registers read as all ones
    /// (ports) or zero, as the device's specification says; `data` is never left untouched.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Mapping {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space: which device answers where.
#[derive(Default)]
pub struct Bus {
    mappings: RwLock<BTreeMap<u64, Mapping>>,
}

/// A range that cannot be mapped.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The range's start.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, len } = self;
        write!(
            f,
            "{len:#x} bytes at {base:#x} overlap another device or wrap around"
        )
    }
}

impl std::error::Error for Overlap {}

impl Bus {
    /// Maps `device` at `[base, base + len)`.
    ///
    /// # Errors
    /// The range is empty, wraps around, or overlaps another mapping.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let overlap = Overlap { base, len };
        let Some(end) = base.checked_add(len).filter(|_| len > 0) else {
            return Err(overlap);
        };
        let mut mappings = self
            .mappings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((&other, mapping)) = mappings.range(..end).next_back()
            && other.saturating_add(mapping.len) > base
        {
            return Err(overlap);
        }
        mappings.insert(base, Mapping { len, device });
        Ok(())
    }

    /// Takes the mapping that starts at `base` away; tells whether there was one.
    pub fn remove(&self, base: u64) -> bool {
        let removed = self
            .mappings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&base);
        // The device is dropped here, outside the lock: its drop may use the bus.
        removed.is_some()
    }

    /// A guest read. Where nobody answers, `data` becomes all ones and the result is `false`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// A guest write; `false` where nobody listens.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address) else {
            return false;
        };
        device.write(offset, data);
        true
    }

    fn find(&self, address: u64) -> Option<(Arc<dyn BusDevice>, u64)> {
        let mappings = self.mappings.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, mapping) = mappings.range(..=address).next_back()?;
        let offset = address - base;
        (offset < mapping.len).then(|| (Arc::clone(&mapping.device), offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).expect("small"));
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_holds_it() {
        let bus = Bus::default();
        bus.insert(0x10, 0x10, Arc::new(Echo)).unwrap();
        let mut byte = [0];
        assert!(bus.read(0x1f, &mut byte));
        assert_eq!(byte, [0xf]);
        assert!(!bus.read(0x20, &mut byte));
        assert_eq!(byte, [0xff]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let bus = Bus::default();
        bus.insert(0x10, 0x10, Arc::new(Echo)).unwrap();
        for (base, len) in [
            (0x0, 0x11),
            (0x1f, 1),
            (0x8, 0x100),
            (0x30, 0),
            (u64::MAX, 2),
        ] {
            assert_eq!(
                bus.insert(base, len, Arc::new(Echo)),
                Err(Overlap { base, len })
            );
        }
        bus.insert(0x20, 1, Arc::new(Echo)).unwrap();
        assert!(bus.remove(0x10));
        assert!(!bus.remove(0x10));
        bus.insert(0x0, 0x20, Arc::new(Echo)).unwrap();
    }
}
