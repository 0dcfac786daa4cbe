//! `transaction.json`: all of several actions, or none.

use qapi_schema::transaction::{
    ActionCompletionMode, Commands, Transaction, TransactionActionVariant as Kind,
};
use qapi_schema::{Context, QmpError};

use crate::transaction::Action;
use crate::transaction::bitmaps::BitmapAction;
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
            Kind::BlockDirtyBitmapAdd(action) => Action::Bitmap(BitmapAction::Add(action.data)),
            Kind::BlockDirtyBitmapRemove(action) => {
                Action::Bitmap(BitmapAction::Remove(action.data))
            }
            Kind::BlockDirtyBitmapClear(action) => Action::Bitmap(BitmapAction::Clear(action.data)),
            Kind::BlockDirtyBitmapEnable(action) => {
                Action::Bitmap(BitmapAction::Enable(action.data))
            }
            Kind::BlockDirtyBitmapDisable(action) => {
                Action::Bitmap(BitmapAction::Disable(action.data))
            }
            Kind::BlockDirtyBitmapMerge(action) => Action::Bitmap(BitmapAction::Merge(action.data)),
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
        Kind::BlockDirtyBitmapAdd(_) => "block-dirty-bitmap-add",
        Kind::BlockDirtyBitmapRemove(_) => "block-dirty-bitmap-remove",
        Kind::BlockDirtyBitmapClear(_) => "block-dirty-bitmap-clear",
        Kind::BlockDirtyBitmapEnable(_) => "block-dirty-bitmap-enable",
        Kind::BlockDirtyBitmapDisable(_) => "block-dirty-bitmap-disable",
        Kind::BlockDirtyBitmapMerge(_) => "block-dirty-bitmap-merge",
        Kind::BlockdevSnapshot(_) => "blockdev-snapshot",
        Kind::BlockdevSnapshotSync(_) => "blockdev-snapshot-sync",
        Kind::BlockdevSnapshotInternalSync(_) => "blockdev-snapshot-internal-sync",
    }
}
