//! `blockdev-reopen`: nodes get other options, all of them or none.

use std::sync::Arc;

use block::BlockError;
use block::spec::NodeSpec;
use fdset::{Door, Escrow, Wish};
use qapi_schema::QmpError;
use qapi_schema::block_graph::BlockdevReopen;

use crate::resolve;
use crate::vm::Vm;

fn specs(args: &BlockdevReopen) -> Result<Vec<NodeSpec>, QmpError> {
    let options = args.options.iter().cloned();
    options.map(resolve::node::node).collect()
}

fn refused(error: &BlockError) -> QmpError {
    QmpError::from_error(error)
}

impl Vm {
    /// What [`reopen_nodes`](Self::reopen_nodes) will open.
    ///
    /// # Errors
    /// As there, where nothing needs to be opened to know it.
    pub(crate) fn reopen_opens(&self, args: &BlockdevReopen) -> Result<Vec<Wish>, QmpError> {
        let opens = self.graph.anew_opens(&specs(args)?);
        opens.map_err(|error| refused(&error))
    }

    /// Gives nodes other options.
    ///
    /// # Errors
    /// One cannot have them; nothing has changed, and no name was used up.
    pub(crate) fn reopen_nodes(
        &mut self,
        door: &Door,
        args: &BlockdevReopen,
    ) -> Result<(), QmpError> {
        let specs = specs(args)?;
        for spec in &specs {
            self.lend_thread(spec)?;
        }
        let escrow = Arc::new(Escrow::new(Arc::clone(door.registry())));
        let careful = door.clone().with_escrow(Arc::clone(&escrow));
        let prepared = self.graph.prepare_anew(&careful, &specs);
        let prepared = prepared.map_err(|error| refused(&error))?;
        let pause = self.graph.make_anew(prepared);
        let pause = pause.map_err(|error| refused(&error))?;
        escrow.use_up();
        self.pauses.add(pause);
        let micros = pause.as_micros();
        tracing::info!(nodes = specs.len(), micros, "made anew under running users");
        Ok(())
    }
}
