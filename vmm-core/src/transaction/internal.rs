//! States that are kept inside images.
//!
//! They are made while the image is drained, one after the other; if one cannot be made, those before
//! it are forgotten again, and nothing has changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use block::NodeRef;
use block::format::qcow2::{Snapshot, SnapshotChange};
use qapi_schema::QmpError;
use qapi_schema::block_core::SnapshotInfo;
use qapi_schema::block_graph::{BlockdevSnapshotDeleteInternalSync, BlockdevSnapshotInternal};

use super::{Step, Work};
use crate::resolve;
use crate::vm::Vm;

/// The states that an image keeps.
fn states(node: &NodeRef) -> Vec<Snapshot> {
    node.details()
        .map_or_else(Vec::new, |details| details.snapshots)
}

/// An id that no state has: one more than the largest number.
fn free_id(states: &[Snapshot]) -> String {
    let numbers = states
        .iter()
        .filter_map(|state| state.id.parse::<u64>().ok());
    let largest = numbers.max().unwrap_or(0);
    largest.saturating_add(1).to_string()
}

impl Vm {
    pub(super) fn prepare_internal(
        &mut self,
        work: &Work,
        state: BlockdevSnapshotInternal,
    ) -> Result<Step, QmpError> {
        let BlockdevSnapshotInternal { device, name } = state;
        let node = self.named_node(&device)?;
        let node = work.newest(&node).to_owned();
        let active = self.graph.check_active([node.as_str()]);
        let idle = active.and_then(|()| self.graph.check_idle(&node));
        idle.map_err(|error| QmpError::from_error(&error))?;
        let image = self.image(&node)?;
        if image.is_read_only() {
            let text = format!("Device '{device}' is read only");
            return Err(QmpError::generic(text));
        }
        if image.details().is_none() {
            return Err(QmpError::generic(format!(
                "Block format '{}' used by device '{device}' does not support internal snapshots",
                image.driver()
            )));
        }
        if name.is_empty() {
            return Err(QmpError::generic("Name is empty"));
        }
        let is_same = |step: &Step| match step {
            Step::Keep {
                node: other,
                name: its,
            } => *other == node && *its == name,
            Step::Append { .. } => false,
        };
        let taken = states(&image).iter().any(|state| state.name == name);
        if taken || work.steps.iter().any(is_same) {
            return Err(QmpError::generic(format!(
                "Snapshot with name '{name}' already exists on device '{device}'"
            )));
        }
        Ok(Step::Keep { node, name })
    }

    /// Keeps the states that `steps` name; their nodes are drained and settled.
    pub(super) fn keep_states(&mut self, steps: &[Step]) -> Result<(), QmpError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or(Duration::ZERO);
        let mut kept: Vec<(NodeRef, String)> = Vec::new();
        for step in steps {
            let Step::Keep { node, name } = step else {
                continue;
            };
            let image = self.image(node)?;
            let id = free_id(&states(&image));
            let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
            let state = Snapshot::new(&id, name, seconds, now.subsec_nanos());
            match self.change_states(&image, SnapshotChange::Create(state)) {
                Ok(()) => kept.push((image, id)),
                Err(error) => {
                    self.forget(kept);
                    return Err(QmpError::generic(format!(
                        "Failed to create snapshot '{name}' on device '{node}': {error}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Forgets states that were kept for nothing.
    fn forget(&mut self, kept: Vec<(NodeRef, String)>) {
        for (image, id) in kept.into_iter().rev() {
            if let Err(error) = self.change_states(&image, SnapshotChange::Delete(id.clone())) {
                tracing::error!(node = image.name(), id, error, "a state stays in the image");
            }
        }
    }

    /// Forgets a state that is kept inside an image.
    ///
    /// # Errors
    /// There is no such state, or the storage fails.
    pub(crate) fn delete_state(
        &mut self,
        args: &BlockdevSnapshotDeleteInternalSync,
    ) -> Result<SnapshotInfo, QmpError> {
        let BlockdevSnapshotDeleteInternalSync { device, id, name } = args;
        let node = self.named_node(device)?;
        if id.is_none() && name.is_none() {
            return Err(QmpError::generic("Name or id must be provided"));
        }
        let idle = self.graph.check_idle(&node);
        idle.map_err(|error| QmpError::from_error(&error))?;
        let image = self.image(&node)?;
        let is_meant = |state: &Snapshot| {
            id.as_ref().is_none_or(|id| *id == state.id)
                && name.as_ref().is_none_or(|name| *name == state.name)
        };
        let found = states(&image).into_iter().find(is_meant);
        let state = found.ok_or_else(|| {
            let shown = |text: &Option<String>| text.clone().unwrap_or("null".to_owned());
            QmpError::generic(format!(
                "Snapshot with id '{}' and name '{}' does not exist on device '{device}'",
                shown(id),
                shown(name)
            ))
        })?;
        let drain = self.graph.drain(&[&node]);
        let deleted = self.change_states(&image, SnapshotChange::Delete(state.id.clone()));
        drop(drain);
        deleted.map_err(QmpError::generic)?;
        Ok(resolve::qcow2::snapshot(&state))
    }

    fn image(&self, node: &str) -> Result<NodeRef, QmpError> {
        let view = self.graph.node(node);
        let view = view.map_err(|error| QmpError::from_error(&error))?;
        Ok(view.node().clone())
    }

    fn change_states(&mut self, image: &NodeRef, change: SnapshotChange) -> Result<(), String> {
        let iothread = self.default_iothread().map_err(|error| error.desc)?;
        let image = image.clone();
        let changed =
            iothread.run(move |io| async move { image.change_snapshots(&io, change).await });
        let changed = changed.map_err(|error| error.to_string())?;
        changed.map_err(|error| QmpError::from_error(&error).desc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_id_is_behind_the_largest_number_whatever_else_there_is() {
        let state = |id| Snapshot::new(id, "", 0, 0);
        assert_eq!(free_id(&[]), "1");
        assert_eq!(free_id(&[state("2"), state("10"), state("x")]), "11");
    }
}
