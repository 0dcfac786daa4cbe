//! Nodes whose storage is left to another process for a while: to the new one of a live update, to
//! the destination of a migration.
//!
//! ```text
//!             users parked ─► all written down ─► locks given back
//!    active ────────────────────────────────────────────────────────► inactive
//!           ◄────────────────────────────────────────────────────────
//!             locks taken, or refused ─► users parked ─► all read anew, what is below first
//! ```
//!
//! An inactive node stays where it is, with whoever uses it, and nothing is written through it. What
//! another process did to its storage meanwhile is seen when it is active again, and not before.

use super::BlockGraph;
use crate::error::BlockError;
use crate::node::NodeRef;
use crate::permission::Permissions;

impl BlockGraph {
    /// The nodes that become inactive with `name`, each after all that stand on it: those below it
    /// that nothing active has. With none named, all that are active.
    ///
    /// # Errors
    /// There is no such node, or something active stands on it.
    pub fn to_inactivate(&self, name: Option<&str>) -> Result<Vec<String>, BlockError> {
        let Some(name) = name else {
            return self.inactive_or_not(true);
        };
        let entry = self.entry(name)?;
        let mut leaving: Vec<String> = Vec::new();
        if self.has_active_parent(name, &leaving) {
            return Err(BlockError::ActiveParent);
        }
        if entry.node.is_active() {
            leaving.push(name.to_owned());
        }
        let mut at = 0;
        while let Some(entry) = leaving.get(at).and_then(|name| self.nodes.get(name)) {
            at += 1;
            for edge in entry.children.edges() {
                let child = &edge.child;
                let is_active = self.entry(child)?.node.is_active();
                if is_active && !leaving.contains(child) && !self.has_active_parent(child, &leaving)
                {
                    leaving.push(child.clone());
                }
            }
        }
        Ok(leaving)
    }

    fn has_active_parent(&self, name: &str, but: &[String]) -> bool {
        self.parents(name).any(|(_, parent)| {
            let entry = self.nodes.get(parent);
            let is_active = entry.is_some_and(|entry| entry.node.is_active());
            is_active && !but.iter().any(|other| other == parent)
        })
    }

    /// All nodes that are, or are not, active: each after all that stand on it.
    fn inactive_or_not(&self, active: bool) -> Result<Vec<String>, BlockError> {
        let sketch = self.sketch();
        let order = sketch.parents_first()?.into_iter();
        let is_so = |name: &&str| {
            let entry = self.nodes.get(*name);
            entry.is_some_and(|entry| entry.node.is_active() == active)
        };
        Ok(order.filter(is_so).map(str::to_owned).collect())
    }

    /// Leaves the storage of nodes to other processes: those that
    /// [`to_inactivate`](Self::to_inactivate) has named.
    ///
    /// # Errors
    /// A job holds one of them, or what one has in memory could not be written down. All are as they
    /// were.
    pub fn inactivate(&mut self, names: &[String]) -> Result<(), BlockError> {
        let mut nodes: Vec<NodeRef> = Vec::new();
        for name in names {
            self.check_idle(name)?;
            let node = &self.entry(name)?.node;
            if node.driver() == "copy-before-write" {
                return Err(BlockError::KeepsSnapshot { node: name.clone() });
            }
            nodes.push(node.clone());
        }
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let drain = self.drain(&all);
        nodes.iter().try_for_each(|node| self.write_down(node))?;
        nodes.iter().for_each(|node| node.set_active(false));
        drop(drain);
        self.settle_locks();
        Ok(())
    }

    /// Takes back the storage of a node and of all below it; with none named, of all.
    ///
    /// # Errors
    /// There is no such node, another process does not let go of the storage, somebody here would
    /// not agree, or what is there now cannot be used. All are as they were.
    pub fn activate(&mut self, name: Option<&str>) -> Result<(), BlockError> {
        let mut coming = self.inactive_or_not(false)?;
        if let Some(name) = name {
            self.entry(name)?;
            coming.retain(|other| self.stands_on(name, other));
        }
        if coming.is_empty() {
            return Ok(());
        }
        let mut sketch = self.sketch();
        for name in &coming {
            if let Some(drawn) = sketch.node(name) {
                drawn.inactive = false;
            }
        }
        self.agree(&sketch)?;
        let renewed = self.take_over(&coming);
        self.settle_locks();
        renewed
    }

    /// Reads anew what nodes keep in memory, and has them active; each comes after all that stand
    /// on it, and all agree.
    fn take_over(&self, coming: &[String]) -> Result<(), BlockError> {
        // Files below that are active have only been looked at since, and may be longer by now.
        let files = self.nodes.iter().filter(|(name, entry)| {
            let stands = |upper: &String| self.stands_on(upper, name);
            let is_file = entry.children.edges().next().is_none();
            is_file && !coming.contains(name) && coming.iter().any(stands)
        });
        let files = files.map(|(name, _)| name);
        let renewed: Vec<&str> = coming.iter().chain(files).map(String::as_str).collect();
        let drain = self.drain(&renewed);
        for name in renewed.iter().rev() {
            self.renew(&self.entry(name)?.node)?;
        }
        for name in coming {
            self.entry(name)?.node.set_active(true);
        }
        self.refresh_limits();
        drop(drain);
        for name in coming {
            self.take_up_bitmaps(&self.entry(name)?.node);
        }
        Ok(())
    }

    fn renew(&self, node: &NodeRef) -> Result<(), BlockError> {
        let name = || node.name().to_owned();
        let thread = self.thread.clone();
        let thread = thread.ok_or_else(|| BlockError::NoThread { node: name() })?;
        let going = node.clone();
        let renewed = thread.run(move |io| async move { going.renew(&io).await });
        let renewed = renewed.map_err(|source| BlockError::Thread { source })?;
        renewed.map_err(|source| BlockError::NotRenewed {
            node: name(),
            source,
        })
    }

    /// Whether none of these nodes is inactive.
    ///
    /// # Errors
    /// There is no such node, or it is.
    pub fn check_active<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), BlockError> {
        for name in names {
            if !self.entry(name)?.node.is_active() {
                let node = name.to_owned();
                return Err(BlockError::Inactive { node });
            }
        }
        Ok(())
    }

    /// Whether somebody who is no disk, and so would not wait, may do this with a node.
    ///
    /// # Errors
    /// There is no such node, or it is inactive.
    pub fn check_permitted(&self, name: &str, permissions: Permissions) -> Result<(), BlockError> {
        match self.entry(name)?.node.is_active() {
            true => Ok(()),
            false => Err(BlockError::NotPermitted { permissions }),
        }
    }
}
