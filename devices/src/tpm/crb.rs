//! The chip: a command response buffer (TCG PC Client Platform TPM Profile 1.05, 6.5.3).
//!
//! ```text
//!            cmdReady              START             response, on dev-io
//!   ┌──────┐ ───────► ┌───────┐ ───────► ┌──────┐ ───────────────┐
//!   │ Idle │          │ Ready │          │ Busy │                │
//!   └──────┘ ◄─────── └───────┘ ◄─────── └──────┘ ◄──────────────┘
//!              goIdle
//! ```
//!
//! START works in Idle, too. There is one locality, and one buffer for commands and responses, which the guest leaves alone
//! while the chip is busy. The guest's memory is not touched.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mio::Interest;
use serde::{Deserialize, Serialize};

use super::emulator::{HEADER, TpmEmulator, TpmError};
use crate::bus::BusDevice;
use crate::lifecycle::Lifecycle;
use crate::reactor::{Reactor, Readiness, Ready, Registration};
use crate::state::{SavedState, StateError, Stateful};

/// Where it is.
pub const BASE: u64 = 0xfed4_0000;
/// How many bytes it has.
pub const LEN: u64 = 0x1000;
/// Where the control area begins, for the ACPI table.
pub const CONTROL_AREA: u64 = BASE + REQUEST;

/// Registers (table 26 of the profile).
const LOCALITY_STATE: u64 = 0x00;
const LOCALITY_CONTROL: u64 = 0x08;
const LOCALITY_STATUS: u64 = 0x0c;
const INTERFACE: u64 = 0x30;
const VENDOR: u64 = 0x34;
const REQUEST: u64 = 0x40;
const STATUS: u64 = 0x44;
const CANCEL: u64 = 0x48;
const START: u64 = 0x4c;
const COMMAND_SIZE: u64 = 0x58;
const COMMAND_ADDRESS: u64 = 0x5c;
const RESPONSE_SIZE: u64 = 0x64;
const RESPONSE_ADDRESS: u64 = 0x68;
const BUFFER: u64 = 0x80;

/// The buffer's length: the rest of the page.
const ROOM: usize = 0xf80;
/// How much of a response is read at once, and how often before others have their turn.
const PIECE: usize = 1024;
const PIECES: usize = 16;
/// A CRB of version 1, with transfers of up to 64 bytes, and no FIFO beside it.
const CRB: u32 = 1 | 1 << 4 | 3 << 11 | 1 << 14 | 1 << 17;
const IBM: u32 = 0x1014;

/// Bits of the locality's state.
const NOT_ESTABLISHED: u32 = 1 << 0;
const ASSIGNED: u32 = 1 << 1;
const VALID: u32 = 1 << 7;
/// Bits of the locality's control.
const ACCESS: u32 = 1 << 0;
const RELINQUISH: u32 = 1 << 1;
/// Bits of the request.
const READY: u32 = 1 << 0;
const GO_IDLE: u32 = 1 << 1;
/// Bits of the status.
const FAILED: u32 = 1 << 0;
const IDLE: u32 = 1 << 1;

/// What a TPM that is gone would say: TPM_RC_FAILURE.
const FAILURE: [u8; HEADER] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x01];

/// The registers, and what a snapshot keeps of them. What the TPM itself knows is its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmCrbState {
    assigned: bool,
    ready: bool,
    busy: bool,
    failed: bool,
    established: bool,
    buffer: Vec<u8>,
}

impl SavedState for TpmCrbState {
    const KIND: &'static str = "tpm-crb";
    const VERSION: u32 = 1;
}

impl Default for TpmCrbState {
    fn default() -> Self {
        Self {
            assigned: false,
            ready: false,
            busy: false,
            failed: false,
            established: false,
            buffer: vec![0; ROOM],
        }
    }
}

/// The chip.
pub struct TpmCrb {
    state: Mutex<TpmCrbState>,
    /// What has come of a response. Held while the data socket is read, which never waits, and
    /// before `state`.
    response: Mutex<Vec<u8>>,
    emulator: Arc<TpmEmulator>,
    registration: Mutex<Option<Registration>>,
}

impl TpmCrb {
    /// A chip whose commands `emulator` carries out. It is off until the first reset.
    ///
    /// # Errors
    /// The data socket cannot be watched.
    pub fn new(emulator: Arc<TpmEmulator>, reactor: &Reactor) -> Result<Arc<Self>, TpmError> {
        let chip = Arc::new(Self {
            state: Mutex::default(),
            response: Mutex::default(),
            emulator,
            registration: Mutex::new(None),
        });
        let answers = Arc::new(Answers(Arc::downgrade(&chip)));
        let data = Arc::clone(chip.emulator.data()) as _;
        let registration = reactor.register(data, Interest::READABLE, answers);
        let registration = registration.map_err(|source| TpmError::Control {
            what: "watching the data socket",
            source,
        })?;
        *lock(&chip.registration) = Some(registration);
        Ok(chip)
    }

    fn start(&self) {
        let command = {
            let mut state = lock(&self.state);
            // There are programs that never ask for the chip to be ready: QEMU's works without.
            if state.busy || !state.assigned {
                return;
            }
            state.busy = true;
            let len = length(&state.buffer).unwrap_or(HEADER);
            state.buffer.get(..len).unwrap_or_default().to_vec()
        };
        // The socket is empty, as there is one command at a time, and takes it whole.
        let mut data: &UnixStream = self.emulator.data();
        if let Err(error) = data.write_all(&command) {
            tracing::error!(%error, "the TPM takes no command");
            self.finish(&FAILURE, true);
        }
    }

    fn finish(&self, response: &[u8], failed: bool) {
        let mut state = lock(&self.state);
        if !state.busy {
            return;
        }
        for (to, from) in state.buffer.iter_mut().zip(response) {
            *to = *from;
        }
        state.busy = false;
        state.failed |= failed;
    }

