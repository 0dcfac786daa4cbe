//! `block-commit`: what is above a base moves into it.

use std::sync::Arc;

use block::job::JobKind;
use block::job::chain::Chain;
use block::job::commit::{CommitSpec, catch_up, commit, commit_active, commit_at_once};
use block::{DirtyMap, Gate, Grip, NodeRef};
use fdset::{Door, Wish};
use qapi_schema::QmpError;
use qapi_schema::block_core::BlockCommit;

use super::{End, Manners, Rights, recorded_name, refused};
use crate::vm::Vm;

/// Bytes that one mark of a written piece stands for.
const PIECE: u64 = 64 << 10;

/// What a commit of nodes that nobody writes to changes at its end.
#[derive(Debug)]
pub(crate) struct CommitEnd {
    /// All that stand on the topmost node.
    overlays: Vec<String>,
    base: String,
    backing_file: Option<String>,
    /// The lowest node that was committed.
    last: String,
    pub(super) rights: Rights,
}

/// What a commit from the node that users write to changes at its end.
#[derive(Debug)]
pub(crate) struct PivotEnd {
    spec: CommitSpec,
    dirty: Arc<DirtyMap>,
    pub(super) rights: Rights,
}

impl PivotEnd {
    /// Marks no more of what is written.
    pub(super) fn stop_tracking(&self) {
        self.spec.top.untrack(&self.dirty);
    }
}

/// The nodes of a commit.
struct Places {
    /// The chain from what users see down.
    chain: Vec<String>,
    top: usize,
    base: usize,
    /// All nodes that the topmost one backs, in this chain or in another.
    overlays: Vec<String>,
}

impl Places {
    /// What must be writable: the base, and whatever will name it in its header.
    fn to_write(&self) -> Vec<&str> {
        let base = self.chain.get(self.base).into_iter();
        base.chain(&self.overlays).map(String::as_str).collect()
    }

    /// What must stay as it is while the job runs. What users see is held, too, wherever the
    /// topmost node is: as QEMU has it, a chain takes one commit.
    fn to_hold(&self) -> Vec<(String, Grip)> {
        let chain = self.chain.get(self.top..=self.base).unwrap_or_default();
        let active = self.chain.first().filter(|_| self.top > 0);
        let works = active.into_iter().chain(chain);
        let works = works.map(|name| (name.clone(), Grip::Work));
        let relinks = self.overlays.iter().filter(|&name| Some(name) != active);
        let relinks = relinks.map(|name| (name.clone(), Grip::Relink));
        works.chain(relinks).collect()
    }
}

impl Vm {
    /// What [`begin_commit`](Self::begin_commit) will open.
    ///
    /// # Errors
    /// As there, where a node is missing.
    pub(crate) fn commit_opens(&self, args: &BlockCommit) -> Result<Vec<Wish>, QmpError> {
        let places = self.commit_places(args)?;
        Rights::opens(&self.graph, &places.to_write()).map_err(|error| refused(&error))
    }

    /// Begins a commit.
    ///
    /// # Errors
    /// A node is missing or busy, or the base cannot be written.
    pub(crate) fn begin_commit(&mut self, door: &Door, args: BlockCommit) -> Result<(), QmpError> {
        let manners = Manners {
            id: args.job_id.clone(),
            speed: args.speed,
            on_error: args.on_error,
            auto_finalize: args.auto_finalize,
            auto_dismiss: args.auto_dismiss,
        };
        super::speed(manners.speed.unwrap_or(0))?;
        let places = self.commit_places(&args)?;
        let id = self.job_id(&manners, &args.device)?;
        let is_active = places.top == 0;
        if is_active && args.backing_file.is_some() {
            return Err(QmpError::generic(
                "'backing-file' specified, but 'top' is the active layer",
            ));
        }
        let held = places.to_hold();
        let names: Vec<String> = held.iter().map(|(name, _)| name.clone()).collect();
        self.check_free(&names)?;
        let base = places.chain[places.base].clone();
        let rights =
            Rights::take(&self.graph, door, &places.to_write()).map_err(|error| refused(&error))?;
        let gate = Gate::new();
        let hold = self.graph.hold(&held, &id, "commit", &gate);
        hold.map_err(|error| refused(&error))?;
        let spec = self.commit_spec(&places, &manners)?;
        if is_active {
            return self.begin_active(&id, spec, rights, &manners, &gate);
        }
        let end = CommitEnd {
            last: places.chain[places.base - 1].clone(),
            overlays: places.overlays,
            base,
            backing_file: args.backing_file,
            rights,
        };
        let end = (JobKind::Commit, End::Commit(end));
        self.begin_job(&id, end, &manners, &gate, move |cx| commit(cx, spec))
    }

