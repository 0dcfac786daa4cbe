//! Jobs of the VM: which nodes they work on, how they begin, and what they change at their end.
//!
//! ```text
//!   block-stream, block-commit ─► this room: chain found, permissions asked for, nodes held
//!                                    │ the loop, on an io-thread (block::job)
//!                                    ▼
//!   Letter::Job ─► Jobs ─► World: events for clients; finish: the graph changes under drain
//!                                                     abandon: rights are given back
//! ```
//!
//! Everything that can be refused is refused before the job begins: the write permission of a base
//! above all, which may be another fd of the same file ([`block::BlockGraph::prepare_reopen`]).
//!
//! To add a job: its loop in `devices/block/src/job`, a variant of [`End`] with what it changes
//! at its end, and a file here that begins it.
//!
//! Read next: `stream` (the simpler one), `commit`.

mod commit;
mod create;
mod stream;

use std::sync::Arc;

use block::job::{
    Control, ErrorAction, JobCx, JobEvent, JobFailure, JobKind, JobNews, JobSink, JobSpec, JobView,
    Jobs, OnError, World,
};
use block::{BlockError, BlockGraph, Gate, IoThread, JobFilter, NodeRef, Reopening};
use fdset::{Door, Wish};
use qapi_schema::block_core::{
    BlockErrorAction, BlockJobCancelled, BlockJobCompleted, BlockJobError, BlockJobPending,
    BlockJobReady, BlockdevOnError, IoOperationType,
};
use qapi_schema::job::{JobStatus, JobStatusChange, JobType};
use qapi_schema::{Event, QmpError};

use crate::letters::Letter;
use crate::vm::Vm;

/// What a job changes at its end.
#[derive(Debug)]
pub(crate) enum End {
    /// The overlay stands on the base.
    Stream(stream::StreamEnd),
    /// What stood on the topmost node stands on the base.
    Commit(commit::CommitEnd),
    /// Who used the topmost node uses the base.
    Pivot(commit::PivotEnd),
    /// Nothing: an image has been made.
    Create(create::CreateEnd),
}

/// What commands that begin jobs have in common.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    pub(crate) id: Option<String>,
    pub(crate) speed: Option<i64>,
    pub(crate) on_error: Option<BlockdevOnError>,
    pub(crate) auto_finalize: Option<bool>,
    pub(crate) auto_dismiss: Option<bool>,
}

impl Manners {
    fn on_error(&self) -> OnError {
        match self.on_error {
            None | Some(BlockdevOnError::Report | BlockdevOnError::Auto) => OnError::Report,
            Some(BlockdevOnError::Ignore) => OnError::Ignore,
            Some(BlockdevOnError::Enospc) => OnError::Enospc,
            Some(BlockdevOnError::Stop) => OnError::Stop,
        }
    }
}

/// The limit of a job as it comes from a client.
///
/// # Errors
/// It is negative.
pub(crate) fn speed(speed: i64) -> Result<u64, QmpError> {
    u64::try_from(speed)
        .map_err(|_| QmpError::generic("Parameter 'speed' expects a non-negative value"))
}

fn refused(error: &BlockError) -> QmpError {
    QmpError::from_error(error)
}

/// The right to write that was given to nodes for a job, and what they had before.
#[derive(Debug, Default)]
pub(crate) struct Rights(Vec<NodeRef>);

impl Rights {
    /// Makes the nodes writable that are not. Asks for everything before anything changes.
    ///
    /// # Errors
    /// One cannot be opened that way, or somebody would not agree.
    pub(crate) fn take(
        graph: &BlockGraph,
        door: &Door,
        names: &[impl AsRef<str>],
    ) -> Result<Self, BlockError> {
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        let mut changes: Vec<Reopening> = Vec::new();
        for name in &names {
            let node = graph.node(name)?.node().clone();
            let options = node.options();
            if options.read_only && !changes.iter().any(|change| change.node().is(&node)) {
                let writable = block::spec::NodeOptions {
                    read_only: false,
                    ..options
                };
                changes.extend(graph.prepare_reopen(door, name, writable)?);
            }
        }
        let nodes = changes.iter().map(|change| change.node().clone());
        let rights = Self(nodes.collect());
        let drain = graph.drain(&names);
        changes.into_iter().for_each(Reopening::commit);
        drop(drain);
        graph.settle_locks();
        Ok(rights)
    }

