//! Transactions: several changes of the block graph, all or none.
//!
//! ```text
//!   actions ─► prepare each: names, opens, permissions on one sketch      guest runs
//!                │    └ refused ─► abort those before it: nothing has changed
//!                ▼
//!              flush what will be left behind                             guest runs
//!                ▼
//!              drain ─► settle ─► keep states in images ─► commit each:   guest waits: measured
//!                            └──────┴ the storage fails ─► abort   cannot fail ─► end
//!                ▼
//!              clean: old nodes become read-only, names are used up       guest runs
//! ```
//!
//! The open hook was asked for all files at once before this began ([`crate::plan`]). This room
//! knows the graph and no QMP session. One command that snapshots is a transaction of one action.
//!
//! To add an action: a variant of [`Action`] and of `Step`, with its arm in `prepare`, `commit` and
//! `clean`; what it opens belongs into [`crate::plan`] too.

pub(crate) mod bitmaps;
mod internal;
pub(crate) mod overlay;

use std::sync::Arc;
use std::time::Duration;

use block::{Append, BlockError, BlockGraph, IoThread, NodeRef, Sketch};
use fdset::{Door, Escrow};
use qapi_schema::QmpError;
use qapi_schema::block_core::{FileSnapshot, OverlaySnapshot};
use qapi_schema::block_graph::BlockdevSnapshotInternal;

use self::bitmaps::{BitmapAction, BitmapWork};
use crate::vm::Vm;

/// What one action is to do.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Fail.
    Abort,
    /// Change a bitmap.
    Bitmap(BitmapAction),
    /// Put an overlay that is there above a node.
    Snapshot(OverlaySnapshot),
    /// Open an overlay and put it above a node.
    SnapshotSync(FileSnapshot),
    /// Keep the present state inside the image.
    Internal(BlockdevSnapshotInternal),
}

/// An action that was prepared.
#[derive(Debug)]
enum Step {
    Append {
        change: Append,
        /// Whether the overlay was made for this and goes if it does not come to it.
        opened: bool,
    },
    /// A state to be kept: of which node, under which name.
    Keep { node: String, name: String },
}

/// The exchanges among `steps`, and whether their overlays were opened for them.
fn appends(steps: &[Step]) -> impl DoubleEndedIterator<Item = (&Append, bool)> {
    steps.iter().filter_map(|step| match step {
        Step::Append { change, opened } => Some((change, *opened)),
        Step::Keep { .. } => None,
    })
}

/// A transaction under way.
struct Work {
    sketch: Sketch,
    steps: Vec<Step>,
    bitmaps: BitmapWork,
    /// Overlays that are inactive for the sake of what is below them.
    resting: Vec<String>,
    door: Door,
}

impl Work {
    /// The node that the users of `name` will have by now.
    fn newest<'a>(&'a self, name: &'a str) -> &'a str {
        appends(&self.steps).fold(name, |name, (change, _)| {
            if change.node == name {
                &change.overlay
            } else {
                name
            }
        })
    }
}

impl Vm {
    /// Does all `actions` or none of them. Returns how long the users of the nodes waited.
    ///
    /// # Errors
    /// The first action that cannot be done; nothing has changed then.
    pub(crate) fn transact(
        &mut self,
        door: &Door,
        actions: Vec<Action>,
    ) -> Result<Duration, QmpError> {
        let escrow = Arc::new(Escrow::new(Arc::clone(door.registry())));
        let mut work = Work {
            sketch: self.graph.sketch(),
            steps: Vec::new(),
            bitmaps: BitmapWork::default(),
            resting: Vec::new(),
            door: door.clone().with_escrow(Arc::clone(&escrow)),
        };
        let prepared = actions
            .into_iter()
            .try_for_each(|action| self.prepare(&mut work, action));
        let done = prepared.and_then(|()| self.exchange(&mut work));
        match done {
            Ok(pause) => {
                escrow.use_up();
                self.clean(&work);
                Ok(pause)
            }
            Err(error) => {
                self.abort(&work);
                Err(error)
            }
        }
    }

    fn prepare(&mut self, work: &mut Work, action: Action) -> Result<(), QmpError> {
        let step = match action {
            Action::Abort => {
                return Err(QmpError::generic("Transaction aborted using Abort action"));
            }
            Action::Bitmap(action) => return work.bitmaps.want(self, action),
            Action::Snapshot(snapshot) => {
                let node = self.named_node(&snapshot.node)?;
                let node = work.newest(&node).to_owned();
                let overlay = self.named_node(&snapshot.overlay)?;
                let change = self.plan(work, &node, &overlay)?;
                Step::Append {
                    change,
                    opened: false,
                }
            }
            Action::SnapshotSync(snapshot) => self.prepare_sync(work, snapshot)?,
            Action::Internal(state) => self.prepare_internal(work, state)?,
        };
        work.steps.push(step);
        Ok(())
    }

    fn prepare_sync(&mut self, work: &mut Work, snapshot: FileSnapshot) -> Result<Step, QmpError> {
        let node = self.snapshot_source(&snapshot)?;
        let node = work.newest(&node).to_owned();
        let overlay = self.open_overlay(&work.door, &snapshot, &node)?;
        // The sketch was made before this node was.
        self.graph.draw_into(&mut work.sketch, &overlay);
        match self.plan(work, &node, &overlay) {
            Ok(change) => Ok(Step::Append {
                change,
                opened: true,
            }),
            Err(error) => {
                self.graph.abandon(&overlay);
                Err(error)
            }
        }
    }

