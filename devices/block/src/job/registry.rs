//! The jobs there are, seen from the main loop: their states, and what clients hear of them.
//!
//! ```text
//!   verbs ──► Jobs ──► Control of a job ──► its loop
//!   news  ──►   │
//!               ├──► World::emit     each change of a state, and what it means
//!               ├──► World::finish   the loop is done: make its result so
//!               └──► World::abandon  it failed or was cancelled: leave all as it was
//! ```

use indexmap::IndexMap;

use super::control::{ErrorAction, JobFailure, JobNews};
use super::status::{JobStatus, JobVerb};
use super::world::{JobError, JobEvent, JobSpec, JobView, Trouble, World};

#[derive(Debug)]
struct Job<F> {
    spec: JobSpec<F>,
    status: JobStatus,
    trouble: Option<Trouble>,
    /// Told to end without its result though it was ready.
    soft_cancelled: bool,
    cancelled: bool,
    error: Option<String>,
}

impl<F> Job<F> {
    fn view(&self) -> JobView {
        let control = &self.spec.control;
        let (done, total) = control.progress();
        JobView {
            id: self.spec.id.clone(),
            kind: self.spec.kind,
            status: self.status,
            done,
            total,
            speed: control.speed(),
            busy: control.is_busy(),
            paused: control.is_paused(),
            trouble: self.trouble,
            auto_finalize: self.spec.auto_finalize,
            auto_dismiss: self.spec.auto_dismiss,
            error: self.error.clone(),
        }
    }

    fn become_(&mut self, status: JobStatus, world: &mut impl World<F>) {
        if !self.status.may_become(status) {
            tracing::error!(job = %self.spec.id, from = %self.status, to = %status, "no such change");
            return;
        }
        self.status = status;
        world.emit(JobEvent::Status {
            id: self.spec.id.clone(),
            status,
        });
    }

    /// Leaves the state of waiting, if it is in it.
    fn go_on(&mut self, world: &mut impl World<F>) {
        match self.status {
            JobStatus::Paused => self.become_(JobStatus::Running, world),
            JobStatus::Standby => self.become_(JobStatus::Ready, world),
            _ => {}
        }
    }
}

/// All jobs, oldest first.
#[derive(Debug)]
pub struct Jobs<F>(IndexMap<String, Job<F>>);

impl<F> Default for Jobs<F> {
    fn default() -> Self {
        Self(IndexMap::new())
    }
}

impl<F> Jobs<F> {
    /// Whether a job may be called this.
    ///
    /// # Errors
    /// The id breaks the rules or is taken.
    pub fn check_id(&self, id: &str) -> Result<(), JobError> {
        let well_formed = id.starts_with(|first: char| first.is_ascii_alphabetic())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !well_formed {
            return Err(JobError::BadId { id: id.to_owned() });
        }
        if self.0.contains_key(id) {
            return Err(JobError::IdTaken { id: id.to_owned() });
        }
        Ok(())
    }

    /// Enters a job, whose loop the caller starts.
    pub fn start(&mut self, spec: JobSpec<F>, world: &mut impl World<F>) {
        let mut job = Job {
            spec,
            status: JobStatus::Created,
            trouble: None,
            soft_cancelled: false,
            cancelled: false,
            error: None,
        };
        world.emit(JobEvent::Status {
            id: job.spec.id.clone(),
            status: JobStatus::Created,
        });
        job.become_(JobStatus::Running, world);
        self.0.insert(job.spec.id.clone(), job);
    }

