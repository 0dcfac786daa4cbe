//! From a name to the state behind it: what `x-inspect` shows.
//!
//! ```text
//!   disk0/msix ─► /machine/peripheral/disk0 + msix
//!                          │ owner                 └─ part of its tree
//!                          ├─ a device: its PCI function, its unit, its port, its fixture
//!                          └─ /machine/unattached/NAME: a fixture of the machine
//! ```
//!
//! The object tree says which names there are; this room says who has the state of each, and of
//! those that have none, why. Nothing is opened and nothing is changed.
//!
//! Read next: [`devices::state`].

use std::sync::Arc;

use devices::state::{AnyStateful, StateTree};
use qapi_schema::describe::nearest;
use qapi_schema::{ErrorClass, QmpError};

use crate::device_tree::{self, Device, Part};
use crate::qom;
use crate::vm::Vm;

/// Where the machine's fixtures are in the object tree.
const UNATTACHED: &str = "/machine/unattached/";

/// Who has the state of an object, or why nobody has.
type Owner = Result<Arc<dyn AnyStateful>, &'static str>;

impl Vm {
    /// The full path of what `path` names, and its state.
    ///
    /// # Errors
    /// There is no such thing, or it has no state.
    pub fn inspect(&self, path: &str) -> Result<(String, StateTree), QmpError> {
        let path = self.full_path(path);
        let Some((at, owner)) = self.owner(&path) else {
            return Err(self.unknown(&path));
        };
        let owner = owner
            .map_err(|why| QmpError::generic(format!("'{at}' has no state of its own: {why}")))?;
        let tree = owner.tree().map_err(|error| QmpError::from_error(&error))?;
        let rest = path.get(at.len()..).unwrap_or_default();
        match tree.at(rest) {
            Some(found) => Ok((path.clone(), found.clone())),
            None => Err(no_part(at, rest, &tree)),
        }
    }

    /// A device's id becomes its path; what follows it stays.
    pub(crate) fn full_path(&self, path: &str) -> String {
        let path = path.trim_end_matches('/');
        let (id, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
        match self.devices.find(id) {
            Some(device) if device.id.is_some() => device_tree::path(id, true) + rest,
            _ => path.to_owned(),
        }
    }

    /// The object at the beginning of `path`, and who has its state.
    fn owner<'p>(&self, path: &'p str) -> Option<(&'p str, Owner)> {
        let (at, name) = [
            "/machine/peripheral/",
            "/machine/peripheral-anon/",
            UNATTACHED,
        ]
        .into_iter()
        .find_map(|container| {
            let rest = path.strip_prefix(container)?;
            let name = rest.split('/').next()?;
            Some((path.get(..container.len() + name.len())?, name))
        })?;
        let owner = match self.devices.resolve(at) {
            Some(name) => self.state_of(name, self.devices.find(name)?),
            None if at.starts_with(UNATTACHED) => self.fixture(name)?,
            None => return None,
        };
        Some((at, owner))
    }

    fn state_of(&self, name: &str, device: &Device) -> Owner {
        let missing = "it is not on its bus";
        match &device.part {
            Part::Function
            | Part::Disk(_)
            | Part::Balloon(_)
            | Part::Memory(_)
            | Part::Persistent(_)
            | Part::ScsiBus(_)
            | Part::Console(_)
            | Part::Net(_)
            | Part::Input(_) => {
                let host = self.machine.pci_host(name).ok();
                let function = host.and_then(|host| host.find(name));
                function.map(|it| it as _).ok_or(missing)
            }
            Part::ScsiUnit(_, unit) => Ok(Arc::clone(unit) as _),
            Part::Port { console, number } => console.port_state(*number).ok_or(missing),
            Part::Module(_) => Err("what a guest is told of memory modules is in \
                 '/machine/unattached/acpi-memory-hotplug'"),
            Part::Cpu(_) => Err(CPU),
            Part::Board(fixture) => self.fixture(fixture).unwrap_or(Err(
                "without firmware, guests find it in memory and in ACPI's tables only",
            )),
        }
    }

    /// What came with the machine and is called `name`.
    fn fixture(&self, name: &str) -> Option<Owner> {
        let board = self.machine.board(name).ok()?;
        if name.starts_with("device[") {
            return Some(Err(CPU));
        }
        let mut fixtures = board.fixtures().into_iter();
        let (_, found) = fixtures.find(|(fixture, _)| fixture == name)?;
        Some(Ok(found))
    }

    /// That there is nothing at `path`, or nothing that has a state.
    pub(crate) fn unknown(&self, path: &str) -> QmpError {
        if let Some(object) = self.object_tree().at(path) {
            let kind = &object.type_name;
            return QmpError::generic(format!(
                "'{path}' ({kind}) has no state of its own: devices and what is on the board have, \
                 and qom-list shows them"
            ));
        }
        let (container, name) = path.rsplit_once('/').unwrap_or_default();
        let tree = self.object_tree();
        let there = tree.at(container).map(qom::Object::child_names);
        let known = there.into_iter().flatten();
        let known = known.chain(self.devices.iter().filter_map(|(_, it)| it.id.as_deref()));
        let wanted = if name.is_empty() { path } else { name };
        let hint = nearest(wanted, known).map(|near| format!("; did you mean '{near}'?"));
        QmpError::new(
            ErrorClass::DeviceNotFound,
            format!("Device '{path}' not found{}", hint.unwrap_or_default()),
        )
    }
}

const CPU: &str = "the registers of a vCPU are the kernel's";

fn no_part(at: &str, rest: &str, tree: &StateTree) -> QmpError {
    let rest = rest.trim_matches('/');
    let parts: Vec<&str> = tree.parts.keys().map(String::as_str).collect();
    QmpError::generic(match parts[..] {
        [] => format!("'{at}' has no part '{rest}', and is not made of parts"),
        _ => format!("'{at}' has no part '{rest}': it has {}", parts.join(", ")),
    })
}
