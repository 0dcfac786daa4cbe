//! Every type that `qom-list-types` shows.
//!
//! The device and object types come from the schema and the machines from their table, so that
//! nothing is offered that cannot be made and nothing is typed twice.

use qapi_schema::cli::MachineOptions;
use qapi_schema::describe::{Described, MemberSpec};
use qapi_schema::devices::DeviceDriver;
use qapi_schema::drivers::{BusKind, DriverSpec, find_driver};
use qapi_schema::qom::{ObjectOptions, ObjectPropertyInfo, ObjectType};

use crate::kvm::cpu_models::feature_names;
use crate::machine;

/// The CPU model that shows the host's.
pub const HOST_CPU: &str = "host-x86_64-cpu";

/// The type of the CPU model `name`.
pub fn cpu_type(name: &str) -> String {
    format!("{name}-x86_64-cpu")
}

/// One property as clients see it.
fn property_info(property: &MemberSpec) -> ObjectPropertyInfo {
    ObjectPropertyInfo {
        name: property.name.to_owned(),
        r#type: property.type_name.to_owned(),
        description: Some(property.description.to_owned()),
        default_value: property.default_value(),
    }
}

/// What objects of the type `name` can be given; `None` if there is no such type.
pub fn properties(name: &str) -> Option<Vec<ObjectPropertyInfo>> {
    let entry = all().into_iter().find(|entry| entry.name == name)?;
    let members = if entry.implements("x86_64-cpu") {
        let own = find_driver(name).map_or(&[][..], DriverSpec::properties);
        let own = own.iter().map(property_info);
        return Some(cpu_properties().into_iter().chain(own).collect());
    } else if let Some(driver) = find_driver(name) {
        driver.properties()
    } else if entry.implements("machine") {
        MachineOptions::MEMBERS
    } else {
        let variants = ObjectOptions::VARIANTS.iter();
        let mut variants = variants.filter(|variant| variant.name == name);
        variants.next().map_or(&[][..], |variant| variant.members)
    };
    // What a machine is, and by whom it is run, are not its properties.
    let foreign = ["type", "accel"];
    let own = members.iter().filter(|one| !foreign.contains(&one.name));
    Some(own.map(property_info).collect())
}

/// What devices of the type `name` can be given; `None` if there is no such type, or only kinds of
/// it.
pub fn device_properties(name: &str) -> Option<Vec<ObjectPropertyInfo>> {
    let is_device =
        |entry: &TypeEntry| entry.name == name && !entry.is_abstract && entry.implements("device");
    all().iter().any(is_device).then(|| properties(name))?
}

fn cpu_properties() -> Vec<ObjectPropertyInfo> {
    let property = |name: &str, kind: &str, about: &str| ObjectPropertyInfo {
        name: name.to_owned(),
        r#type: kind.to_owned(),
        description: Some(about.to_owned()),
        default_value: None,
    };
    let own = [
        property("migratable", "bool", "accepted and makes no difference"),
        property("vendor", "string", "the vendor's name"),
        property("model-id", "string", "what it calls itself"),
        property("family", "int", "the family, with its extension"),
        property("model", "int", "the model, with its extension"),
        property("stepping", "int", "the stepping"),
        property("level", "uint32", "the last basic leaf of CPUID"),
        property("xlevel", "uint32", "the last extended leaf of CPUID"),
        property("phys-bits", "uint32", "the bits of a physical address"),
        property("kvm", "bool", "whether the guest is told of KVM"),
        property(
            "feature-words",
            "X86CPUFeatureWordInfo",
            "the registers of CPUID in which features have names",
        ),
        property(
            "filtered-features",
            "X86CPUFeatureWordInfo",
            "the same, with what this host lacks for the model alone",
        ),
        property("pmu", "bool", "whether there are performance counters"),
        property(
            "host-cache-info",
            "bool",
            "whether the caches are the host's",
        ),
        property(
            "l3-cache",
            "bool",
            "whether there is a cache of the third level",
        ),
        property(
            "unavailable-features",
            "strList",
            "what this host lacks for the model, by names",
        ),
    ];
    let features = feature_names().into_iter();
    let features = features.map(|name| property(name, "bool", "whether the guest sees it"));
    own.into_iter().chain(features).collect()
}

/// One type as `qom-list-types` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeEntry {
    /// Its name.
    pub name: &'static str,
    /// What it is a kind of.
    pub parent: Option<&'static str>,
    /// Whether there are only kinds of it, and none of itself.
    pub is_abstract: bool,
}

const fn concrete(name: &'static str, parent: &'static str) -> TypeEntry {
    TypeEntry {
        name,
        parent: Some(parent),
        is_abstract: false,
    }
}

const fn family(name: &'static str, parent: Option<&'static str>) -> TypeEntry {
    TypeEntry {
        name,
        parent,
        is_abstract: true,
    }
}

