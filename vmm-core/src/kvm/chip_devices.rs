//! The kernel's interrupt chips and its interval timer, as devices with a state.
//!
//! ```text
//!   x-inspect ─► Ioapic, Pic, Pit ── ioctl ─► KVM has the registers
//! ```
//!
//! How they get back to power-on is another room's: [`super::chips`].
#![expect(unsafe_code, reason = "a chip's registers stand in a union")]
// UNSAFETY: the number of a chip says which member of the union KVM fills; all are integers.

use std::sync::Arc;

use devices::state::{AnyStateful, SavedState, StateError, Stateful};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state,
    kvm_pit_channel_state,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, KvmVm};

/// Where the IOAPIC is, in every machine.
const IOAPIC_BASE: u64 = 0xfec0_0000;
/// The highest mode of a timer's channel, what KVM has in its place before there is one, and the
/// highest of its states of reading and writing.
const LAST_MODE: u8 = 5;
const NO_MODE: u8 = 0xff;
const LAST_STEP: u8 = 4;

/// The chips of a machine, by what the object tree calls them.
#[must_use]
pub fn all(vm: &Arc<KvmVm>) -> Vec<(&'static str, Arc<dyn AnyStateful>)> {
    vec![
        ("ioapic", Arc::new(Ioapic(Arc::clone(vm)))),
        ("pic", Arc::new(Pic(Arc::clone(vm)))),
        ("pit", Arc::new(Pit(Arc::clone(vm)))),
    ]
}

/// What KVM says of a chip.
pub(super) fn read(vm: &KvmVm, chip_id: u32) -> Result<kvm_irqchip, KvmError> {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.fd()
        .get_irqchip(&mut chip)
        .map_err(KvmError::ioctl("reading an interrupt chip"))?;
    Ok(chip)
}

/// What was read; without it, the kernel's reason is in the log.
fn told<T>(read: Result<T, KvmError>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(%error, "a chip's state"))
        .ok()
}

fn write(vm: &KvmVm, chip: &kvm_irqchip) -> Result<(), KvmError> {
    let written = vm.fd().set_irqchip(chip);
    written.map_err(KvmError::ioctl("writing an interrupt chip"))
}

/// The state of an interrupt chip or timer; `None` if the kernel did not tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct KernelState<T>(Option<T>);

/// The registers of a chip, which are all its state.
trait Registers: Serialize + for<'de> Deserialize<'de> {
    const KIND: &'static str;
}

impl<T: Registers> SavedState for KernelState<T> {
    const KIND: &'static str = T::KIND;
    const VERSION: u32 = 1;
}

impl<T: Registers> KernelState<T> {
    fn registers(self) -> Result<T, StateError> {
        self.0
            .ok_or_else(|| Self::refused("the kernel had not told it"))
    }

    fn loaded(written: Result<(), KvmError>) -> Result<(), StateError> {
        written.map_err(|error| Self::refused(error.to_string()))
    }
}

/// The IOAPIC's registers (Intel 82093AA datasheet, 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IoapicRegisters {
    id: u32,
    /// Which register the data window shows.
    select: u32,
    /// The pins that ask for an interrupt.
    requests: u32,
    redirections: [u64; 24],
}

impl Registers for IoapicRegisters {
    const KIND: &'static str = "kvm-ioapic";
}

struct Ioapic(Arc<KvmVm>);

impl Stateful for Ioapic {
    type State = KernelState<IoapicRegisters>;

    fn save(&self) -> Self::State {
        let chip = told(read(&self.0, KVM_IRQCHIP_IOAPIC));
        KernelState(chip.map(|chip| {
            // SAFETY: that is what this chip has; both ways to read an entry are 64 bits.
            let state = unsafe { chip.chip.ioapic };
            let entries = state.redirtbl;
            IoapicRegisters {
                id: state.id,
                select: state.ioregsel,
                requests: state.irr,
                // SAFETY: as above.
                redirections: entries.map(|entry| unsafe { entry.bits }),
            }
        }))
    }

