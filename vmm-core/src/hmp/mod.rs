//! The monitor for people: one line in, text out (`human-monitor-command`).
//!
//! This room turns words into the arguments of QMP commands and replies into lines. It must never
//! do what no QMP command does, nor hold state.
//!
//! ```text
//!   "info status" ─► words ─► table ─► Vm::query_status (the QMP command) ─► "VM status: running"
//!   "sing"        ─────────► unknown command: 'sing'
//! ```
//!
//! A failure is text too. Names and shapes of lines are QEMU's where scripts read them.
//!
//! Read next: [`info`] for what can be asked, [`rights`] for who may, [`qemu_io`] for testers of
//! images.

mod info;
pub(crate) mod qemu_io;
mod rights;

use qapi_schema::block_core::{BlockResize, Commands as _};
use qapi_schema::qdev::{Commands as _, DeviceDel};
use qapi_schema::qom::{Commands as _, ObjectDel, QomGet, QomList};
use qapi_schema::run_state::{Commands as _, ShutdownCause};
use qapi_schema::{Context, QmpError};

use crate::cli;
use crate::vm::Vm;

type Run = fn(&mut Vm, &mut dyn Context, &str) -> Result<String, QmpError>;

/// One command.
struct Command {
    /// Its names, separated by `|`.
    names: &'static str,
    /// What it takes, as the help shows it.
    arguments: &'static str,
    /// What it does.
    about: &'static str,
    run: Run,
}

const fn command(
    names: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: Run,
) -> Command {
    Command {
        names,
        arguments,
        about,
        run,
    }
}

