//! A machine with firmware: its chips at the end of the first 4 GiB, and what firmware finds in
//! fw_cfg. Everything that [`q35`](super::q35) does in a firmware's place is then left to it.
//!
//! ```text
//!   0x1_0000_0000 ──────────────────────────  the reset vector is 16 bytes below
//!        chip 0: code        ┐ each with pages that the guest reads as memory (RomPages);
//!        chip 1: variables   ┘ writes are commands (Pflash), or lost (a ROM)
//!   0x0_ff00_0000 ──────────────────────────
//!
//!   fw_cfg: etc/e820 · etc/acpi/* · etc/smbios/* · kernel    ◄── firmware reads, and makes of it
//!                                                                what the guest finds in memory
//! ```
//!
//! This room must never know where a chip's bytes came from, nor what the tables say.
//!
//! Read next: [`flash`] (a chip's memory), [`tables`] (ACPI and SMBIOS for firmware).

pub mod flash;
pub mod tables;

use std::sync::Arc;

use devices::legacy::pflash::BLOCK;
use devices::legacy::{FlashStore, FwCfgFile, Pflash};
use devices::lifecycle::Lifecycle;
use devices::memory::GuestMemView;
use devices::state::AnyStateful;
use vm_memory::{Bytes, GuestAddress};

use self::flash::{FlashPages, RomPages};
use super::MachineError;
use crate::kvm::Buses;
use crate::kvm::slots::Slots;
use crate::memory::layout::{E820Entry, E820Kind, FLASH, HIGH_RAM, Layout};

/// How much of a firmware's end is also below 1 MiB, where the first processors began.
const SHADOW: usize = 128 << 10;
/// What a ROM's length is a multiple of.
const ROM_UNIT: usize = 64 << 10;

/// A chip to be there.
pub struct ChipSpec {
    /// What is in it at the start.
    pub bytes: Vec<u8>,
    /// What it is.
    pub kind: ChipKind,
}

/// What a chip is.
pub enum ChipKind {
    /// Memory that cannot be changed.
    Rom,
    /// Flash; without a store it takes commands and changes nothing.
    Flash(Option<FlashStore>),
}

/// The chips of a machine with firmware, the one with the reset vector first.
pub struct Firmware {
    chips: Vec<Chip>,
    buses: Buses,
}

enum Chip {
    Rom(RomPages),
    Flash(u64, Arc<Pflash<FlashPages>>),
}

impl Firmware {
    /// Puts `chips` into the guest's memory, each below the one before it; `None` without any.
    ///
    /// # Errors
    /// They do not fit their place, or the host has no memory for them.
    pub fn new(
        chips: Vec<ChipSpec>,
        slots: &Arc<Slots>,
        buses: &Buses,
    ) -> Result<Option<Self>, MachineError> {
        if chips.is_empty() {
            return Ok(None);
        }
        let mut firmware = Self {
            chips: Vec::new(),
            buses: buses.clone(),
        };
        let mut end = FLASH.end;
        for (unit, ChipSpec { bytes, kind }) in chips.into_iter().enumerate() {
            check(unit, &bytes, &kind)?;
            let size = bytes.len() as u64;
            let start = end.checked_sub(size).filter(|&start| start >= FLASH.start);
            let start = start.ok_or(MachineError::FirmwareTooLarge { unit, size })?;
            let pages = RomPages::new(slots, start, &bytes)?;
            firmware.chips.push(match kind {
                ChipKind::Rom => {
                    pages.show(true);
                    Chip::Rom(pages)
                }
                ChipKind::Flash(store) => {
                    let chip = Arc::new(Pflash::new(FlashPages { pages, store }));
                    buses.mmio.insert(start, size, Arc::clone(&chip) as _)?;
                    Chip::Flash(start, chip)
                }
            });
            end = start;
        }
        Ok(Some(firmware))
    }

    /// Copies the firmware's end to where the first processors looked for it.
    ///
    /// # Errors
    /// The guest has no memory there.
    pub fn shadow(&self, memory: &GuestMemView) -> Result<(), MachineError> {
        let pages = match self.chips.first() {
            Some(Chip::Rom(pages)) => pages,
            Some(Chip::Flash(_, chip)) => &chip.array().pages,
            None => return Ok(()),
        };
        let bytes = pages.tail(SHADOW);
        let start = HIGH_RAM - bytes.len() as u64;
        Ok(memory.write_slice(&bytes, GuestAddress(start))?)
    }

    /// The flash chips by their units: what they have to save beside their bytes.
    pub fn flash_chips(&self) -> impl Iterator<Item = (usize, Arc<dyn AnyStateful>)> {
        let chips = self.chips.iter().enumerate();
        chips.filter_map(|(unit, chip)| match chip {
            Chip::Flash(_, chip) => Some((unit, Arc::clone(chip) as _)),
            Chip::Rom(_) => None,
        })
    }

    fn flash(&self) -> impl Iterator<Item = &Arc<Pflash<FlashPages>>> {
        self.chips.iter().filter_map(|chip| match chip {
            Chip::Flash(_, chip) => Some(chip),
            Chip::Rom(_) => None,
        })
    }
}

fn check(unit: usize, bytes: &[u8], kind: &ChipKind) -> Result<(), MachineError> {
    let wanted = match kind {
        ChipKind::Rom => ROM_UNIT,
        ChipKind::Flash(_) => usize::try_from(BLOCK).unwrap_or(ROM_UNIT),
    };
    if !bytes.is_empty() && bytes.len().is_multiple_of(wanted) {
        return Ok(());
    }
    Err(MachineError::FirmwareSize {
        unit,
        size: bytes.len() as u64,
        wanted,
    })
}

impl Lifecycle for Firmware {
    fn pause(&self) {
        self.flash().for_each(|chip| chip.pause());
    }

    fn resume(&self) {
        self.flash().for_each(|chip| chip.resume());
    }

    fn reset(&self) {
        self.flash().for_each(|chip| chip.reset());
    }
}

impl Drop for Firmware {
    fn drop(&mut self) {
        for chip in &self.chips {
            if let Chip::Flash(start, _) = chip {
                self.buses.mmio.remove(*start);
            }
        }
    }
}

/// The memory map for firmware: all RAM, as it makes the guest's map itself.
#[must_use]
pub fn memory_map(layout: &Layout) -> FwCfgFile {
    let ram = layout.ram().into_iter().map(|(start, len)| E820Entry {
        start,
        len,
        kind: E820Kind::Ram,
    });
    FwCfgFile {
        name: "etc/e820".to_owned(),
        bytes: ram.flat_map(|entry| entry.to_bytes()).collect(),
    }
}