    fn load(&self, state: Self::State) -> Result<(), StateError> {
        let registers = state.registers()?;
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        let mut state = kvm_bindings::kvm_ioapic_state {
            base_address: IOAPIC_BASE,
            ioregsel: registers.select,
            id: registers.id,
            irr: registers.requests,
            ..Default::default()
        };
        for (entry, bits) in state.redirtbl.iter_mut().zip(registers.redirections) {
            entry.bits = bits;
        }
        chip.chip.ioapic = state;
        Self::State::loaded(write(&self.0, &chip))
    }
}

/// The registers of one of the two 8259As (Intel 8259A datasheet).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PicRegisters {
    last_requests: u8,
    requests: u8,
    mask: u8,
    in_service: u8,
    lowest_priority: u8,
    vector_base: u8,
    /// Which register a read shows.
    read_select: u8,
    poll: u8,
    special_mask: u8,
    /// Which word of its initialization comes next.
    init_state: u8,
    auto_end: u8,
    rotate_on_auto_end: u8,
    special_fully_nested: u8,
    four_words: u8,
    level_triggered: u8,
}

/// The registers of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PicPair {
    master: PicRegisters,
    slave: PicRegisters,
}

impl Registers for PicPair {
    const KIND: &'static str = "kvm-i8259";
}

impl From<kvm_pic_state> for PicRegisters {
    fn from(state: kvm_pic_state) -> Self {
        Self {
            last_requests: state.last_irr,
            requests: state.irr,
            mask: state.imr,
            in_service: state.isr,
            lowest_priority: state.priority_add,
            vector_base: state.irq_base,
            read_select: state.read_reg_select,
            poll: state.poll,
            special_mask: state.special_mask,
            init_state: state.init_state,
            auto_end: state.auto_eoi,
            rotate_on_auto_end: state.rotate_on_auto_eoi,
            special_fully_nested: state.special_fully_nested_mode,
            four_words: state.init4,
            level_triggered: state.elcr,
        }
    }
}

impl PicRegisters {
    /// The same in KVM's words; which inputs can be level-triggered is the chip's and stays.
    fn onto(self, chip: kvm_pic_state) -> kvm_pic_state {
        kvm_pic_state {
            last_irr: self.last_requests,
            irr: self.requests,
            imr: self.mask,
            isr: self.in_service,
            priority_add: self.lowest_priority,
            irq_base: self.vector_base,
            read_reg_select: self.read_select,
            poll: self.poll,
            special_mask: self.special_mask,
            init_state: self.init_state,
            auto_eoi: self.auto_end,
            rotate_on_auto_eoi: self.rotate_on_auto_end,
            special_fully_nested_mode: self.special_fully_nested,
            init4: self.four_words,
            elcr: self.level_triggered,
            elcr_mask: chip.elcr_mask,
        }
    }
}

struct Pic(Arc<KvmVm>);

impl Pic {
    fn read(&self, chip_id: u32) -> Result<kvm_pic_state, KvmError> {
        let chip = read(&self.0, chip_id)?;
        // SAFETY: that is what these chips have.
        Ok(unsafe { chip.chip.pic })
    }

    fn write(&self, chip_id: u32, registers: PicRegisters) -> Result<(), KvmError> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        chip.chip.pic = registers.onto(self.read(chip_id)?);
        write(&self.0, &chip)
    }
}

impl Stateful for Pic {
    type State = KernelState<PicPair>;

    fn save(&self) -> Self::State {
        let read = |chip_id| told(self.read(chip_id));
        let both = read(KVM_IRQCHIP_PIC_MASTER).zip(read(KVM_IRQCHIP_PIC_SLAVE));
        KernelState(both.map(|(master, slave)| PicPair {
            master: master.into(),
            slave: slave.into(),
        }))
    }

    fn load(&self, state: Self::State) -> Result<(), StateError> {
        let PicPair { master, slave } = state.registers()?;
        let written = self.write(KVM_IRQCHIP_PIC_MASTER, master);
        let written = written.and_then(|()| self.write(KVM_IRQCHIP_PIC_SLAVE, slave));
        Self::State::loaded(written)
    }
}

