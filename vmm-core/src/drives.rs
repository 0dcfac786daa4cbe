//! Drives: names that `-drive` gives to block nodes, older than the nodes' own.
//!
//! ```text
//!   -drive id=d0,..  ─► node (#block001 or its node-name) ◄── device 'drive=d0', block_resize d0
//!                         └ goes with the drive, and the drive with the device that had it
//! ```
//!
//! Pure bookkeeping: nodes are made and removed by [`crate::vm::Vm`].

use block::Limiter;
use indexmap::IndexMap;
use qapi_schema::block_core::BlockdevOnError;

/// A drive.
#[derive(Clone, Debug)]
pub struct Drive {
    /// The name of its node.
    pub node: String,
    /// Whether its disk shows the guest a write cache unless told otherwise.
    pub write_cache: bool,
    /// What is done when a read fails, and when anything else does, unless its disk says.
    pub on_error: [Option<BlockdevOnError>; 2],
    /// What its reads and writes ask before they go, also those of its disk.
    pub limiter: Limiter,
}

/// The drives by id, in the order they were added.
#[derive(Debug, Default)]
pub struct Drives(IndexMap<String, Drive>);

impl Drives {
    /// Adds one; its id is new.
    pub fn add(&mut self, id: String, drive: Drive) {
        self.0.insert(id, drive);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: &str) -> Option<Drive> {
        self.0.shift_remove(id)
    }

    /// The drive of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Drive> {
        self.0.get(id)
    }

    /// The id of the drive whose node this is.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Option<&str> {
        let mut drives = self.iter();
        drives.find_map(|(id, drive)| (drive.node == node).then_some(id))
    }

    /// Has the drive of the node `from` follow its users to `to`.
    pub fn follow(&mut self, from: &str, to: &str) {
        for drive in self.0.values_mut().filter(|drive| drive.node == from) {
            to.clone_into(&mut drive.node);
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Drive)> {
        self.0.iter().map(|(id, drive)| (id.as_str(), drive))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_found_by_its_id_and_by_its_node_until_it_is_removed() {
        let mut drives = Drives::default();
        let drive = Drive {
            node: "#block001".into(),
            write_cache: true,
            on_error: [None; 2],
            limiter: Limiter::default(),
        };
        drives.add("d0".into(), drive);
        assert!(drives.find("d0").is_some_and(|drive| drive.write_cache));
        assert_eq!(drives.of_node("#block001"), Some("d0"));
        assert!(drives.remove("d0").is_some());
        assert_eq!(drives.of_node("#block001"), None);
    }
}
