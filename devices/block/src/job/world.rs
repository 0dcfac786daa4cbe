//! A job as others see it: what clients are shown and told, and what it changes at its end.
//!
//! ```text
//!   JobSpec ──► Jobs ──┬─► JobView    lists
//!                      ├─► JobEvent   clients, by World::emit
//!                      └─► JobError   whoever told it something it does not take
//! ```

use std::io;
use std::sync::Arc;

use super::control::{Control, ErrorAction};
use super::status::{JobStatus, JobVerb};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Moves what overlays hold into what is below them.
    Commit,
    /// Moves what shows through an overlay into it.
    Stream,
    /// Makes an image.
    Create,
}

impl JobKind {
    /// The name in QMP.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Stream => "stream",
            Self::Create => "create",
        }
    }

    /// Whether it works for the users of block nodes, so that `query-block-jobs` shows it.
    #[must_use]
    pub fn is_block_job(self) -> bool {
        self != Self::Create
    }
}

/// Why a job did not take a verb, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// There is no such job.
    #[error("Job not found")]
    NotFound,
    /// There is no such job among those that work for users.
    #[error("Block job '{id}' not found")]
    NoBlockJob {
        /// The id.
        id: String,
    },
    /// It is not in a state that takes the verb.
    #[error("Job '{id}' in state '{status}' cannot accept command verb '{verb}'")]
    WrongState {
        /// The job.
        id: String,
        /// Its state.
        status: JobStatus,
        /// The verb.
        verb: JobVerb,
    },
    /// It was told to wait before.
    #[error("Job is already paused")]
    AlreadyPaused,
    /// It was not told to wait.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// An id that breaks the rules of ids.
    #[error("Invalid job ID '{id}'")]
    BadId {
        /// The id.
        id: String,
    },
    /// The id is taken.
    #[error("Job ID '{id}' already in use")]
    IdTaken {
        /// The id.
        id: String,
    },
}

/// A job as lists and events show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// How far it is.
    pub status: JobStatus,
    /// Bytes done.
    pub done: u64,
    /// Bytes to do.
    pub total: u64,
    /// The limit in bytes per second; 0 is none.
    pub speed: u64,
    /// Whether a request is under way.
    pub busy: bool,
    /// Whether it was told to wait.
    pub paused: bool,
    /// How its storage is doing: whether it failed, and whether it was full.
    pub trouble: Option<Trouble>,
    /// Whether it finalizes by itself.
    pub auto_finalize: bool,
    /// Whether it goes by itself.
    pub auto_dismiss: bool,
    /// Why it failed.
    pub error: Option<String>,
}

/// What stopped a job, or the machine over a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A request failed.
    Failed,
    /// The storage is full.
    NoSpace,
}

impl From<&io::Error> for Trouble {
    fn from(error: &io::Error) -> Self {
        if error.raw_os_error() == Some(libc::ENOSPC) {
            Self::NoSpace
        } else {
            Self::Failed
        }
    }
}

/// What clients hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// A state has changed.
    Status {
        /// The job.
        id: String,
        /// Its new state.
        status: JobStatus,
    },
    /// It can be completed.
    Ready(JobView),
    /// It waits to be finalized.
    Pending {
        /// The job.
        id: String,
        /// What it does.
        kind: JobKind,
    },
    /// It has ended, well or not.
    Completed(JobView),
    /// It was cancelled.
    Cancelled(JobView),
    /// Its storage failed.
    Error {
        /// The job.
        id: String,
        /// Whether a write failed.
        write: bool,
        /// What it does about it.
        action: ErrorAction,
    },
}

/// What a job changes at its end, and who hears of it.
pub trait World<F> {
    /// Tells clients.
    fn emit(&mut self, event: JobEvent);

    /// Makes a job's result so. `pivot` is false where a ready job was told to end as it is.
    ///
    /// # Errors
    /// It cannot; the job fails.
    fn finish(&mut self, job: &str, end: &mut F, pivot: bool) -> Result<(), String>;

    /// Leaves everything as it was before a job that failed or was cancelled.
    fn abandon(&mut self, job: &str, end: &mut F);
}

/// What a job is made of.
#[derive(Debug)]
pub struct JobSpec<F> {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// The half it shares with its loop.
    pub control: Arc<Control>,
    /// Whether it finalizes by itself.
    pub auto_finalize: bool,
    /// Whether it goes by itself.
    pub auto_dismiss: bool,
    /// What to do at its end.
    pub end: F,
}