    /// All jobs.
    pub fn views(&self) -> impl Iterator<Item = JobView> + use<'_, F> {
        self.0.values().map(Job::view)
    }

    /// Whether a job of this id works for the users of block nodes.
    ///
    /// # Errors
    /// There is none.
    pub fn check_block_job(&self, id: &str) -> Result<(), JobError> {
        let job = self.0.get(id).filter(|job| job.spec.kind.is_block_job());
        job.map(drop)
            .ok_or_else(|| JobError::NoBlockJob { id: id.to_owned() })
    }

    fn told(&mut self, id: &str, verb: JobVerb) -> Result<&mut Job<F>, JobError> {
        let job = self.0.get_mut(id).ok_or(JobError::NotFound)?;
        if job.status.takes(verb) {
            return Ok(job);
        }
        Err(JobError::WrongState {
            id: id.to_owned(),
            status: job.status,
            verb,
        })
    }

    /// Has a job wait.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn pause(&mut self, id: &str) -> Result<(), JobError> {
        let job = self.told(id, JobVerb::Pause)?;
        if job.spec.control.is_paused() {
            return Err(JobError::AlreadyPaused);
        }
        job.spec.control.set_paused(true);
        Ok(())
    }

    /// Has a job go on. It shows at once, before the loop has heard of it: who asks next sees it.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn resume(&mut self, id: &str, world: &mut impl World<F>) -> Result<(), JobError> {
        let job = self.told(id, JobVerb::Resume)?;
        if !job.spec.control.is_paused() {
            return Err(JobError::NotPaused);
        }
        job.trouble = None;
        job.spec.control.set_paused(false);
        job.go_on(world);
        Ok(())
    }

    /// Limits a job, in bytes per second; 0 is no limit.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn set_speed(&mut self, id: &str, speed: u64) -> Result<(), JobError> {
        let job = self.told(id, JobVerb::SetSpeed)?;
        job.spec.control.set_speed(speed);
        Ok(())
    }

    /// Has a job that is ready end.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn complete(&mut self, id: &str) -> Result<(), JobError> {
        self.told(id, JobVerb::Complete)?.spec.control.complete();
        Ok(())
    }

    /// Ends a job without its result. One that is ready and not forced ends well, as it is.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn cancel(
        &mut self,
        id: &str,
        force: bool,
        world: &mut impl World<F>,
    ) -> Result<(), JobError> {
        let job = self.told(id, JobVerb::Cancel)?;
        if !force && matches!(job.status, JobStatus::Ready | JobStatus::Standby) {
            job.soft_cancelled = true;
            job.spec.control.set_paused(false);
            job.spec.control.complete();
            return Ok(());
        }
        job.cancelled = true;
        job.spec.control.cancel();
        if job.status.has_ended() {
            // Its loop is no more: nobody else will say so.
            self.fail(id, None, world);
        }
        Ok(())
    }

    /// Makes the result of a job so that waits for this.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn finalize(&mut self, id: &str, world: &mut impl World<F>) -> Result<(), JobError> {
        self.told(id, JobVerb::Finalize)?;
        self.make_so(id, world);
        Ok(())
    }

    /// Forgets a job that has ended.
    ///
    /// # Errors
    /// There is none, or it does not take that now.
    pub fn dismiss(&mut self, id: &str, world: &mut impl World<F>) -> Result<(), JobError> {
        let job = self.told(id, JobVerb::Dismiss)?;
        job.become_(JobStatus::Null, world);
        self.0.shift_remove(id);
        Ok(())
    }

    /// Takes news of a job's loop.
    pub fn hear(&mut self, id: &str, news: JobNews, world: &mut impl World<F>) {
        let Some(job) = self.0.get_mut(id) else {
            return;
        };
        match news {
            JobNews::Paused => {
                let waits = match job.status {
                    JobStatus::Ready => JobStatus::Standby,
                    _ => JobStatus::Paused,
                };
                job.become_(waits, world);
            }
            JobNews::Resumed => job.go_on(world),
            JobNews::Ready => {
                job.become_(JobStatus::Ready, world);
                world.emit(JobEvent::Ready(job.view()));
            }
            JobNews::Error {
                write,
                action,
                nospace,
            } => {
                if action == ErrorAction::Stop {
                    job.trouble = Some(if nospace {
                        Trouble::NoSpace
                    } else {
                        Trouble::Failed
                    });
                }
                world.emit(JobEvent::Error {
                    id: id.to_owned(),
                    write,
                    action,
                });
            }
            JobNews::Ended(Ok(())) if !job.cancelled => {
                job.become_(JobStatus::Waiting, world);
                job.become_(JobStatus::Pending, world);
                if job.spec.auto_finalize {
                    self.make_so(id, world);
                } else {
                    let kind = job.spec.kind;
                    let id = id.to_owned();
                    world.emit(JobEvent::Pending { id, kind });
                }
            }
            JobNews::Ended(Ok(()) | Err(JobFailure::Cancelled)) => {
                job.cancelled = true;
                self.fail(id, None, world);
            }
            JobNews::Ended(Err(JobFailure::Storage(error))) => {
                self.fail(id, Some(plain(&error)), world);
            }
            JobNews::Ended(Err(JobFailure::Unable(why))) => self.fail(id, Some(why), world),
        }
    }

    fn make_so(&mut self, id: &str, world: &mut impl World<F>) {
        let Some(job) = self.0.get_mut(id) else {
            return;
        };
        let pivot = !job.soft_cancelled;
        match world.finish(id, &mut job.spec.end, pivot) {
            Ok(()) => {
                if job.spec.kind.is_block_job() {
                    world.emit(JobEvent::Completed(job.view()));
                }
                self.conclude(id, world);
            }
            Err(error) => self.fail(id, Some(error), world),
        }
    }

    fn fail(&mut self, id: &str, error: Option<String>, world: &mut impl World<F>) {
        let Some(job) = self.0.get_mut(id) else {
            return;
        };
        job.become_(JobStatus::Aborting, world);
        world.abandon(id, &mut job.spec.end);
        let was_cancelled = error.is_none();
        job.error = error.or_else(|| job.error.take());
        if job.spec.kind.is_block_job() {
            let view = job.view();
            world.emit(if was_cancelled {
                JobEvent::Cancelled(view)
            } else {
                JobEvent::Completed(view)
            });
        } else if was_cancelled {
            job.error = Some("Operation canceled".to_owned());
        }
        self.conclude(id, world);
    }

    fn conclude(&mut self, id: &str, world: &mut impl World<F>) {
        let Some(job) = self.0.get_mut(id) else {
            return;
        };
        job.become_(JobStatus::Concluded, world);
        if job.spec.auto_dismiss {
            job.become_(JobStatus::Null, world);
            self.0.shift_remove(id);
        }
    }
}

