//! `transaction.json`: all of several actions, or none.

use qapi_schema::transaction::{Commands, Transaction, TransactionActionVariant as Kind};
use qapi_schema::{Context, QmpError};

use crate::transaction::Action;
use crate::vm::Vm;

impl Commands for Vm {
    fn transaction(&mut self, cx: &mut dyn Context, args: Transaction) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        let actions = args.actions.into_iter();
        let actions = actions.map(|action| match action.r#type {
            Kind::Abort(_) => Action::Abort,
            Kind::BlockdevSnapshot(action) => Action::Snapshot(action.data),
            Kind::BlockdevSnapshotSync(action) => Action::SnapshotSync(action.data),
        });
        self.transact(&door, actions.collect()).map(drop)
    }
}
