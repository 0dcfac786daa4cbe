//! The state of everything that the object tree shows of a machine.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Vm;

/// Where devices are in the object tree.
pub const CONTAINERS: [&str; 3] = [
    "/machine/peripheral",
    "/machine/peripheral-anon",
    "/machine/unattached",
];

/// What has no state to be shown, by how its type ends, and why.
pub const STATELESS: &[(&str, &str)] = &[
    ("-x86_64-cpu", "the registers of a vCPU are the kernel's"),
    (
        "pc-dimm",
        "what a guest is told of memory modules is in '/machine/unattached/acpi-memory-hotplug'",
    ),
    (
        "vmgenid",
        "without firmware, guests find it in memory and in ACPI's tables only",
    ),
];

/// Looks at everything; returns the kind of each by its path.
///
/// # Errors
/// Something has no state and is not among [`STATELESS`], or is and has one.
pub fn look_at_all(vm: &mut Vm) -> Result<Vec<(String, String)>> {
    let mut kinds = Vec::new();
    for container in CONTAINERS {
        let children = vm.execute("qom-list", json!({"path": container}))?;
        for child in children.as_array().context("a list")? {
            let (name, of) = (child["name"].as_str(), child["type"].as_str());
            let Some(of) = of.and_then(|of| of.strip_prefix("child<")?.strip_suffix('>')) else {
                continue;
            };
            let path = format!("{container}/{}", name.context("a name")?);
            if let Some(kind) = look_at(vm, &path, of)? {
                kinds.push((path, kind));
            }
        }
    }
    Ok(kinds)
}

/// Looks at the device `path`, of the type `of`; returns its kind, unless it has no state.
///
/// # Errors
/// It has no state and is not among [`STATELESS`], or is and has one.
pub fn look_at(vm: &mut Vm, path: &str, of: &str) -> Result<Option<String>> {
    let shown = vm.qmp.attempt("x-inspect", json!({"path": path}), &[])?;
    let stateless = STATELESS.iter().find(|(end, _)| of.ends_with(end));
    match (shown, stateless) {
        (Ok(state), None) => {
            let kind = state["kind"].as_str().context("a kind")?;
            ensure!(
                state["version"].is_u64() && state["state"].is_object(),
                "{state}"
            );
            check_parts(vm, &state)?;
            Ok(Some(kind.to_owned()))
        }
        (Err(refused), Some((_, why))) if refused.desc.contains(why) => Ok(None),
        (shown, _) => anyhow::bail!("{path} ({of}): {shown:?}"),
    }
}

/// Each part is found by its own path.
fn check_parts(vm: &mut Vm, state: &Value) -> Result<()> {
    for part in state["parts"].as_array().context("a list")? {
        let alone = vm.execute("x-inspect", json!({"path": part["path"]}))?;
        ensure!(alone["kind"] == part["kind"], "{alone}, {part}");
        check_parts(vm, part)?;
    }
    Ok(())
}
