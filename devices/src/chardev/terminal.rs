//! Standard input and output as a chardev: raw while it lives, as before when it is gone.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use fdset::{Door, OpenFile, Role};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, Termios, tcgetattr, tcsetattr,
};

use super::{ChardevError, endpoint};

/// There is one pair of standard streams.
static CLAIMED: AtomicBool = AtomicBool::new(false);

/// The modes to give back to the standard streams. Giving them back is its drop.
#[derive(Debug)]
pub struct Terminal {
    /// `None` when standard input is no terminal.
    mode: Option<Mutex<Termios>>,
    input: OpenFile,
    input_flags: OFlag,
    output: OpenFile,
    output_flags: OFlag,
}

impl Terminal {
    /// Takes the standard streams for the chardev `id` and makes a terminal raw; with `signal`
    /// Ctrl-C and its like still send signals. Gives input, output and the way back.
    pub(super) fn claim(
        id: &str,
        signal: bool,
        door: &Door,
    ) -> Result<(OpenFile, OpenFile, Self), ChardevError> {
        if CLAIMED.swap(true, Ordering::SeqCst) {
            return Err(ChardevError::Conflict {
                id: id.to_owned(),
                problem: "standard input and output are used by another chardev already",
            });
        }
        Self::take(id, signal, door).map_err(|source| {
            CLAIMED.store(false, Ordering::SeqCst);
            ChardevError::host(id, "taking standard input and output", source)
        })
    }

    fn take(id: &str, signal: bool, door: &Door) -> io::Result<(OpenFile, OpenFile, Self)> {
        let reason = format!("chardev '{id}'");
        let (input, output) = fdset::standard_streams(door, Role::Chardev, &reason)?;
        let flags = |file: &OpenFile| -> io::Result<OFlag> {
            Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?))
        };
        let terminal = Self {
            mode: tcgetattr(&input).ok().map(Mutex::new),
            input_flags: flags(&input)?,
            output_flags: flags(&output)?,
            input: input.try_clone()?,
            output: output.try_clone()?,
        };
        endpoint::unblock(&input)?;
        endpoint::unblock(&output)?;
        if let Ok(mut mode) = tcgetattr(&input) {
            make_raw(&mut mode, signal);
            tcsetattr(&input, SetArg::TCSANOW, &mode)?;
        }
        Ok((input, output, terminal))
    }
}

/// Every key reaches the guest as it is; our own messages keep their line ends.
fn make_raw(mode: &mut Termios, signal: bool) {
    mode.input_flags.remove(
        InputFlags::IGNBRK
            | InputFlags::BRKINT
            | InputFlags::PARMRK
            | InputFlags::ISTRIP
            | InputFlags::INLCR
            | InputFlags::IGNCR
            | InputFlags::ICRNL
            | InputFlags::IXON,
    );
    mode.output_flags.insert(OutputFlags::OPOST);
    mode.local_flags
        .remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::IEXTEN);
    mode.local_flags.set(LocalFlags::ISIG, signal);
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mode = self.mode.take();
        if let Some(mode) =
            mode.map(|mode| mode.into_inner().unwrap_or_else(PoisonError::into_inner))
            && let Err(error) = tcsetattr(&self.input, SetArg::TCSANOW, &mode)
        {
            tracing::warn!(%error, "the terminal stays in raw mode; `reset` helps");
        }
        for (file, flags) in [
            (&self.output, self.output_flags),
            (&self.input, self.input_flags),
        ] {
            if let Err(error) = fcntl(file, FcntlArg::F_SETFL(flags)) {
                tracing::warn!(%error, "a standard stream stays non-blocking");
            }
        }
        CLAIMED.store(false, Ordering::SeqCst);
    }
}
