//! CPU models: which there are, and what one shows a guest on this host.

use std::borrow::Cow;

use qapi_schema::QmpError;
use qapi_schema::machine::{CpuDefinitionInfo, CpuModelExpansionType, CpuModelInfo};
use serde_json::{Map, Value};

use crate::kvm::KvmVm;
use crate::kvm::cpu_models::catalog::Origin;
use crate::kvm::cpu_models::{CpuSpec, Lacking, MODELS, Model, find_feature, find_model};
use crate::kvm::cpuid::{CpuModel, CpuTopology, HostCpu};
use crate::types;
use crate::vm::{Vm, VmMachine};

/// Whether the model may only show what every host of a kind has. Ours shows the same either way.
const MIGRATABLE: &str = "migratable";
/// Whether the guest sees all of KVM's Hyper-V interface. Ours sees none of it.
const HYPERV: &str = "hv-passthrough";

/// Every model.
pub(super) fn definitions(vm: &Vm) -> Result<Vec<CpuDefinitionInfo>, QmpError> {
    let host = host(vm)?;
    let models = MODELS.iter().map(|model| {
        let shown = host
            .as_deref()
            .map(|host| show(host, CpuSpec::plain(model)));
        let lacks = shown.transpose()?.map(|shown| {
            let lacks = shown.lacks().iter();
            lacks.map(|name| (*name).to_owned()).collect()
        });
        Ok(CpuDefinitionInfo {
            name: model.name.to_owned(),
            migration_safe: Some(matches!(model.origin, Origin::Table(_))),
            r#static: false,
            unavailable_features: lacks,
            typename: types::cpu_type(model.name),
            alias_of: None,
            deprecated: false,
        })
    });
    models.collect()
}

/// What `model` is on this host.
pub(super) fn expand(
    vm: &Vm,
    kind: CpuModelExpansionType,
    model: CpuModelInfo,
) -> Result<CpuModelInfo, QmpError> {
    let name = model.name;
    let Some(found) = find_model(&name) else {
        return Err(QmpError::generic(format!(
            "The CPU model '{name}' is not known; query-cpu-definitions lists them"
        )));
    };
    let mut props = Map::new();
    props.insert(MIGRATABLE.to_owned(), true.into());
    if kind == CpuModelExpansionType::Full {
        props.insert(HYPERV.to_owned(), false.into());
    }
    let spec = wanted(found, given(model.props)?, &mut props)?;
    let host = host(vm)?.ok_or_else(|| {
        QmpError::generic("what a CPU model is depends on KVM, which there is none of here")
    })?;
    for (feature, shown) in show(&host, spec)?.features() {
        props.insert(feature.to_owned(), shown.into());
    }
    Ok(CpuModelInfo {
        name,
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

/// The model with the properties that were given; those that make no difference are shown as given.
fn wanted(
    model: &'static Model,
    given: Map<String, Value>,
    shown: &mut Map<String, Value>,
) -> Result<CpuSpec, QmpError> {
    let mut spec = CpuSpec {
        lacking: Lacking::Silent,
        ..CpuSpec::plain(model)
    };
    for (name, value) in given {
        let Some(on) = value.as_bool() else {
            return Err(QmpError::generic(format!(
                "Invalid parameter type for '{name}', expected: boolean"
            )));
        };
        if let Some(feature) = find_feature(&name) {
            spec.switches.push((feature, on));
        } else if shown.contains_key(&name) {
            shown.insert(name, value);
        } else if name != HYPERV {
            return Err(QmpError::generic(format!(
                "Property '{}.{name}' not found",
                types::cpu_type(model.name)
            )));
        }
    }
    Ok(spec)
}

fn show(host: &HostCpu, spec: CpuSpec) -> Result<CpuModel, QmpError> {
    CpuModel::new(host, &spec, CpuTopology::flat(1)).map_err(|error| QmpError::from_error(&error))
}

/// What KVM can show here, if there is KVM.
fn host(vm: &Vm) -> Result<Option<Cow<'_, HostCpu>>, QmpError> {
    if let VmMachine::Q35(q35) = &vm.machine {
        return Ok(Some(Cow::Borrowed(q35.host_cpu())));
    }
    let Some(kvm) = &vm.spare_kvm else {
        return Ok(None);
    };
    let kvm = std::os::fd::AsFd::as_fd(kvm)
        .try_clone_to_owned()
        .map_err(|error| QmpError::from_error(&error))?;
    let host = KvmVm::new(kvm).and_then(|vm| HostCpu::of(&vm));
    let host = host.map_err(|error| QmpError::from_error(&error))?;
    Ok(Some(Cow::Owned(host)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(name: &str, value: Value) -> Result<Vec<(&'static str, bool)>, String> {
        let Value::Object(mut shown) = json!({"migratable": true}) else {
            panic!("an object");
        };
        let model = find_model("Haswell").expect("a model");
        let given = Map::from_iter([(name.to_owned(), value)]);
        let spec = wanted(model, given, &mut shown);
        spec.map(|spec| spec.switches).map_err(|error| error.desc)
    }

    #[test]
    fn features_can_be_given_and_what_makes_no_difference() {
        assert_eq!(told("sse4_1", json!(false)), Ok(vec![("sse4.1", false)]));
        assert_eq!(told("migratable", json!(false)), Ok(Vec::new()));
        assert_eq!(told("hv-passthrough", json!(true)), Ok(Vec::new()));
        for (name, value, text) in [
            (
                "sse",
                json!("on"),
                "Invalid parameter type for 'sse', expected: boolean",
            ),
            (
                "sle",
                json!(true),
                "Property 'Haswell-x86_64-cpu.sle' not found",
            ),
        ] {
            assert_eq!(told(name, value), Err(text.to_owned()));
        }
    }
}
