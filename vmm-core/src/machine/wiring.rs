//! Where a machine's interrupts and doorbells lead: to KVM's chips, or first past a tester.

use std::sync::Arc;

use devices::irq::{Doorbells, IrqLine, MsiController};
use devices::memory::GuestMem;

use crate::kvm::KvmIrqs;
use crate::qtest::{TestedIrqs, TestedMsi};

/// The interrupts of a machine.
#[derive(Clone)]
pub struct Wiring {
    kvm: Arc<KvmIrqs>,
    /// Where a tester is in the place of the vCPUs.
    tested: Option<Arc<TestedIrqs>>,
}

impl Wiring {
    /// To KVM's chips.
    #[must_use]
    pub const fn new(kvm: Arc<KvmIrqs>) -> Self {
        Self { kvm, tested: None }
    }

    /// Past a tester, who finds messages in `memory`.
    #[must_use]
    pub fn tested(kvm: Arc<KvmIrqs>, memory: GuestMem) -> Self {
        let chips = Arc::clone(&kvm);
        let line = Box::new(move |pin| chips.line(pin));
        let tested = TestedIrqs::new(memory, line, Arc::clone(&kvm) as _);
        Self {
            kvm,
            tested: Some(tested),
        }
    }

    /// What a tester sees of them, if there is one.
    #[must_use]
    pub fn tester(&self) -> Option<&Arc<TestedIrqs>> {
        self.tested.as_ref()
    }

    /// The line of one pin of the interrupt controller.
    #[must_use]
    pub fn line(&self, pin: u32) -> Arc<dyn IrqLine> {
        match &self.tested {
            Some(tested) => tested.line(pin),
            None => self.kvm.line(pin),
        }
    }

    /// Where PCI functions get their message-signalled interrupts.
    #[must_use]
    pub fn msi(&self) -> Arc<dyn MsiController> {
        match &self.tested {
            Some(tested) => Arc::new(TestedMsi(Arc::clone(tested))),
            None => Arc::clone(&self.kvm) as _,
        }
    }

    /// Where queues register their doorbells.
    #[must_use]
    pub fn doorbells(&self) -> Arc<dyn Doorbells> {
        Arc::clone(&self.kvm) as _
    }

    /// KVM's chips.
    #[cfg(test)]
    pub(super) const fn chips(&self) -> &Arc<KvmIrqs> {
        &self.kvm
    }

    /// How many of KVM's vectors are taken: for leak checks.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.kvm.vectors()
    }
}
