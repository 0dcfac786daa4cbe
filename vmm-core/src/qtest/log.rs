//! `-qtest-log`: every line of a tester and every answer, with the time since the start.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Instant;

use fdset::{Lease, OpenFile};

/// A log of one qtest connection.
pub struct Log {
    file: File,
    _lease: Option<Lease>,
    start: Instant,
}

impl Log {
    /// A log that goes to `file`.
    #[must_use]
    pub fn new(file: OpenFile) -> Self {
        let (fd, lease): (OwnedFd, _) = file.into_parts();
        Self {
            file: File::from(fd),
            _lease: lease,
            start: Instant::now(),
        }
    }

    pub(super) fn connection(&mut self, connected: bool) {
        let what = if connected { "OPENED" } else { "CLOSED" };
        self.line('I', what);
    }

    pub(super) fn received(&mut self, line: &str) {
        self.line('R', line);
    }

    pub(super) fn sent(&mut self, line: &str) {
        self.line('S', line);
    }

    fn line(&mut self, kind: char, text: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        if let Err(error) = writeln!(self.file, "[{kind} +{seconds:.6}] {text}") {
            tracing::warn!(%error, "writing the qtest log");
        }
    }
}
