//! A node over a file that is made on the way: where an overlay is going to be.

use fdset::{Door, Role};

use super::place::Children;
use super::{BlockGraph, Entry, Owner, auto_name};
use crate::error::BlockError;
use crate::node::{Claim, NodeRef};
use crate::permission::{Permissions, Usage};
use crate::protocol::create::NewFile;
use crate::protocol::file::{FileKind, FileNode};
use crate::spec::{DriverSpec, FileSpec, Locking, NodeOptions};

impl BlockGraph {
    /// Adds a node over `filename`, where a missing file is made; what is in it stays. The node has
    /// no name of its own and goes with its last user; until it has one,
    /// [`abandon`](Self::abandon) removes it.
    ///
    /// # Errors
    /// The file cannot be opened, or is that of another node.
    pub fn add_new_file(
        &mut self,
        door: &Door,
        filename: &str,
        options: NodeOptions,
    ) -> Result<NodeRef, BlockError> {
        let mut next_auto = self.next_auto;
        let name = auto_name(&mut next_auto);
        let new = NewFile::open(door, filename, &format!("node '{name}'"))?;
        self.check_unused(&new, filename)?;
        let spec = FileSpec {
            filename: filename.to_owned(),
            role: Role::Image,
            locking: Locking::Auto,
        };
        let options = NodeOptions {
            read_only: false,
            ..options
        };
        let file = new.into_file();
        let body = FileNode::over(file, &name, &spec, FileKind::Regular, &options)?;
        let node = NodeRef::new(name.clone(), "file", options, Box::new(body))?;
        // It is going to be written before it has a user here: may it?
        let writer = Usage {
            uses: Permissions::WRITE | Permissions::RESIZE,
            shares: Permissions::CONSISTENT_READ,
        };
        node.claim(Claim::Widen(writer))?;
        let entry = Entry {
            node: node.clone(),
            filename: spec.filename.clone(),
            made: DriverSpec::File(spec),
            owner: Owner::Parent,
            keeps_access: false,
            force_share: false,
            children: Children::default(),
            devices: Vec::new(),
            jobs: Vec::new(),
        };
        self.nodes.insert(name, entry);
        self.next_auto = next_auto;
        Ok(node)
    }

    /// Whether no node has its bytes in this file.
    ///
    /// # Errors
    /// One has.
    pub fn check_unused(&self, file: &NewFile, filename: &str) -> Result<(), BlockError> {
        let holder = file.identity().and_then(|file| self.stored_in(file));
        match holder {
            None => Ok(()),
            Some(node) => Err(BlockError::FileTaken {
                filename: filename.to_owned(),
                node: node.to_owned(),
            }),
        }
    }
}
