//! Guest tests side by side: lanes that take programs off one list, each with a lab of its own.
//!
//! ```text
//!                               ┌─► lane 0: its lab, or this machine ──┐
//!   programs, long ones first ──┤                                      ├─► Count
//!                               └─► lane 1: its lab, or this machine ──┘
//! ```
//!
//! A lab has one CPU ([`lab::spec`] says why): with one lane a machine of two stands half idle.
use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ::tests::host_kvm::Place;
use ::tests::lab::{Lab, LabSpec};
use anyhow::{Context, Result, anyhow};

use super::count::{Count, Tee, counted};
use crate::lab;
use crate::shell::step;

/// No test program takes longer, even in the lab on a busy machine.
const PROGRAM_TIME: Duration = Duration::from_secs(1500);
/// Test programs that take minutes, the longest first: begun last they would be waited for alone.
const LONG: &[&str] = &[
    "firmware-",
    "every_device-",
    "hotplug-",
    "debian-",
    "libvirt-",
    "vhost-",
    "boot-",
];

/// What the lanes share.
pub(super) struct Work<'a> {
    programs: Mutex<VecDeque<PathBuf>>,
    filter: Option<&'a str>,
    environment: &'a BTreeMap<String, String>,
    place: Place,
    stays_here: fn(&Path) -> bool,
    lab: LabSpec,
    /// Labs are booted one after the other: the first makes what all are made of.
    booting: Mutex<()>,
    lanes: usize,
    /// Programs that passed at their second attempt only.
    unsteady: Mutex<Vec<String>>,
}

impl<'a> Work<'a> {
    /// All tests of `programs` whose name contains `filter`. Where guests run in the lab, programs
    /// that `stays_here` knows run on this machine all the same.
    pub(super) fn new(
        mut programs: Vec<PathBuf>,
        filter: Option<&'a str>,
        environment: &'a BTreeMap<String, String>,
        place: Place,
        stays_here: fn(&Path) -> bool,
        lab: LabSpec,
    ) -> Self {
        programs.sort_by_key(|program| begins(program));
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self {
            programs: Mutex::new(programs.into()),
            filter,
            environment,
            place,
            stays_here,
            lab,
            booting: Mutex::new(()),
            // Who runs one test watches it.
            lanes: if filter.is_some() { 1 } else { cpus.min(2) },
            unsteady: Mutex::default(),
        }
    }

    /// Runs everything.
    ///
    /// # Errors
    /// A lab does not boot, or a program cannot be run.
    pub(super) fn run(&self) -> Result<Count> {
        let counts = thread::scope(|scope| {
            let lanes: Vec<_> = (0..self.lanes)
                .map(|number| scope.spawn(move || self.lane(number)))
                .collect();
            let ended = lanes.into_iter().map(|lane| {
                lane.join()
                    .unwrap_or_else(|_| Err(anyhow!("a lane of guest tests panicked")))
            });
            ended.collect::<Vec<_>>()
        });
        let mut total = Count::default();
        for count in counts {
            total.add(count?);
        }
        for name in &*lock(&self.unsteady) {
            step(&format!("passed at the second attempt only: {name}"));
        }
        Ok(total)
    }

    fn lane(&self, number: usize) -> Result<Count> {
        let mut spec = self.lab.clone();
        if number > 0 {
            spec.console.set_extension(number.to_string());
        }
        let mut lab: Option<Lab> = None;
        let mut total = Count::default();
        while let Some(program) = self.next() {
            let name = program.file_name().unwrap_or_default().display();
            step(&format!("guest tests: {name}"));
            let mut tee = Tee::new(self.lanes == 1);
            if self.lanes > 1 {
                tee.note(&format!("== what {name} said\n"));
            }
            if self.place == Place::Host || (self.stays_here)(&program) {
                total.add(self.here(&program, &mut tee)?);
            } else {
                let mut count = self.in_lab(&mut lab, &spec, &program, &mut tee)?;
                if count.failed > 0 && self.filter.is_none() {
                    // An emulated machine now and then stands still: who fails again has failed.
                    lab = None;
                    let again = format!("== once more, in a new lab: {name}\n");
                    tee.note(&again);
                    let mut second = Tee::new(self.lanes == 1);
                    second.note(&again);
                    count = self.in_lab(&mut lab, &spec, &program, &mut second)?;
                    if count.failed == 0 {
                        lock(&self.unsteady).push(name.to_string());
                    }
                }
                total.add(count);
            }
        }
        Ok(total)
    }

    fn next(&self) -> Option<PathBuf> {
        lock(&self.programs).pop_front()
    }

    fn boot(&self, spec: &LabSpec) -> Result<Lab> {
        let _alone = lock(&self.booting);
        lab::boot(spec)
    }

    /// Shown output: the tests that count fds, threads and mappings print the counts.
    fn words(&self) -> impl Iterator<Item = &str> {
        let always = ["--ignored", "--show-output", "--test-threads", "2"];
        always.into_iter().chain(self.filter)
    }

    /// Runs a program in `lab`, which is booted if there is none, and gone if it was lost.
    fn in_lab(
        &self,
        lab: &mut Option<Lab>,
        spec: &LabSpec,
        program: &Path,
        tee: &mut Tee,
    ) -> Result<Count> {
        let mut machine = match lab.take() {
            Some(machine) => machine,
            None => self.boot(spec)?,
        };
        let argv: Vec<_> = [program.to_string_lossy().into_owned()]
            .into_iter()
            .chain(self.words().map(str::to_owned))
            .collect();
        let folder = env::current_dir()?;
        match machine.run(&argv, &folder, self.environment, PROGRAM_TIME, tee) {
            Ok(status) => {
                *lab = Some(machine);
                Ok(counted(status == 0, &tee.text()))
            }
            // The lab is lost, and so are the tests that ran in it.
            Err(error) => {
                tee.note(&format!("{error:#}\n"));
                Ok(Count {
                    failed: 1,
                    ..Count::default()
                })
            }
        }
    }

    fn here(&self, program: &Path, tee: &mut Tee) -> Result<Count> {
        let mut command = Command::new(program);
        command.args(self.words()).envs(self.environment);
        let success = watched(&mut command, tee)?;
        Ok(counted(success, &tee.text()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a program's turn is.
fn begins(program: &Path) -> usize {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let long = LONG.iter().position(|prefix| name.starts_with(prefix));
    long.unwrap_or(LONG.len())
}

/// Runs a program and has what it prints in `tee`; whether it succeeded.
///
/// # Errors
/// It cannot be run.
pub(super) fn watched(command: &mut Command, tee: &mut Tee) -> Result<bool> {
    let (mut reader, writer) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    // The command keeps the writing ends; give it others, or the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    io::copy(&mut reader, tee)?;
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_programs_begin_first_and_the_others_keep_their_order() {
        let mut programs: Vec<_> = ["anew-1", "boot-2", "console-3", "firmware-4"]
            .map(PathBuf::from)
            .into();
        programs.sort_by_key(|program| begins(program));
        let names: Vec<_> = programs.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(names, ["firmware-4", "boot-2", "anew-1", "console-3"]);
    }
}
