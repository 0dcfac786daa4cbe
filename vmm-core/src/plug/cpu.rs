//! vCPUs as devices, and what the guest says of their coming and going.

use qapi_schema::acpi::{ACPIOSTInfo, ACPISlotType, AcpiDeviceOst};
use qapi_schema::cpu::X86CpuProperties;
use qapi_schema::qdev::{DeviceDeleted, DeviceUnplugGuestError};
use qapi_schema::{Event, QmpError};
use serde_json::{Value, json};

use super::{Plug, unplugged};
use crate::device_tree::{Part, path};
use crate::kvm::cpu_models::FeatureWord;
use crate::kvm::cpuid::{CpuModel, CpuPlace, CpuTopology};
use crate::qom::Object;
use crate::vm::{Vm, cpu_path};

/// The sources of an `_OST` that speak of a removal: asked for by us, and by the guest itself.
const REMOVALS: [u32; 2] = [3, 0x103];
/// The statuses of a removal that do not end it: success, and still at it.
const NO_REFUSAL: [u32; 2] = [0, 0x84];
/// The type of registers that are shown.
const WORDS: &str = "X86CPUFeatureWordInfo";

pub(super) fn plug(
    plug: &mut Plug<'_>,
    driver: &str,
    options: &X86CpuProperties,
) -> Result<Part, QmpError> {
    let runs = plug.vm.run_state.is_running();
    let hot = plug.vm.is_powered_on();
    let expected = plug.vm.machine.cpu_type().to_owned();
    let board = plug.vm.machine.board_mut(&plug.name)?;
    if driver != expected {
        return Err(QmpError::generic(format!(
            "Invalid CPU type, expected cpu type: '{expected}'"
        )));
    }
    let topology = board.topology();
    let place = place(options, topology)?;
    let index = topology.index(place);
    let node = board.numa().and_then(|numa| numa.node_of_cpu(index));
    if let Some(node) = options
        .node_id
        .filter(|told| node.map(i64::from) != Some(*told))
    {
        return Err(QmpError::generic(format!(
            "node-id={node} must match numa node specified with -numa option"
        )));
    }
    if board.vcpus().find(index as usize).is_some() {
        return Err(QmpError::generic(format!(
            "CPU[{index}] with APIC ID {} exists",
            topology.apic_id(index)
        )));
    }
    board
        .plug_cpu(index, hot, runs)
        .map_err(|error| QmpError::from_error(&error))?;
    Ok(Part::Cpu(index))
}

/// Where the options say.
fn place(options: &X86CpuProperties, topology: CpuTopology) -> Result<CpuPlace, QmpError> {
    let number = |name: &str, given: Option<i64>, count: u32| {
        let last = count.saturating_sub(1);
        let given = given.ok_or_else(|| QmpError::generic(format!("CPU {name} is not set")))?;
        let number = u32::try_from(given).ok().filter(|number| *number <= last);
        number.ok_or_else(|| {
            QmpError::generic(format!(
                "Invalid CPU {name}: {given} must be in range 0:{last}"
            ))
        })
    };
    // Where sockets have one die nobody needs to name it.
    let only_die = (topology.dies == 1).then_some(0);
    Ok(CpuPlace {
        socket: number("socket-id", options.socket_id, topology.sockets)?,
        die: number("die-id", options.die_id.or(only_die), topology.dies)?,
        core: number("core-id", options.core_id, topology.cores)?,
        thread: number("thread-id", options.thread_id, topology.threads)?,
    })
}

/// Asks the guest to let a vCPU go.
pub(super) fn request_unplug(vm: &Vm, index: u32) -> Result<(), QmpError> {
    if index == 0 {
        return Err(QmpError::generic("Boot CPU is unpluggable"));
    }
    let board = vm.machine.board("device_del")?;
    board
        .request_unplug_cpu(index)
        .map_err(|error| QmpError::from_error(&error))
}

/// The number of the vCPU that a client calls `id`: one that no device stands for.
pub(super) fn soldered(vm: &Vm, id: &str) -> Option<u32> {
    let soldered = vm.soldered_cpus();
    soldered.into_iter().find(|index| cpu_path(*index) == id)
}

/// Whether an `_OST` says that the guest keeps what it was to let go.
pub(super) fn is_refusal(event: u32, status: u32) -> bool {
    REMOVALS.contains(&event) && !NO_REFUSAL.contains(&status)
}

/// How the object tree shows a vCPU.
pub(crate) fn picture(object: Object, model: Option<&CpuModel>) -> Object {
    let Some(model) = model else {
        return object;
    };
    let who = model.identity();
    let object = object
        .with("vendor", "string", who.vendor)
        .with("model-id", "string", who.brand)
        .with("family", "int", who.family)
        .with("model", "int", who.model)
        .with("stepping", "int", who.stepping)
        .with("level", "uint32", who.level)
        .with("xlevel", "uint32", who.extended_level)
        .with("phys-bits", "uint32", model.physical_bits())
        .with("kvm", "bool", who.tells_of_kvm)
        .with("feature-words", WORDS, words(&model.words()))
        .with("filtered-features", WORDS, words(&model.filtered_words()))
        .with("unavailable-features", "strList", model.lacks().to_vec());
    model
        .features()
        .into_iter()
        .fold(object, |object, (name, shown)| {
            object.with(name, "bool", shown)
        })
}

