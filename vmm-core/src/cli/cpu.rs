//! `-cpu`: which CPU the guest sees.

use qapi_schema::input::{FromInput, Mode, Path};
use serde_json::Value;

use super::draft::{Draft, Given, Step};
use super::error::Problem;
use super::help;
use crate::kvm::cpu_models::catalog::Origin;
use crate::kvm::cpu_models::{
    CpuSpec, Lacking, MODELS, Said, feature_names, find_feature, find_model,
};
use crate::types::cpu_type;

/// What can be said of a CPU besides its features.
const PROPERTIES: &[&str] = &[
    "check",
    "enforce",
    "family",
    "host-cache-info",
    "host-phys-bits",
    "hypervisor",
    "kvm",
    "l3-cache",
    "level",
    "migratable",
    "model",
    "model-id",
    "phys-bits",
    "pmu",
    "stepping",
    "vendor",
    "xlevel",
];
/// How long a brand string can be.
const BRAND: usize = 48;

pub(super) fn take_cpu(draft: &mut Draft, given: &Given<'_>) -> Result<Step, Problem> {
    if matches!(given.text, "help" | "?") {
        return Ok(Step::Print(help::cpus()));
    }
    let (name, rest) = given.text.split_once(',').unwrap_or((given.text, ""));
    // A machine without CPUs takes any.
    (draft.cpu, draft.foreign_cpu) = match choose(name, rest) {
        Ok(spec) => (Some(spec), None),
        Err(problem) => (None, Some(problem.of(given.typed))),
    };
    Ok(Step::Next)
}

fn choose(name: &str, rest: &str) -> Result<CpuSpec, Problem> {
    let model = find_model(name).ok_or_else(|| {
        let what = format!("unable to find CPU model '{name}'; -cpu help lists them");
        Problem::with_nearest(what, name, MODELS.iter().map(|model| model.name))
    })?;
    read(CpuSpec::plain(model), rest)
}

/// What comes behind the model's name. As in QEMU `+feature` counts more than `feature=on`,
/// wherever it stands, and `-feature` more than both.
fn read(mut spec: CpuSpec, text: &str) -> Result<CpuSpec, Problem> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for part in text.split(',').filter(|part| !part.is_empty()) {
        if let Some(name) = part.strip_prefix('+') {
            added.push((feature(&spec, name)?, true));
        } else if let Some(name) = part.strip_prefix('-') {
            removed.push((feature(&spec, name)?, false));
        } else {
            let (name, value) = part.split_once('=').unwrap_or((part, "on"));
            set(&mut spec, name, value)?;
        }
    }
    spec.switches.append(&mut added);
    spec.switches.append(&mut removed);
    Ok(spec)
}

fn feature(spec: &CpuSpec, name: &str) -> Result<&'static str, Problem> {
    find_feature(name).ok_or_else(|| not_found(spec, name))
}

fn not_found(spec: &CpuSpec, name: &str) -> Problem {
    let what = format!("Property '{}.{name}' not found", cpu_type(spec.model.name));
    let known = feature_names()
        .into_iter()
        .chain(PROPERTIES.iter().copied());
    Problem::with_nearest(what, name, known)
}

fn set(spec: &mut CpuSpec, name: &str, value: &str) -> Result<(), Problem> {
    if let Some(feature) = find_feature(name) {
        spec.switches.push((feature, read_as(name, value)?));
        return Ok(());
    }
    let said = match name {
        // What a model shows does not hang on it.
        "migratable" => return read_as::<bool>(name, value).map(drop),
        "check" => {
            let told = if read_as(name, value)? {
                Lacking::Told
            } else {
                Lacking::Silent
            };
            if spec.lacking != Lacking::Refused {
                spec.lacking = told;
            }
            return Ok(());
        }
        "enforce" => {
            if read_as(name, value)? {
                spec.lacking = Lacking::Refused;
            }
            return Ok(());
        }
        "kvm" if read_as(name, value)? => return Ok(()),
        "kvm" => Said::HidesKvm,
        "l3-cache" if read_as(name, value)? => return Ok(()),
        "l3-cache" => Said::NoL3Cache,
        "host-cache-info" if read_as(name, value)? => Said::HostCaches,
        "host-cache-info" if spec.model.origin == Origin::Host => {
            let what = "the host's CPU is shown with the host's caches; leave it out, or choose a \
                model of the table";
            return Err(Problem::new(format!("host-cache-info={value}: {what}")));
        }
        "host-cache-info" => return Ok(()),
        "pmu" => Said::Counters(read_as(name, value)?),
        "host-phys-bits" if !read_as(name, value)? => return Ok(()),
        "host-phys-bits" => Said::HostPhysicalBits,
        "vendor" => Said::Vendor(vendor(value)?),
        "model-id" if value.len() > BRAND => {
            return Err(Problem::new(format!(
                "model-id has {} bytes: wanted at most {BRAND}",
                value.len()
            )));
        }
        "model-id" => Said::Brand(value.to_owned()),
        "family" => Said::Family(number(name, value, 0, 0xff + 0xf)?),
        "model" => Said::Model(number(name, value, 0, 0xff)?),
        "stepping" => Said::Stepping(number(name, value, 0, 0xf)?),
        "phys-bits" => Said::PhysicalBits(number(name, value, 32, 52)?),
        "level" => Said::Level(number(name, value, 0, 0xffff)?),
        "xlevel" => Said::ExtendedLevel(number(name, value, 0x8000_0000, 0x8000_ffff)?),
        _ => return Err(not_found(spec, name)),
    };
    spec.said.push(said);
    Ok(())
}

