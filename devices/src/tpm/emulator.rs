//! swtpm's control protocol (its manual page `swtpm_ioctls`, over a socket): a number and what
//! belongs to it, answered by a result and what belongs to that; all big-endian.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd;

use crate::chardev::{Chardev, ChardevError, ChardevLease, Frontend};

/// Numbers of commands.
const GET_CAPABILITY: u32 = 1;
const INIT: u32 = 2;
const SHUTDOWN: u32 = 3;
const GET_ESTABLISHED: u32 = 4;
const CANCEL: u32 = 9;
const STOP: u32 = 14;
const SET_DATA_FD: u32 = 16;
const SET_BUFFER_SIZE: u32 = 17;

/// What an emulator must be able to do: begin, end, tell whether it is established, stop, take a
/// data socket and a length for its buffer.
const NEEDED: u32 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 10 | 1 << 12 | 1 << 13;
/// It can cancel a command.
const CAN_CANCEL: u32 = 1 << 5;

/// How long an answer may take, to its last byte: the emulator makes keys when it begins for the first
/// time.
const PATIENCE: Duration = Duration::from_secs(30);
/// A question that every TPM 2.0 answers as such and every TPM 1.2 as one of those: what its clock
/// says.
const READ_CLOCK: [u8; 10] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81];
/// The tag of a TPM 2.0's answers.
const TAG_TPM2: [u8; 2] = [0x80, 0x01];
/// A command's and an answer's tag, length and code.
pub(super) const HEADER: usize = 10;

/// Why a TPM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The chardev is in use.
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// Nobody is there.
    #[error(
        "tpm-emulator: chardev '{0}' has no socket with an emulator behind it: wanted a \
         connected socket of swtpm's control channel"
    )]
    Alone(String),
    /// The control channel failed.
    #[error("tpm-emulator: {what} failed")]
    Control {
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The emulator refused.
    #[error("tpm-emulator: TPM result for {what}: {result:#x}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its result.
        result: u32,
    },
    /// It cannot do what is needed.
    #[error("tpm-emulator: it cannot do what is needed: {NEEDED:#x} is wanted, it has {has:#x}")]
    Incapable {
        /// Its capabilities.
        has: u32,
    },
    /// It is a TPM of another version.
    #[error("tpm-crb: wanted a TPM 2.0: start swtpm with --tpm2")]
    Version,
}

/// The program that is a TPM, as it is controlled.
pub struct TpmEmulator {
    /// One question at a time, with its answer; it waits, and calls nobody.
    control: Mutex<OwnedFd>,
    data: Arc<UnixStream>,
    can_cancel: bool,
    _seat: Option<(ChardevLease, Arc<dyn Frontend>)>,
}

/// Takes the chardev's place and none of its bytes: the socket is read here.
struct Silent;

impl Frontend for Silent {
    fn room(&self) -> usize {
        0
    }

    fn receive(&self, _bytes: &[u8]) -> usize {
        0
    }
}

impl TpmEmulator {
    /// Makes the acquaintance of the emulator behind `chardev`, and gives it its data socket.
    ///
    /// # Errors
    /// The chardev is in use or not connected, or who is there is no such emulator.
    pub fn behind(chardev: &Arc<Chardev>) -> Result<Arc<Self>, TpmError> {
        let silent: Arc<dyn Frontend> = Arc::new(Silent);
        let lease = chardev.attach(&silent)?;
        let socket = lease.socket().map_err(failed("its control socket"))?;
        let control = socket.ok_or_else(|| TpmError::Alone(chardev.id().to_owned()))?;
        Self::over(control, Some((lease, silent)))
    }

    /// The same over a socket.
    pub(super) fn over(
        control: OwnedFd,
        seat: Option<(ChardevLease, Arc<dyn Frontend>)>,
    ) -> Result<Arc<Self>, TpmError> {
        let (ours, theirs) = fdset::scm::pair().map_err(failed("the data socket"))?;
        let what = "CMD_SET_DATAFD";
        let request = SET_DATA_FD.to_be_bytes();
        let sent = fdset::scm::send_with_fds(&control, &request, &[theirs.as_fd()]);
        if sent.map_err(failed(what))? != request.len() {
            return Err(failed(what)(io::ErrorKind::WriteZero.into()));
        }
        drop(theirs);
        let [] = answer(&control, what)?;
        let data = UnixStream::from(ours);
        let [a, b, c, d] = ask(&control, "CMD_GET_CAPABILITY", GET_CAPABILITY, &[])?;
        let has = u32::from_be_bytes([a, b, c, d]);
        if has & NEEDED != NEEDED {
            return Err(TpmError::Incapable { has });
        }
        let emulator = Self {
            control: Mutex::new(control),
            data: Arc::new(data),
            can_cancel: has & CAN_CANCEL != 0,
            _seat: seat,
        };
        emulator.check_version()?;
        let nonblocking = emulator.data.set_nonblocking(true);
        nonblocking.map_err(failed("the data socket"))?;
        Ok(Arc::new(emulator))
    }

