//! `-machine` and `-accel`: the board, and who runs it.

use qapi_schema::cli::{AccelOptions, AccelType, MachineOptions, SmpConfiguration};
use qapi_schema::common::OnOffAuto;
use qapi_schema::input::Mode;
use serde_json::{Map, Value};

use super::config::{AccelSpec, DriveSpec, MachineSpec};
use super::draft::{Draft, Given, Step};
use super::error::{CliError, Problem};
use super::help;
use super::read::{self, Form};
use crate::machine;

/// KVM's device where `-accel` names no other.
const KVM_DEVICE: &str = "/dev/kvm";

pub(super) fn take_machine(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    if matches!(given.text, "help" | "?") {
        return Ok(Step::Print(help::machines()));
    }
    let text = dashify_keys(given.text);
    let mut parsed = read::parse::<MachineOptions>(&text, Form::implied("type"))?;
    if parsed.help {
        return Ok(Step::Print(help::keys_of::<MachineOptions>(
            "machine", None,
        )));
    }
    if let Some(smp) = parsed
        .value
        .as_object_mut()
        .and_then(|keys| keys.remove("smp"))
    {
        draft.merge_value::<SmpConfiguration>("smp", smp)?;
    }
    draft.merge_value::<MachineOptions>(given.name, parsed.value)
}

/// `kernel_irqchip` is the old spelling of `kernel-irqchip`, and still what libvirt writes.
fn dashify_keys(text: &str) -> String {
    let parts = read::split(text).into_iter();
    let dashed = parts.map(|part| match part.split_once('=') {
        Some((key, value)) => format!("{}={value}", key.replace('_', "-")),
        None => part.to_owned(),
    });
    dashed.collect::<Vec<_>>().join(",")
}

/// `-kernel FILE` is `-machine kernel=FILE`, and so are its siblings.
pub(super) fn take_boot_file(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let mut keys = Map::new();
    keys.insert(given.name.to_owned(), Value::from(given.text));
    draft.merge_value::<MachineOptions>("machine", Value::Object(keys))
}

/// `-bios FILE` is `-machine firmware=FILE`.
pub(super) fn take_bios(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let mut keys = Map::new();
    keys.insert("firmware".to_owned(), Value::from(given.text));
    draft.merge_value::<MachineOptions>("machine", Value::Object(keys))
}

/// Has the drives that are flash chips be the machine's.
pub(super) fn add_flash(machine: &mut MachineSpec, drives: &[DriveSpec]) -> Result<(), Problem> {
    for drive in drives {
        let Some(unit) = drive.flash else { continue };
        let chip = machine.pflash.get_mut(unit).ok_or_else(|| {
            Problem::new(format!("unit={unit}: a machine has flash chips 0 and 1"))
        })?;
        if chip.replace(drive.id.clone()).is_some() {
            return Err(Problem::new(format!(
                "unit={unit}: that flash chip is given twice; leave one out"
            )));
        }
    }
    match &machine.pflash {
        [None, Some(_)] => Err(Problem::new(
            "pflash1: without pflash0 there is no firmware to read it",
        )),
        [Some(_), _] if machine.firmware.is_some() => Err(Problem::new(
            "pflash0 and -bios are both the firmware: give only one of them",
        )),
        _ => Ok(()),
    }
}

pub(super) fn take_accel(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    let text = dashify_keys(given.text);
    let mut parsed = read::parse::<AccelOptions>(&text, Form::implied("accel"))?;
    if parsed.help {
        let asked = parsed.value.get("accel").is_some();
        let keys = || help::keys_of::<AccelOptions>("kvm", None);
        return Ok(Step::Print(if asked { keys() } else { help::accels() }));
    }
    let name = parsed.value.get("accel").and_then(Value::as_str);
    if let Some(name) = name
        && name.parse::<AccelType>().is_err()
    {
        let foreign = (given.typed.to_owned(), name.to_owned());
        draft.foreign_accel.get_or_insert(foreign);
        return Ok(Step::Next);
    }
    let options: AccelOptions = read::typed(parsed.value.take(), Mode::Keyval)?;
    check_irqchip(options.kernel_irqchip.as_deref())?;
    draft.accels.push(AccelSpec {
        accel: options.accel,
        device: options.device.unwrap_or_else(|| KVM_DEVICE.to_owned()),
    });
    Ok(Step::Next)
}

