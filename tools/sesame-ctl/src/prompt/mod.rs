//! The prompt: an operator at a terminal.
//!
//! ```text
//!   editor (main thread)                    watcher (its own thread)
//!   line ─► Console ─► reply                socket readable ─► event ─► printed above the line
//!     ▲         │                                     │
//!     │         └──────────► Desk { session, record } ◄┘ one at a time
//!   assistant: completion and hints, of schema and live VM
//! ```
//!
//! One session serves both threads, so that a monitor that takes one client only is enough. The
//! watcher waits without the desk and takes it for a moment when something has come. When the VM
//! goes, it says so, and comes back with it.
//!
//! Read next: [`complete`] (pure), then [`watcher`].

mod assistant;
pub(crate) mod complete;
mod hint;
mod live;
mod watcher;

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};

use crate::arguments::files::make_folder;
use crate::console::Console;
use crate::failure::Failure;
use crate::local::Local;
use crate::output::line as say;
use crate::schema::Schema;
use crate::session::{Address, Session};
use assistant::Assistant;

/// What both threads work at.
#[derive(Debug)]
struct Desk {
    /// None while the VM is gone.
    session: Option<Session>,
    console: Console,
    /// That of the last session.
    schema: Arc<Schema>,
}

/// The desk, one at a time.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Desk>>);

impl Shared {
    fn take(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves an operator until there is no more to say.
pub(crate) fn serve(
    address: &Address,
    mut session: Session,
    console: Console,
) -> Result<(), Failure> {
    say(&format!(
        "{} at {}. Tab completes, `help` tells more, `exit` or Ctrl-D leaves.",
        session.version(),
        address.socket.display()
    ))?;
    let schema = session.schema()?;
    let desk = Shared(Arc::new(Mutex::new(Desk {
        session: Some(session),
        console,
        schema,
    })));
    let mut editor = editor(&desk).map_err(terminal)?;
    let printer = editor.create_external_printer().map_err(terminal)?;
    watcher::start(address.clone(), desk.clone(), printer);
    let history = history();
    if let Some(history) = &history {
        let _ = editor.load_history(history);
    }
    loop {
        match editor.readline("sesame> ") {
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                if !answer(&desk, &mut editor, &line)? {
                    break;
                }
            }
            // The line is given up, the prompt is not.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(terminal(error)),
        }
    }
    if let Some(history) = history {
        let _ = editor.append_history(&history);
    }
    Ok(())
}

/// Does what a line says; false at the end of the prompt.
fn answer(
    desk: &Shared,
    editor: &mut Editor<Assistant, FileHistory>,
    line: &str,
) -> Result<bool, Failure> {
    let line = line.trim();
    let first = line.split_whitespace().next().unwrap_or_default();
    if Local::of(first) == Some(Local::Exit) {
        return Ok(false);
    }
    if first == "quit" && !sure(editor) {
        return Ok(true);
    }
    let mut desk = desk.take();
    let Desk {
        session, console, ..
    } = &mut *desk;
    let result = match session {
        _ if line.is_empty() || line.starts_with('#') => Ok(()),
        Some(session) => console.line(session, line),
        None => Err(Failure::Usage(
            "the VM is gone; nothing was sent".to_owned(),
        )),
    };
    match result {
        Ok(()) => {}
        Err(failure @ Failure::Output(_)) => return Err(failure),
        Err(failure) => {
            // The watcher says that the VM is gone, and looks for it.
            if failure.ends_session() {
                *session = None;
            }
            say(&format!("{} [{}]", failure.line(), failure.status()))?;
        }
    }
    Ok(true)
}

/// Elsewhere `quit` leaves a prompt. Here it ends the VM.
fn sure(editor: &mut Editor<Assistant, FileHistory>) -> bool {
    let answer = editor.readline("quit ends the VM (exit leaves the prompt). End it? [y/N] ");
    answer.is_ok_and(|answer| matches!(answer.trim(), "y" | "yes"))
}

fn editor(desk: &Shared) -> rustyline::Result<Editor<Assistant, FileHistory>> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .completion_show_all_if_ambiguous(true)
        .history_ignore_space(true)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Assistant::new(desk.clone())));
    Ok(editor)
}

/// Where lines are kept for the next time.
fn history() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(home)?;
    let folder = state.join("sesame-ctl");
    make_folder(&folder)?;
    Some(folder.join("history"))
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::File {
        what: "the terminal failed".to_owned(),
        why: std::io::Error::other(error),
    }
}