/// The words for an error, without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::control::Control;
    use super::super::world::JobKind;
    use super::*;

    #[derive(Default)]
    struct Heard {
        events: Vec<String>,
        refuses: bool,
    }

    impl World<()> for Heard {
        fn emit(&mut self, event: JobEvent) {
            self.events.push(match event {
                JobEvent::Status { status, .. } => status.to_string(),
                JobEvent::Ready(_) => "READY".to_owned(),
                JobEvent::Pending { .. } => "PENDING".to_owned(),
                JobEvent::Completed(view) => format!("COMPLETED {:?}", view.error),
                JobEvent::Cancelled(_) => "CANCELLED".to_owned(),
                JobEvent::Error { action, .. } => format!("ERROR {action:?}"),
            });
        }

        fn finish(&mut self, _: &str, _: &mut (), pivot: bool) -> Result<(), String> {
            self.events.push(format!("finish {pivot}"));
            if self.refuses {
                return Err("refused".to_owned());
            }
            Ok(())
        }

        fn abandon(&mut self, _: &str, _: &mut ()) {
            self.events.push("abandon".to_owned());
        }
    }

    fn job(auto_finalize: bool, auto_dismiss: bool) -> (Jobs<()>, Heard) {
        let (mut jobs, mut heard) = (Jobs::default(), Heard::default());
        jobs.check_id("j").expect("free");
        let spec = JobSpec {
            id: "j".to_owned(),
            kind: JobKind::Commit,
            control: Arc::new(Control::default()),
            auto_finalize,
            auto_dismiss,
            end: (),
        };
        jobs.start(spec, &mut heard);
        assert_eq!(heard.events, ["created", "running"]);
        heard.events.clear();
        (jobs, heard)
    }

    #[test]
    fn job_that_does_all_by_itself_tells_each_state_and_is_gone() {
        let (mut jobs, mut heard) = job(true, true);
        jobs.hear("j", JobNews::Ended(Ok(())), &mut heard);
        let wanted = [
            "waiting",
            "pending",
            "finish true",
            "COMPLETED None",
            "concluded",
            "null",
        ];
        assert_eq!(heard.events, wanted);
        assert_eq!(jobs.views().count(), 0);
    }

    #[test]
    fn job_waits_for_finalize_and_dismiss_and_refuses_them_before() {
        let (mut jobs, mut heard) = job(false, false);
        let error = jobs.finalize("j", &mut heard).expect_err("running");
        assert_eq!(
            error.to_string(),
            "Job 'j' in state 'running' cannot accept command verb 'finalize'"
        );
        jobs.hear("j", JobNews::Ended(Ok(())), &mut heard);
        assert_eq!(heard.events, ["waiting", "pending", "PENDING"]);
        assert!(jobs.dismiss("j", &mut heard).is_err());
        jobs.finalize("j", &mut heard).expect("pending");
        assert_eq!(
            heard.events[3..],
            ["finish true", "COMPLETED None", "concluded"]
        );
        jobs.dismiss("j", &mut heard).expect("concluded");
        assert!(matches!(
            jobs.dismiss("j", &mut heard),
            Err(JobError::NotFound)
        ));
    }

    #[test]
    fn failure_of_the_storage_or_of_the_result_ends_in_the_error() {
        let (mut jobs, mut heard) = job(true, false);
        let error = std::io::Error::from_raw_os_error(libc::ENOSPC);
        jobs.hear("j", JobNews::Ended(Err(error.into())), &mut heard);
        let text = "COMPLETED Some(\"No space left on device\")";
        assert_eq!(heard.events, ["aborting", "abandon", text, "concluded"]);
        let (mut jobs, mut heard) = job(true, false);
        heard.refuses = true;
        jobs.hear("j", JobNews::Ended(Ok(())), &mut heard);
        assert_eq!(heard.events[2..4], ["finish true", "aborting"]);
        let view = jobs.views().next().expect("concluded");
        assert_eq!(view.error.as_deref(), Some("refused"));
    }

    #[test]
    fn ready_job_is_cancelled_softly_unless_forced() {
        let (mut jobs, mut heard) = job(true, true);
        jobs.hear("j", JobNews::Ready, &mut heard);
        jobs.cancel("j", false, &mut heard).expect("ready");
        jobs.hear("j", JobNews::Ended(Ok(())), &mut heard);
        assert!(heard.events.contains(&"finish false".to_owned()));
        let (mut jobs, mut heard) = job(true, true);
        jobs.hear("j", JobNews::Ready, &mut heard);
        jobs.cancel("j", true, &mut heard).expect("ready");
        jobs.hear("j", JobNews::Ended(Err(JobFailure::Cancelled)), &mut heard);
        let wanted = ["aborting", "abandon", "CANCELLED", "concluded", "null"];
        assert_eq!(heard.events[2..], wanted);
    }

    #[test]
    fn pausing_shows_once_the_loop_waits_and_going_on_at_once() {
        let (mut jobs, mut heard) = job(true, true);
        jobs.pause("j").expect("running");
        assert!(matches!(jobs.pause("j"), Err(JobError::AlreadyPaused)));
        assert_eq!(jobs.views().next().map(|view| view.paused), Some(true));
        jobs.hear("j", JobNews::Paused, &mut heard);
        jobs.resume("j", &mut heard).expect("paused");
        assert_eq!(heard.events, ["paused", "running"]);
        let again = jobs.resume("j", &mut heard);
        assert!(matches!(again, Err(JobError::NotPaused)));
        jobs.hear("j", JobNews::Resumed, &mut heard);
        assert_eq!(heard.events, ["paused", "running"]);
    }

    #[test]
    fn pending_job_that_is_cancelled_ends_at_once() {
        let (mut jobs, mut heard) = job(false, true);
        jobs.hear("j", JobNews::Ended(Ok(())), &mut heard);
        jobs.cancel("j", true, &mut heard).expect("pending");
        let wanted = ["aborting", "abandon", "CANCELLED", "concluded", "null"];
        assert_eq!(heard.events[3..], wanted);
    }

    #[test]
    fn ids_are_checked() {
        let (jobs, _) = job(true, true);
        assert!(matches!(jobs.check_id("j"), Err(JobError::IdTaken { .. })));
        for bad in ["", "1a", "a b"] {
            let error = jobs.check_id(bad).expect_err("bad").to_string();
            assert_eq!(error, format!("Invalid job ID '{bad}'"));
        }
        let error = jobs.check_block_job("k").expect_err("none").to_string();
        assert_eq!(error, "Block job 'k' not found");
    }
}
