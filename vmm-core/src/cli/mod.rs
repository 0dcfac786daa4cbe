//! The command line: QEMU's options, read into the same types as QMP's arguments.
//!
//! This room reads text and opens nothing: a path in a [`Config`] is only a name until `fdset`
//! opens it. It must never know a VM, a device or a thread; it decides what was asked for, never
//! whether it can be had.
//!
//! ```text
//!   argv ─► set: keys that come late ─► parse: find each option in the table (options)
//!             │ its argument ─► read: key=value or JSON ─► a type of the schema
//!             │                   └ a wrong key or value: CliError, one line, with the nearest
//!             ▼
//!           Draft: what each option left behind; pieces of -machine, -m, -smp.. merged
//!             │ resolve: options against each other, every default applied
//!             ▼
//!           Config ──► main: fds, chardevs, monitors, objects, nodes, machine, devices
//!
//!   -h, -machine help, -device MODEL,help ─► Outcome::Print, from the schema's own words
//! ```
//!
//! An option has one dash or two. Order counts where it does in QEMU: a later piece of `-machine`
//! wins over an earlier one, devices are plugged in as they come, globals hold for all of them.
//! Nothing is ignored silently: a key is in the schema or an error, and a value that cannot be
//! honoured (`usb=on`) is an error too.
//!
//! Without `-nodefaults` there is one serial port, on stdio with `-nographic` and on nothing
//! otherwise; no network card, disk drive, screen or monitor is ever made unasked.
//!
//! Read next: [`config`] for what comes out, `options` for the table, `read` for the way of one
//! argument.

pub mod config;

mod chardev;
mod clock;
mod console;
mod cpu;
mod device;
mod draft;
mod drive;
mod error;
mod help;
mod machine;
mod nic;
mod numa;
mod options;
mod process;
mod processor;
mod read;
mod readconfig;
mod resolve;
mod set;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use qapi_schema::describe::{MemberSpec, nearest};

pub use config::Config;
pub use device::{apply_globals, device};
pub use error::{CliError, Problem};

use draft::{Draft, Given, Step};
use options::{OptionSpec, find_option, option_names};

/// What a command line comes to.
#[derive(Debug)]
pub enum Outcome {
    /// A machine to be run.
    Run(Box<Config>),
    /// A text to be shown on stdout, and no more: the process ends with status 0.
    Print(String),
}

/// Reads a command line, without the program's own name. `read_file` gives the text of a file that
/// `-readconfig` names, or why there is none.
///
/// # Errors
/// An option, a key or a value is not known or cannot be carried out; one line that names the
/// option as typed. `main` puts `sesame: ` before it.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    read_file: impl Fn(&str) -> Result<String, String>,
) -> Result<Outcome, CliError> {
    let mut draft = Draft::default();
    let words = arguments.into_iter().enumerate().map(|(at, word)| {
        word.into_string()
            .map_err(|_| CliError::NotText(at.saturating_add(1)))
    });
    let mut words = set::apply(words.collect::<Result<_, _>>()?)?.into_iter();
    while let Some(typed) = words.next() {
        let option = option_of(&typed)?;
        let text = match option.argument {
            None => String::new(),
            Some(_) => words
                .next()
                .ok_or_else(|| CliError::NoArgument(typed.clone()))?,
        };
        let given = Given {
            typed: &typed,
            name: option.name,
            text: &text,
        };
        draft.saw(&given);
        match (option.take)(&mut draft, &given) {
            Ok(Step::Next) => {}
            Ok(Step::Print(text)) => return Ok(Outcome::Print(text)),
            Ok(Step::ReadConfig(name)) => {
                take_config(&mut draft, &name, &read_file).map_err(|problem| problem.of(&typed))?;
            }
            Err(problem) => return Err(problem.of(&typed)),
        }
    }
    resolve::resolve(draft).map(|config| Outcome::Run(Box::new(config)))
}

/// Takes the options that a file holds.
fn take_config(
    draft: &mut Draft,
    name: &str,
    read_file: impl Fn(&str) -> Result<String, String>,
) -> Result<(), Problem> {
    let text = read_file(name).map_err(Problem::new)?;
    for section in readconfig::sections(&text)? {
        let typed = format!("[{}]", group_of(section.option.name));
        let given = Given {
            typed: &typed,
            name: section.option.name,
            text: &section.argument,
        };
        draft.saw(&given);
        let in_section = |problem| Problem::new(format!("{typed}: {problem}"));
        // Help is for the command line: a key called help is just wrong here.
        match (section.option.take)(draft, &given).map_err(in_section)? {
            Step::Next => {}
            Step::Print(_) | Step::ReadConfig(_) => {
                return Err(in_section(Problem::new("'help' is no key")));
            }
        }
    }
    Ok(())
}

/// Every option by the name that clients know it by, with the keys it always takes.
pub fn described_options() -> impl Iterator<Item = (&'static str, &'static [MemberSpec])> {
    options::OPTIONS
        .iter()
        .map(|option| (group_of(option.name), option.keys.members))
}

/// What the keys of an option are called together: a name that is older than some of the options.
fn group_of(option: &'static str) -> &'static str {
    match option {
        "m" => "memory",
        "smp" => "smp-opts",
        "boot" => "boot-opts",
        other => other,
    }
}

fn option_of(typed: &str) -> Result<&'static OptionSpec, CliError> {
    let Some(name) = typed.strip_prefix('-') else {
        return Err(CliError::Stray(typed.to_owned()));
    };
    let name = name.strip_prefix('-').unwrap_or(name);
    find_option(name).ok_or_else(|| CliError::UnknownOption {
        typed: typed.to_owned(),
        near: nearest(name, option_names()).map(|near| format!("-{near}")),
    })
}
