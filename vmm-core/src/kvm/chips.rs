//! What the in-kernel interrupt chips and the timer were at power-on: reset goes back to it.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};

use super::{KvmError, KvmVm, chip_devices};

/// The state of both PICs, the IOAPIC and the PIT.
pub struct ChipState {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl ChipState {
    /// Takes down what the chips are now.
    ///
    /// # Errors
    /// KVM refuses to tell.
    pub fn capture(vm: &KvmVm) -> Result<Self, KvmError> {
        let chips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .into_iter()
        .map(|chip_id| chip_devices::read(vm, chip_id))
        .collect::<Result<_, KvmError>>()?;
        let pit = vm
            .fd()
            .get_pit2()
            .map_err(KvmError::ioctl("reading the interval timer"))?;
        Ok(Self { chips, pit })
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn restore(&self, vm: &KvmVm) -> Result<(), KvmError> {
        for chip in &self.chips {
            vm.fd()
                .set_irqchip(chip)
                .map_err(KvmError::ioctl("writing an interrupt chip"))?;
        }
        vm.fd()
            .set_pit2(&self.pit)
            .map_err(KvmError::ioctl("writing the interval timer"))
    }
}
