//! Base address registers: what a function wants to have mapped, and where the guest put it.
//!
//! A BAR needs no code of its own to be sized: the low address bits are read-only zero, so that
//! writing all ones reads back as the size's complement, also when only the low half of a 64-bit
//! BAR is written (its high half stays what it was, zero until programmed).

use std::fmt;
use std::sync::Arc;

use super::config::ConfigSpace;
use super::regs;
use crate::bus::BusDevice;

/// How many BARs a header of type 0 has.
pub const COUNT: usize = 6;

/// The address space and width of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers. Prefetchable, because behind a bridge only the
    /// prefetchable window reaches above 4 GiB.
    Memory64,
}

impl BarKind {
    /// The read-only low bits of the register.
    #[must_use]
    pub const fn flags(self) -> u32 {
        match self {
            Self::Io => 0b01,
            Self::Memory32 => 0b0000,
            Self::Memory64 => 0b1100,
        }
    }

    /// How many registers it takes.
    #[must_use]
    pub const fn registers(self) -> usize {
        match self {
            Self::Io | Self::Memory32 => 1,
            Self::Memory64 => 2,
        }
    }

    /// The smallest size the specification (or, for memory, the page) sensibly allows.
    #[must_use]
    pub const fn smallest(self) -> u64 {
        match self {
            Self::Io => 4,
            Self::Memory32 | Self::Memory64 => 16,
        }
    }
}

/// A region that a function wants to have mapped.
#[derive(Clone)]
pub struct BarSpec {
    /// Which BAR, 0 to 5 (0 to 4 for one of two registers).
    pub index: usize,
    /// Space and width.
    pub kind: BarKind,
    /// Size in bytes; rounded up to a power of two.
    pub size: u64,
    /// Who answers there.
    pub device: Arc<dyn BusDevice>,
}

impl fmt::Debug for BarSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarSpec")
            .field("index", &self.index)
            .field("kind", &self.kind)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl BarSpec {
    /// The size as the guest sees it: a power of two.
    #[must_use]
    pub fn rounded(&self) -> u64 {
        let top = match self.kind {
            BarKind::Io => 1 << 16,
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 62,
        };
        self.size
            .clamp(self.kind.smallest(), top)
            .checked_next_power_of_two()
            .unwrap_or(top)
    }

    /// The register's offset.
    #[must_use]
    pub fn register(&self) -> u16 {
        register(self.index)
    }

    /// Puts the register or registers into `config`.
    pub fn describe(&self, config: &mut ConfigSpace) {
        let mask = !(self.rounded() - 1);
        let bytes = mask.to_le_bytes();
        let at = self.register();
        config.store32(at, self.kind.flags());
        let (low, high) = bytes.split_at(4);
        config.allow(at, low);
        if self.kind == BarKind::Memory64 {
            config.store32(at + 4, 0);
            config.allow(at + 4, high);
        }
    }

    /// Where the region is to be mapped now: `None` while COMMAND does not allow it, while the
    /// register is zero, and while it holds the all-ones of a sizing (a region that would end at
    /// the last address of its space).
    #[must_use]
    pub fn decode(&self, config: &ConfigSpace) -> Option<u64> {
        let command = config.load16(regs::COMMAND);
        let low = u64::from(config.load32(self.register()));
        let (enabled, base, last_of_space) = match self.kind {
            BarKind::Io => (regs::COMMAND_IO, low & !0b11, u64::from(u16::MAX)),
            BarKind::Memory32 => (regs::COMMAND_MEMORY, low & !0xf, u64::from(u32::MAX)),
            BarKind::Memory64 => {
                let high = u64::from(config.load32(self.register() + 4));
                (regs::COMMAND_MEMORY, high << 32 | low & !0xf, u64::MAX)
            }
        };
        let last = base.checked_add(self.rounded() - 1)?;
        let sizing = last == u64::from(u32::MAX) && self.kind == BarKind::Memory64;
        (command & enabled != 0 && base != 0 && last < last_of_space && !sizing).then_some(base)
    }
}

/// The offset of BAR `index`.
#[must_use]
pub fn register(index: usize) -> u16 {
    let index = u16::try_from(index.min(COUNT - 1)).unwrap_or(0);
    regs::BAR0 + 4 * index
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Nobody;
    impl BusDevice for Nobody {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(0);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn bar(kind: BarKind, size: u64) -> (BarSpec, ConfigSpace) {
        let spec = BarSpec {
            index: 0,
            kind,
            size,
            device: Arc::new(Nobody),
        };
        let mut config = ConfigSpace::new();
        config.allow(regs::COMMAND, &[7, 0]);
        spec.describe(&mut config);
        (spec, config)
    }

    #[test]
    fn sizing_the_low_half_leaves_the_high_half_zero() {
        let (spec, mut config) = bar(BarKind::Memory64, 0x4000);
        config.write(regs::BAR0, &[0xff; 4]);
        assert_eq!(config.load32(regs::BAR0), 0xffff_c00c);
        assert_eq!(config.load32(regs::BAR0 + 4), 0);
        config.write(regs::COMMAND, &[2]);
        assert_eq!(spec.decode(&config), None);
    }

    #[test]
    fn a_region_is_mapped_only_while_command_allows_it() {
        let (spec, mut config) = bar(BarKind::Io, 8);
        config.write(regs::BAR0, &0xc000_u32.to_le_bytes());
        assert_eq!(spec.decode(&config), None);
        config.write(regs::COMMAND, &[2]);
        assert_eq!(spec.decode(&config), None);
        config.write(regs::COMMAND, &[1]);
        assert_eq!(spec.decode(&config), Some(0xc000));
    }

    proptest! {
        #[test]
        fn sizing_reads_back_the_size_and_a_base_reads_back_aligned(
            shift in 4u32..31, extra in any::<u64>(), base in any::<u64>(), wide in any::<bool>(),
        ) {
            let size = (1u64 << shift) - extra % (1u64 << (shift - 1));
            let kind = if wide { BarKind::Memory64 } else { BarKind::Memory32 };
            let (spec, mut config) = bar(kind, size);
            prop_assert_eq!(spec.rounded(), 1u64 << shift);
            config.write(regs::BAR0, &[0xff; 8]);
            let low = u64::from(config.load32(regs::BAR0) & !0xf);
            let high = if wide { u64::from(config.load32(regs::BAR0 + 4)) } else { 0xffff_ffff };
            prop_assert_eq!(!(high << 32 | low) + 1, spec.rounded());
            config.write(regs::BAR0, &base.to_le_bytes());
            config.write(regs::COMMAND, &[2]);
            if let Some(at) = spec.decode(&config) {
                let base = if wide { base } else { base & 0xffff_ffff };
                prop_assert_eq!(at, base & !(spec.rounded() - 1));
            }
        }
    }
}