    /// Copies what a disk's image holds into what backs it, while its users wait. The image keeps
    /// what it has, which is now what shines through as well.
    ///
    /// # Errors
    /// There is no such disk, nothing is behind it, somebody is at work there, or the storage
    /// failed.
    pub(crate) fn commit_now(&mut self, door: &Door, device: &str) -> Result<(), QmpError> {
        let top = self
            .find_node(Some(device), Some(device))
            .map_err(|_| QmpError::device_not_found(device))?;
        let chain = self.graph.chain(&top);
        let [_, base, ..] = chain.as_slice() else {
            return Err(QmpError::generic("No medium behind it"));
        };
        for name in [&top, base] {
            self.graph
                .check_idle(name)
                .map_err(|error| refused(&error))?;
        }
        let places = Places {
            top: 0,
            base: 1,
            overlays: Vec::new(),
            chain,
        };
        let mut rights =
            Rights::take(&self.graph, door, &places.to_write()).map_err(|error| refused(&error))?;
        let spec = self.commit_spec(&places, &Manners::default());
        let drain = self.graph.drain(&[&top]);
        let done = spec.map_err(|error| error.desc).and_then(|spec| {
            self.run_on_nodes(move |io| async move { commit_at_once(&io, &spec).await })
        });
        drop(drain);
        self.give_back(&mut rights);
        done.map_err(QmpError::generic)
    }

    /// The drives with something behind them.
    pub(crate) fn backed_drives(&self) -> Vec<String> {
        let backed = |node: &str| self.graph.chain(node).len() > 1;
        let drives = self.drives.iter().filter(|(_, drive)| backed(&drive.node));
        drives.map(|(id, _)| id.to_owned()).collect()
    }

    fn commit_spec(&self, places: &Places, manners: &Manners) -> Result<CommitSpec, QmpError> {
        let node = |name: &String| {
            let view = self.graph.node(name).map_err(|error| refused(&error))?;
            Ok::<NodeRef, QmpError>(view.node().clone())
        };
        let above = places.chain[places.top..places.base].iter().map(node);
        let above = above.collect::<Result<Vec<_>, _>>()?;
        Ok(CommitSpec {
            top: node(&places.chain[places.top])?,
            above: Chain::new(above),
            base: node(&places.chain[places.base])?,
            on_error: manners.on_error(),
        })
    }

    fn begin_active(
        &mut self,
        id: &str,
        spec: CommitSpec,
        rights: Rights,
        manners: &Manners,
        gate: &Gate,
    ) -> Result<(), QmpError> {
        let dirty = Arc::new(DirtyMap::new(spec.top.len(), PIECE));
        let drain = self.graph.drain(&[spec.top.name()]);
        spec.top.track(Arc::clone(&dirty));
        drop(drain);
        let (its, marks) = (spec.clone(), Arc::clone(&dirty));
        let end = PivotEnd {
            spec,
            dirty,
            rights,
        };
        let end = (JobKind::Commit, End::Pivot(end));
        self.begin_job(id, end, manners, gate, move |cx| {
            commit_active(cx, its, marks)
        })
    }

