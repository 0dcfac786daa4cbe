//! CPU models: which there are, and what one shows a guest on this host.

use qapi_schema::QmpError;
use qapi_schema::machine::{CpuDefinitionInfo, CpuModelExpansionType, CpuModelInfo};
use serde_json::{Map, Value};

use crate::kvm::KvmVm;
use crate::kvm::cpuid::{CpuModel, CpuTopology};
use crate::types::{self, CPU_MODELS};
use crate::vm::{Vm, VmMachine};

/// Whether the model may only show what every host of a kind has. Ours shows the same either way.
const MIGRATABLE: &str = "migratable";
/// Whether the guest sees all of KVM's Hyper-V interface. Ours sees none of it.
const HYPERV: &str = "hv-passthrough";

/// Every model.
pub(super) fn definitions() -> Vec<CpuDefinitionInfo> {
    let models = CPU_MODELS.iter().map(|(name, _)| CpuDefinitionInfo {
        name: (*name).to_owned(),
        migration_safe: Some(false),
        r#static: false,
        unavailable_features: Some(Vec::new()),
        typename: types::cpu_type(name),
        alias_of: None,
        deprecated: false,
    });
    models.collect()
}

/// What `model` is on this host.
pub(super) fn expand(
    vm: &Vm,
    kind: CpuModelExpansionType,
    model: CpuModelInfo,
) -> Result<CpuModelInfo, QmpError> {
    if !CPU_MODELS.iter().any(|(name, _)| *name == model.name) {
        let name = model.name;
        return Err(QmpError::generic(format!(
            "The CPU model '{name}' is not known; there are host and max"
        )));
    }
    let features = features(vm)?;
    let mut props: Map<String, Value> = features
        .into_iter()
        .map(|(name, shown)| (name.to_owned(), shown.into()))
        .collect();
    props.insert(MIGRATABLE.to_owned(), true.into());
    if kind == CpuModelExpansionType::Full {
        props.insert(HYPERV.to_owned(), false.into());
    }
    for (name, value) in given(model.props)? {
        merge(&mut props, &model.name, name, value)?;
    }
    Ok(CpuModelInfo {
        name: model.name,
        props: Some(Value::Object(props)),
    })
}

fn given(props: Option<Value>) -> Result<Map<String, Value>, QmpError> {
    match props {
        None => Ok(Map::new()),
        Some(Value::Object(props)) => Ok(props),
        Some(_) => Err(QmpError::generic(
            "Invalid parameter type for 'model.props', expected: object",
        )),
    }
}

/// Takes a property that makes no difference, or says what is so anyway.
fn merge(
    props: &mut Map<String, Value>,
    model: &str,
    name: String,
    value: Value,
) -> Result<(), QmpError> {
    let is_free = [MIGRATABLE, HYPERV].contains(&name.as_str());
    match props.get(&name) {
        _ if !value.is_boolean() => Err(QmpError::generic(format!(
            "Invalid parameter type for '{name}', expected: boolean"
        ))),
        Some(fact) if is_free || *fact == value => {
            props.insert(name, value);
            Ok(())
        }
        Some(_) => Err(QmpError::generic(format!(
            "CPU model '{model}' shows '{name}' as the host has it: leave it out"
        ))),
        None if name == HYPERV => Ok(()),
        None => Err(QmpError::generic(format!(
            "Property '{}.{name}' not found",
            types::cpu_type(model)
        ))),
    }
}

fn features(vm: &Vm) -> Result<Vec<(&'static str, bool)>, QmpError> {
    if let VmMachine::Q35(q35) = &vm.machine {
        return Ok(q35.cpu_model().features());
    }
    let Some(kvm) = &vm.spare_kvm else {
        return Err(QmpError::generic(
            "what a CPU model is depends on KVM, which there is none of here",
        ));
    };
    let kvm = std::os::fd::AsFd::as_fd(kvm)
        .try_clone_to_owned()
        .map_err(|error| QmpError::from_error(&error))?;
    let model = KvmVm::new(kvm).and_then(|vm| CpuModel::host(&vm, CpuTopology::flat(1)));
    model
        .map(|model| model.features())
        .map_err(|error| QmpError::from_error(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(name: &str, value: Value) -> Result<(), String> {
        let Value::Object(mut props) = json!({"sse": true, "avx": false, "migratable": true})
        else {
            panic!("an object");
        };
        merge(&mut props, "host", name.to_owned(), value).map_err(|error| error.desc)
    }

    #[test]
    fn only_what_is_so_anyway_or_makes_no_difference_can_be_given() {
        assert_eq!(told("sse", json!(true)), Ok(()));
        assert_eq!(told("migratable", json!(false)), Ok(()));
        assert_eq!(told("hv-passthrough", json!(true)), Ok(()));
        for (name, value, text) in [
            (
                "sse",
                json!(false),
                "CPU model 'host' shows 'sse' as the host has it: leave it out",
            ),
            (
                "sse",
                json!("on"),
                "Invalid parameter type for 'sse', expected: boolean",
            ),
            (
                "sle",
                json!(true),
                "Property 'host-x86_64-cpu.sle' not found",
            ),
        ] {
            assert_eq!(told(name, value), Err(text.to_owned()));
        }
    }
}