/// Registers of CPUID, as clients of QEMU know them.
fn words(words: &[FeatureWord]) -> Value {
    let shown = words.iter().map(|word| {
        let mut shown = json!({
            "cpuid-input-eax": word.function,
            "cpuid-register": word.register,
            "features": word.bits,
        });
        if let Some(index) = word.index {
            shown["cpuid-input-ecx"] = index.into();
        }
        shown
    });
    shown.collect()
}

impl Vm {
    /// The name of the device that is the vCPU `index`, and whether a client gave it.
    fn cpu_device(&self, index: u32) -> Option<(&str, bool)> {
        self.devices.iter().find_map(|(name, device)| {
            matches!(device.part, Part::Cpu(other) if other == index)
                .then_some((name, device.id.is_some()))
        })
    }

    /// The numbers of the vCPUs that no device stands for: they are there from the start.
    pub(crate) fn soldered_cpus(&self) -> Vec<u32> {
        let cpus = self.machine.cpus().into_iter().map(|cpu| cpu.index);
        cpus.filter(|index| self.cpu_device(*index).is_none())
            .collect()
    }

    /// Where the vCPU `index` stands in the object tree.
    pub(crate) fn cpu_path(&self, index: u32) -> String {
        match self.cpu_device(index) {
            Some((name, has_id)) => path(name, has_id),
            None => cpu_path(index),
        }
    }

    /// The guest has let go of the vCPU `index`.
    pub(crate) fn cpu_ejected(&mut self, index: u32) {
        let device = self.cpu_device(index).map(|(name, _)| name.to_owned());
        let Ok(board) = self.machine.board_mut("device_del") else {
            return;
        };
        if !board.unplug_cpu(index) {
            return;
        }
        match device {
            Some(name) => unplugged(self, &name),
            None => self.events.emit(Event::DeviceDeleted(DeviceDeleted {
                device: None,
                path: cpu_path(index),
            })),
        }
    }

    /// What the guest said last of the place for a vCPU.
    pub(crate) fn cpu_ospm_status(&self, index: u32, event: u32, status: u32) -> ACPIOSTInfo {
        let device = self.cpu_device(index);
        ACPIOSTInfo {
            device: device.and_then(|(name, has_id)| has_id.then(|| name.to_owned())),
            slot: index.to_string(),
            slot_type: ACPISlotType::Cpu,
            source: i64::from(event),
            status: i64::from(status),
        }
    }

    /// The guest says how it gets on with the vCPU `index`.
    pub(crate) fn cpu_spoken_of(&self, index: u32, event: u32, status: u32) {
        let info = self.cpu_ospm_status(index, event, status);
        let device = info.device.clone();
        self.events
            .emit(Event::AcpiDeviceOst(AcpiDeviceOst { info }));
        if is_refusal(event, status) {
            let path = self.cpu_path(index);
            let refused = DeviceUnplugGuestError { device, path };
            self.events.emit(Event::DeviceUnplugGuestError(refused));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPOLOGY: CpuTopology = CpuTopology {
        sockets: 2,
        dies: 1,
        cores: 3,
        threads: 2,
    };

    fn options(socket: i64, core: Option<i64>, thread: i64) -> X86CpuProperties {
        X86CpuProperties {
            socket_id: Some(socket),
            core_id: core,
            thread_id: Some(thread),
            ..X86CpuProperties::default()
        }
    }

    #[test]
    fn a_register_is_shown_with_what_has_to_be_asked_for_it() {
        let word = FeatureWord {
            function: 7,
            index: Some(1),
            register: "EDX",
            bits: 1 << 31,
        };
        let plain = FeatureWord {
            function: 1,
            index: None,
            ..word
        };
        let wanted = json!([
            {"cpuid-input-eax": 7, "cpuid-input-ecx": 1, "cpuid-register": "EDX",
                "features": 0x8000_0000_u32},
            {"cpuid-input-eax": 1, "cpuid-register": "EDX", "features": 0x8000_0000_u32},
        ]);
        assert_eq!(words(&[word, plain]), wanted);
    }

    #[test]
    fn a_place_is_named_in_full_and_is_in_the_machine() {
        let index = |options| place(&options, TOPOLOGY).map(|place| TOPOLOGY.index(place));
        assert_eq!(index(options(1, Some(2), 1)).unwrap(), 11);
        for (wrong, text) in [
            (options(1, None, 0), "CPU core-id is not set"),
            (
                options(2, Some(0), 0),
                "Invalid CPU socket-id: 2 must be in range 0:1",
            ),
            (
                options(0, Some(-1), 0),
                "Invalid CPU core-id: -1 must be in range 0:2",
            ),
        ] {
            assert_eq!(index(wrong).unwrap_err().desc, text);
        }
    }
}
