//! The devices that were added by `-device` or `device_add`, and what each holds.
//!
//! ```text
//!   name ── what it is called inside: its id, or `device[N]` without one
//!     ├── part      what is left to drive it by (a disk, a console, a port)
//!     ├── claims    the backends it uses, given back when it goes
//!     └── shown     its picture in the object tree
//! ```
//!
//! Pure bookkeeping: nothing is plugged or released here. [`crate::plug`] makes the devices.

use std::sync::{Arc, Weak};

use block::{Histograms, Limiter, NodeRef, Totals};
use devices::failures::Failures;
use devices::legacy::DimmSpec;
use devices::scsi::ScsiUnit;
use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::blk::VirtioBlk;
use devices::virtio::console::VirtioConsole;
use devices::virtio::input::VirtioInput;
use devices::virtio::mem::VirtioMem;
use devices::virtio::net::VirtioNet;
use devices::virtio::pmem::PmemSpec;
use devices::virtio::scsi::VirtioScsi;
use devices::virtio::transport::VirtioPci;
use indexmap::IndexMap;
use qapi_schema::QmpError;

use crate::plug;
use crate::qom;
use crate::resolve::object::check_id;

/// What the VM needs of a device while it is plugged.
#[derive(Clone)]
pub enum Part {
    /// A PCI function that nobody drives: a root port, an rng.
    Function,
    /// A disk.
    Disk(Arc<VirtioBlk>),
    /// The memory balloon.
    Balloon(Arc<VirtioBalloon>),
    /// Memory by the block.
    Memory(Arc<VirtioMem>),
    /// A memory module.
    Module(Module),
    /// Persistent memory.
    Persistent(PmemSpec),
    /// A SCSI controller, with the bus for its units.
    ScsiBus(Arc<VirtioScsi>),
    /// A unit on the bus of that controller.
    ScsiUnit(Arc<VirtioScsi>, Arc<ScsiUnit>),
    /// A virtio-serial device, with the bus for its ports.
    Console(Arc<VirtioConsole>),
    /// A port of a virtio-serial device.
    Port {
        /// The device it is plugged into.
        console: Arc<VirtioConsole>,
        /// Its number there.
        number: u32,
    },
    /// The vCPU of this place.
    Cpu(u32),
    /// A network card.
    Net(Arc<VirtioNet>),
    /// A keyboard, mouse or tablet.
    Input(Arc<VirtioInput>),
    /// A device on the board, there for good, by its name among the board's fixtures.
    Board(String),
}

/// A memory module in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// The number of its place.
    pub slot: u32,
    /// Where it is in guest memory.
    pub spec: DimmSpec,
    /// Whether it came while the machine was there.
    pub hot: bool,
}

/// A disk as the guest has it, or a drive for disks.
#[derive(Clone)]
pub enum Disk {
    /// On a bus of its own.
    Virtio(Arc<VirtioBlk>),
    /// On that controller's bus.
    Scsi(Arc<VirtioScsi>, Arc<ScsiUnit>),
}

impl Disk {
    /// The node it stands on; an empty drive has none.
    pub fn node(&self) -> Option<NodeRef> {
        match self {
            Self::Virtio(disk) => Some(disk.node()),
            Self::Scsi(_, unit) => unit.node(),
        }
    }

    /// What the guest has asked of it until now.
    pub fn totals(&self) -> Totals {
        match self {
            Self::Virtio(disk) => disk.totals(),
            Self::Scsi(_, unit) => unit.totals(),
        }
    }

    /// What it does about failures of its storage.
    pub fn failures(&self) -> &Failures {
        match self {
            Self::Virtio(disk) => disk.failures(),
            Self::Scsi(_, unit) => unit.failures(),
        }
    }

    /// How long its requests took, where a client wants to know.
    pub fn histograms(&self) -> &Histograms {
        match self {
            Self::Virtio(disk) => disk.histograms(),
            Self::Scsi(_, unit) => unit.histograms(),
        }
    }

    /// What its reads and writes ask before they go.
    pub fn limiter(&self) -> &Limiter {
        match self {
            Self::Virtio(disk) => disk.limiter(),
            Self::Scsi(_, unit) => unit.limiter(),
        }
    }

    /// The bytes of one of its blocks, which its length is a multiple of.
    pub fn block_size(&self) -> u32 {
        match self {
            Self::Virtio(disk) => disk.block_size(),
            Self::Scsi(_, unit) => unit.block_size(),
        }
    }