    fn plan(&mut self, work: &mut Work, node: &str, overlay: &str) -> Result<Append, QmpError> {
        let rested = self.rest_with(work, node, overlay);
        let change =
            rested.and_then(|()| self.graph.plan_snapshot(&mut work.sketch, node, overlay));
        change.map_err(|error| QmpError::from_error(&error))
    }

    /// Nothing active stands on what is inactive: of an inactive node the overlay becomes so, too.
    fn rest_with(&mut self, work: &mut Work, node: &str, overlay: &str) -> Result<(), BlockError> {
        let (below, above) = (self.graph.node(node)?, self.graph.node(overlay)?);
        if below.node().is_active() || !above.node().is_active() {
            return Ok(());
        }
        let names = self.graph.to_inactivate(Some(overlay))?;
        self.graph.inactivate(&names)?;
        for name in &names {
            if let Some(drawn) = work.sketch.node(name) {
                drawn.inactive = true;
            }
        }
        work.resting.push(overlay.to_owned());
        Ok(())
    }

    /// The part that the guest waits for.
    fn exchange(&mut self, work: &mut Work) -> Result<Duration, QmpError> {
        let iothread = self.default_iothread()?;
        let left = work.steps.iter().map(|step| match step {
            Step::Append { change, .. } => &change.node,
            Step::Keep { node, .. } => node,
        });
        let left: Vec<NodeRef> = left
            .filter_map(|name| Some(self.graph.node(name).ok()?.node().clone()))
            .collect();
        work.bitmaps.claim(&iothread)?;
        // Most of it now, so that little is left once the guest waits.
        all(&iothread, &left, Work::FLUSH)?;
        let touched = left.iter().chain(work.bitmaps.nodes());
        let names: Vec<&str> = touched.map(NodeRef::name).collect();
        let drain = self.graph.drain(&names);
        let mut settling = work.bitmaps.losing();
        settling.extend(left.iter().cloned());
        let settled = work
            .bitmaps
            .make()
            .and_then(|()| all(&iothread, &settling, Work::SETTLE))
            .and_then(|()| self.keep_states(&work.steps));
        let mut old = Vec::new();
        let lengths = self.disk_lengths();
        if settled.is_ok() {
            for (change, _) in appends(&work.steps) {
                old.extend(self.graph.append(change));
                self.drives.follow(&change.node, &change.overlay);
            }
        } else {
            work.bitmaps.put_back(&iothread);
        }
        let pause = drain.end();
        drop(old);
        self.graph.settle_locks();
        // An overlay may be longer than what is below it.
        Self::tell_lengths(lengths);
        settled?;
        self.pauses.add(pause);
        let micros = pause.as_micros();
        tracing::info!(nodes = left.len(), micros, "exchanged under running users");
        Ok(pause)
    }

    fn abort(&mut self, work: &Work) {
        for (change, opened) in appends(&work.steps).rev() {
            if opened {
                self.graph.abandon(&change.overlay);
            }
        }
        for overlay in &work.resting {
            match self.graph.activate(Some(overlay)) {
                // It was opened for this, and has gone.
                Ok(()) | Err(BlockError::NoSuchNode { .. }) => {}
                Err(error) => tracing::warn!(overlay, %error, "stays inactive"),
            }
        }
        self.graph.settle_locks();
    }

    /// What was left behind needs no right to write any more, where it can be given back.
    fn clean(&mut self, work: &Work) {
        for (change, _) in appends(&work.steps) {
            if let Err(error) = make_read_only(&self.graph, &work.door, &change.node) {
                tracing::debug!(node = change.node, %error, "stays writable");
            }
        }
    }
}

/// One flush or settling of a node.
type Duty = fn(NodeRef, block::Io) -> block::node::OwnedFuture;

impl Work {
    const FLUSH: Duty = |node, io| Box::pin(async move { node.flush(&io).await });
    const SETTLE: Duty = |node, io| Box::pin(async move { node.settle(&io).await });
}

/// Does the same for all nodes at once, and waits for the last.
fn all(iothread: &IoThread, nodes: &[NodeRef], duty: Duty) -> Result<(), QmpError> {
    let (tell, told) = std::sync::mpsc::channel();
    for node in nodes {
        let (node, tell) = (node.clone(), tell.clone());
        iothread.spawn(move |io| async move {
            let name = node.name().to_owned();
            // Nobody listens once one has failed.
            drop(tell.send((name, duty(node, io).await)));
        });
    }
    drop(tell);
    let mut first = Ok(());
    for (name, result) in told {
        if let Err(error) = result
            && first.is_ok()
        {
            first = Err(QmpError::generic(format!(
                "Could not flush node '{name}': {error}"
            )));
        }
    }
    first
}

fn make_read_only(graph: &BlockGraph, door: &Door, node: &str) -> Result<(), BlockError> {
    let options = graph.node(node)?.node().options();
    let read_only = block::spec::NodeOptions {
        read_only: true,
        ..options
    };
    let changes = graph.prepare_reopen(door, node, read_only)?;
    let drain = graph.drain(&[node]);
    for change in changes {
        change.commit();
    }
    drop(drain);
    graph.settle_locks();
    Ok(())
}