/// One channel of the timer (Intel 8254 datasheet). How far it has counted is not told: it begins
/// its count anew when it is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PitChannel {
    count: u32,
    latched_count: u16,
    count_latched: u8,
    status_latched: u8,
    status: u8,
    read_state: u8,
    write_state: u8,
    write_latch: u8,
    access: u8,
    mode: u8,
    decimal: u8,
    gate: u8,
}

/// The timer's channels: the interrupt, memory refresh, the speaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PitRegisters {
    channels: [PitChannel; 3],
    /// KVM's own: whether another timer has taken its place, and whether the speaker sounds.
    flags: u32,
}

impl Registers for PitRegisters {
    const KIND: &'static str = "kvm-pit";
}

impl From<kvm_pit_channel_state> for PitChannel {
    fn from(state: kvm_pit_channel_state) -> Self {
        Self {
            count: state.count,
            latched_count: state.latched_count,
            count_latched: state.count_latched,
            status_latched: state.status_latched,
            status: state.status,
            read_state: state.read_state,
            write_state: state.write_state,
            write_latch: state.write_latch,
            access: state.rw_mode,
            mode: state.mode,
            decimal: state.bcd,
            gate: state.gate,
        }
    }
}

impl From<PitChannel> for kvm_pit_channel_state {
    fn from(channel: PitChannel) -> Self {
        Self {
            count: channel.count,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.access,
            mode: channel.mode,
            bcd: channel.decimal,
            gate: channel.gate,
            count_load_time: 0,
        }
    }
}

struct Pit(Arc<KvmVm>);

impl Stateful for Pit {
    type State = KernelState<PitRegisters>;

    fn save(&self) -> Self::State {
        let read = self.0.fd().get_pit2();
        let read = told(read.map_err(KvmError::ioctl("reading the interval timer")));
        KernelState(read.map(|state| PitRegisters {
            channels: state.channels.map(Into::into),
            flags: state.flags,
        }))
    }

    fn load(&self, state: Self::State) -> Result<(), StateError> {
        let PitRegisters { channels, flags } = state.registers()?;
        let is_none = |channel: &PitChannel| {
            let steps = [channel.access, channel.read_state, channel.write_state];
            let has_mode = channel.mode <= LAST_MODE || channel.mode == NO_MODE;
            !has_mode || steps.iter().any(|step| *step > LAST_STEP)
        };
        if let Some(channel) = channels.iter().position(is_none) {
            let what = format!("channel {channel} has a mode that there is not");
            return Err(Self::State::refused(what));
        }
        let state = kvm_bindings::kvm_pit_state2 {
            channels: channels.map(Into::into),
            flags,
            ..Default::default()
        };
        let written = self.0.fd().set_pit2(&state);
        Self::State::loaded(written.map_err(KvmError::ioctl("writing the interval timer")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kvm::tests::dev_kvm;

    fn vm() -> Option<Arc<KvmVm>> {
        Some(KvmVm::new(dev_kvm()?).unwrap())
    }

    #[test]
    fn chips_are_shown_and_go_on_from_what_was_shown() {
        let Some(vm) = vm() else { return };
        for (name, chip) in all(&vm) {
            let mut tree = chip.tree().unwrap();
            let (member, value) = match name {
                "ioapic" => ("select", json!(0x10)),
                "pic" => ("master", {
                    let mut master = tree.state["master"].clone();
                    master["mask"] = json!(0xfb);
                    master
                }),
                _ => ("channels", {
                    let mut channels = tree.state["channels"].clone();
                    channels[2]["mode"] = json!(3);
                    channels
                }),
            };
            assert_ne!(tree.state[member], value, "{name}");
            tree.state[member] = value;
            chip.restore(&tree).unwrap();
            assert_eq!(chip.tree().unwrap(), tree, "{name}");
        }
    }

    #[test]
    fn a_state_that_no_chip_has_is_refused() {
        let Some(vm) = vm() else { return };
        let pit = Pit(vm);
        let before = pit.tree().unwrap();
        let mut wrong = before.clone();
        wrong.state["channels"][1]["mode"] = json!(6);
        assert!(pit.restore(&wrong).is_err());
        wrong.state = json!(null);
        assert!(pit.restore(&wrong).is_err());
        assert_eq!(pit.tree().unwrap(), before);
    }
}
