//! Showing how far a job is, on standard error: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use sesame_qmp::job::JobInfo;

/// How many columns the bar has.
const COLUMNS: i64 = 30;

/// A bar, and what it last showed.
#[derive(Debug)]
pub(crate) struct Bar {
    terminal: bool,
    since: Instant,
    shown: Option<(i64, String)>,
}

impl Bar {
    /// A bar that shows nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            since: Instant::now(),
            shown: None,
        }
    }

    /// Shows how far the job is. A log gets a line for each tenth and each change of status.
    pub(crate) fn show(&mut self, job: &JobInfo) {
        let done = percent(job);
        let status = serde_json::to_value(job.status).unwrap_or_default();
        let status = status.as_str().unwrap_or("?").to_owned();
        let mut stderr = io::stderr().lock();
        // What cannot be shown is not worth ending the wait for.
        if self.terminal {
            let seconds = self.since.elapsed().as_secs();
            let bar = bar(done);
            let _ = write!(
                stderr,
                "\r\x1b[K{} {bar} {done:3}% {status} {seconds} s",
                job.id
            );
        } else {
            let step = (done / 10, status);
            if self.shown.as_ref() != Some(&step) {
                let _ = writeln!(stderr, "{} {done}% {}", job.id, step.1);
            }
            self.shown = Some(step);
        }
        let _ = stderr.flush();
    }

    /// Leaves what was last shown, and goes on below it.
    pub(crate) fn end(&self) {
        if self.terminal {
            let _ = writeln!(io::stderr());
        }
    }
}

/// How much is done, of a hundred. What a server says is not trusted to add up.
fn percent(job: &JobInfo) -> i64 {
    let total = i128::from(job.total_progress);
    if total <= 0 {
        return 0;
    }
    let done = i128::from(job.current_progress) * 100 / total;
    i64::try_from(done.clamp(0, 100)).unwrap_or(100)
}

fn bar(done: i64) -> String {
    let full = done * COLUMNS / 100;
    let cell = |column| if column < full { '#' } else { '.' };
    format!("[{}]", (0..COLUMNS).map(cell).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(current: i64, total: i64) -> JobInfo {
        let job = json!({"id": "j", "type": "create", "status": "running",
                         "current-progress": current, "total-progress": total});
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn progress_is_a_part_of_a_hundred_whatever_a_server_says() {
        let wanted = [
            ((0, 0), 0),
            ((5, 10), 50),
            ((i64::MAX, i64::MAX), 100),
            ((20, 10), 100),
            ((-5, 10), 0),
            ((5, -10), 0),
            ((i64::MAX, 1), 100),
        ];
        for ((current, total), wanted) in wanted {
            assert_eq!(
                percent(&job(current, total)),
                wanted,
                "{current} of {total}"
            );
        }
    }

    #[test]
    fn the_bar_fills_from_the_left() {
        assert_eq!(bar(0), format!("[{}]", ".".repeat(30)));
        assert_eq!(bar(50), format!("[{}{}]", "#".repeat(15), ".".repeat(15)));
        assert_eq!(bar(100), format!("[{}]", "#".repeat(30)));
    }
}
