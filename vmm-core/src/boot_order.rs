//! The order in which firmware tries devices: those with a `bootindex`, the lowest first, by the
//! names of QEMU's `bootorder` (Open Firmware's device paths, which EDK II and SeaBIOS translate).
//!
//! ```text
//!   disk behind a root port ─► /pci@i0cf8/pci-bridge@2/scsi@0/disk@0,0
//!   its place in the PCI tree ─┘                              └─ what it is there
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use devices::pci::inspect::FunctionView;
use qapi_schema::QmpError;

use crate::device_tree::{Device, DeviceTree, Part};
use crate::qom;

/// The file's name in fw_cfg.
pub const FILE: &str = "bootorder";
/// What ends the list if nothing else is to be tried.
const HALT: &str = "HALT";

/// Classes as Open Firmware calls them (PCI Bus Binding to IEEE 1275, 2.2.1): base and sub-class.
const NAMES: &[(u16, &str)] = &[
    (0x0100, "scsi"),
    (0x0200, "ethernet"),
    (0x0604, "pci-bridge"),
];

/// The `bootindex` of a device with this picture, if it has one; -1 is none.
#[must_use]
pub fn index(shown: &qom::Object) -> Option<i64> {
    let property = shown.property("bootindex")?;
    property.value.as_i64().filter(|&index| index >= 0)
}

/// Checks that no other device has this one's `bootindex`.
///
/// # Errors
/// One has.
pub fn check(devices: &DeviceTree, wanted: Option<i64>) -> Result<(), QmpError> {
    let mut others = devices
        .iter()
        .filter_map(|(_, device)| index(&device.shown));
    match wanted {
        Some(wanted) if others.any(|other| other == wanted) => Err(QmpError::generic(format!(
            "The bootindex {wanted} has already been used"
        ))),
        _ => Ok(()),
    }
}

/// The file for firmware; empty if no device has a place in the order.
#[must_use]
pub fn file(devices: &DeviceTree, tree: &[FunctionView], strict: bool) -> Vec<u8> {
    let paths: BTreeMap<i64, String> = devices
        .iter()
        .filter_map(|(name, device)| {
            Some((index(&device.shown)?, path(devices, tree, name, device)?))
        })
        .collect();
    if paths.is_empty() {
        return Vec::new();
    }
    let halt = strict.then(|| HALT.to_owned());
    let lines: Vec<_> = paths.into_values().chain(halt).collect();
    let mut bytes = lines.join("\n").into_bytes();
    bytes.push(0);
    bytes
}

fn path(
    devices: &DeviceTree,
    tree: &[FunctionView],
    name: &str,
    device: &Device,
) -> Option<String> {
    let on_pci = |id: &str| {
        let mut path = "/pci@i0cf8".to_owned();
        find(tree, id, &mut path).then_some(path)
    };
    match &device.part {
        Part::Disk(_) => Some(on_pci(name)? + "/disk@0,0"),
        Part::Net(_) => Some(on_pci(name)? + "/ethernet-phy@0"),
        Part::ScsiUnit(bus, unit) => {
            let mut others = devices.iter();
            let controller = others.find_map(|(id, other)| match &other.part {
                Part::ScsiBus(one) if Arc::ptr_eq(one, bus) => Some(id),
                _ => None,
            })?;
            let (target, lun) = bus.address_of(unit)?;
            Some(on_pci(controller)? + &format!("/channel@0/disk@{target:x},{lun:x}"))
        }
        _ => None,
    }
}

/// Goes down to the function `id`, adding to `path` what is on the way; tells whether it is there.
fn find(functions: &[FunctionView], id: &str, path: &mut String) -> bool {
    for view in functions {
        let before = path.len();
        step(view, path);
        if view.id == id {
            return true;
        }
        if let Some(bridge) = &view.bridge
            && find(&bridge.functions, id, path)
        {
            return true;
        }
        path.truncate(before);
    }
    false
}

fn step(view: &FunctionView, path: &mut String) {
    let name = NAMES.iter().find(|(class, _)| *class == view.class);
    let (slot, function) = (view.address.device(), view.address.function());
    // Writing to a string does not fail.
    let _ = match name {
        Some((_, name)) => write!(path, "/{name}@{slot:x}"),
        None => write!(path, "/pci{:04x},{:04x}@{slot:x}", view.vendor, view.device),
    };
    if function != 0 {
        let _ = write!(path, ",{function:x}");
    }
}
