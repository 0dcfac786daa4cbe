//! The emulator: swtpm's control protocol and a TPM behind it that answers each command by its
//! bytes; or, by a script, anything else.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Commands of the control channel that have an argument: begin, and a buffer's length.
const INIT: u32 = 2;
const SET_BUFFER_SIZE: u32 = 17;
const GET_CAPABILITY: u32 = 1;
const GET_ESTABLISHED: u32 = 4;
/// It can do everything.
const CAPABILITIES: u32 = 0x3fff;
/// How many answers of each channel a script says.
const TURNS: usize = 12;
/// The longest flood, in KiB.
const FLOOD: usize = 64;

/// What it does with one question.
enum Turn {
    /// As it should be.
    Honest,
    /// These bytes in place of the first of the answer.
    Other(Vec<u8>),
    /// These bytes, and then it goes.
    Last(Vec<u8>),
    /// So many KiB, of the TPM; the control channel tells a refusal.
    Flood(usize),
}

/// What it does, question by question; honest when there is no more.
pub(super) struct Script {
    control: VecDeque<Turn>,
    data: VecDeque<Turn>,
}

impl Script {
    pub(super) fn honest() -> Self {
        Self {
            control: VecDeque::new(),
            data: VecDeque::new(),
        }
    }

    pub(super) fn arbitrary(input: &mut Unstructured<'_>) -> Result<Self> {
        Ok(Self {
            control: turns(input)?,
            data: turns(input)?,
        })
    }
}

fn turns(input: &mut Unstructured<'_>) -> Result<VecDeque<Turn>> {
    let count = input.int_in_range(0..=TURNS)?;
    let turns = (0..count).map(|_| {
        Ok(match input.int_in_range(0..=9)? {
            0..=4 => Turn::Honest,
            5 | 6 => Turn::Other(bytes(input)?),
            7 => Turn::Last(bytes(input)?),
            _ => Turn::Flood(input.int_in_range(0..=FLOOD)?),
        })
    });
    turns.collect()
}

fn bytes(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let length = input.int_in_range(0..=16)?.min(input.len());
    Ok(input.bytes(length)?.to_vec())
}

/// What an honest TPM answers: a header, the command's sum and its length.
pub(super) fn answer_to(command: &[u8]) -> Vec<u8> {
    let sum = command
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let mut answer = vec![0x80, 0x01, 0, 0, 0, 12, 0, 0, 0, 0, sum];
    answer.extend(u8::try_from(command.len() & 0xff));
    answer
}

pub(super) struct Emulator {
    control: UnixStream,
    data: UnixStream,
    script: Script,
    /// Whether it knows what it is asked: the first question is the other side's before it is on.
    met: bool,
}

impl Emulator {
    /// Takes its data socket and serves until either side goes.
    pub(super) fn serve(control: UnixStream, script: Script) {
        let mut number = [0; 4];
        let Ok(received) = fdset::scm::recv_with_fds(&control, &mut number) else {
            return;
        };
        let Some(data) = received.fds.into_iter().next() else {
            return;
        };
        let data = UnixStream::from(data);
        data.set_nonblocking(true).expect("a socket");
        let mut emulator = Self {
            control,
            data,
            script,
            met: false,
        };
        // Each end is one that a program may come to.
        let _ = emulator.talk();
        // Somebody else has the socket, too; one that is gone already is no less shut.
        let _ = emulator.control.shutdown(Shutdown::Both);
    }

    fn talk(&mut self) -> io::Result<()> {
        self.reply(&[])?;
        loop {
            let ready = {
                let fds = [&self.control, &self.data]
                    .map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN));
                let mut fds = fds;
                poll(&mut fds, PollTimeout::NONE)?;
                fds.map(|it| it.any().unwrap_or(true))
            };
            // What was written before a question of the control channel was is done before it.
            if ready[1] {
                self.take_commands()?;
            }
            if ready[0] {
                self.take_question()?;
            }
        }
    }

    fn take_question(&mut self) -> io::Result<()> {
        let mut number = [0; 4];
        self.control.read_exact(&mut number)?;
        let number = u32::from_be_bytes(number);
        if matches!(number, INIT | SET_BUFFER_SIZE) {
            self.control.read_exact(&mut [0; 4])?;
        }
        self.take_commands()?;
        match number {
            GET_CAPABILITY => self.reply(&CAPABILITIES.to_be_bytes()),
            SET_BUFFER_SIZE => self.reply(&[0; 12]),
            GET_ESTABLISHED => self.reply(&[1, 0, 0, 0]),
            _ => self.reply(&[]),
        }
    }

    /// A result of 0 and what belongs to it, or what the script has in its place.
    fn reply(&mut self, rest: &[u8]) -> io::Result<()> {
        let mut answer = vec![0; 4];
        answer.extend_from_slice(rest);
        match self.script.control.pop_front().unwrap_or(Turn::Honest) {
            Turn::Honest => {}
            Turn::Other(bytes) => answer
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = from),
            Turn::Last(bytes) => {
                self.control.write_all(&bytes)?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Turn::Flood(_) => answer = vec![0xff; 4],
        }
        self.control.write_all(&answer)
    }

    /// What comes with one read is one command, whatever length it says: so swtpm has it.
    fn take_commands(&mut self) -> io::Result<()> {
        let mut command = [0; 4096];
        loop {
            match self.data.read(&mut command) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.answer(&command[..count])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&mut self, command: &[u8]) -> io::Result<()> {
        let is_first = !std::mem::replace(&mut self.met, true);
        match self.script.data.pop_front().unwrap_or(Turn::Honest) {
            Turn::Honest => self.tell(&answer_to(command)),
            // Half an answer to the first question would be waited for.
            Turn::Other(bytes) if !is_first => self.tell(&bytes),
            Turn::Flood(size) if !is_first => self.tell(&vec![0x5a; size << 10]),
            Turn::Last(bytes) | Turn::Other(bytes) => {
                self.tell(&bytes)?;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Turn::Flood(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// As much as there is room for, in two pieces: a stream has no messages.
    fn tell(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        for piece in [first, second] {
            match self.data.write_all(piece) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
