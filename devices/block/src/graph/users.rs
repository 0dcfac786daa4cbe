//! Who uses a node from outside the graph: devices come and go, and each agrees with all others.

use super::{BlockGraph, Device, Entry, no_such};
use crate::error::BlockError;
use crate::node::NodeRef;
use crate::permission::{Permissions, Usage};
use crate::root::Root;

impl BlockGraph {
    /// Gives a node to a device. The caller detaches it when the device is gone.
    ///
    /// # Errors
    /// There is no such node, it is read-only and would be written, or another user of it or of
    /// its storage does not agree.
    pub fn attach(&mut self, name: &str, device: &str, usage: Usage) -> Result<Root, BlockError> {
        let entry = self.entry(name)?;
        let changes = Permissions::WRITE | Permissions::RESIZE;
        if entry.node.is_read_only() && usage.uses.intersects(changes) {
            return Err(BlockError::ReadOnly {
                node: name.to_owned(),
            });
        }
        if entry.devices.iter().any(|user| user.id == device) {
            return Err(BlockError::AlreadyAttached {
                node: name.to_owned(),
                user: device.to_owned(),
            });
        }
        self.check_user(name, device, usage)?;
        let entry = self.nodes.get_mut(name).ok_or_else(|| no_such(name))?;
        let root = Root::new(entry.node.clone(), self.throttling.hurry.clone());
        entry.devices.push(Device {
            id: device.to_owned(),
            usage,
            root: root.clone(),
        });
        Ok(root)
    }

    /// Takes back what [`attach`](Self::attach) gave; says whether the device had the node.
    pub fn detach(&mut self, name: &str, device: &str) -> bool {
        let Some(entry) = self.nodes.get_mut(name) else {
            return false;
        };
        let before = entry.devices.len();
        entry.devices.retain(|user| user.id != device);
        let had = entry.devices.len() != before;
        self.release_unused(name);
        self.settle_locks();
        had
    }

    /// Whether a device or another node has it.
    pub(super) fn is_used(&self, name: &str) -> bool {
        self.check_free(name).is_err()
    }

    /// Whether no device and no other node has it; the error says who.
    pub(super) fn check_free(&self, name: &str) -> Result<(), BlockError> {
        let owned = || name.to_owned();
        let entry = self.nodes.get(name);
        if entry.is_some_and(|entry| !entry.devices.is_empty()) {
            return Err(BlockError::InUse { name: owned() });
        }
        let mut parents = self.parents(name).peekable();
        if parents.peek().is_none() {
            return Ok(());
        }
        let above = parents.find(|(role, _)| *role == "backing");
        Err(match above {
            Some((_, parent)) => BlockError::Backs {
                name: owned(),
                parent: parent.to_owned(),
            },
            None => BlockError::UnderNode { name: owned() },
        })
    }

    /// The node of this name, if its length may change and whoever uses it agrees.
    ///
    /// # Errors
    /// There is no such node, it is read-only, or somebody relies on its length.
    pub fn to_resize(&self, name: &str) -> Result<NodeRef, BlockError> {
        self.check_idle(name)?;
        let node = self.entry(name)?.node.clone();
        if node.is_read_only() {
            return Err(BlockError::ReadOnly {
                node: name.to_owned(),
            });
        }
        self.check_permitted(name, Permissions::RESIZE)?;
        let usage = Usage {
            uses: Permissions::RESIZE,
            ..Usage::NONE
        };
        self.check_user(name, "", usage)?;
        Ok(node)
    }

    /// Takes back what [`attach`](Self::attach) gave, whichever node the device has by now.
    pub fn detach_device(&mut self, device: &str) -> bool {
        let has = |entry: &Entry| entry.devices.iter().any(|user| user.id == device);
        let node = self.nodes.iter().find(|(_, entry)| has(entry));
        let node = node.map(|(name, _)| name.clone());
        node.is_some_and(|name| self.detach(&name, device))
    }

    /// Whether everyone who uses `name`, or what it stands on, agrees with one more user.
    fn check_user(&self, name: &str, user: &str, usage: Usage) -> Result<(), BlockError> {
        let mut sketch = self.sketch();
        if let Some(node) = sketch.node(name) {
            node.users.push((user.to_owned(), usage));
        }
        self.agree(&sketch)
    }
}
