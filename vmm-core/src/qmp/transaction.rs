//! `transaction.json`: all of several actions, or none.

use qapi_schema::transaction::{
    ActionCompletionMode, Commands, Transaction, TransactionActionVariant as Kind,
};
use qapi_schema::{Context, QmpError};

use crate::transaction::Action;
use crate::vm::Vm;

impl Commands for Vm {
    fn transaction(&mut self, cx: &mut dyn Context, args: Transaction) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        let mode = args
            .properties
            .and_then(|properties| properties.completion_mode);
        if let (Some(ActionCompletionMode::Grouped), Some(first)) = (mode, args.actions.first()) {
            return Err(QmpError::generic(format!(
                "Action '{}' does not support transaction property completion-mode = grouped",
                kind(&first.r#type)
            )));
        }
        let actions = args.actions.into_iter();
        let actions = actions.map(|action| match action.r#type {
            Kind::Abort(_) => Action::Abort,
            Kind::BlockdevSnapshot(action) => Action::Snapshot(action.data),
            Kind::BlockdevSnapshotSync(action) => Action::SnapshotSync(action.data),
            Kind::BlockdevSnapshotInternalSync(action) => Action::Internal(action.data),
        });
        self.transact(&door, actions.collect()).map(drop)
    }
}

/// The name of an action's kind. None of them begins a job that a group could wait for.
fn kind(action: &Kind) -> &'static str {
    match action {
        Kind::Abort(_) => "abort",
        Kind::BlockdevSnapshot(_) => "blockdev-snapshot",
        Kind::BlockdevSnapshotSync(_) => "blockdev-snapshot-sync",
        Kind::BlockdevSnapshotInternalSync(_) => "blockdev-snapshot-internal-sync",
    }
}
