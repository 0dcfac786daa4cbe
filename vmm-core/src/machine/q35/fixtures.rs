//! What came with the machine and has something to save.

use std::sync::Arc;

use devices::state::AnyStateful;

use super::Q35;
use crate::kvm::chip_devices;
use crate::machine::firmware::Firmware;

impl Q35 {
    /// What came with the machine and has something to save, by what the object tree calls it. Parts
    /// of the chipset on PCI are called by their kind, flash chips by their unit.
    #[must_use]
    pub fn fixtures(&self) -> Vec<(String, Arc<dyn AnyStateful>)> {
        let board = self.board.fixtures();
        let board = board.map(|(name, it)| (name.to_owned(), Arc::clone(it) as _));
        let chipset = self.pci.root().functions().into_iter();
        let chipset = chipset.filter(|(_, function)| function.id().is_empty());
        let chipset = chipset.map(|(_, it)| (it.kind().to_owned(), it as Arc<dyn AnyStateful>));
        let flash = self.firmware.iter().flat_map(Firmware::flash_chips);
        let flash = flash.map(|(unit, chip)| (format!("pflash{unit}"), chip));
        let kernel = chip_devices::all(&self.vm).into_iter();
        let kernel = kernel.map(|(name, chip)| (name.to_owned(), chip));
        board.chain(chipset).chain(flash).chain(kernel).collect()
    }
}
