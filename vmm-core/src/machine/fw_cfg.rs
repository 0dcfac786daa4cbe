//! What a machine tells in fw_cfg: of itself, and what its maker adds.

use devices::legacy::{FwCfgFile, FwCfgSpec};

use super::q35::FirmwareSpec;
use super::{BootSource, MachineError, Q35Spec, firmware};
use crate::memory::Layout;
use crate::memory::layout::E820Entry;

/// All of it but for what firmware finds as well. Programs that are no firmware are told of the
/// memory as a boot loader tells it.
///
/// # Errors
/// Firmware cannot be told of the kernel.
pub(super) fn contents(spec: &mut Q35Spec, layout: &Layout) -> Result<FwCfgSpec, MachineError> {
    let FirmwareSpec {
        no_graphic,
        ref files,
        ref chips,
    } = spec.firmware;
    let mut files = files.clone();
    let has_firmware = !chips.is_empty();
    files.push(if has_firmware {
        firmware::memory_map(layout)
    } else {
        let e820 = layout.e820();
        FwCfgFile {
            name: "etc/e820".to_owned(),
            bytes: e820.iter().flat_map(E820Entry::to_bytes).collect(),
        }
    });
    if !layout.devices.is_empty() {
        // Firmware puts what it places itself behind all that may still come.
        files.push(FwCfgFile {
            name: "etc/reserved-memory-end".to_owned(),
            bytes: layout.pci64.start.to_le_bytes().to_vec(),
        });
    }
    let boot = spec.boot.take_if(|_| has_firmware);
    let kernel = boot.map(BootSource::into_parts_for_firmware).transpose()?;
    Ok(FwCfgSpec {
        uuid: spec.uuid,
        ram: layout.low.saturating_add(layout.high),
        no_graphic,
        cpus: narrow(spec.vcpus),
        max_cpus: narrow(spec.topology.total().unwrap_or(spec.vcpus)),
        kernel,
        files,
    })
}

/// A number of vCPUs as fw_cfg has it.
pub(super) fn narrow(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