fn check_irqchip(value: Option<&str>) -> Result<(), Problem> {
    match value {
        None | Some("on") => Ok(()),
        Some(other) => Err(Problem::new(format!(
            "kernel-irqchip={other}: KVM is the interrupt controller here; only 'on' is possible"
        ))),
    }
}

/// The board that the pieces of `-machine` describe.
pub(super) fn resolve(options: &MachineOptions) -> Result<MachineSpec, Problem> {
    let model = match options.r#type.as_deref() {
        Some(name) => machine::find(name).ok_or_else(|| unknown_machine(name))?,
        None => machine::DEFAULT,
    };
    refuse_what_is_not_there(options)?;
    check_irqchip(options.kernel_irqchip.as_deref())?;
    Ok(MachineSpec {
        model,
        memory_backend: options.memory_backend.clone(),
        hmat: options.hmat.unwrap_or(false),
        dump_guest_core: options.dump_guest_core.unwrap_or(true),
        mem_merge: options.mem_merge.unwrap_or(true),
        firmware: options.firmware.clone(),
        pflash: [options.pflash0.clone(), options.pflash1.clone()],
    })
}

fn unknown_machine(name: &str) -> Problem {
    let names = machine::TYPES
        .iter()
        .flat_map(|machine| [Some(machine.name), machine.alias]);
    let what = format!("unsupported machine type '{name}' (-machine help lists the others)");
    Problem::with_nearest(what, name, names.flatten())
}

/// Parts that QEMU's machine has and ours has not may be named to be left out. The keyboard
/// controller may be left out or not: there is only its reset line, without which nothing fails.
fn refuse_what_is_not_there(options: &MachineOptions) -> Result<(), Problem> {
    let on = |switch: Option<OnOffAuto>| switch == Some(OnOffAuto::On);
    let parts = [
        ("usb", options.usb == Some(true), "USB controller"),
        ("vmport", on(options.vmport), "VMware port"),
        ("hpet", options.hpet == Some(true), "HPET"),
        ("smm", on(options.smm), "system management mode"),
        ("sata", options.sata == Some(true), "SATA controller"),
        ("smbus", options.smbus == Some(true), "SMBus"),
        ("graphics", options.graphics == Some(true), "screen"),
    ];
    if options.acpi == Some(OnOffAuto::Off) {
        return Err(Problem::new(
            "acpi=off: this machine has no other way to tell of its parts; leave it out",
        ));
    }
    match parts.iter().find(|(_, wanted, _)| *wanted) {
        Some((key, _, part)) => Err(Problem::new(format!(
            "{key}=on: this machine has no {part}; leave '{key}' out or set it to off"
        ))),
        None => Ok(()),
    }
}

/// Who runs the guest, by `-accel` or by `-machine accel=`; names of others are passed over as
/// long as one is left.
pub(super) fn resolve_accels(
    draft: &Draft,
    in_machine: Option<&str>,
) -> Result<Vec<AccelSpec>, CliError> {
    let machine = draft.typed("machine");
    let explicit = !draft.accels.is_empty() || draft.foreign_accel.is_some();
    if in_machine.is_some() && explicit {
        let text = "accel= and -accel say the same thing: give only one of them";
        return Err(Problem::new(text).of(&machine));
    }
    let names = in_machine
        .unwrap_or(if explicit { "" } else { "kvm" })
        .split(':');
    let mut accels = draft.accels.clone();
    accels.extend(
        names
            .filter_map(|name| name.parse().ok())
            .map(|accel| AccelSpec {
                accel,
                device: KVM_DEVICE.to_owned(),
            }),
    );
    if !accels.is_empty() {
        return Ok(accels);
    }
    let (typed, name) = match (&draft.foreign_accel, in_machine) {
        (Some((typed, name)), _) => (typed.clone(), name.as_str()),
        (None, names) => (machine, names.unwrap_or_default()),
    };
    let what = format!("invalid accelerator '{name}'; there are kvm and qtest");
    Err(Problem::new(what).of(&typed))
}
