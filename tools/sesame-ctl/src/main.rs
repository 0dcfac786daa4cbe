//! `sesame-ctl`: a VM from a terminal or a script.
//!
//! It is a client of QMP and the manager's side of the product: it opens what the VM is handed. It
//! knows the wire by `sesame-qmp`, what may be said by the live VM's schema, and nothing of how the
//! VM does it.
//!
//! ```text
//!   argv ─► options ─┬─ COMMAND ────────┐
//!                    ├─ lines of stdin ─┤                      ┌─ schema    what may be said
//!                    ├─ prompt ─────────┼─► console ─► session ┼─ arguments words to JSON and files
//!                    ├─ replay FILE ────┘      │               └─ sesame-qmp ─► socket
//!                    ├─ events, tail, top      └─► script (record)
//!                    └─ help
//! ```
//!
//! Read next: [`arguments`] (from words to a request), [`session`] (how files go over), [`prompt`].

mod arguments;
mod bar;
mod clock;
mod console;
mod events;
mod failure;
mod help;
mod jobs;
mod local;
mod options;
mod output;
mod prompt;
mod schema;
mod script;
mod session;
mod top;

use std::io::{self, BufRead, ErrorKind, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use console::Console;
use failure::Failure;
use local::Local;
use options::Options;
use output::Output;
use schema::Schema;
use script::replay::Rules;
use session::Session;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        // `head` has enough, and that is no failure.
        Err(Failure::Output(why)) if why.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("sesame-ctl: {}", failure.line());
            ExitCode::from(failure.status())
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let words = &options.line.words;
    let local = words.first().and_then(|first| Local::of(first));
    if local == Some(Local::Help) && options.socket.is_none() {
        return help(&Schema::compiled_in(), words.get(1..).unwrap_or_default());
    }
    let address = options.address()?;
    let mut session = address.connect()?;
    let output = Output {
        pretty: options.pretty,
    };
    let mut console = Console::new(output, options.timeout);
    if let Some(path) = &options.record {
        console.record(&session, path)?;
    }
    let rest = words.get(1..).unwrap_or_default();
    match (local, rest) {
        (Some(Local::Help), words) => help(&*session.schema()?, words),
        (Some(Local::Events), names) => {
            let wanted = events::Wanted::new(&mut session, names)?;
            events::write(
                &mut session,
                &wanted,
                options.follow,
                options.timeout,
                output,
            )
        }
        (Some(Local::Tail), names) => {
            let wanted = events::Wanted::new(&mut session, names)?;
            events::tail(&mut session, &wanted, options.timeout)
        }
        (Some(Local::Top), []) => top::watch(&mut session, options.count, options.interval),
        (Some(Local::Record), [path]) => {
            console.record(&session, Path::new(path))?;
            converse(&address, session, console)
        }
        (Some(Local::Replay), [path]) => {
            let rules = Rules {
                check: options.check,
                keep_going: options.keep_going,
            };
            console.replay(&mut session, Path::new(path), rules)
        }
        (Some(local), _) => Err(Failure::Usage(format!("usage: {}", local.usage()))),
        (None, _) if words.is_empty() && options.line.wait.is_none() => {
            converse(&address, session, console)
        }
        (None, _) => console.command(&mut session, &options.line),
    }
}

fn help(schema: &Schema, words: &[String]) -> Result<(), Failure> {
    match words.split_first() {
        None => output::line(&help::commands(schema)),
        Some((command, words)) => output::line(&help::command(schema, command, words)?),
    }
}

/// Holds a session with whoever is at standard input.
fn converse(
    address: &session::Address,
    mut session: Session,
    mut console: Console,
) -> Result<(), Failure> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return prompt::serve(address, session, console);
    }
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|why| Failure::File {
            what: "standard input cannot be read".to_owned(),
            why,
        })?;
        if !console::is_comment(&line) {
            console.line(&mut session, line.trim())?;
        }
    }
    Ok(())
}
