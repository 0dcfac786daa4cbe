//! What a snapshot keeps of a virtio-serial device and of its ports. The ports are their own to save,
//! and come after it: loading it closes them.

use serde::{Deserialize, Serialize};

use super::MAX_PORTS;
use super::control::{Due, Dues};
use super::device::VirtioConsole;
use super::port::Port;
use crate::state::{SavedState, StateError, Stateful};

/// The device beside its negotiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Whether the driver has said that it is there.
    pub driver_ready: bool,
    /// What it is still to be told.
    pub dues: Vec<DueState>,
}

/// What the driver is still to be told of a port, which may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DueState {
    /// The port's number.
    pub port: u32,
    /// 1 that it went, 2 that it came, 4 that it is a console, 8 its name, 16 whether its other end
    /// is open.
    pub due: u8,
}

impl SavedState for ConsoleState {
    const KIND: &'static str = "virtio-serial";
    const VERSION: u32 = 1;
}

impl Stateful for VirtioConsole {
    type State = ConsoleState;

    fn save(&self) -> ConsoleState {
        let ports = self.ports();
        let due = |port| {
            let due = ports.dues.of(port).bits();
            (due != 0).then_some(DueState { port, due })
        };
        ConsoleState {
            driver_ready: ports.driver_ready,
            dues: (0..MAX_PORTS).filter_map(due).collect(),
        }
    }

    fn load(&self, state: ConsoleState) -> Result<(), StateError> {
        let mut dues = Dues::default();
        for DueState { port, due } in state.dues {
            let known = Due::from_bits(due).filter(|_| port < self.max_ports());
            let known = known.ok_or_else(|| {
                let last = self.max_ports() - 1;
                ConsoleState::refused(format!(
                    "dues: {due:#x} of port {port}; bits are 0x1f, and the last port is {last}"
                ))
            })?;
            dues.add(port, known);
        }
        let mut ports = self.ports();
        ports.driver_ready = state.driver_ready;
        ports.dues = dues;
        Ok(())
    }
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// Whether a program of the guest has it open.
    pub guest_open: bool,
    /// How many bytes of the buffer that is being sent are sent.
    pub sent: usize,
}

impl SavedState for PortState {
    const KIND: &'static str = "virtio-serial-port";
    const VERSION: u32 = 1;
}

impl Stateful for Port {
    type State = PortState;

    fn save(&self) -> PortState {
        let (guest_open, sent) = self.progress();
        PortState { guest_open, sent }
    }

    fn load(&self, state: PortState) -> Result<(), StateError> {
        self.resume_at(state.guest_open, state.sent);
        Ok(())
    }
}
