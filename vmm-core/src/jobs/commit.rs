//! `block-commit`: what is above a base moves into it.

use std::sync::Arc;

use block::job::JobKind;
use block::job::chain::Chain;
use block::job::commit::{CommitSpec, catch_up, commit, commit_active, commit_at_once};
use block::{BlockGraph, DirtyMap, Gate, Grip, JobFilter, NodeRef};
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
    /// The topmost node that was committed.
    top: String,
    base: String,
    backing_file: Option<String>,
    /// The lowest node that was committed.
    last: String,
    pub(super) filter: Option<String>,
    pub(super) rights: Rights,
}

/// What a commit from the node that users write to changes at its end.
#[derive(Debug)]
pub(crate) struct PivotEnd {
    spec: CommitSpec,
    /// What its users had: the topmost node, or a filter of theirs over it.
    top: String,
    dirty: Arc<DirtyMap>,
    pub(super) filter: Option<String>,
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
    /// All images that the topmost one backs, in this chain or in another.
    overlays: Vec<String>,
    /// Whether the topmost is what users write to.
    is_active: bool,
}

impl Places {
    /// What must be writable: the base, with the filters that stand for it, and whatever will name
    /// it in its header.
    fn to_write(&self, graph: &BlockGraph) -> Vec<String> {
        let base = self.chain.get(self.base..).unwrap_or_default();
        let image = base.iter().position(|name| !graph.is_filter(name));
        let base = base.iter().take(image.unwrap_or(0) + 1).rev();
        base.chain(&self.overlays).cloned().collect()
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
        let to_write = places.to_write(&self.graph);
        Rights::opens(&self.graph, &to_write).map_err(|error| refused(&error))
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
        if places.is_active && args.backing_file.is_some() {
            return Err(QmpError::generic(
                "'backing-file' specified, but 'top' is the active layer",
            ));
        }
        let mut held = places.to_hold();
        let names: Vec<String> = held.iter().map(|(name, _)| name.clone()).collect();
        self.check_free(&names, None)?;
        let filter = args.filter_node_name;
        let named = filter
            .iter()
            .try_for_each(|name| self.graph.check_new_name(name));
        named.map_err(|error| refused(&error))?;
        let to_write = places.to_write(&self.graph);
        let mut rights =
            Rights::take(&self.graph, door, &to_write).map_err(|error| refused(&error))?;
        let spec = self.commit_spec(&places, &manners)?;
        let top = places.chain[places.top].clone();
        if let Some(filter) = &filter {
            let kind = match places.is_active {
                true => JobFilter::ActiveCommit,
                false => JobFilter::Commit,
            };
            self.insert_filter((filter, kind), &top, Vec::new(), &mut rights)?;
            held.push((filter.clone(), Grip::Work));
        }
        let gate = Gate::new();
        self.graph.hold(&held, &id, "commit", &gate);
        if places.is_active {
            let dirty = Arc::new(DirtyMap::new(spec.top.len(), PIECE));
            let end = PivotEnd {
                spec,
                top,
                dirty,
                filter,
                rights,
            };
            return self.begin_active(&id, end, &manners, &gate);
        }
        let end = CommitEnd {
            last: places.chain[places.base - 1].clone(),
            top,
            base: places.chain[places.base].clone(),
            backing_file: args.backing_file,
            filter,
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
        let mut images = (0..).zip(&chain);
        let mut image = || images.find(|(_, name)| !self.graph.is_filter(name));
        let (Some((at, _)), Some((base, _))) = (image(), image()) else {
            return Err(QmpError::generic("No medium behind it"));
        };
        for name in &chain[at..=base] {
            let active = self.graph.check_active([name.as_str()]);
            active
                .and_then(|()| self.graph.check_idle(name))
                .map_err(|error| refused(&error))?;
        }
        let places = Places {
            top: at,
            base,
            overlays: Vec::new(),
            is_active: true,
            chain,
        };
        let to_write = places.to_write(&self.graph);
        let mut rights =
            Rights::take(&self.graph, door, &to_write).map_err(|error| refused(&error))?;
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
        let backed = |node: &str| {
            let image = self.graph.below_filters(node);
            self.graph.next_in_chain(image).is_some()
        };
        let drives = self.drives.iter().filter(|(_, drive)| backed(&drive.node));
        drives.map(|(id, _)| id.to_owned()).collect()
    }

    fn commit_spec(&self, places: &Places, manners: &Manners) -> Result<CommitSpec, QmpError> {
        let node = |name: &String| {
            let view = self.graph.node(name).map_err(|error| refused(&error))?;
            Ok::<NodeRef, QmpError>(view.node().clone())
        };
        let above = places.chain[places.top..places.base].iter();
        let above = above.filter(|name| !self.graph.is_filter(name)).map(node);
        let above = above.collect::<Result<Vec<_>, _>>()?;
        let top = above.first().cloned().ok_or_else(|| {
            // All that is between are filters, which hold nothing.
            QmpError::generic("cannot commit an image into itself")
        })?;
        Ok(CommitSpec {
            top,
            above: Chain::new(above),
            base: node(&places.chain[places.base])?,
            on_error: manners.on_error(),
        })
    }

    fn begin_active(
        &mut self,
        id: &str,
        end: PivotEnd,
        manners: &Manners,
        gate: &Gate,
    ) -> Result<(), QmpError> {
        let (spec, dirty) = (end.spec.clone(), Arc::clone(&end.dirty));
        let drain = self.graph.drain(&[spec.top.name()]);
        spec.top.track(Arc::clone(&dirty));
        drop(drain);
        let end = (JobKind::Commit, End::Pivot(end));
        self.begin_job(id, end, manners, gate, move |cx| {
            commit_active(cx, spec, dirty)
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
            view.is_some_and(|view| [view.filename(), &view.full_name()].contains(&file))
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
        let image = |at: usize| self.graph.below_filters(&chain[at]);
        let is_active = image(0) == image(top);
        let overlays = match is_active {
            true => Vec::new(),
            false => self.graph.overlays_of(&chain[top]),
        };
        Ok(Places {
            chain,
            top,
            base,
            overlays,
            is_active,
        })
    }

    pub(super) fn finish_commit(&mut self, job: &str, end: &mut CommitEnd) -> Result<(), String> {
        let node = |name: &str| {
            let view = self.graph.node(name).map_err(|error| error.to_string())?;
            Ok::<NodeRef, String>(view.node().clone())
        };
        let (name, format) = recorded_name(&self.graph, &end.base, &node(&end.last)?);
        let name = end.backing_file.clone().unwrap_or(name);
        let from = end.filter.clone().unwrap_or_else(|| end.top.clone());
        // Not those that there were: a stream may have ended on the filter.
        let names = self.graph.overlays_of(&from);
        let overlays = names.iter().map(|name| node(name));
        let overlays: Vec<NodeRef> = overlays.collect::<Result<_, _>>()?;
        let came = Rights::take(&self.graph, &self.door, &names);
        end.rights.add(came.map_err(|error| error.to_string())?);
        let mut drained: Vec<&str> = names.iter().map(String::as_str).collect();
        drained.push(&from);
        let drain = self.graph.drain(&drained);
        let changed = self.run_on_nodes(move |io| async move {
            for overlay in overlays {
                let header = overlay.change_backing(&io, Some(&name), Some(&format));
                header.await?;
            }
            Ok(())
        });
        let moved = changed.and_then(|()| {
            let moved = self.graph.replace_node(&from, &end.base);
            moved.map_err(|error| error.to_string())
        });
        drop(drain);
        moved?;
        end.filter = None;
        self.leave(job, &mut end.filter, &mut end.rights);
        Ok(())
    }

    pub(super) fn finish_pivot(
        &mut self,
        job: &str,
        end: &mut PivotEnd,
        pivot: bool,
    ) -> Result<(), String> {
        if !pivot {
            end.stop_tracking();
            self.leave(job, &mut end.filter, &mut end.rights);
            return Ok(());
        }
        let top = end.filter.clone().unwrap_or_else(|| end.top.clone());
        let base = end.spec.base.name().to_owned();
        let drain = self.graph.drain(&[&top]);
        let (spec, dirty) = (end.spec.clone(), Arc::clone(&end.dirty));
        let caught = self.run_on_nodes(move |io| async move { catch_up(&io, &spec, &dirty).await });
        let moved = caught.and_then(|()| {
            let moved = self.graph.replace_node(&top, &base);
            moved.map_err(|error| error.to_string())
        });
        let pause = drain.end();
        moved?;
        end.stop_tracking();
        self.drives.follow(&top, &base);
        let micros = pause.as_micros();
        tracing::info!(%top, %base, micros, "pivoted under running users");
        // The base is what users write to now: its right to write stays.
        end.rights = Rights::default();
        end.filter = None;
        self.leave(job, &mut end.filter, &mut end.rights);
        Ok(())
    }
}
