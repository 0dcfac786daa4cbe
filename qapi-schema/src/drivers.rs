//! Device models: what they are called, where they plug in, what they can be given.
//!
//! The properties come from `DeviceOptions` in `schema/devices.json`; only names and buses stand
//! here.

use serde_json::Value;

use crate::QmpError;
use crate::describe::{Described, MemberSpec, VariantSpec};
use crate::devices::DeviceOptions;

/// Where a device plugs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// A PCI or PCIe bus.
    Pci,
    /// The bus of a virtio-serial device.
    VirtioSerial,
    /// The ISA bus.
    Isa,
    /// The bus of a SCSI controller.
    Scsi,
    /// None: it belongs to the board, or is a vCPU.
    Board,
}

impl BusKind {
    /// QEMU's name of that kind of bus.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pci => "PCI",
            Self::VirtioSerial => "virtio-serial-bus",
            Self::Isa => "ISA",
            Self::Scsi => "SCSI",
            Self::Board => "System",
        }
    }
}

/// One device model.
#[derive(Clone, Copy, Debug)]
pub struct DriverSpec {
    /// Its name, a value of `DeviceDriver`.
    pub name: &'static str,
    /// A shorter name that the command line and `device_add` take too.
    pub alias: Option<&'static str>,
    /// Where it plugs in.
    pub bus: BusKind,
}

const fn driver(name: &'static str, alias: Option<&'static str>, bus: BusKind) -> DriverSpec {
    DriverSpec { name, alias, bus }
}

/// Every device model, sorted by name.
pub const DRIVERS: &[DriverSpec] = &[
    driver("Broadwell-noTSX-x86_64-cpu", None, BusKind::Board),
    driver("Broadwell-x86_64-cpu", None, BusKind::Board),
    driver("Cascadelake-Server-x86_64-cpu", None, BusKind::Board),
    driver("EPYC-Milan-x86_64-cpu", None, BusKind::Board),
    driver("EPYC-Rome-x86_64-cpu", None, BusKind::Board),
    driver("EPYC-x86_64-cpu", None, BusKind::Board),
    driver("Haswell-noTSX-x86_64-cpu", None, BusKind::Board),
    driver("Haswell-x86_64-cpu", None, BusKind::Board),
    driver("Icelake-Server-x86_64-cpu", None, BusKind::Board),
    driver("IvyBridge-x86_64-cpu", None, BusKind::Board),
    driver("Nehalem-x86_64-cpu", None, BusKind::Board),
    driver("SandyBridge-x86_64-cpu", None, BusKind::Board),
    driver("Skylake-Client-x86_64-cpu", None, BusKind::Board),
    driver("Skylake-Server-x86_64-cpu", None, BusKind::Board),
    driver("Westmere-x86_64-cpu", None, BusKind::Board),
    driver("host-x86_64-cpu", None, BusKind::Board),
    driver("i6300esb", None, BusKind::Pci),
    driver("isa-serial", None, BusKind::Isa),
    driver("kvm64-x86_64-cpu", None, BusKind::Board),
    driver("max-x86_64-cpu", None, BusKind::Board),
    driver("pc-dimm", None, BusKind::Board),
    driver("pcie-pci-bridge", None, BusKind::Pci),
    driver("pcie-root-port", None, BusKind::Pci),
    driver("pvpanic", None, BusKind::Isa),
    driver("pvpanic-pci", None, BusKind::Pci),
    driver("qemu64-x86_64-cpu", None, BusKind::Board),
    driver("scsi-cd", None, BusKind::Scsi),
    driver("scsi-hd", None, BusKind::Scsi),
    driver("tpm-crb", None, BusKind::Board),
    driver("vhost-user-blk-pci", Some("vhost-user-blk"), BusKind::Pci),
    driver("vhost-user-blk-pci-non-transitional", None, BusKind::Pci),
    driver("vhost-user-fs-pci", Some("vhost-user-fs"), BusKind::Pci),
    driver("vhost-vsock-pci", None, BusKind::Pci),
    driver("vhost-vsock-pci-non-transitional", None, BusKind::Pci),
    driver("virtconsole", None, BusKind::VirtioSerial),
    driver("virtio-balloon-pci", Some("virtio-balloon"), BusKind::Pci),
    driver("virtio-balloon-pci-non-transitional", None, BusKind::Pci),
    driver("virtio-blk-pci", Some("virtio-blk"), BusKind::Pci),
    driver("virtio-blk-pci-non-transitional", None, BusKind::Pci),
    driver("virtio-keyboard-pci", Some("virtio-keyboard"), BusKind::Pci),
    driver("virtio-mem-pci", None, BusKind::Pci),
    driver("virtio-mouse-pci", Some("virtio-mouse"), BusKind::Pci),
    driver("virtio-net-pci", Some("virtio-net"), BusKind::Pci),
    driver("virtio-net-pci-non-transitional", None, BusKind::Pci),
    driver("virtio-pmem-pci", None, BusKind::Pci),
    driver("virtio-rng-pci", Some("virtio-rng"), BusKind::Pci),
    driver("virtio-rng-pci-non-transitional", None, BusKind::Pci),
    driver("virtio-scsi-pci", Some("virtio-scsi"), BusKind::Pci),
    driver("virtio-scsi-pci-non-transitional", None, BusKind::Pci),
    driver("virtio-serial-pci", Some("virtio-serial"), BusKind::Pci),
    driver("virtio-serial-pci-non-transitional", None, BusKind::Pci),
    driver("virtio-tablet-pci", Some("virtio-tablet"), BusKind::Pci),
    driver("virtserialport", None, BusKind::VirtioSerial),
    driver("vmcoreinfo", None, BusKind::Board),
    driver("vmgenid", None, BusKind::Board),
    driver("x86-64-v1-x86_64-cpu", None, BusKind::Board),
    driver("x86-64-v2-x86_64-cpu", None, BusKind::Board),
    driver("x86-64-v3-x86_64-cpu", None, BusKind::Board),
    driver("x86-64-v4-x86_64-cpu", None, BusKind::Board),
];

