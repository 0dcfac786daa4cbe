//! A program in a real terminal: tmux, which shows what a person would see.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Nothing takes longer to appear, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal of 120 columns and 40 rows; it goes with the value.
#[derive(Debug)]
pub struct Terminal {
    folder: TempDir,
}

impl Terminal {
    /// Runs a line of a shell in a new terminal. Its end is seen as "ended with N".
    ///
    /// # Errors
    /// There is no tmux, or it does not start.
    pub fn start(line: &str) -> Result<Self> {
        let terminal = Self {
            folder: tempfile::tempdir()?,
        };
        let state = terminal.folder.path().display();
        // The shell stays, so that what was last seen stays.
        let line = format!("export XDG_STATE_HOME={state}; {line}; echo ended with $?; exec cat");
        terminal.tmux(&[
            "new-session",
            "-d",
            "-x",
            "120",
            "-y",
            "40",
            "sh",
            "-c",
            &line,
        ])?;
        Ok(terminal)
    }

    /// Types a text.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn types(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", "--", text]).map(drop)
    }

    /// Presses a key, by tmux's name for it, such as `Enter` or `C-d`.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// What is to be seen, without empty lines at the end.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn screen(&self) -> Result<String> {
        let screen = self.tmux(&["capture-pane", "-p"])?;
        Ok(screen.trim_end().to_owned())
    }

    /// Waits until `text` is to be seen.
    ///
    /// # Errors
    /// It does not come; with what is to be seen instead.
    pub fn shows(&self, text: &str) -> Result<()> {
        self.shows_what(text, |screen| screen.contains(text))
    }

    /// Waits until one line is `text`, from end to end.
    ///
    /// # Errors
    /// It does not come; with what is to be seen instead.
    pub fn shows_line(&self, text: &str) -> Result<()> {
        self.shows_what(text, |screen| {
            screen.lines().any(|line| line.trim_end() == text)
        })
    }

    /// Waits until the last line is `prompt`: the program waits for the next line.
    ///
    /// # Errors
    /// It does not come; with what is to be seen instead.
    pub fn rests_at(&self, prompt: &str) -> Result<()> {
        self.shows_what(prompt, |screen| screen.lines().last() == Some(prompt))
    }

    fn shows_what(&self, what: &str, is_there: impl Fn(&str) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let screen = self.screen()?;
            if is_there(&screen) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the terminal does not show {what:?}, but\n{screen}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn tmux(&self, words: &[&str]) -> Result<String> {
        let socket: PathBuf = self.folder.path().join("tmux");
        let output = Command::new("tmux")
            .args(["-u", "-f", "/dev/null", "-S"])
            .arg(socket)
            .args(words)
            // A test may itself run in tmux.
            .env_remove("TMUX")
            .output()
            .context("run tmux")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {words:?}: {complaint}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its server may be gone already.
        let _ = self.tmux(&["kill-server"]);
    }
}
