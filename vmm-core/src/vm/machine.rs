//! The VM's machine, whichever model it is: what the owner asks of it, answered by the model.
//!
//! A second model with a board is one more variant here, beside its room in [`crate::machine`].

use std::sync::Arc;

use devices::pci::PciHost;
use qapi_schema::QmpError;

use crate::kvm::Vcpu;
use crate::kvm::cpuid::{CpuModel, CpuPlace};
use crate::machine::{Q35, none, q35};
use crate::plug;
use crate::qom::Object;
use crate::types;

/// A machine.
pub enum VmMachine {
    /// `-machine none`: no board at all.
    None,
    /// `-machine q35`.
    Q35(Box<Q35>),
}

/// One vCPU as `query-cpus-fast` shows it.
pub struct CpuView {
    /// Its number, from 0.
    pub index: u32,
    /// The host's id of its thread.
    pub thread_id: i32,
    /// Where it sits.
    pub place: CpuPlace,
    /// Its NUMA node.
    pub node: Option<u32>,
}

impl VmMachine {
    /// The board, for the device or command `wanted_by`.
    ///
    /// # Errors
    /// The machine has none.
    pub fn board(&self, wanted_by: &str) -> Result<&Q35, QmpError> {
        match self {
            Self::Q35(q35) => Ok(q35),
            Self::None => Err(no_board(wanted_by)),
        }
    }

    /// The board, to solder something onto it.
    ///
    /// # Errors
    /// The machine has none.
    pub fn board_mut(&mut self, wanted_by: &str) -> Result<&mut Q35, QmpError> {
        match self {
            Self::Q35(q35) => Ok(q35),
            Self::None => Err(no_board(wanted_by)),
        }
    }

    /// The PCI tree, for the device or command `wanted_by`.
    ///
    /// # Errors
    /// The machine has none.
    pub fn pci_host(&self, wanted_by: &str) -> Result<&Arc<PciHost>, QmpError> {
        self.board(wanted_by).map(Q35::pci)
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn resume(&self) -> Result<(), QmpError> {
        match self {
            Self::None => Ok(()),
            Self::Q35(q35) => q35.resume().map_err(|error| QmpError::from_error(&error)),
        }
    }

    /// Stops the guest; when this returns nothing of it is in flight.
    pub fn pause(&self) {
        if let Self::Q35(q35) = self
            && let Err(error) = q35.pause()
        {
            // It stands still all the same; only its clock may jump.
            tracing::error!(%error, "pausing the machine");
        }
    }

    /// Everything back to power-on. The machine is paused.
    ///
    /// # Errors
    /// The kernel cannot be loaded again, or KVM refuses.
    pub fn reset(&self) -> Result<(), QmpError> {
        match self {
            Self::None => Ok(()),
            Self::Q35(q35) => q35.reset().map_err(|error| QmpError::from_error(&error)),
        }
    }

    /// Presses the power button of a machine that has one.
    pub fn press_power_button(&self) {
        if let Self::Q35(q35) = self {
            q35.pm().power_button();
        }
    }

    /// The vCPUs.
    pub fn cpus(&self) -> Vec<CpuView> {
        let Self::Q35(q35) = self else {
            return Vec::new();
        };
        let topology = q35.topology();
        let view = |vcpu: &Vcpu| {
            let index = u32::try_from(vcpu.index()).unwrap_or(u32::MAX);
            CpuView {
                index,
                thread_id: vcpu.thread_id(),
                place: topology.place(index),
                node: q35.numa().and_then(|numa| numa.node_of_cpu(index)),
            }
        };
        q35.vcpus().iter().map(view).collect()
    }

    /// `/machine` of the object tree, without what is plugged in: of its vCPUs those of `cpus`, of
    /// its fixtures those that are not `taken` by devices.
    pub fn shown(&self, cpus: &[u32], taken: &[&str]) -> Object {
        let model = match self {
            Self::None => &none::TYPE,
            Self::Q35(_) => &q35::TYPE,
        };
        let unattached = cpus
            .iter()
            .fold(Object::new("container"), |container, index| {
                let shown = plug::cpu::picture(Object::new(self.cpu_type()), self.cpu_model());
                container.with_child(cpu_name(*index), shown)
            });
        let fixtures = match self {
            Self::None => Vec::new(),
            Self::Q35(q35) => q35.fixtures(),
        };
        let free = fixtures
            .into_iter()
            .filter(|(name, _)| !taken.contains(&name.as_str()));
        let unattached = free.fold(unattached, |container, (name, fixture)| {
            container.with_child(name, Object::new(fixture.kind()))
        });
        Object::new(model.qom_type).with_child("unattached", unattached)
    }

    /// What its vCPUs show a guest, if it can have any.
    pub fn cpu_model(&self) -> Option<&CpuModel> {
        match self {
            Self::None => None,
            Self::Q35(q35) => Some(q35.cpu_model()),
        }
    }

    /// The type of its vCPUs; a machine without any would have the default.
    pub fn cpu_type(&self) -> &str {
        match self {
            Self::None => types::HOST_CPU,
            Self::Q35(q35) => q35.cpu_type(),
        }
    }
}

/// A vCPU's path in the object tree.
pub fn cpu_path(index: u32) -> String {
    format!("/machine/unattached/{}", cpu_name(index))
}

fn cpu_name(index: u32) -> String {
    format!("device[{index}]")
}

fn no_board(wanted_by: &str) -> QmpError {
    QmpError::generic(format!(
        "'{wanted_by}' needs a machine with a board, and this is machine 'none': start with \
         -machine q35"
    ))
}
