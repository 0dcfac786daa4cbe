//! `job.json`: jobs.

use block::job::{JobError, JobKind, JobView, Trouble};
use qapi_schema::block_core::{BlockDeviceIoStatus, BlockJobInfo, BlockJobInfoVariant};
use qapi_schema::job::{
    Commands, JobCancel, JobComplete, JobDismiss, JobFinalize, JobInfo, JobPause, JobResume,
};
use qapi_schema::{Context, ErrorClass, QmpError};

use crate::jobs::{job_status, job_type};
use crate::vm::Vm;

impl Commands for Vm {
    fn query_jobs(&mut self, _cx: &mut dyn Context) -> Result<Vec<JobInfo>, QmpError> {
        let views = self.jobs.views();
        Ok(views
            .map(|view| JobInfo {
                id: view.id,
                r#type: job_type(view.kind),
                status: job_status(view.status),
                current_progress: bytes(view.done),
                total_progress: bytes(view.total),
                error: view.error,
            })
            .collect())
    }

    fn job_pause(&mut self, _cx: &mut dyn Context, args: JobPause) -> Result<(), QmpError> {
        self.jobs.pause(&args.id).map_err(refused)
    }

    fn job_resume(&mut self, _cx: &mut dyn Context, args: JobResume) -> Result<(), QmpError> {
        self.with_jobs(|jobs, vm| jobs.resume(&args.id, vm).map_err(refused))
    }

    fn job_cancel(&mut self, _cx: &mut dyn Context, args: JobCancel) -> Result<(), QmpError> {
        self.with_jobs(|jobs, vm| jobs.cancel(&args.id, true, vm))
            .map_err(refused)
    }

    fn job_complete(&mut self, _cx: &mut dyn Context, args: JobComplete) -> Result<(), QmpError> {
        self.jobs.complete(&args.id).map_err(refused)
    }

    fn job_dismiss(&mut self, _cx: &mut dyn Context, args: JobDismiss) -> Result<(), QmpError> {
        self.with_jobs(|jobs, vm| jobs.dismiss(&args.id, vm))
            .map_err(refused)
    }

    fn job_finalize(&mut self, _cx: &mut dyn Context, args: JobFinalize) -> Result<(), QmpError> {
        self.with_jobs(|jobs, vm| jobs.finalize(&args.id, vm))
            .map_err(refused)
    }
}

/// Why a job did not do what it was told, as clients know it.
#[expect(clippy::needless_pass_by_value, reason = "the argument of map_err")]
pub(super) fn refused(error: JobError) -> QmpError {
    let class = match error {
        JobError::NoBlockJob { .. } => ErrorClass::DeviceNotActive,
        _ => ErrorClass::GenericError,
    };
    QmpError::new(class, error.to_string())
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A job as `query-block-jobs` shows it.
pub(super) fn block_job_info(view: JobView) -> BlockJobInfo {
    use block::job::JobStatus;
    BlockJobInfo {
        device: view.id,
        len: bytes(view.total),
        offset: bytes(view.done),
        busy: view.busy,
        paused: view.paused,
        speed: bytes(view.speed),
        io_status: io_status(view.trouble),
        ready: matches!(view.status, JobStatus::Ready | JobStatus::Standby),
        status: job_status(view.status),
        auto_finalize: view.auto_finalize,
        auto_dismiss: view.auto_dismiss,
        error: view.error,
        r#type: match view.kind {
            JobKind::Commit => BlockJobInfoVariant::Commit,
            JobKind::Stream => BlockJobInfoVariant::Stream,
            JobKind::Create => BlockJobInfoVariant::Create,
        },
    }
}

/// What trouble is called.
pub(super) fn io_status(trouble: Option<Trouble>) -> BlockDeviceIoStatus {
    match trouble {
        None => BlockDeviceIoStatus::Ok,
        Some(Trouble::Failed) => BlockDeviceIoStatus::Failed,
        Some(Trouble::NoSpace) => BlockDeviceIoStatus::Nospace,
    }
}