/// The families, and the types that are in no table of the schema.
const BOARD: &[TypeEntry] = &[
    family("object", None),
    family("device", Some("object")),
    family("machine", Some("object")),
    family("accel", Some("object")),
    family("memory-backend", Some("object")),
    family("rng-backend", Some("object")),
    family("netfilter", Some("object")),
    family("cpu", Some("device")),
    family("x86_64-cpu", Some("cpu")),
    family("pci-device", Some("device")),
    family("isa-device", Some("device")),
    family("scsi-device", Some("device")),
    family("virtio-serial-port", Some("device")),
    family("virtio-device", Some("device")),
    family("generic-pc-machine", Some("machine")),
    concrete("container", "object"),
    concrete("kvm-accel", "accel"),
    concrete("mch", "pci-device"),
    concrete("ICH9-LPC", "pci-device"),
    // What the cards virtio-*-pci and vhost-*-pci carry, and never made without one. Clients, libvirt
    // among them, know by these names what there is.
    concrete("vhost-user-blk", "virtio-device"),
    concrete("vhost-user-fs-device", "virtio-device"),
    concrete("vhost-vsock-device", "virtio-device"),
    concrete("virtio-balloon-device", "virtio-device"),
    concrete("virtio-blk-device", "virtio-device"),
    concrete("virtio-keyboard-device", "virtio-device"),
    concrete("virtio-mem", "virtio-device"),
    concrete("virtio-mouse-device", "virtio-device"),
    concrete("virtio-net-device", "virtio-device"),
    concrete("virtio-pmem", "virtio-device"),
    concrete("virtio-rng-device", "virtio-device"),
    concrete("virtio-scsi-device", "virtio-device"),
    concrete("virtio-serial-device", "virtio-device"),
    concrete("virtio-tablet-device", "virtio-device"),
];

/// Every type.
pub fn all() -> Vec<TypeEntry> {
    let devices = DeviceDriver::ALL.iter().map(|driver| {
        let name = driver.as_str();
        let parent = match find_driver(name).map(|driver| driver.bus) {
            Some(BusKind::Pci) => "pci-device",
            Some(BusKind::VirtioSerial) => "virtio-serial-port",
            Some(BusKind::Scsi) => "scsi-device",
            Some(BusKind::Board) if name.ends_with("-x86_64-cpu") => "x86_64-cpu",
            Some(BusKind::Board) => "device",
            Some(BusKind::Isa) | None => "isa-device",
        };
        concrete(name, parent)
    });
    let objects = ObjectType::ALL.iter().map(|object| {
        let name = object.as_str();
        let parent = match name.split_once('-') {
            Some(("memory", _)) => "memory-backend",
            Some(("rng", _)) => "rng-backend",
            Some(("filter", _)) => "netfilter",
            _ => "object",
        };
        concrete(name, parent)
    });
    let machines = machine::TYPES.iter().map(|model| {
        let parent = if model.has_board() {
            "generic-pc-machine"
        } else {
            "machine"
        };
        concrete(model.qom_type, parent)
    });
    BOARD
        .iter()
        .copied()
        .chain(machines)
        .chain(devices)
        .chain(objects)
        .collect()
}

impl TypeEntry {
    /// Whether it is `of` or a kind of it.
    pub fn implements(&self, of: &str) -> bool {
        let mut entry = Some(*self);
        while let Some(current) = entry {
            if current.name == of {
                return true;
            }
            entry = current
                .parent
                .and_then(|parent| BOARD.iter().find(|entry| entry.name == parent).copied());
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_hangs_below_object_and_stands_once() {
        let types = all();
        for (i, entry) in types.iter().enumerate() {
            assert!(entry.implements("object"), "{}", entry.name);
            assert!(
                !types[..i].iter().any(|other| other.name == entry.name),
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn kinds_are_found_through_their_family() {
        let of = |family: &str| -> Vec<_> {
            all()
                .iter()
                .filter(|e| e.implements(family))
                .map(|e| e.name)
                .collect()
        };
        assert!(of("device").contains(&"virtio-blk-pci"));
        assert!(of("memory-backend").contains(&"memory-backend-memfd"));
        assert!(of("memory-backend").contains(&"memory-backend-shm"));
        assert!(of("virtio-device").contains(&"vhost-user-fs-device"));
        assert_eq!(of("accel"), ["accel", "kvm-accel"]);
    }

    #[test]
    fn types_tell_what_they_can_be_given() {
        let names = |of: &str| -> Vec<String> {
            let properties = properties(of).expect("a type");
            properties.into_iter().map(|one| one.name).collect()
        };
        assert!(names("memory-backend-memfd").contains(&"hugetlb".to_owned()));
        assert!(names("generic-pc-machine").contains(&"memory-backend".to_owned()));
        assert!(!names("none-machine").contains(&"type".to_owned()));
        assert!(names("virtio-blk-pci").contains(&"queue-size".to_owned()));
        assert_eq!(names("max-x86_64-cpu")[0], "migratable");
        assert!(names("max-x86_64-cpu").contains(&"pmu".to_owned()));
        assert_eq!(names("container"), [""; 0]);
        assert_eq!(properties("no-such-type"), None);
        assert!(device_properties("mch").is_some());
        for no_device in ["device", "iothread", "no-such-type"] {
            assert_eq!(device_properties(no_device), None);
        }
    }
}