impl DriverSpec {
    /// The properties of its own; `driver`, `bus` and `id` are every device's.
    pub fn properties(&self) -> &'static [MemberSpec] {
        self.variant().map_or(&[], |variant| variant.members)
    }

    /// What it is, in a few words.
    pub fn description(&self) -> &'static str {
        self.variant().map_or("", |variant| variant.description)
    }

    fn variant(&self) -> Option<&'static VariantSpec> {
        DeviceOptions::VARIANTS
            .iter()
            .find(|variant| variant.name == self.name)
    }
}

/// The model with that name or alias.
pub fn find_driver(name: &str) -> Option<&'static DriverSpec> {
    DRIVERS
        .iter()
        .find(|driver| driver.name == name || driver.alias == Some(name))
}

/// Puts a model's name where the arguments of `device_add` give its alias.
///
/// # Errors
/// There is no such model. What is no name at all is left to the check of the arguments.
pub fn resolve_alias(arguments: &mut Value) -> Result<(), QmpError> {
    let Some(Value::String(name)) = arguments.get_mut("driver") else {
        return Ok(());
    };
    let Some(found) = find_driver(name) else {
        return Err(QmpError::generic(format!(
            "'{name}' is not a valid device model name"
        )));
    };
    found.name.clone_into(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DeviceDriver;

    #[test]
    fn the_table_has_exactly_the_drivers_of_the_schema() {
        let table: Vec<_> = DRIVERS.iter().map(|driver| driver.name).collect();
        let mut schema: Vec<_> = DeviceDriver::ALL.iter().map(|one| one.as_str()).collect();
        schema.sort_unstable();
        assert_eq!(table, schema);
    }

    #[test]
    fn a_driver_is_found_by_its_alias_and_knows_its_properties() {
        let disk = find_driver("virtio-blk").expect("the alias is in the table");
        assert_eq!(disk.name, "virtio-blk-pci");
        let size = disk
            .properties()
            .iter()
            .find(|one| one.name == "queue-size");
        assert_eq!(size.and_then(|one| one.default), Some("256"));
    }

    #[test]
    fn an_alias_becomes_the_name_and_a_stranger_is_named() {
        for given in ["virtio-rng", "virtio-rng-pci"] {
            let mut arguments = serde_json::json!({ "driver": given });
            resolve_alias(&mut arguments).expect("a model");
            assert_eq!(arguments["driver"], "virtio-rng-pci");
        }
        let refusal = resolve_alias(&mut serde_json::json!({ "driver": "e1000" }));
        let text = refusal.expect_err("no model").desc;
        assert_eq!(text, "'e1000' is not a valid device model name");
        for no_name in [serde_json::json!({}), serde_json::json!({ "driver": 7 })] {
            resolve_alias(&mut no_name.clone()).expect("left to the check of the arguments");
        }
    }
}