    /// Tells the guest that the node's length has changed.
    pub fn capacity_changed(&self) {
        match self {
            Self::Virtio(disk) => disk.capacity_changed(),
            Self::Scsi(bus, unit) => bus.capacity_changed(unit),
        }
    }

    /// The drive, if it has a tray.
    pub fn tray(&self) -> Option<&ScsiUnit> {
        match self {
            Self::Scsi(_, unit) if unit.kind() == devices::scsi::Kind::Cd => Some(unit),
            _ => None,
        }
    }
}

/// A backend that a device uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The object of this id.
    Object(String),
    /// The block node of this name.
    Node(String),
    /// The drive of this id, which goes when the device goes.
    Drive(String),
}

/// One device.
#[derive(Clone)]
pub struct Device {
    /// The id its maker gave it.
    pub id: Option<String>,
    /// Its model.
    pub driver: &'static str,
    /// What is left to drive it by.
    pub part: Part,
    /// What it uses.
    pub claims: Vec<Claim>,
    /// What carries it, if it is a virtio device that is on its bus.
    pub virtio: Weak<VirtioPci>,
    /// Its picture.
    pub shown: qom::Object,
}

impl Device {
    /// Its picture, with what it knows only now.
    fn picture(&self) -> qom::Object {
        match &self.part {
            Part::Balloon(balloon) => plug::balloon::show(balloon, self.shown.clone()),
            Part::Module(module) => plug::dimm::show(*module, self.shown.clone()),
            Part::Memory(memory) => plug::mem::show(memory, self.shown.clone()),
            Part::Persistent(spec) => plug::pmem::show(*spec, self.shown.clone()),
            _ => self.shown.clone(),
        }
    }
}

/// All devices, in the order they were added.
#[derive(Default)]
pub struct DeviceTree {
    devices: IndexMap<String, Device>,
    nameless: usize,
}

impl DeviceTree {
    /// The name for a new device with this id, or without.
    ///
    /// # Errors
    /// The id is no identifier, or is taken.
    pub fn name(&mut self, id: Option<&str>) -> Result<String, QmpError> {
        let Some(id) = id else {
            let name = format!("device[{}]", self.nameless);
            self.nameless += 1;
            return Ok(name);
        };
        check_id(id)?;
        if self.devices.contains_key(id) {
            return Err(QmpError::generic(format!("Duplicate device ID '{id}'")));
        }
        Ok(id.to_owned())
    }

    /// Adds a device that is plugged.
    pub fn add(&mut self, name: String, device: Device) {
        self.devices.insert(name, device);
    }

    /// Takes a device out.
    pub fn remove(&mut self, name: &str) -> Option<Device> {
        self.devices.shift_remove(name)
    }

    /// The device of this name.
    pub fn find(&self, name: &str) -> Option<&Device> {
        self.devices.get(name)
    }

    /// The name of the device that a client calls `id`: an id, or a path in the object tree.
    pub fn resolve(&self, id: &str) -> Option<&str> {
        let name = id
            .strip_prefix("/machine/peripheral/")
            .or_else(|| id.strip_prefix("/machine/peripheral-anon/"))
            .unwrap_or(id);
        let (key, device) = self.devices.get_key_value(name)?;
        // A nameless device is reached by its path only: its name is nobody's to know.
        (device.id.is_some() || id.starts_with('/')).then_some(key.as_str())
    }