    /// Reads what there is of a response; of an emulator that does not stop talking, as much as others
    /// on this thread can wait for.
    fn receive(&self) {
        let mut response = lock(&self.response);
        let mut piece = [0; PIECE];
        for _ in 0..PIECES {
            let mut data: &UnixStream = self.emulator.data();
            match data.read(&mut piece) {
                Ok(count @ 1..) => {
                    response.extend_from_slice(piece.get(..count).unwrap_or_default());
                    let whole = length(&response).is_some_and(|len| response.len() >= len);
                    if whole || response.len() > ROOM {
                        self.finish(&std::mem::take(&mut *response), false);
                    }
                }
                Ok(_) => return self.finish(&FAILURE, true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.finish(&FAILURE, true),
            }
        }
        drop(response);
        let registration = lock(&self.registration);
        if let Some(Err(error)) = registration.as_ref().map(Registration::rearm) {
            tracing::error!(%error, "the TPM's answers are no longer heard");
        }
    }

    /// Takes a register's new value.
    fn set(&self, register: u64, value: u32) {
        let mut state = lock(&self.state);
        match register {
            LOCALITY_CONTROL if value & RELINQUISH != 0 => state.assigned = false,
            LOCALITY_CONTROL => state.assigned |= value & ACCESS != 0,
            REQUEST if state.busy || !state.assigned => {}
            REQUEST if value & READY != 0 => state.ready = true,
            REQUEST if value & GO_IDLE != 0 => {
                state.ready = false;
                state.buffer.fill(0);
            }
            CANCEL if value & 1 != 0 && state.busy => {
                drop(state);
                self.emulator.cancel();
            }
            START if value & 1 != 0 => {
                drop(state);
                self.start();
            }
            _ => {}
        }
    }
}

impl TpmCrbState {
    fn register(&self, register: u64) -> u32 {
        let flag = |set, bit: u32| if set { bit } else { 0 };
        let buffer = u32::try_from(BASE + BUFFER).unwrap_or(0);
        let room = u32::try_from(ROOM).unwrap_or(0);
        match register {
            LOCALITY_STATE => {
                VALID | flag(self.assigned, ASSIGNED) | flag(!self.established, NOT_ESTABLISHED)
            }
            LOCALITY_STATUS => u32::from(self.assigned),
            INTERFACE => CRB,
            VENDOR => IBM,
            STATUS => flag(self.failed, FAILED) | flag(!self.ready, IDLE),
            START => u32::from(self.busy),
            COMMAND_SIZE | RESPONSE_SIZE => room,
            COMMAND_ADDRESS | RESPONSE_ADDRESS => buffer,
            _ => 0,
        }
    }

    fn byte(&self, offset: u64) -> u8 {
        if let Some(at) = offset.checked_sub(BUFFER) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            return self.buffer.get(at).copied().unwrap_or(0);
        }
        let [a, b, c, d] = self.register(offset & !3).to_le_bytes();
        match offset & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }
}

/// How long a command or a response says that it is, within what there is room for.
fn length(bytes: &[u8]) -> Option<usize> {
    let len = bytes.get(2..6)?.first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
    Some(len.clamp(HEADER, ROOM))
}

#[cfg(test)]
pub(super) fn length_of(state: &TpmCrbState) -> usize {
    length(&state.buffer).unwrap_or(0)
}

/// What the reactor calls; it does not keep the chip.
struct Answers(Weak<TpmCrb>);

impl Ready for Answers {
    fn ready(&self, _readiness: Readiness) {
        if let Some(chip) = self.0.upgrade() {
            chip.receive();
        }
    }
}

impl BusDevice for TpmCrb {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            *byte = state.byte(at);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset < BUFFER {
            let mut value = [0; 4];
            for (to, from) in value.iter_mut().zip(data) {
                *to = *from;
            }
            return self.set(offset, u32::from_le_bytes(value));
        }
        let mut state = lock(&self.state);
        let from = usize::try_from(offset - BUFFER).unwrap_or(usize::MAX);
        if !state.busy {
            for (to, from) in state.buffer.iter_mut().skip(from).zip(data) {
                *to = *from;
            }
        }
    }
}

impl Stateful for TpmCrb {
    type State = TpmCrbState;

    fn save(&self) -> TpmCrbState {
        lock(&self.state).clone()
    }

    fn load(&self, state: TpmCrbState) -> Result<(), StateError> {
        if state.buffer.len() != ROOM {
            return Err(TpmCrbState::refused(format!(
                "buffer: {} bytes, and there are {ROOM}",
                state.buffer.len()
            )));
        }
        let busy = state.busy;
        *lock(&self.state) = state;
        // Whoever has the command that was under way does not answer here.
        if busy {
            self.finish(&FAILURE, false);
        }
        Ok(())
    }
}

impl Lifecycle for TpmCrb {
    fn reset(&self) {
        if lock(&self.state).busy {
            self.emulator.cancel();
        }
        // It stops when its command has ended: the response is there before the answer to this.
        let restarted = self.emulator.restart(u32::try_from(ROOM).unwrap_or(0));
        let mut response = lock(&self.response);
        let mut data: &UnixStream = self.emulator.data();
        let mut piece = [0; PIECE];
        // One that stays silent when it is not asked has no more than a response under way.
        for _ in 0..PIECES {
            if !matches!(data.read(&mut piece), Ok(1..)) {
                break;
            }
        }
        response.clear();
        let mut state = TpmCrbState::default();
        match restarted {
            Ok((_, established)) => state.established = established,
            Err(error) => {
                tracing::error!(%error, "the TPM is not there after the reset");
                state.failed = true;
            }
        }
        *lock(&self.state) = state;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