    /// The same with another data socket: a test plays who is at the other end.
    #[cfg(test)]
    pub(super) fn talking(self: Arc<Self>, data: UnixStream) -> Arc<Self> {
        let mut emulator = self;
        if let Some(emulator) = Arc::get_mut(&mut emulator) {
            emulator.data = Arc::new(data);
        }
        emulator
    }

    /// The socket for commands and responses.
    pub(super) fn data(&self) -> &Arc<UnixStream> {
        &self.data
    }

    /// Switches it off and on, with a buffer of at most `size` bytes; tells how long it is, and
    /// whether the *established* flag is set.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(super) fn restart(&self, size: u32) -> Result<(u32, bool), TpmError> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let [] = ask(&control, "CMD_STOP", STOP, &[])?;
        let sizes: [u8; 12] = ask(
            &control,
            "CMD_SET_BUFFERSIZE",
            SET_BUFFER_SIZE,
            &size.to_be_bytes(),
        )?;
        let [a, b, c, d, ..] = sizes;
        let [] = ask(&control, "CMD_INIT", INIT, &[0; 4])?;
        let [established, ..]: [u8; 4] =
            ask(&control, "CMD_GET_TPMESTABLISHED", GET_ESTABLISHED, &[])?;
        Ok((u32::from_be_bytes([a, b, c, d]), established != 0))
    }

    /// Has it end the command that it works on; its response still comes.
    pub(super) fn cancel(&self) {
        if !self.can_cancel {
            return;
        }
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let done: Result<[u8; 0], _> = ask(&control, "CMD_CANCEL_TPM_CMD", CANCEL, &[]);
        if let Err(error) = done {
            tracing::debug!(%error, "the TPM's command is not cancelled");
        }
    }

    /// It is not on yet: it answers with an error, whose tag tells its version.
    fn check_version(&self) -> Result<(), TpmError> {
        let what = "asking for its version";
        write_all(self.data.as_fd(), &READ_CLOCK).map_err(failed(what))?;
        let mut header = [0; HEADER];
        read_exact(self.data.as_fd(), &mut header).map_err(failed(what))?;
        let [tag @ .., _, _, _, _, _, _, _, _] = header;
        let [_, _, a, b, c, d, ..] = header;
        let rest = u32::from_be_bytes([a, b, c, d])
            .saturating_sub(10)
            .min(4096);
        let mut rest = vec![0; usize::try_from(rest).unwrap_or(0)];
        read_exact(self.data.as_fd(), &mut rest).map_err(failed(what))?;
        if tag == TAG_TPM2 {
            Ok(())
        } else {
            Err(TpmError::Version)
        }
    }
}

impl Drop for TpmEmulator {
    fn drop(&mut self) {
        let control = self
            .control
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // It writes its state down; that nobody is there any more is no loss.
        let _: Result<[u8; 0], _> = ask(control, "CMD_SHUTDOWN", SHUTDOWN, &[]);
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> TpmError {
    move |source| TpmError::Control { what, source }
}

/// Sends a command and takes what comes behind its result.
fn ask<const N: usize>(
    control: &OwnedFd,
    what: &'static str,
    command: u32,
    argument: &[u8],
) -> Result<[u8; N], TpmError> {
    let mut request = command.to_be_bytes().to_vec();
    request.extend_from_slice(argument);
    write_all(control.as_fd(), &request).map_err(failed(what))?;
    answer(control, what)
}

fn answer<const N: usize>(control: &OwnedFd, what: &'static str) -> Result<[u8; N], TpmError> {
    let mut result = [0; 4];
    read_exact(control.as_fd(), &mut result).map_err(failed(what))?;
    let result = u32::from_be_bytes(result);
    if result != 0 {
        return Err(TpmError::Refused { what, result });
    }
    let mut rest = [0; N];
    read_exact(control.as_fd(), &mut rest).map_err(failed(what))?;
    Ok(rest)
}

/// The sockets may be non-blocking: who waits has a limit.
fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match unistd::write(&fd, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(fd.as_fd(), PollFlags::POLLOUT, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn read_exact(fd: impl AsFd, mut room: &mut [u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !room.is_empty() {
        wait(fd.as_fd(), PollFlags::POLLIN, deadline)?;
        match unistd::read(&fd, room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => room = room.get_mut(count..).unwrap_or_default(),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(fd: impl AsFd + AsRawFd, for_what: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
    let mut one = [PollFd::new(fd.as_fd(), for_what)];
    match poll(&mut one, PollTimeout::from(left)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
