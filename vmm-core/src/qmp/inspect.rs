//! `inspect.json`: what is inside of devices.

use devices::state::StateTree;
use qapi_schema::inspect::{Commands, InspectedState, XInspect};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn x_inspect(
        &mut self,
        _cx: &mut dyn Context,
        args: XInspect,
    ) -> Result<InspectedState, QmpError> {
        let (path, tree) = self.inspect(&args.path)?;
        Ok(shown(path, tree))
    }
}

fn shown(path: String, tree: StateTree) -> InspectedState {
    let part = |(name, part)| shown(format!("{path}/{name}"), part);
    InspectedState {
        parts: tree.parts.into_iter().map(part).collect(),
        kind: tree.kind,
        version: tree.version,
        state: tree.state,
        path,
    }
}
