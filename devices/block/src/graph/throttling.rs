//! The throttle groups of a graph: those with a name of their own, and those that last as long as
//! somebody is in them.

use std::sync::{Arc, Weak};

use indexmap::IndexMap;

use super::{BlockGraph, NodeView};
use crate::drain::{Drain, Gate};
use crate::error::BlockError;
use crate::spec::DriverSpec;
use crate::throttle::{Limiter, LimitsError, ThrottleGroup, ThrottleLimits};

/// Who keeps a group.
#[derive(Debug)]
enum Kept {
    /// Whoever added it.
    ByName(Arc<ThrottleGroup>),
    /// Those who are in it.
    ByMembers(Weak<ThrottleGroup>),
}

impl Kept {
    fn group(&self) -> Option<Arc<ThrottleGroup>> {
        match self {
            Self::ByName(group) => Some(Arc::clone(group)),
            Self::ByMembers(group) => group.upgrade(),
        }
    }
}

/// The groups by name, and the gate that is closed while nobody is to wait.
#[derive(Debug, Default)]
pub(super) struct Throttling {
    groups: IndexMap<String, Kept>,
    pub(super) hurry: Gate,
}

impl Throttling {
    pub(super) fn find(&self, name: &str) -> Result<Arc<ThrottleGroup>, BlockError> {
        let found = self.groups.get(name).and_then(Kept::group);
        found.ok_or_else(|| BlockError::NoThrottleGroup {
            name: name.to_owned(),
        })
    }

    fn make(&self, name: &str, limits: ThrottleLimits) -> Arc<ThrottleGroup> {
        let hurry = self.hurry.clone();
        Arc::new(ThrottleGroup::new(name.to_owned(), limits, hurry))
    }

    /// The group of this name, made for who will be in it where there is none.
    fn find_or_make(&mut self, name: &str) -> Arc<ThrottleGroup> {
        if let Ok(group) = self.find(name) {
            return group;
        }
        let group = self.make(name, ThrottleLimits::default());
        self.groups.retain(|_, kept| kept.group().is_some());
        let kept = Kept::ByMembers(Arc::downgrade(&group));
        self.groups.insert(name.to_owned(), kept);
        group
    }

    /// Nobody waits until the end of what is given back.
    pub(super) fn hurry(&self) -> Drain {
        Drain::begin(vec![self.hurry.clone()])
    }
}

impl BlockGraph {
    /// Adds a group.
    ///
    /// # Errors
    /// Users have made one of this name, and are in it.
    pub fn add_throttle_group(
        &mut self,
        name: String,
        limits: ThrottleLimits,
    ) -> Result<(), BlockError> {
        if let Ok(group) = self.throttling.find(&name) {
            let user = group.first_member().unwrap_or_default();
            return Err(BlockError::ThrottleGroupExists { name, user });
        }
        let group = self.throttling.make(&name, limits);
        self.throttling.groups.insert(name, Kept::ByName(group));
        Ok(())
    }

    /// Removes a group that nobody is in. Does nothing where none of this name was added.
    ///
    /// # Errors
    /// A node or a user is in it.
    pub fn remove_throttle_group(&mut self, name: &str) -> Result<(), BlockError> {
        let Some(Kept::ByName(group)) = self.throttling.groups.get(name) else {
            return Ok(());
        };
        if let Some(node) = group.first_member() {
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
    pub fn throttle_group(&self, name: &str) -> Result<Arc<ThrottleGroup>, BlockError> {
        self.throttling.find(name)
    }

    /// Sets the limits of a user's own: those of its group, which become those of all who are in
    /// it. `group` is where it goes; without, it stays where it is, or goes where it has its own
    /// name. Limits that limit nothing take it out of its group.
    ///
    /// # Errors
    /// The limits make no sense.
    pub fn limit(
        &mut self,
        limiter: &Limiter,
        user: &str,
        group: Option<&str>,
        limits: ThrottleLimits,
    ) -> Result<(), LimitsError> {
        limits.check()?;
        let now = limiter.group();
        if !limits.any() {
            limiter.put(None);
            // Who waits there would wait for limits that are no more its own.
            drop(now.map(|_| self.throttling.hurry()));
            return Ok(());
        }
        let stays = |now: &Arc<ThrottleGroup>| group.is_none_or(|name| name == now.name());
        let group = match now.filter(stays) {
            Some(now) => now,
            None => {
                let group = self.throttling.find_or_make(group.unwrap_or(user));
                limiter.put(Some(group.join(user)));
                drop(self.throttling.hurry());
                group
            }
        };
        group.set_limits(limits);
        Ok(())
    }
}

impl NodeView<'_> {
    /// The group whose limits the node has, if it is a throttle.
    pub fn throttle_group(&self) -> Option<Arc<ThrottleGroup>> {
        match &self.entry.made {
            DriverSpec::Throttle(throttle) => self.graph.throttle_group(&throttle.group).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(average: u64) -> ThrottleLimits {
        let mut limits = ThrottleLimits::default();
        limits.bytes.total.average = average;
        limits
    }

    #[test]
    fn a_group_made_for_users_lasts_as_long_as_one_is_in_it() {
        let mut graph = BlockGraph::new();
        let (one, two) = (Limiter::default(), Limiter::default());
        graph.limit(&one, "one", None, limits(5)).expect("limits");
        assert_eq!(one.group().expect("a group").name(), "one");
        graph
            .limit(&two, "two", Some("one"), limits(7))
            .expect("limits");
        assert_eq!(one.group().expect("a group").limits(), limits(7));
        let taken = graph.add_throttle_group("one".to_owned(), limits(1));
        assert!(matches!(taken, Err(BlockError::ThrottleGroupExists { .. })));
        graph.limit(&one, "one", None, limits(0)).expect("limits");
        assert!(one.group().is_none());
        assert!(graph.throttle_group("one").is_ok(), "the other is in it");
        drop(two);
        assert!(graph.throttle_group("one").is_err());
        let added = graph.add_throttle_group("one".to_owned(), limits(1));
        added.expect("the name is free");
        graph.limit(&one, "one", None, limits(3)).expect("limits");
        assert!(graph.remove_throttle_group("one").is_err(), "in use");
    }

    #[test]
    fn limits_without_a_group_named_are_those_of_the_group_that_the_user_is_in() {
        let mut graph = BlockGraph::new();
        let limiter = Limiter::default();
        graph
            .limit(&limiter, "disk", Some("g"), limits(5))
            .expect("limits");
        graph
            .limit(&limiter, "disk", None, limits(9))
            .expect("limits");
        let group = limiter.group().expect("a group");
        assert_eq!((group.name(), group.limits()), ("g", limits(9)));
        let mut wrong = limits(1);
        wrong.bytes.read.average = 1;
        let refused = graph.limit(&limiter, "disk", Some("h"), wrong);
        assert_eq!(refused, Err(LimitsError::TotalAndPart));
        assert_eq!(limiter.group().expect("a group").name(), "g");
    }
}