    /// Takes these along.
    fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// What [`take`](Self::take) will open.
    pub(crate) fn opens(
        graph: &BlockGraph,
        names: &[impl AsRef<str>],
    ) -> Result<Vec<Wish>, BlockError> {
        let mut wishes: Vec<Wish> = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            let options = graph.node(name)?.node().options();
            if options.read_only {
                let writable = block::spec::NodeOptions {
                    read_only: false,
                    ..options
                };
                wishes.extend(graph.reopening_opens(name, writable)?);
            }
        }
        Ok(wishes)
    }

    /// Gives them back.
    fn give_back(&mut self, graph: &BlockGraph, door: &Door, iothread: &IoThread) {
        if self.0.is_empty() {
            return;
        }
        let nodes = std::mem::take(&mut self.0);
        let names: Vec<&str> = nodes.iter().map(NodeRef::name).collect();
        let drain = graph.drain(&names);
        for node in &nodes {
            let read_only = block::spec::NodeOptions {
                read_only: true,
                ..node.options()
            };
            let settling = node.clone();
            let settled = iothread.run(move |io| async move { settling.settle(&io).await });
            let given = settled
                .map_err(|error| error.to_string())
                .and_then(|result| result.map_err(|error| error.to_string()))
                .and_then(|()| {
                    let change = node.prepare_reopen(door, read_only);
                    change.map_err(|error| error.to_string())
                })
                .map(Reopening::commit);
            if let Err(error) = given {
                tracing::warn!(node = node.name(), %error, "stays writable after a job");
            }
        }
        drop(drain);
        graph.settle_locks();
    }
}

impl Vm {
    /// The id of a new job: the one that was given, or that of the drive.
    fn job_id(&self, manners: &Manners, device: &str) -> Result<String, QmpError> {
        let drive = self.drives.find(device).map(|_| device.to_owned());
        let id = manners.id.clone().or(drive);
        // Without a drive there is no name to take, and none is not a job's.
        let id = id.unwrap_or_default();
        let checked = self.jobs.check_id(&id);
        checked.map_err(|error| QmpError::from_error(&error))?;
        Ok(id)
    }

    /// Whether these nodes are active and no job holds any of them; that `but` gives one something else behind it does
    /// not count. The error has the name of a drive for its node.
    fn check_free(&self, names: &[String], but: Option<&str>) -> Result<(), QmpError> {
        let drive = |node: String| {
            self.drives
                .of_node(&node)
                .map_or(node.clone(), str::to_owned)
        };
        let active = self.graph.check_active(names.iter().map(String::as_str));
        active
            .and_then(|()| self.graph.check_all_idle(names, but))
            .map_err(|error| match error {
                BlockError::Busy { node, kind } => refused(&BlockError::Busy {
                    node: drive(node),
                    kind,
                }),
                other => refused(&other),
            })
    }

    /// Begins a job: enters it, and starts its loop.
    fn begin_job<F>(
        &mut self,
        id: &str,
        (kind, end): (JobKind, End),
        manners: &Manners,
        gate: &Gate,
        body: impl FnOnce(JobCx) -> F + Send + 'static,
    ) -> Result<(), QmpError>
    where
        F: Future<Output = Result<(), JobFailure>> + 'static,
    {
        let iothread = self.default_iothread()?;
        let control = Arc::new(Control::default());
        control.set_speed(speed(manners.speed.unwrap_or(0))?);
        let (mailbox, name) = (self.mailbox.clone(), id.to_owned());
        let sink = JobSink::new(move |news| {
            mailbox.send(Letter::Job(name.clone(), news));
        });
        let spec = JobSpec {
            id: id.to_owned(),
            kind,
            control: Arc::clone(&control),
            auto_finalize: manners.auto_finalize.unwrap_or(true),
            auto_dismiss: manners.auto_dismiss.unwrap_or(true),
            end,
        };
        self.with_jobs(|jobs, vm| jobs.start(spec, vm));
        let gate = gate.clone();
        iothread.spawn(move |io| async move {
            let cx = JobCx::new(io, control, sink.clone(), &gate).await;
            sink.ended(body(cx).await);
        });
        Ok(())
    }

