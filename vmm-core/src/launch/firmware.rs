//! The firmware of a launch: a ROM from a file, or flash chips on block nodes.

use anyhow::{Context as _, Result, bail};
use block::Usage;
use devices::legacy::FlashStore;
use devices::legacy::pflash::BLOCK;
use fdset::Door;
use qapi_schema::QmpError;

use super::fw_cfg;
use crate::cli::Config;
use crate::machine::firmware::{ChipKind, ChipSpec};
use crate::machine::q35::FirmwareSpec;
use crate::memory::layout::FLASH;
use crate::vm::Vm;

/// Firmware, and what it finds in fw_cfg beside what the machine knows of itself.
pub(super) fn firmware(vm: &mut Vm, door: &Door, config: &Config) -> Result<FirmwareSpec> {
    Ok(FirmwareSpec {
        chips: chips(vm, door, config)?,
        no_graphic: config.no_graphic,
        files: fw_cfg::files(door, config)?,
    })
}

fn chips(vm: &mut Vm, door: &Door, config: &Config) -> Result<Vec<ChipSpec>> {
    if let Some(name) = &config.machine.firmware {
        let room = usize::try_from(FLASH.end - FLASH.start).unwrap_or(usize::MAX);
        let bytes = fw_cfg::read_blob(door, name, "-bios", room).context("-bios")?;
        let kind = ChipKind::Rom;
        return Ok(vec![ChipSpec { bytes, kind }]);
    }
    let mut chips = Vec::new();
    for (unit, name) in config.machine.pflash.iter().flatten().enumerate() {
        chips.push(chip(vm, unit, name).with_context(|| format!("pflash{unit}"))?);
    }
    Ok(chips)
}

/// A chip with what is in the node, or the drive, of that name.
fn chip(vm: &mut Vm, unit: usize, name: &str) -> Result<ChipSpec> {
    let failed = |error: block::BlockError| QmpError::from_error(&error);
    let node = vm.find_node(Some(name), Some(name))?;
    let read_only = {
        let view = vm.graph.node(&node).map_err(failed)?;
        let block = u32::try_from(BLOCK).unwrap_or(u32::MAX);
        view.node().check_disk(block).map_err(failed)?;
        if view.node().len() > FLASH.end - FLASH.start {
            bail!(
                "node '{node}' has {} bytes; all firmware together has 16 MiB of room",
                view.node().len()
            );
        }
        view.node().is_read_only()
    };
    let usage = Usage::disk(read_only, false);
    let device = format!("system.flash{unit}");
    let root = vm.graph.attach(&node, &device, usage).map_err(failed)?;
    let store = FlashStore::new(root, vm.default_iothread()?);
    let bytes = store
        .load()?
        .with_context(|| format!("reading node '{node}'"))?;
    let kind = ChipKind::Flash(Some(store).filter(|_| !read_only));
    Ok(ChipSpec { bytes, kind })
}