    /// All devices with their names, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Device)> {
        self.devices
            .iter()
            .map(|(name, device)| (name.as_str(), device))
    }

    /// The disks with their names, in the order they were added.
    pub fn disks(&self) -> impl Iterator<Item = (&str, &Device, Disk)> {
        self.iter().filter_map(|(name, device)| {
            let disk = match &device.part {
                Part::Disk(disk) => Disk::Virtio(Arc::clone(disk)),
                Part::ScsiUnit(bus, unit) => Disk::Scsi(Arc::clone(bus), Arc::clone(unit)),
                _ => return None,
            };
            Some((name, device, disk))
        })
    }

    /// The SCSI controller whose bus has this name; any, without a name.
    pub fn scsi_bus(&self, bus: Option<&str>) -> Option<(&str, &Arc<VirtioScsi>)> {
        self.iter().find_map(|(name, device)| match &device.part {
            Part::ScsiBus(controller) if bus.is_none_or(|bus| bus == controller.bus_name()) => {
                Some((name, controller))
            }
            _ => None,
        })
    }

    /// The names of the units on the bus of `controller`.
    pub fn units_of(&self, controller: &Arc<VirtioScsi>) -> Vec<String> {
        self.iter()
            .filter(|(_, device)| {
                matches!(&device.part, Part::ScsiUnit(bus, _) if Arc::ptr_eq(bus, controller))
            })
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// The memory modules with their names, in the order they were added.
    pub fn modules(&self) -> impl Iterator<Item = (&str, Module)> {
        self.iter().filter_map(|(name, device)| match device.part {
            Part::Module(module) => Some((name, module)),
            _ => None,
        })
    }

    /// Which of the board's fixtures devices are.
    pub fn fixtures(&self) -> Vec<&str> {
        let fixtures = self.iter().filter_map(|(_, device)| match &device.part {
            Part::Board(fixture) => Some(fixture.as_str()),
            _ => None,
        });
        fixtures.collect()
    }

    /// The memory balloon.
    pub fn balloon(&self) -> Option<&Arc<VirtioBalloon>> {
        self.iter().find_map(|(_, device)| match &device.part {
            Part::Balloon(balloon) => Some(balloon),
            _ => None,
        })
    }

    /// What takes events of users, in the order they were added.
    pub fn inputs(&self) -> Vec<Arc<VirtioInput>> {
        let inputs = self.iter().filter_map(|(_, device)| match &device.part {
            Part::Input(input) => Some(Arc::clone(input)),
            _ => None,
        });
        inputs.collect()
    }

    /// The network cards with their names, in the order they were added.
    pub fn cards(&self) -> impl Iterator<Item = (&str, &Device, &Arc<VirtioNet>)> {
        self.iter().filter_map(|(name, device)| match &device.part {
            Part::Net(card) => Some((name, device, card)),
            _ => None,
        })
    }

    /// The virtio-serial device whose bus has this name; any, without a name.
    pub fn console(&self, bus: Option<&str>) -> Option<(&str, &Arc<VirtioConsole>)> {
        self.iter().find_map(|(name, device)| match &device.part {
            Part::Console(console) if bus.is_none_or(|bus| bus == console.bus_name()) => {
                Some((name, console))
            }
            _ => None,
        })
    }

    /// The names of the ports plugged into `console`.
    pub fn ports_of(&self, console: &Arc<VirtioConsole>) -> Vec<String> {
        self.iter()
            .filter(|(_, device)| {
                matches!(&device.part, Part::Port { console: parent, .. }
                    if Arc::ptr_eq(parent, console))
            })
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// `/machine/peripheral` and `/machine/peripheral-anon`.
    pub fn trees(&self) -> (qom::Object, qom::Object) {
        let container = || qom::Object::new("container");
        self.devices.iter().fold(
            (container(), container()),
            |(named, nameless), (name, device)| {
                if device.id.is_some() {
                    (named.with_child(name.clone(), device.picture()), nameless)
                } else {
                    (named, nameless.with_child(name.clone(), device.picture()))
                }
            },
        )
    }
}

/// Where a device stands in the object tree.
pub fn path(name: &str, has_id: bool) -> String {
    let container = if has_id {
        "peripheral"
    } else {
        "peripheral-anon"
    };
    format!("/machine/{container}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: Option<&str>) -> Device {
        Device {
            id: id.map(str::to_owned),
            driver: "pcie-root-port",
            part: Part::Function,
            claims: Vec::new(),
            virtio: Weak::new(),
            shown: qom::Object::new("pcie-root-port"),
        }
    }

    #[test]
    fn an_id_is_given_once_and_again_after_its_device_has_gone() {
        let mut tree = DeviceTree::default();
        let name = tree.name(Some("port0")).unwrap();
        tree.add(name, device(Some("port0")));
        assert_eq!(
            tree.name(Some("port0")).unwrap_err().desc,
            "Duplicate device ID 'port0'"
        );
        assert!(tree.remove("port0").is_some());
        assert!(tree.name(Some("port0")).is_ok());
    }

    #[test]
    fn a_nameless_device_is_reached_by_its_path_only() {
        let mut tree = DeviceTree::default();
        let name = tree.name(None).unwrap();
        tree.add(name.clone(), device(None));
        assert_eq!(tree.resolve(&name), None);
        assert_eq!(tree.resolve(&path(&name, false)), Some(name.as_str()));
    }

    #[test]
    fn an_id_that_is_no_identifier_is_refused() {
        let mut tree = DeviceTree::default();
        for id in ["", "0disk", "a/b", "device[0]"] {
            assert!(tree.name(Some(id)).is_err(), "{id}");
        }
    }
}