/// Every command, sorted by name.
const COMMANDS: &[Command] = &[
    command(
        "block_resize",
        "device size",
        "changes the length of a disk or node; MiB, or with a unit",
        block_resize,
    ),
    command(
        "commit",
        "device|all",
        "merges a disk's changes into what backs it",
        commit,
    ),
    command("cont|c", "", "lets the machine run", |vm, cx, _| {
        vm.cont(cx).map(quiet)
    }),
    command(
        "device_add",
        "model[,prop=value][,..]",
        "plugs a device in",
        |vm, cx, text| {
            let options =
                cli::device(text).map_err(|problem| QmpError::generic(problem.to_string()))?;
            vm.device_add(cx, options).map(quiet)
        },
    ),
    command("device_del", "id", "unplugs a device", |vm, cx, id| {
        let id = id.to_owned();
        vm.device_del(cx, DeviceDel { id }).map(quiet)
    }),
    command("help|?", "[command]", "shows the commands", |_, _, of| {
        Ok(help(of))
    }),
    command(
        "info",
        "[subject]",
        "tells of the machine; 'help info' lists the subjects",
        info::run,
    ),
    command("nmi", "[cpu]", "sends each vCPU an NMI", |vm, cx, _| {
        vm.inject_nmi(cx).map(quiet)
    }),
    command("object_del", "id", "removes an object", |vm, cx, id| {
        let id = id.to_owned();
        vm.object_del(cx, ObjectDel { id }).map(quiet)
    }),
    command(
        "qemu-io",
        "[-d] node \"command\"",
        "does a request of a tester; 'qemu-io NODE help' lists them on standard output",
        qemu_io::run,
    ),
    command(
        "qom-get",
        "path property",
        "shows one property of an object",
        |vm, cx, text| {
            let (path, property) = text.split_once(' ').unwrap_or((text, ""));
            let args = QomGet {
                path: path.to_owned(),
                property: property.trim().to_owned(),
            };
            vm.qom_get(cx, args).map(|value| value.to_string())
        },
    ),
    command(
        "qom-list",
        "[path]",
        "lists the properties of an object",
        |vm, cx, path| {
            let path = if path.is_empty() { "/" } else { path };
            let args = QomList {
                path: path.to_owned(),
            };
            let properties = vm.qom_list(cx, args)?.into_iter();
            let lines = properties.map(|one| format!("{} ({})", one.name, one.r#type));
            Ok(lines.collect::<Vec<_>>().join("\n"))
        },
    ),
    command("quit|q", "", "ends the program", |vm, _, _| {
        vm.shut_down(ShutdownCause::HostQmpQuit);
        Ok(String::new())
    }),
    command("stop|s", "", "stops the machine", |vm, _, _| {
        vm.stop();
        Ok(String::new())
    }),
    command(
        "system_powerdown",
        "",
        "asks the guest to power off",
        |vm, cx, _| vm.system_powerdown(cx).map(quiet),
    ),
    command("system_reset", "", "resets the machine", |vm, cx, _| {
        vm.system_reset(cx).map(quiet)
    }),
];

fn block_resize(vm: &mut Vm, cx: &mut dyn Context, text: &str) -> Result<String, QmpError> {
    let (name, size) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let size = megabytes(size.trim())?;
    let args = BlockResize {
        device: Some(name.to_owned()),
        node_name: Some(name.to_owned()),
        size,
    };
    vm.block_resize(cx, args).map(quiet)
}

/// A size as people write it: without a unit in MiB, as in QEMU.
fn megabytes(text: &str) -> Result<i64, QmpError> {
    let wrong = || {
        QmpError::generic(format!(
            "invalid size '{text}': a number, or one with a unit"
        ))
    };
    let (count, unit) = match text.strip_suffix(|last: char| last.is_ascii_alphabetic()) {
        Some(count) => (count, text.chars().next_back().unwrap_or('M')),
        None => (text, 'M'),
    };
    let shift = "bkmgtpe"
        .find(unit.to_ascii_lowercase())
        .ok_or_else(wrong)?
        * 10;
    let count: i64 = count.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

fn commit(vm: &mut Vm, cx: &mut dyn Context, name: &str) -> Result<String, QmpError> {
    let door = vm.door_of(cx);
    let names: Vec<String> = if name == "all" {
        vm.backed_drives()
    } else {
        vec![name.to_owned()]
    };
    for name in names {
        vm.commit_now(&door, &name).map_err(|error| {
            QmpError::generic(format!("'commit' error for '{name}': {}", error.desc))
        })?;
    }
    Ok(String::new())
}

/// The text of a command that says nothing.
fn quiet((): ()) -> String {
    String::new()
}

impl Command {
    fn is(&self, name: &str) -> bool {
        self.names.split('|').any(|own| own == name)
    }

    /// Runs it for a client who may.
    fn obey(&self, vm: &mut Vm, cx: &mut dyn Context, text: &str) -> Result<String, QmpError> {
        rights::permit(cx, self.names, text)?;
        (self.run)(vm, cx, text)
    }

    fn usage(&self) -> String {
        let Self {
            names,
            arguments,
            about,
            ..
        } = self;
        format!("{names} {arguments} -- {about}")
    }
}

/// Runs one line; what a person sees ends each line with CR LF.
pub fn run(vm: &mut Vm, cx: &mut dyn Context, line: &str) -> String {
    let line = line.trim();
    let (name, arguments) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let text = match COMMANDS.iter().find(|command| command.is(name)) {
        _ if name.is_empty() => String::new(),
        Some(command) => match command.obey(vm, cx, arguments.trim()) {
            Ok(text) => text,
            Err(error) => format!("Error: {error}"),
        },
        None => format!("unknown command: '{name}'"),
    };
    text.lines().map(|line| format!("{line}\r\n")).collect()
}

fn help(of: &str) -> String {
    if of == "info" {
        return info::help();
    }
    let shown = COMMANDS
        .iter()
        .filter(|command| of.is_empty() || command.is(of));
    let lines: Vec<_> = shown.map(Command::usage).collect();
    if lines.is_empty() {
        return format!("unknown command: '{of}'");
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_sorted_and_each_name_is_one_commands() {
        let names: Vec<_> = COMMANDS.iter().map(|command| command.names).collect();
        assert!(names.is_sorted(), "{names:?}");
        for name in names.iter().flat_map(|names| names.split('|')) {
            let called = COMMANDS.iter().filter(|command| command.is(name));
            assert_eq!(called.count(), 1, "{name}");
        }
    }

    #[test]
    fn help_shows_all_one_or_none() {
        assert_eq!(help("").lines().count(), COMMANDS.len());
        assert_eq!(help("c"), "cont|c  -- lets the machine run");
        assert_eq!(help("sing"), "unknown command: 'sing'");
        assert!(
            help("info")
                .lines()
                .any(|line| line.starts_with("info status"))
        );
    }
}
