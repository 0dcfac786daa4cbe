//! The throttle groups of a graph.

use std::sync::Arc;

use indexmap::IndexMap;

use super::{BlockGraph, NodeView};
use crate::drain::{Drain, Gate};
use crate::error::BlockError;
use crate::spec::DriverSpec;
use crate::throttle::{ThrottleGroup, ThrottleLimits};

/// The groups by name, and the gate that is closed while nobody is to wait.
#[derive(Debug, Default)]
pub(super) struct Throttling {
    groups: IndexMap<String, Arc<ThrottleGroup>>,
    pub(super) hurry: Gate,
}

impl Throttling {
    pub(super) fn find(&self, name: &str) -> Result<&Arc<ThrottleGroup>, BlockError> {
        let found = self.groups.get(name);
        found.ok_or_else(|| BlockError::NoThrottleGroup {
            name: name.to_owned(),
        })
    }

    /// Nobody waits until the end of what is given back.
    pub(super) fn hurry(&self) -> Drain {
        Drain::begin(vec![self.hurry.clone()])
    }
}

impl BlockGraph {
    /// Adds a group, whose name is new.
    pub fn add_throttle_group(&mut self, name: String, limits: ThrottleLimits) {
        let hurry = self.throttling.hurry.clone();
        let group = ThrottleGroup::new(name.clone(), limits, hurry);
        self.throttling.groups.insert(name, Arc::new(group));
    }

    /// Removes a group that no node is in. Does nothing where there is none of this name.
    ///
    /// # Errors
    /// A node is in it.
    pub fn remove_throttle_group(&mut self, name: &str) -> Result<(), BlockError> {
        let group = self.throttling.groups.get(name);
        if let Some(node) = group.and_then(|group| group.first_member()) {
            return Err(BlockError::ThrottleGroupInUse {
                name: name.to_owned(),
                node,
            });
        }
        self.throttling.groups.shift_remove(name);
        Ok(())
    }

    /// The group of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn throttle_group(&self, name: &str) -> Result<&ThrottleGroup, BlockError> {
        self.throttling.find(name).map(|group| &**group)
    }
}

impl<'a> NodeView<'a> {
    /// The group whose limits the node has, if it is a throttle.
    pub fn throttle_group(&self) -> Option<&'a ThrottleGroup> {
        match &self.entry.made {
            DriverSpec::Throttle(throttle) => self.graph.throttle_group(&throttle.group).ok(),
            _ => None,
        }
    }
}
