//! Waiting for a job.
//!
//! Two sources tell how far it is: events, which say what happened and are never late, and
//! `query-jobs`, which says how much is done. A job may be gone before it is asked for.
//!
//! ```text
//!   JOB_STATUS_CHANGE, BLOCK_JOB_* ──► Watch ──► Going(progress) ──► Bar
//!   query-jobs ──────────────────────►   └─────► Over(outcome)
//! ```

use std::time::{Duration, Instant};

use serde_json::Value;
use sesame_qmp::job::{JobInfo, JobStatus, QueryJobs};
use sesame_qmp::{Command, Error, TimedEvent};

use crate::bar::Bar;
use crate::failure::Failure;
use crate::session::Session;

/// How long to wait for an event before asking again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How a job stands.
#[derive(Debug, PartialEq)]
pub(crate) enum Standing {
    /// At work.
    Going(JobInfo),
    /// At its end, or where it waits to be told to go on; with what is last known of it.
    Over(Option<JobInfo>),
    /// At its end without success, and why.
    Failed(String),
    /// Never seen.
    Unknown,
}

/// What is known of a job.
#[derive(Debug)]
pub(crate) struct Watch {
    id: String,
    seen: bool,
    /// Failed or cancelled.
    aborted: bool,
    error: Option<String>,
    last: Option<JobInfo>,
}

impl Watch {
    /// Watches the job of that id.
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            seen: false,
            aborted: false,
            error: None,
            last: None,
        }
    }

    /// Takes an event in.
    pub(crate) fn event(&mut self, event: &TimedEvent) {
        let data = &event.data;
        let is = |member: &str| data[member].as_str() == Some(&self.id);
        match event.event.name() {
            "JOB_STATUS_CHANGE" if is("id") => {
                self.seen = true;
                self.aborted |= data["status"] == "aborting";
            }
            "BLOCK_JOB_COMPLETED" if is("device") => {
                self.seen = true;
                if let Some(error) = data["error"].as_str() {
                    self.aborted = true;
                    self.error = Some(error.to_owned());
                }
            }
            "BLOCK_JOB_CANCELLED" if is("device") => {
                self.seen = true;
                self.aborted = true;
                self.error
                    .get_or_insert_with(|| "it was cancelled".to_owned());
            }
            _ => {}
        }
    }

    /// Takes a list of all jobs in and says how this one stands.
    pub(crate) fn jobs(&mut self, jobs: Vec<JobInfo>) -> Standing {
        let Some(job) = jobs.into_iter().find(|job| job.id == self.id) else {
            return match (self.seen, self.aborted) {
                (false, _) => Standing::Unknown,
                (true, true) => self.failed(),
                (true, false) => Standing::Over(self.last.take()),
            };
        };
        self.seen = true;
        self.last = Some(job.clone());
        self.error = job.error.clone().or(self.error.take());
        self.aborted |= job.status == JobStatus::Aborting;
        match job.status {
            JobStatus::Concluded | JobStatus::Null if self.aborted || self.error.is_some() => {
                self.failed()
            }
            JobStatus::Concluded | JobStatus::Null | JobStatus::Ready | JobStatus::Pending => {
                Standing::Over(Some(job))
            }
            _ => Standing::Going(job),
        }
    }

    fn failed(&self) -> Standing {
        let why = self
            .error
            .as_deref()
            .unwrap_or("it failed or was cancelled");
        Standing::Failed(format!("job '{}' did not succeed: {why}", self.id))
    }
}

/// Waits until the job is at its end, or waits itself to be told to go on (`ready`, `pending`), and
/// returns what is last known of it. Other events go to `heard`.
pub(crate) fn wait(
    session: &mut Session,
    id: &str,
    timeout: Option<Duration>,
    heard: &mut dyn FnMut(&TimedEvent),
) -> Result<Value, Failure> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut watch = Watch::new(id);
    let mut bar = Bar::new();
    loop {
        let jobs = session.client().execute(QueryJobs);
        let jobs = jobs.map_err(|error| Failure::of(QueryJobs::NAME, error))?;
        for event in session.events()? {
            watch.event(&event);
            heard(&event);
        }
        match watch.jobs(jobs) {
            Standing::Going(job) => bar.show(&job),
            Standing::Over(job) => {
                if let Some(job) = &job {
                    bar.show(job);
                }
                bar.end();
                return Ok(serde_json::to_value(job).unwrap_or_default());
            }
            Standing::Failed(why) => {
                bar.end();
                return Err(Failure::Job(why));
            }
            Standing::Unknown => return Err(Failure::Job(format!("there is no job '{id}'"))),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            bar.end();
            return Err(Failure::TimedOut(format!("job '{id}'")));
        }
        match session.client().next_event(ASK_AGAIN) {
            Ok(event) => {
                watch.event(&event);
                heard(&event);
            }
            Err(Error::TimedOut) => {}
            Err(error) => {
                bar.end();
                return Err(Failure::Lost(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use sesame_qmp::Event;
    use std::time::SystemTime;

    fn event(name: &str, data: Value) -> TimedEvent {
        TimedEvent {
            time: SystemTime::UNIX_EPOCH,
            event: Event::Unknown {
                name: name.to_owned(),
                data: data.clone(),
            },
            data,
        }
    }

    fn job(status: &str, error: Option<&str>) -> Vec<JobInfo> {
        let job = json!({"id": "j", "type": "create", "status": status, "current-progress": 1,
                         "total-progress": 2, "error": error});
        vec![serde_json::from_value(job).expect("a job")]
    }

    #[test]
    fn a_job_goes_on_until_it_is_concluded() {
        let mut watch = Watch::new("j");
        assert!(matches!(
            watch.jobs(job("running", None)),
            Standing::Going(_)
        ));
        assert!(matches!(
            watch.jobs(job("concluded", None)),
            Standing::Over(Some(_))
        ));
    }

    #[test]
    fn a_job_that_waits_for_its_client_is_over() {
        for status in ["ready", "pending"] {
            assert!(matches!(
                Watch::new("j").jobs(job(status, None)),
                Standing::Over(Some(_))
            ));
        }
    }

    #[test]
    fn a_concluded_job_with_an_error_has_failed_with_it() {
        let standing = Watch::new("j").jobs(job("concluded", Some("disk full")));
        let Standing::Failed(why) = standing else {
            panic!("{standing:?}");
        };
        assert_eq!(why, "job 'j' did not succeed: disk full");
    }

    #[test]
    fn a_job_that_is_gone_ended_as_its_events_say() {
        let change = |status| event("JOB_STATUS_CHANGE", json!({"id": "j", "status": status}));
        let mut watch = Watch::new("j");
        watch.event(&change("running"));
        watch.event(&change("null"));
        assert_eq!(watch.jobs(vec![]), Standing::Over(None));
        watch.event(&change("aborting"));
        assert!(matches!(watch.jobs(vec![]), Standing::Failed(_)));
        let mut watch = Watch::new("j");
        watch.event(&event(
            "BLOCK_JOB_COMPLETED",
            json!({"device": "j", "error": "no space"}),
        ));
        let Standing::Failed(why) = watch.jobs(vec![]) else {
            panic!("it failed");
        };
        assert!(why.ends_with("no space"), "{why}");
    }

    #[test]
    fn events_of_other_jobs_tell_nothing() {
        let mut watch = Watch::new("j");
        watch.event(&event(
            "JOB_STATUS_CHANGE",
            json!({"id": "k", "status": "aborting"}),
        ));
        watch.event(&event("BLOCK_JOB_CANCELLED", json!({"device": "k"})));
        assert_eq!(watch.jobs(vec![]), Standing::Unknown);
    }
}