    /// Lends the jobs, which may change the VM meanwhile.
    pub(crate) fn with_jobs<T>(&mut self, work: impl FnOnce(&mut Jobs<End>, &mut Self) -> T) -> T {
        let mut jobs = std::mem::take(&mut self.jobs);
        let result = work(&mut jobs, self);
        self.jobs = jobs;
        result
    }

    /// Has the jobs end that work on the node of a drive which goes.
    pub(crate) fn cancel_jobs_on(&mut self, drive: &str) {
        let node = self.drives.find(drive).map(|drive| drive.node.clone());
        let view = node.and_then(|node| {
            self.graph
                .node(&node)
                .ok()
                .map(|view| view.jobs().map(str::to_owned).collect())
        });
        let ids: Vec<String> = view.unwrap_or_default();
        for id in ids {
            let cancelled = self.with_jobs(|jobs, vm| jobs.cancel(&id, false, vm));
            if let Err(error) = cancelled {
                tracing::debug!(id, %error, "a job ends by itself");
            }
        }
    }

    /// Takes news of a job.
    pub(crate) fn hear_job(&mut self, id: &str, news: JobNews) {
        self.with_jobs(|jobs, vm| jobs.hear(id, news, vm));
    }

    /// Waits for work on nodes, which are drained.
    pub(crate) fn run_on_nodes<F>(
        &mut self,
        work: impl FnOnce(block::Io) -> F + Send + 'static,
    ) -> Result<(), String>
    where
        F: Future<Output = std::io::Result<()>> + 'static,
    {
        let iothread = self.default_iothread().map_err(|error| error.desc)?;
        let result = iothread.run(work).map_err(|error| error.to_string())?;
        result.map_err(|error| error.to_string())
    }

    /// Puts a job's filter above a node. Where somebody would not agree, the rights are given back.
    fn insert_filter(
        &mut self,
        (filter, kind): (&str, JobFilter),
        below: &str,
        span: Vec<NodeRef>,
        rights: &mut Rights,
    ) -> Result<(), QmpError> {
        match self.graph.insert_filter(filter, kind, below, span) {
            Ok(pause) => {
                self.drives.follow(below, filter);
                self.pauses.add(pause);
                Ok(())
            }
            Err(error) => {
                self.give_back(rights);
                Err(refused(&error))
            }
        }
    }

    /// Leaves the nodes of a job as they are, without its filter and its rights.
    fn leave(&mut self, job: &str, filter: &mut Option<String>, rights: &mut Rights) {
        if let Some(filter) = filter.take() {
            let below = self.graph.next_in_chain(&filter);
            let below = below.unwrap_or_default().to_owned();
            match self.graph.remove_filter(&filter) {
                Ok(()) => self.drives.follow(&filter, &below),
                Err(error) => tracing::warn!(%filter, %error, "a filter stays after its job"),
            }
        }
        self.graph.let_go(job);
        self.give_back(rights);
    }

    pub(crate) fn give_back(&mut self, rights: &mut Rights) {
        if let Ok(iothread) = self.default_iothread() {
            rights.give_back(&self.graph, &self.door, &iothread);
        }
    }
}

impl World<End> for Vm {
    fn emit(&mut self, event: JobEvent) {
        self.events.emit(told(event));
    }

    fn finish(&mut self, job: &str, end: &mut End, pivot: bool) -> Result<(), String> {
        match end {
            End::Stream(end) => self.finish_stream(job, end),
            End::Commit(end) => self.finish_commit(job, end),
            End::Pivot(end) => self.finish_pivot(job, end, pivot),
            End::Create(end) => {
                self.end_create(job, end);
                Ok(())
            }
        }
    }