    fn commit_places(&self, args: &BlockCommit) -> Result<Places, QmpError> {
        let active = self
            .find_node(Some(&args.device), Some(&args.device))
            .map_err(|_| QmpError::device_not_found(&args.device))?;
        let chain = self.graph.chain(&active);
        let both = |one: &Option<String>, other: &Option<String>, text: &str| {
            if one.is_some() && other.is_some() {
                return Err(QmpError::generic(text));
            }
            Ok(())
        };
        let text = "'top-node' and 'top' are mutually exclusive";
        both(&args.top_node, &args.top, text)?;
        let text = "'base-node' and 'base' are mutually exclusive";
        both(&args.base_node, &args.base, text)?;
        let by_node = |name: &String| {
            self.find_node(None, Some(name))?;
            let at = chain.iter().position(|node| node == name);
            at.ok_or_else(|| {
                QmpError::generic(format!("'{name}' is not in this backing file chain"))
            })
        };
        let is_active = |file: &str| {
            let view = self.graph.node(&active).ok();
            view.is_some_and(|view| view.filename() == file)
        };
        let top = match (&args.top_node, &args.top) {
            (Some(name), _) => by_node(name)?,
            (None, Some(file)) if is_active(file) => 0,
            (None, Some(file)) => self
                .graph
                .find_behind(&chain, file)
                .ok_or_else(|| QmpError::generic(format!("Top image file {file} not found")))?,
            (None, None) => 0,
        };
        let base = match (&args.base_node, &args.base) {
            (Some(name), _) => by_node(name)?,
            (None, Some(file)) => {
                let below = self.graph.find_behind(&chain[top..], file);
                below.map(|at| top + at).ok_or_else(|| {
                    QmpError::generic(format!("Can't find '{file}' in the backing chain"))
                })?
            }
            (None, None) => chain.len() - 1,
        };
        if top == base {
            return Err(QmpError::generic("cannot commit an image into itself"));
        }
        if base < top {
            return Err(QmpError::generic(format!(
                "'{}' is not in this backing file chain",
                chain[base]
            )));
        }
        let backs = |view: &block::NodeView<'_>| {
            let mut below = view.children();
            top > 0 && below.any(|(role, name)| role == "backing" && name == chain[top])
        };
        let overlays = self.graph.nodes().filter(backs);
        let overlays = overlays.map(|view| view.node().name().to_owned()).collect();
        Ok(Places {
            chain,
            top,
            base,
            overlays,
        })
    }

    pub(super) fn finish_commit(&mut self, job: &str, end: &mut CommitEnd) -> Result<(), String> {
        let node = |name: &str| {
            let view = self.graph.node(name).map_err(|error| error.to_string())?;
            Ok::<NodeRef, String>(view.node().clone())
        };
        let overlays = end.overlays.iter().map(|name| node(name));
        let overlays: Vec<NodeRef> = overlays.collect::<Result<_, _>>()?;
        let (name, format) = recorded_name(&self.graph, &end.base, &node(&end.last)?);
        let name = end.backing_file.clone().unwrap_or(name);
        let names: Vec<&str> = end.overlays.iter().map(String::as_str).collect();
        let drain = self.graph.drain(&names);
        let changed = self.run_on_nodes(move |io| async move {
            for overlay in overlays {
                let header = overlay.change_backing(&io, Some(&name), Some(&format));
                header.await?;
            }
            Ok(())
        });
        let set = changed.and_then(|()| {
            self.graph.let_go(job);
            names.iter().try_for_each(|overlay| {
                let set = self.graph.set_backing(overlay, Some(&end.base));
                set.map(drop).map_err(|error| error.to_string())
            })
        });
        drop(drain);
        set?;
        self.give_back(&mut end.rights);
        Ok(())
    }

    pub(super) fn finish_pivot(
        &mut self,
        job: &str,
        end: &mut PivotEnd,
        pivot: bool,
    ) -> Result<(), String> {
        let (top, base) = (
            end.spec.top.name().to_owned(),
            end.spec.base.name().to_owned(),
        );
        if !pivot {
            end.stop_tracking();
            self.graph.let_go(job);
            self.give_back(&mut end.rights);
            return Ok(());
        }
        let drain = self.graph.drain(&[&top]);
        let (spec, dirty) = (end.spec.clone(), Arc::clone(&end.dirty));
        let caught = self.run_on_nodes(move |io| async move { catch_up(&io, &spec, &dirty).await });
        let moved = caught.and_then(|()| {
            end.stop_tracking();
            self.graph.let_go(job);
            self.drives.follow(&top, &base);
            let moved = self.graph.replace_node(&top, &base);
            moved.map_err(|error| error.to_string())
        });
        let pause = drain.end();
        if moved.is_ok() {
            let micros = pause.as_micros();
            tracing::info!(%top, %base, micros, "pivoted under running users");
            // The base is what users write to now: its right to write stays.
            end.rights = Rights::default();
        }
        moved.map(drop)
    }
}
