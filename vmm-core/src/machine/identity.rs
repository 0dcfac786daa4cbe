//! What a machine is called, and how SMBIOS tells it.

use super::numa::NumaSpec;
use super::smbios::SmbiosSpec;
use crate::kvm::cpuid::{CpuModel, CpuTopology};
use crate::memory::Layout;

/// What the firmware tables need and nothing else holds.
pub(super) struct Identity {
    pub(super) product: String,
    pub(super) uuid: [u8; 16],
    pub(super) topology: CpuTopology,
    pub(super) cpu_type: String,
    pub(super) numa: Option<NumaSpec>,
}

impl Identity {
    pub(super) fn smbios(&self, model: &CpuModel, layout: &Layout) -> SmbiosSpec {
        let CpuTopology {
            sockets,
            dies,
            cores,
            threads,
        } = self.topology;
        SmbiosSpec {
            uuid: self.uuid,
            product: self.product.clone(),
            sockets,
            cores: dies * cores,
            threads: dies * cores * threads,
            cpu: model.signature(),
            ram: layout.ram(),
        }
    }
}
