//! Who may know whom: the manifests against the ladder of ARCHITECTURE.md.
//!
//! ```text
//!   fdset   qapi-schema        leaves
//!     ▲ ▲      ▲   ▲
//!     │ └ monitor  │
//!   block          │
//!   devices        │           never qapi-schema, never KVM
//!     └── vmm-core ┘           the only one that names KVM
//!   clients, tests, tools      outside: no crate of the product
//! ```
use anyhow::{Context, Result};
use serde_json::Value;

use super::Complaints;
use crate::project::cargo;
use crate::shell::output;

/// Each crate and the crates of ours that it may depend on.
const LADDER: &[(&str, &[&str])] = &[
    ("fdset", &[]),
    ("qapi-schema", &[]),
    ("qapi-gen", &[]),
    ("monitor", &["fdset", "qapi-schema"]),
    ("block", &["fdset"]),
    ("devices", &["block", "fdset"]),
    (
        "vmm-core",
        &["block", "devices", "fdset", "monitor", "qapi-schema"],
    ),
    ("guest", &[]),
    ("sesame-qmp", &[]),
    ("tests", &["guest", "sesame-qmp"]),
    (
        "fuzz",
        &[
            "block",
            "devices",
            "fdset",
            "monitor",
            "qapi-gen",
            "qapi-schema",
            "vmm-core",
        ],
    ),
    ("sesame-ctl", &["sesame-qmp"]),
    ("sesame-open-hook", &["qapi-schema"]),
    ("xtask", &["guest", "qapi-gen", "tests"]),
];

/// Tests may also use these: a generator to see that what is checked in is fresh.
const FOR_TESTS: &[(&str, &str)] = &[("qapi-schema", "qapi-gen")];

/// Crates that may name KVM: the product's one, and the probe that looks for a good KVM.
const KVM: &[&str] = &["vmm-core", "tests"];

pub(super) fn check() -> Result<Complaints> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    complaints(&metadata)
}

fn complaints(metadata: &Value) -> Result<Complaints> {
    let packages = metadata["packages"].as_array().context("no packages")?;
    let mut complaints = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = LADDER.iter().find(|(known, _)| *known == name) else {
            complaints.push(format!(
                "crate {name} is not on the ladder: give it its place"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let wanted = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"] == "dev" && FOR_TESTS.contains(&(name, wanted));
            if dependency["path"].is_string() && !allowed.contains(&wanted) && !for_tests {
                complaints.push(format!("{name} must not know {wanted}"));
            }
            if wanted.starts_with("kvm-") && !KVM.contains(&name) {
                complaints.push(format!("{name} must not name KVM ({wanted})"));
            }
        }
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependency: &str, path: Option<&str>) -> Value {
        json!({"packages": [{"name": name, "dependencies": [
            {"name": dependency, "kind": null, "path": path}]}]})
    }

    #[test]
    fn an_arrow_that_points_down_is_refused() {
        let reversed = package("fdset", "monitor", Some("monitor"));
        assert_eq!(complaints(&reversed).unwrap().len(), 1);
        let right = package("monitor", "fdset", Some("fdset"));
        assert!(complaints(&right).unwrap().is_empty());
    }

    #[test]
    fn only_the_vmm_names_kvm() {
        assert_eq!(
            complaints(&package("devices", "kvm-ioctls", None))
                .unwrap()
                .len(),
            1
        );
        assert!(
            complaints(&package("vmm-core", "kvm-ioctls", None))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_crate_without_a_place_is_refused() {
        assert_eq!(
            complaints(&package("extra", "libc", None)).unwrap().len(),
            1
        );
    }
}
