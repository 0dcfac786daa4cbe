//! `job.json`: jobs.

use qapi_schema::job::{Commands, JobInfo};
use qapi_schema::{Context, QmpError};

use crate::vm::Vm;

impl Commands for Vm {
    fn query_jobs(&mut self, _cx: &mut dyn Context) -> Result<Vec<JobInfo>, QmpError> {
        // No command begins one.
        Ok(Vec::new())
    }
}