    fn abandon(&mut self, job: &str, end: &mut End) {
        match end {
            End::Stream(end) => self.leave(job, &mut end.filter, &mut end.rights),
            End::Commit(end) => self.leave(job, &mut end.filter, &mut end.rights),
            End::Pivot(end) => {
                end.stop_tracking();
                self.leave(job, &mut end.filter, &mut end.rights);
            }
            End::Create(end) => {
                self.graph.let_go(job);
                self.end_create(job, end);
            }
        }
    }
}

fn number(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A job's kind on the wire.
pub(crate) fn job_type(kind: JobKind) -> JobType {
    match kind {
        JobKind::Commit => JobType::Commit,
        JobKind::Stream => JobType::Stream,
        JobKind::Create => JobType::Create,
    }
}

/// A job's state on the wire.
pub(crate) fn job_status(status: block::job::JobStatus) -> JobStatus {
    use block::job::JobStatus as Ours;
    match status {
        Ours::Created => JobStatus::Created,
        Ours::Running => JobStatus::Running,
        Ours::Paused => JobStatus::Paused,
        Ours::Ready => JobStatus::Ready,
        Ours::Standby => JobStatus::Standby,
        Ours::Waiting => JobStatus::Waiting,
        Ours::Pending => JobStatus::Pending,
        Ours::Aborting => JobStatus::Aborting,
        Ours::Concluded => JobStatus::Concluded,
        Ours::Null => JobStatus::Null,
    }
}

fn told(event: JobEvent) -> Event {
    match event {
        JobEvent::Status { id, status } => Event::JobStatusChange(JobStatusChange {
            id,
            status: job_status(status),
        }),
        JobEvent::Ready(JobView {
            id,
            kind,
            done,
            total,
            speed,
            ..
        }) => Event::BlockJobReady(BlockJobReady {
            r#type: job_type(kind),
            device: id,
            len: number(total),
            offset: number(done),
            speed: number(speed),
        }),
        JobEvent::Pending { id, kind } => Event::BlockJobPending(BlockJobPending {
            r#type: job_type(kind),
            id,
        }),
        JobEvent::Completed(view) => Event::BlockJobCompleted(BlockJobCompleted {
            r#type: job_type(view.kind),
            device: view.id,
            len: number(view.total),
            offset: number(view.done),
            speed: number(view.speed),
            error: view.error,
        }),
        JobEvent::Cancelled(view) => Event::BlockJobCancelled(BlockJobCancelled {
            r#type: job_type(view.kind),
            device: view.id,
            len: number(view.total),
            offset: number(view.done),
            speed: number(view.speed),
        }),
        JobEvent::Error { id, write, action } => Event::BlockJobError(BlockJobError {
            device: id,
            operation: if write {
                IoOperationType::Write
            } else {
                IoOperationType::Read
            },
            action: match action {
                ErrorAction::Report => BlockErrorAction::Report,
                ErrorAction::Ignore => BlockErrorAction::Ignore,
                ErrorAction::Stop => BlockErrorAction::Stop,
            },
        }),
    }
}

/// The name of what is below, for the header of what is above: as the header has it where the file
/// was handed in, since nobody can open the name of an fd later.
pub(crate) fn recorded_name(graph: &BlockGraph, base: &str, above: &NodeRef) -> (String, String) {
    let view = graph.node(graph.below_filters(base)).ok();
    let driver = view.map_or("raw", |view| view.node().driver());
    let format = match driver {
        "file" | "host_device" => "raw",
        other => other,
    };
    let filename = view.map_or("", |view| view.filename());
    let is_passed = filename.starts_with("fd:") || filename.starts_with("/dev/fdset/");
    match above.backing_name() {
        Some((name, _)) if is_passed => (name, format.to_owned()),
        _ => (filename.to_owned(), format.to_owned()),
    }
}
