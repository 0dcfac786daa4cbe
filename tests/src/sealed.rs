//! What a sealed process says of itself, and what it is seen to call.
//!
//! ```text
//!   Strace::attach ─► strace -f -p PID -o calls ─┐ every thread, also those that start later
//!   the process seals itself, works, ends        ▼
//!   Strace::finish ─► Calls: one line for each system call ─► after_seal() ─► forbidden()
//!
//!   Rings::watch ─► tracefs io_uring_submit_req ─► Rings::operations: what strace cannot see
//! ```
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use tempfile::TempDir;

/// What a sealed process never calls; the names are strace's.
pub const FORBIDDEN: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "creat",
    "open_by_handle_at",
    "connect",
    "bind",
    "socket",
    "listen",
    "execve",
    "execveat",
    "fork",
    "vfork",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "rmdir",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "truncate",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "kcmp",
    "pidfd_open",
    "pidfd_getfd",
    "io_uring_setup",
    "io_uring_register",
    "io_setup",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "mount",
    "umount2",
    "unshare",
    "setns",
    "chroot",
    "chdir",
    "kill",
    "tkill",
    "setuid",
    "setgid",
    "prlimit64",
];

/// Whether `query-sandbox` tells of a process that is sealed in every thread.
#[must_use]
pub fn is_sealed(sandbox: &Value) -> bool {
    let threads = sandbox["threads"].as_array().map_or(&[][..], Vec::as_slice);
    sandbox["open-policy"] == "sealed"
        && sandbox["rings-restricted"] == true
        && sandbox["landlock"] != "available"
        && threads.len() >= 3
        && threads.iter().all(|thread| thread["filtered"] == true)
}

/// strace, on all threads of a process.
#[derive(Debug)]
pub struct Strace {
    child: Child,
    folder: TempDir,
}

impl Strace {
    /// Whether this machine has it.
    #[must_use]
    pub fn is_installed() -> bool {
        Command::new("strace").arg("-V").output().is_ok()
    }

    /// Starts it, and returns when it sees every thread.
    pub fn attach(pid: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-o"])
            .arg(folder.path().join("calls"))
            .stderr(Stdio::piped())
            .spawn()
            .context("strace, which apt-get install strace brings")?;
        let stderr = child.stderr.take().context("a pipe")?;
        let mut said = BufReader::new(stderr);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.contains("attached"), "strace said: {line}");
        thread::spawn(move || said.read_to_string(&mut String::new()));
        // It tells of the process at once, and takes its threads one after the other.
        while !traced_by(pid, child.id())? {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { child, folder })
    }

    /// What was called, once the process has ended.
    pub fn finish(mut self) -> Result<Calls> {
        self.child.wait()?;
        Ok(Calls(fs::read_to_string(self.folder.path().join("calls"))?))
    }
}

/// Whether every thread of `pid` is watched by `tracer`.
fn traced_by(pid: u32, tracer: u32) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        if !status.contains(&format!("TracerPid:\t{tracer}\n")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The system calls of a process: lines of "THREAD name(arguments) = result".
#[derive(Debug)]
pub struct Calls(String);

impl Calls {
    /// Those after the first filter of the seal was on.
    pub fn after_seal(&self) -> Result<Self> {
        let (_, rest) = self
            .0
            .split_once("SECCOMP_FILTER_FLAG_TSYNC")
            .context("strace saw no seal")?;
        let (_, rest) = rest.split_once('\n').context("nothing after the seal")?;
        Ok(Self(rest.to_owned()))
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lines().count()
    }

    /// The first that a sealed process may not make.
    #[must_use]
    pub fn forbidden(&self) -> Option<&str> {
        let is_forbidden = |line: &&str| FORBIDDEN.contains(&name(line));
        self.0.lines().find(is_forbidden)
    }

    /// The names of all that were made.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.lines().map(name).collect()
    }

    /// The threads that made them.
    #[must_use]
    pub fn threads(&self) -> BTreeSet<u32> {
        let thread = |line: &str| line.split_whitespace().next()?.parse().ok();
        self.0.lines().filter_map(thread).collect()
    }
}

/// The call's name; lines about signals and ends have none that is a call's.
fn name(line: &str) -> &str {
    let call = line.split_whitespace().nth(1).unwrap_or_default();
    let resumed = "<...";
    if call == resumed {
        return line.split_whitespace().nth(2).unwrap_or_default();
    }
    call.split('(').next().unwrap_or_default()
}

/// What all rings of the machine are asked for, counted by the kernel: a ring's work is no system
/// call, and its workers are no threads that strace sees.
#[derive(Debug)]
pub struct Rings(());

impl Rings {
    const EVENT: &str = "/sys/kernel/tracing/events/io_uring/io_uring_submit_req";
    const COUNT: &str = "hist:keys=op_str";

    /// Starts counting. Needs root, and a kernel that traces.
    pub fn watch() -> Result<Self> {
        let place = Path::new("/sys/kernel/tracing");
        if !place.join("events").exists() {
            let nothing: Option<&str> = None;
            mount(
                Some("tracefs"),
                place,
                Some("tracefs"),
                MsFlags::empty(),
                nothing,
            )?;
        }
        trigger(Self::COUNT)?;
        Ok(Self(()))
    }

    /// The operations that were asked for since, by the kernel's names.
    pub fn operations(&self) -> Result<BTreeSet<String>> {
        let text = fs::read_to_string(Path::new(Self::EVENT).join("hist"))?;
        // "{ op_str: READV   } hitcount:   12"
        let operation = |line: &str| {
            let (_, rest) = line.split_once("op_str:")?;
            Some(rest.split_once('}')?.0.trim().to_owned())
        };
        Ok(text.lines().filter_map(operation).collect())
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        let _ = trigger(&format!("!{}", Self::COUNT));
    }
}

fn trigger(text: &str) -> Result<()> {
    let path = Path::new(Rings::EVENT).join("trigger");
    let mut file = OpenOptions::new().write(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
11  openat(AT_FDCWD, \"/etc/localtime\", O_RDONLY) = 3
11  seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, 0x1) = 0
12  futex(0x1, FUTEX_WAIT, 0, NULL <unfinished ...>
12  <... futex resumed>) = 0
11  +++ exited with 0 +++
";

    #[test]
    fn what_came_before_the_seal_does_not_count() {
        let calls = Calls(LOG.to_owned());
        assert!(
            calls
                .forbidden()
                .is_some_and(|line| line.contains("localtime"))
        );
        let sealed = calls.after_seal().unwrap();
        assert_eq!(sealed.forbidden(), None);
        assert_eq!(sealed.threads(), BTreeSet::from([11, 12]));
        assert!(sealed.names().contains("futex"));
    }

    #[test]
    fn a_forbidden_call_is_found_in_both_its_halves() {
        for line in [
            "9  openat(AT_FDCWD, \"x\" <unfinished ...>",
            "9  <... openat resumed>) = 3",
        ] {
            assert!(Calls(line.to_owned()).forbidden().is_some(), "{line}");
        }
    }
}