fn read_as<T: FromInput>(name: &str, value: &str) -> Result<T, Problem> {
    let path = Path::Member(&Path::Root, name);
    Ok(T::from_input(Value::from(value), &path, Mode::Keyval)?)
}

fn number(name: &str, value: &str, least: u32, most: u32) -> Result<u32, Problem> {
    let number: u32 = read_as(name, value)?;
    if (least..=most).contains(&number) {
        return Ok(number);
    }
    Err(Problem::new(format!(
        "{name}={value}: wanted a number from {least:#x} to {most:#x}"
    )))
}

fn vendor(value: &str) -> Result<[u8; 12], Problem> {
    let name = value.as_bytes().try_into().ok();
    name.filter(|name: &[u8; 12]| name.is_ascii())
        .ok_or_else(|| {
            Problem::new(format!(
                "vendor={value}: wanted twelve characters, as in GenuineIntel"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<CpuSpec, String> {
        let (name, rest) = text.split_once(',').unwrap_or((text, ""));
        choose(name, rest).map_err(|problem| problem.to_string())
    }

    #[test]
    fn what_is_taken_away_counts_most_wherever_it_stands() {
        let spec = said("Haswell,-avx2,sse4_1=off,+avx2,rtm,hle=on").unwrap();
        let switches = [
            ("sse4.1", false),
            ("rtm", true),
            ("hle", true),
            ("avx2", true),
            ("avx2", false),
        ];
        assert_eq!(spec.switches, switches);
        assert_eq!(spec.lacking, Lacking::Told);
    }

    #[test]
    fn what_is_no_feature_is_read_with_its_range() {
        let text = "kvm64,vendor=AuthenticAMD,family=23,model=0x31,stepping=1,level=0xd,kvm=off,\
            migratable=on,phys-bits=39,model-id=a processor,check=off,enforce=on,pmu=off,\
            l3-cache=on,l3-cache=off,host-cache-info=off,host-cache-info=on";
        let spec = said(text).unwrap();
        let wanted = [
            Said::Vendor(*b"AuthenticAMD"),
            Said::Family(23),
            Said::Model(0x31),
            Said::Stepping(1),
            Said::Level(0xd),
            Said::HidesKvm,
            Said::PhysicalBits(39),
            Said::Brand("a processor".to_owned()),
            Said::Counters(false),
            Said::NoL3Cache,
            Said::HostCaches,
        ];
        assert_eq!(spec.said, wanted);
        assert_eq!(spec.lacking, Lacking::Refused);
        assert_eq!(said("host,check=off").unwrap().lacking, Lacking::Silent);
        for (text, error) in [
            (
                "host,-avxx",
                "Property 'host-x86_64-cpu.avxx' not found; did you mean 'avx'?",
            ),
            (
                "host,stepping=16",
                "stepping=16: wanted a number from 0x0 to 0xf",
            ),
            (
                "host,host-cache-info=off",
                "host-cache-info=off: the host's CPU is shown with the host's caches; leave it out, \
                 or choose a model of the table",
            ),
            (
                "host,vendor=Intel",
                "vendor=Intel: wanted twelve characters, as in GenuineIntel",
            ),
        ] {
            assert_eq!(said(text).unwrap_err(), error);
        }
    }
}
