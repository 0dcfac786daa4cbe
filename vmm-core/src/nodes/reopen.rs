//! `blockdev-reopen`: nodes get other options, all of them or none.

use std::sync::Arc;

use block::BlockError;
use block::spec::NodeSpec;
use fdset::{Door, Escrow, Wish};
use qapi_schema::QmpError;
use qapi_schema::block_core::{
    BlockdevAioOptions, BlockdevOptions, BlockdevOptionsVariant as Kind, BlockdevRef,
    BlockdevRefOrNull,
};
use qapi_schema::block_graph::BlockdevReopen;

use crate::resolve;
use crate::vm::Vm;

fn specs(args: &BlockdevReopen) -> Result<Vec<NodeSpec>, QmpError> {
    let options = args.options.iter().cloned();
    let spec = |options: BlockdevOptions| {
        refuse_new(&options)?;
        resolve::node::node(options)
    };
    options.map(spec).collect()
}

/// Refuses what cannot have been said of a node when it was added.
fn refuse_new(options: &BlockdevOptions) -> Result<(), QmpError> {
    let fixed = |option| QmpError::generic(format!("Cannot change the option '{option}'"));
    if options.force_share == Some(true) && options.read_only != Some(true) {
        return Err(fixed("force-share"));
    }
    match &options.driver {
        Kind::File(file) | Kind::HostDevice(file) => {
            let is_direct = options.cache.as_ref().and_then(|cache| cache.direct);
            let is_native = file.aio == Some(BlockdevAioOptions::Native);
            match is_native && is_direct != Some(true) {
                true => Err(fixed("aio")),
                false => Ok(()),
            }
        }
        Kind::Raw(raw) => refuse_new_child(&raw.file),
        Kind::Qcow2(qcow2) => {
            refuse_new_child(&qcow2.file)?;
            match &qcow2.backing {
                // Only the command line, which has no null, says so that nothing is behind it.
                Some(BlockdevRefOrNull::Reference(name)) if name.is_empty() => {
                    Err(QmpError::generic("Cannot find device='' nor node-name=''"))
                }
                Some(BlockdevRefOrNull::Definition(behind)) => refuse_new(behind),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn refuse_new_child(child: &BlockdevRef) -> Result<(), QmpError> {
    match child {
        BlockdevRef::Definition(options) => refuse_new(options),
        BlockdevRef::Reference(_) => Ok(()),
    }
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
